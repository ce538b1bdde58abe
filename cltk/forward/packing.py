"""Packed training rows and a head that runs only where a label is: the same loss as padded rows, without the padding.

Both are switched on by `cltk run` where `packing_error` and `head_error` prove them exact, and work with any Trainer:

    trainer = Trainer(..., data_collator=PackedCollator(pad_id))
    with label_head(trainer.model):
        trainer.train()

Shapes: B sequences, R packed rows, L tokens of a row, N positions that predict a counted label, H hidden, V vocabulary.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cltk.data.readers import Row
from cltk.data.rows import IGNORED
from cltk.errors import InputError
from cltk.forward.loss import causal_lm_loss


def place(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Indices of the sequences in each of at most `count` rows: longest first, each into the emptiest row."""
    rows: list[list[int]] = [[] for _ in range(min(count, len(lengths)))]
    fill = [(0, at) for at in range(len(rows))]  # a heap: the emptiest first, of equal ones the earliest
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        tokens, at = fill[0]
        rows[at].append(i)
        heapq.heapreplace(fill, (tokens + lengths[i], at))
    return rows


def arrange(lengths: Sequence[int], max_tokens: int, width: int | None) -> list[list[int]]:
    """`place` with the number of rows R that costs least: R L (L + 6 width), for attention and for the matrices of a layer;
    R L without width.

    No row is longer than `max_tokens`, unless a single sequence is. With R = B this is what padding does.
    """
    bound = max(max_tokens, *lengths)
    best: tuple[float, list[list[int]]] | None = None
    for count in row_counts(-(-sum(lengths) // bound), len(lengths)):
        rows = place(lengths, count)
        longest = max(sum(lengths[i] for i in row) for row in rows)
        cost = count * longest * (1.0 if width is None else longest + 6.0 * width)
        if longest <= bound and (best is None or cost < best[0]):
            best = cost, rows
    assert best is not None  # R = B always fits
    return best[1]


def row_counts(fewest: int, most: int) -> list[int]:
    """Numbers of rows worth trying: all up to 32 of them, then each a 16th more than the last, and `most`."""
    counts = [fewest]
    while counts[-1] < most:
        step = 1 if most - fewest < 32 else max(1, counts[-1] // 16)
        counts.append(min(most, counts[-1] + step))
    return counts


class PackedCollator:
    """Lays the B rows of a micro-batch end to end in few rows: input_ids, position_ids, labels [R, L]; no attention_mask.

    Positions restart at every sequence, from which transformers (without cache and mask) makes block-diagonal causal
    attention. The first label of a sequence is -100: nothing of its own predicts it. The rest of a row is one more
    sequence, without labels. Counted tokens, and so `num_items_in_batch` and the loss, are those of the padded batch (of
    GPT-2, whose first tokens Trainer counts though nothing predicts them, only where padded rows have -100 there too).

    Args:
        pad_id: fills the rest of a row.
        max_tokens: the longest row, unless one sequence is longer.
        width: the model's hidden size, which sets what attention costs beside the rest, R L^2 (see `arrange`); None where
            it costs the sequences alone (`cltk.forward.attention`).

    Raises:
        InputError: max_tokens or width below 1; when called, a row without tokens.

    Source: Krell et al. 2021 (arXiv 2107.02027).
    """

    def __init__(self, pad_id: int, max_tokens: int = 512, width: int | None = 512) -> None:
        if max_tokens < 1 or (width is not None and width < 1):
            raise InputError(f"PackedCollator: max_tokens and width must be at least 1, got {max_tokens} and {width}")
        self.pad_id, self.max_tokens, self.width = pad_id, max_tokens, width

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        lengths = [len(row["input_ids"]) for row in rows]
        if 0 in lengths:
            raise InputError(f"PackedCollator: row {lengths.index(0)} of the batch has no tokens; drop it")
        return pack(rows, arrange(lengths, self.max_tokens, self.width), self.pad_id)


def pack(rows: Sequence[Row], layout: Sequence[Sequence[int]], pad_id: int) -> dict[str, Any]:
    """The packed batch of `rows` whose sequences stand as `layout` says."""
    longest = max(sum(len(rows[i]["input_ids"]) for i in line) for line in layout)
    ids = torch.full((len(layout), longest), pad_id)
    positions = torch.zeros((len(layout), longest), dtype=torch.long)
    labels = torch.full((len(layout), longest), IGNORED)
    for r, line in enumerate(layout):
        at = 0
        for i in line:
            tokens, targets = rows[i]["input_ids"], rows[i].get("labels")
            end = at + len(tokens)
            ids[r, at:end] = torch.as_tensor(tokens)
            positions[r, at:end] = torch.arange(end - at)
            labels[r, at + 1 : end] = torch.as_tensor(tokens if targets is None else targets)[1:]
            at = end
        positions[r, at:] = torch.arange(longest - at)
    # a cache would hide from transformers that positions restart, and sequences would see each other
    return {"input_ids": ids, "position_ids": positions, "labels": labels, "use_cache": False}


def collate_training(trainer: Any, collator: Callable[[Sequence[Row]], dict[str, Any]]) -> None:
    """`collator` makes the training batches of this trainer; evaluation keeps the trainer's own."""
    make = trainer.get_train_dataloader

    def loader() -> Any:
        own, trainer.data_collator = trainer.data_collator, collator
        try:
            return make()
        finally:
            trainer.data_collator = own

    trainer.get_train_dataloader = loader


def predicting(labels: Tensor) -> Tensor:
    """Positions [B, T] whose next label counts."""
    return F.pad(labels[:, 1:] != IGNORED, (0, 1))


@contextmanager
def label_head(model: nn.Module, *, always: bool = False) -> Iterator[None]:
    """Inside, `model(..., labels=labels)` runs the output head only on the N positions that predict a counted label.

    The model's own loss is then taken over logits [1, N, V] and `shift_labels` [1, N]: the same sum over the same tokens,
    whatever the model does to logits one position at a time, by `cltk.forward.loss.cross_entropy` where the model's loss is
    transformers' ForCausalLMLoss. Only in training (`always`: in eval mode too), so that evaluation and passes without
    labels see all logits. Other hooks and direct calls of the head work as before.

    Raises:
        InputError: the model has no decoder and output head of its own.
    """
    decoder, head = _parts(model)
    where: list[Tensor] = []  # set by the model's forward, used by the head's
    armed: list[Tensor] = []
    calls: list[nn.Module] = []  # of the decoder, that run

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        where.clear()
        armed.clear()
        calls.clear()
        labels = kwargs.get("labels")
        active = always or (module.training and torch.is_grad_enabled())
        if labels is None or kwargs.get("shift_labels") is not None or not active:
            return None
        where.append(predicting(labels))
        return args, {**kwargs, "shift_labels": labels[:, 1:][where[0][:, :-1]][None]}

    def decoding(module: nn.Module, _: Any) -> None:
        calls.append(module)

    def decoded(*_: Any) -> None:
        if calls:
            calls.pop()
        if not calls:  # only now: hooks of the decoder may call it again, and the head for all positions
            armed.extend(where)
            where.clear()

    def select(module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not armed:
            return None
        hidden_BTH = args[0]
        return (hidden_BTH[armed.pop()][None], *args[1:])

    handles = [
        model.register_forward_pre_hook(begin, with_kwargs=True),
        decoder.register_forward_pre_hook(decoding),
        decoder.register_forward_hook(decoded),
        head.register_forward_pre_hook(select),
    ]
    try:
        with _narrow_loss(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _narrow_loss(model: Any) -> Iterator[None]:
    from transformers.loss.loss_utils import ForCausalLMLoss

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(base, "loss_function", None) is not ForCausalLMLoss:
        yield
        return
    before = vars(base).get("_loss_function")
    base.loss_function = causal_lm_loss
    try:
        yield
    finally:
        del base._loss_function
        vars(base).update({} if before is None else {"_loss_function": before})


def _parts(model: Any) -> tuple[nn.Module, nn.Module]:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if decoder is None or decoder is model or head is None:
        raise InputError(f"{type(model).__name__}: no decoder and output head that can be called apart")
    return decoder, head
