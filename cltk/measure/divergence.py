"""How far a tuned model's predictions have moved from the start model's, on given rows. Shapes: N positions, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from cltk.data import IGNORED, Collator, Row
from cltk.measure.stats import paired_mean
from cltk.probe import evaluating, length_batches, logits_where
from cltk.ranks import shared


def row_kl(
    start: Any, tuned: Any, rows: Sequence[Row], *, batch_tokens: int = 1024, progress: Callable[[int, int], None] | None = None
) -> list[float]:
    """Forward KL of each row: mean over its counted tokens of sum_v p_start(v) [log p_start(v) - log p_tuned(v)], in nats.

    On new-task prompts it is the quantity that predicts forgetting best across methods (Shenfeld et al. 2025,
    arXiv 2509.04259). Rows are those of `cltk.probe.row_nll`; both models must share the vocabulary. float32.
    """
    values = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    collate, done = Collator(0), 0
    with evaluating(start), evaluating(tuned):
        for batch in length_batches(order, rows, batch_tokens):
            inputs = collate([rows[i] for i in batch])
            targets = inputs.pop("labels")[:, 1:].to(start.device)
            inputs = {name: value.to(start.device) for name, value in inputs.items()}
            (logits, kept), (other, _) = (logits_where(model, inputs, targets) for model in (start, tuned))
            counted = targets[:, kept] != IGNORED
            sums = torch.zeros(counted.shape, dtype=torch.float64, device=counted.device)
            sums[counted] = _kl(logits[counted], other[counted])
            for i, total, n in zip(batch, sums.sum(1).tolist(), counted.sum(1).tolist(), strict=True):
                values[i] = total / n if n else 0.0
            done += len(batch)
            if progress:
                progress(done, len(rows))
    return values


def _kl(start_NV: torch.Tensor, tuned_NV: torch.Tensor, chunk: int = 256) -> torch.Tensor:
    """KL at each position, [N] float64; `chunk` positions at a time, so that memory stays bounded."""
    parts = []
    for p, q in zip(start_NV.split(chunk), tuned_NV.split(chunk), strict=True):
        log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1).double().clamp(min=0))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def distance(start: torch.nn.Module, tuned: torch.nn.Module) -> dict[str, float]:
    """How far the weights went: "l2" = ||tuned - start||_2 over all parameters (tied ones once), "relative" to ||start||_2.

    A weak predictor of forgetting beside the KL divergence on new-task prompts (Shenfeld et al. 2025, arXiv 2509.04259).
    Float64 sums. Raises KeyError when the models' parameters have different names.
    """
    other, moved, size = dict(tuned.named_parameters()), 0.0, 0.0
    with torch.no_grad():
        for name, p in start.named_parameters():
            moved += float((other[name].to(p.device).float() - p.float()).square().sum(dtype=torch.float64))
            size += float(p.float().square().sum(dtype=torch.float64))
    return {"l2": moved**0.5, "relative": (moved / size) ** 0.5 if size else 0.0}


def divergence(
    start: Any, tuned: Any, sets: Mapping[str, Sequence[Row]], limit: int, progress: Any = None
) -> dict[str, dict[str, Any]]:
    """Forward KL(start || tuned) of `limit` evenly spread rows of each set: mean, standard error, 95 % interval, n."""
    done = {}
    for name, rows in sets.items():
        some = rows if limit >= len(rows) else [rows[i * len(rows) // limit] for i in range(limit)]
        tell = (lambda a, b, name=name: progress(f"KL on {name}", a, b, 0)) if progress else None
        estimate = paired_mean(shared(partial(row_kl, start, tuned, progress=tell), some))
        done[name] = {"kl": estimate.mean, "se": estimate.se, "ci": list(estimate.ci), "n": len(some)}
    return done
