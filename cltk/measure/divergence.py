"""How far a tuned model's predictions have moved from the start model's, on given rows. Shapes: N positions, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cltk.data.readers import Row
from cltk.data.rows import IGNORED, Collator
from cltk.errors import InputError
from cltk.forward.probe import by_ranks, evaluating, length_batches, logits_where
from cltk.measure.stats import paired_mean
from cltk.measure.texts import TextTask, check_ids, token_rows
from cltk.measure.windows import by_windows, counted, positions

KL_TOKENS = 1024  # of a batch


def row_kl(
    start: Any,
    tuned: Any,
    rows: Sequence[Row],
    *,
    batch_tokens: int = KL_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Forward KL of each row: mean over its counted tokens of sum_v p_start(v) [log p_start(v) - log p_tuned(v)], in nats.

    On new-task prompts it is the quantity that predicts forgetting best across methods (Shenfeld et al. 2025,
    arXiv 2509.04259). Rows are those of `cltk.forward.probe.row_nll`. float32. Of models with vocabularies of other sizes
    (tokens were added, the embedding padded) it is the divergence over the ids that both have, each p summing to 1 over these.
    """
    values = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    collate, done = Collator(0), 0
    with evaluating(start), evaluating(tuned):
        for batch in length_batches(order, rows, batch_tokens):
            inputs = collate([rows[i] for i in batch])
            targets = inputs.pop("labels")[:, 1:]
            kept = (targets != IGNORED).any(0).nonzero().squeeze(1)
            mask = targets[:, kept] != IGNORED
            logits, other = (_counted_logits(model, inputs, targets, mask) for model in (start, tuned))
            sums = torch.zeros(mask.shape, dtype=torch.float64)
            sums[mask] = _kl(logits, other.to(logits.device)).cpu()
            for i, total, n in zip(batch, sums.sum(1).tolist(), mask.sum(1).tolist(), strict=True):
                values[i] = total / n if n else 0.0
            done += len(batch)
            if progress:
                progress(done, len(rows))
    return values


def _told_kl(start: Any, tuned: Any, rows: Sequence[Row], progress: Callable[[int, int], None] | None) -> list[float]:
    return row_kl(start, tuned, rows, progress=progress)


def _counted_logits(model: Any, inputs: dict[str, Tensor], targets: Tensor, mask: Tensor) -> Tensor:
    """Logits [N, V] that predict the counted targets, on the model's own device."""
    device = next(model.parameters()).device
    logits, _ = logits_where(model, {name: value.to(device) for name, value in inputs.items()}, targets.to(device))
    return logits[mask.to(device)]


def _kl(start_NV: Tensor, tuned_NV: Tensor, chunk: int = 256) -> Tensor:
    """KL at each position over the ids that both have, [N] float64; `chunk` positions at a time, to bound memory."""
    parts, shared_ids = [], min(start_NV.shape[-1], tuned_NV.shape[-1])
    start_NV, tuned_NV = start_NV[:, :shared_ids], tuned_NV[:, :shared_ids]
    for p, q in zip(start_NV.split(chunk), tuned_NV.split(chunk), strict=True):
        log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
        terms = (log_p.exp() * (log_p - log_q)).masked_fill(
            log_p == -math.inf, 0.0
        )  # 0 log 0 = 0: ids that a model never gives
        parts.append(terms.sum(-1).double().clamp(min=0))
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
    start: Any,
    tuned: Any,
    sets: Mapping[str, Sequence[Row]],
    limit: int,
    progress: Any = None,
    clusters: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Forward KL(start || tuned) of `limit` evenly spread rows of each set: mean, standard error, 95 % interval, n.

    Rows longer than the models' positions are read by windows; the standard error is by cluster where there are labels. What
    has no standard error (one row, one cluster) has None there, so that it is plain JSON. Then a line for each set without:
    the tuned model gives no probability to what the start model may say, and KL is infinite.
    """
    done, notes = {}, []
    size = min(positions(model) for model in (start, tuned))
    for name, rows in sets.items():
        places = [i for i, row in enumerate(rows) if counted(row)]
        if limit < len(places):
            places = [places[i * len(places) // limit] for i in range(limit)]
        if not places:
            continue
        tell = (lambda a, b, name=name: progress(f"KL on {name}", a, b, 0)) if progress else None
        score = partial(by_ranks, partial(_told_kl, start, tuned), batch_tokens=KL_TOKENS, progress=tell)
        labels = (clusters or {}).get(name) or []
        values = by_windows([rows[i] for i in places], size, score)
        if infinite := sum(not math.isfinite(value) for value in values):
            notes.append(f"{name}: KL is left out: {infinite} of {len(places)} rows have no finite one (excluded tokens)")
            continue
        estimate = paired_mean(values, [labels[i] for i in places] if labels else None)
        known = [x if math.isfinite(x) else None for x in (estimate.se, *estimate.ci)]
        done[name] = {"kl": estimate.mean, "se": known[0], "ci": known[1:], "n": len(places)}
    return done, notes


def text_divergence(
    start: tuple[Any, Any], tuned: tuple[Any, Any], texts: Sequence[TextTask], limit: int, progress: Any = None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """`divergence` of two pairs (model, tokenizer) on each text, and a line for each text where there is none or a part.

    Tokenisers that cut a text differently leave nothing to compare token by token.
    """
    found: dict[str, dict[str, Any]] = {}
    notes = []
    sizes = [_vocabulary(model) for model, _ in (start, tuned)]
    for text in texts:
        rows = token_rows(text, start[1])
        try:
            if rows != token_rows(text, tuned[1]):
                raise InputError("the two tokenisers cut the text differently")
            check_ids(text.name, rows, tuned[0])
            one, lines = divergence(start[0], tuned[0], {text.name: rows}, limit, progress, {text.name: text.labels()})
            found |= one
            notes += lines
        except InputError as error:
            notes.append(f"{text.name}: KL is left out: {error}")
        except torch.OutOfMemoryError:
            notes.append(f"{text.name}: KL is left out: the device has not the memory for both models' predictions")
    if found and sizes[0] != sizes[1]:
        notes.append(f"KL is over the ids that both vocabularies have, of {sizes[0]} and {sizes[1]}")
    return found, notes


def _vocabulary(model: Any) -> int:
    """Ids that the model gives a logit."""
    return int(model.get_output_embeddings().weight.shape[0])
