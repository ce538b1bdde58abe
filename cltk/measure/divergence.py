"""How far a tuned model's predictions have moved from the start model's, on given rows. Shapes: N positions, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cltk.data.readers import Row
from cltk.errors import InputError
from cltk.forward.probe import by_ranks
from cltk.measure.remembered import KL_TOKENS, Remembered, counted_batches, in_use, predictions, vocabulary
from cltk.measure.stats import paired_mean
from cltk.measure.texts import TextTask, check_ids, token_rows
from cltk.measure.windows import WINDOW, by_windows, counted, positions, windows


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
    values, done = [0.0] * len(rows), 0
    with in_use(start), in_use(tuned):
        for batch, inputs, targets, mask in counted_batches(rows, batch_tokens):
            logits, other = (predictions(model, inputs, targets, mask) for model in (start, tuned))
            sums = torch.zeros(mask.shape, dtype=torch.float64)
            sums[mask] = _kl(logits.to(other.device), other).cpu()
            for i, total, n in zip(batch, sums.sum(1).tolist(), mask.sum(1).tolist(), strict=True):
                values[i] = total / n if n else 0.0
            done += len(batch)
            if progress:
                progress(done, len(rows))
    return values


def _told_kl(start: Any, tuned: Any, rows: Sequence[Row], progress: Callable[[int, int], None] | None) -> list[float]:
    return row_kl(start, tuned, rows, progress=progress)


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
        places = chosen(rows, limit)
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


def chosen(rows: Sequence[Row], limit: int) -> list[int]:
    """At most `limit` evenly spread rows of those with a token that counts."""
    places = [i for i, row in enumerate(rows) if counted(row)]
    return [places[i * len(places) // limit] for i in range(limit)] if limit < len(places) else places


def remember(
    pair: tuple[Any, Any], texts: Sequence[TextTask], limit: int, sizes: Sequence[int], progress: Any = None
) -> Remembered:
    """What `text_divergence` will ask of this model, kept, so that the tuned ones are compared without it.

    Args:
        sizes: the positions that each tuned model reads at once, where they are fewer than this one's.
    """
    model, tokenizer = pair
    kept = Remembered(model)
    for text in texts:
        rows = token_rows(text, tokenizer)
        tell = (lambda a, b, name=text.name: progress(f"base: predictions on {name}", a, b, 0)) if progress else None
        try:
            for size in sorted({min(positions(model), size) for size in [*sizes, WINDOW]}):
                kept.show(model, [part for i in chosen(rows, limit) for part in windows(rows[i], size)], tell)
        except InputError as error:
            kept.left[text.name] = str(error)
        except torch.OutOfMemoryError:
            kept.left[text.name] = "the device has not the memory for the base's predictions"
    return kept


def text_divergence(
    start: tuple[Any, Any], tuned: tuple[Any, Any], texts: Sequence[TextTask], limit: int, progress: Any = None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """`divergence` of two pairs (model, tokenizer) on each text, and a line for each text where there is none or a part.

    Tokenisers that cut a text differently leave nothing to compare token by token. The start model may be `Remembered`.
    """
    found: dict[str, dict[str, Any]] = {}
    notes = []
    sizes, lost = [vocabulary(model) for model, _ in (start, tuned)], start[0].left if isinstance(start[0], Remembered) else {}
    for text in texts:
        rows = token_rows(text, start[1])
        try:
            if text.name in lost:
                raise InputError(lost[text.name])
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
