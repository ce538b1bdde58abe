"""The mean token NLL of each row under a model: cheap enough to ask during training.

Shapes: B rows, T tokens, N counted positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cltk import tensors
from cltk.data.readers import Row
from cltk.data.rows import IGNORED, Collator
from cltk.forward import products
from cltk.ranks import ranks, shared

NLL_TOKENS = 2048  # of a batch


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, the weights' own precision, fast products and no gradients inside; every module's mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # not inference_mode: FSDP would keep inference tensors as its buffers and break in training
        with torch.no_grad(), tensors.own_precision(model), products.fast(model):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        tensors.reshard(model)


def row_nll(
    model: nn.Module, rows: Sequence[Row], *, batch_tokens: int = NLL_TOKENS, progress: Callable[[int, int], None] | None = None
) -> tuple[list[float], list[int]]:
    """Mean NLL (nats per counted token) and number of counted tokens of each row, in the order given.

    A row is {"input_ids", "labels"?}; labels of -100 are not counted, without labels every predicted token counts.
    Rows are sorted by length and padded into batches of at most `batch_tokens` tokens; logits exist only where a
    label is counted in some row of the batch, log-softmax is float32.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    nll, counts = [0.0] * len(rows), [0] * len(rows)
    done = 0
    with evaluating(model):
        for batch in length_batches(order, rows, batch_tokens):
            sums, counted = _batch_nll(model, [rows[i] for i in batch])
            for i, total, n in zip(batch, sums, counted, strict=True):
                nll[i], counts[i] = (total / n if n else 0.0), n
            done += len(batch)
            if progress:
                progress(done, len(rows))
    return nll, counts


def by_ranks(
    work: Callable[[Sequence[Row], Callable[[int, int], None] | None], Sequence[float]],
    rows: Sequence[Row],
    batch_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """`work(rows, progress)`, a value a row, its batches of at most `batch_tokens` tokens shared by the ranks.

    The batches are those of one process, so that the values are, to the last bit. Every rank must call it.
    """
    if ranks()[1] == 1:
        return list(work(rows, progress))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    batches = list(length_batches(order, rows, batch_tokens))
    found = shared(lambda some: [list(work([rows[i] for i in batch], None)) for batch in some], batches)
    if progress:
        progress(len(rows), len(rows))
    values = {i: value for batch, answers in zip(batches, found, strict=True) for i, value in zip(batch, answers, strict=True)}
    return [values[i] for i in range(len(rows))]


def mean_nll(model: nn.Module, rows: Sequence[Row], *, batch_tokens: int = 2048) -> float:
    """Mean of `row_nll` over rows: every document weighs the same."""
    values, _ = row_nll(model, rows, batch_tokens=batch_tokens)
    return sum(values) / len(values)


def length_batches(order: Sequence[int], rows: Sequence[Row], budget: int) -> Iterator[list[int]]:
    """Batches of indices; `order` has ascending lengths, a padded batch has at most `budget` tokens."""
    batch: list[int] = []
    for i in order:  # ascending lengths: the newest is the longest
        if batch and (len(batch) + 1) * len(rows[i]["input_ids"]) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _batch_nll(model: nn.Module, rows: Sequence[Row]) -> tuple[list[float], list[int]]:
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in Collator(0)(rows).items()}
    targets = inputs.pop("labels")[:, 1:]
    logits, kept = logits_where(model, inputs, targets)
    targets = targets[:, kept]
    counted = targets != IGNORED
    chosen = torch.nn.functional.cross_entropy(logits[counted].float(), targets[counted], reduction="none")
    sums = torch.zeros(targets.shape, dtype=torch.float64, device=device)
    sums[counted] = chosen.double()
    return sums.sum(1).tolist(), counted.sum(1).tolist()


def logits_where(model: nn.Module, inputs: dict[str, Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K, V] at the K positions that some row counts, and those positions [K] (they predict targets[:, kept])."""
    kept = (targets != IGNORED).any(0).nonzero().squeeze(1)
    if takes_logits_to_keep(model):
        return model(**inputs, use_cache=False, logits_to_keep=kept).logits, kept
    return model(**inputs, use_cache=False).logits[:, kept], kept


def takes_logits_to_keep(model: Any) -> bool:
    """Whether the model's forward can be told which positions need logits."""
    inner = getattr(model, "module", model)
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
