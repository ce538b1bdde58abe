"""A memory of old data: which rows belong to which step, and a model's losses and gradients on them.

Shapes: B rows, T tokens, N positions that count, K columns in which some row counts, V vocabulary.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cltk import tensors
from cltk.data.memories import memory_view
from cltk.data.opening import reading
from cltk.data.readers import Row
from cltk.data.rows import IGNORED, Collator, attended
from cltk.data.tables import Table
from cltk.errors import InputError
from cltk.forward.causal import check_causal
from cltk.forward.positions import check_length
from cltk.forward.probe import takes_logits_to_keep
from cltk.mitigate.interface import Plan, Run, counted, targets
from cltk.ranks import ranks

Batch = dict[str, Tensor]


def check_number(where: str, value: Any, low: float = 0.0) -> None:
    """Raises InputError unless `value` is a finite number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < math.inf:
        raise InputError(f"{where}: must be a finite number of at least {low:g}, got {value!r}")


def check_memory(name: str, memory: Any) -> None:
    """Early: raises InputError when there is no memory, an empty list of it, or a mapping that does not say how to read one."""
    if memory is None or (isinstance(memory, Sequence) and not len(memory)):
        raise InputError(f"{name}.memory: is empty; give old-domain text, as a path, texts or token rows")
    reading(memory, f"{name}.memory")


def labelled(row: Row, padding: bool = False) -> Row:
    """Input ids and labels as lists; where masks say what counts (TRL), labels of those; else every token counts.

    Padding (an attention_mask of 0) is no text: it is left out, or, with `padding`, stays in its place and does not count.
    """
    ids, labels = list(map(int, row["input_ids"])), row.get("labels")
    masks = [row[name] for name in ("completion_mask", "assistant_masks") if row.get(name) is not None]
    if labels is None:
        labels = [token if all(marks) else IGNORED for token, *marks in zip(ids, *masks, strict=True)]
    seen = attended(row, len(ids))
    if padding:
        text = set(seen)
        return {"input_ids": ids, "labels": [int(label) if i in text else IGNORED for i, label in enumerate(labels)]}
    return {"input_ids": [ids[i] for i in seen], "labels": [int(labels[i]) for i in seen]}


def probe_rows(rows: Any, limit: int | None, name: str) -> list[Row]:
    """The first `limit` validation rows, as lists with labels.

    Raises:
        InputError: there are none, they are a mapping of several sets, or not tokenised.
    """
    if rows is None or not hasattr(rows, "__len__") or len(rows) == 0:
        raise InputError(f"{name}: no validation rows; give the trainer an eval_dataset with a length or pass rows")
    if isinstance(rows, Mapping):
        raise InputError(f"{name}: eval_dataset holds several sets ({', '.join(map(str, rows))}); pass the rows of one of them")
    if not isinstance(rows[0], Mapping) or "input_ids" not in rows[0]:
        raise InputError(f"{name}: the validation rows are not tokenised (no input_ids); pass token rows")
    return [labelled(rows[i]) for i in range(min(len(rows), limit or len(rows)))]


def old_rows(name: str, memory: Any, plan: Plan, block: int = 256, limit: int | None = None) -> Sequence[Row]:
    """`cltk.data.memories.memory_view` of the plan's tokenizer, no longer than its model can read.

    Raises:
        InputError: as there; a row is longer than the model's table of positions (names the method).
    """
    rows = memory_view(memory, plan.tokenizer, block, limit)
    check_length(plan.model, rows, f"{name}, old data", "give shorter blocks (length or block) or shorter rows")
    return rows


class Counted(Sequence[Row]):
    """Those rows in which some token counts, `labelled` when they are asked for; every row is looked at once."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        if isinstance(rows, Table):
            self.kept = array("q", rows.counted().nonzero()[0].tobytes())
        else:
            self.kept = array("q", (i for i, row in enumerate(rows) if any(x != IGNORED for x in labelled(row)["labels"][1:])))

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [labelled(self.rows[i]) for i in self.kept[index]]
        return labelled(self.rows[self.kept[index]])


class MemoryBatches:
    """Rows of the memory for every step and rank, without state: the same after a resume, each row equally often.

    The rows stand in one endless order, a new permutation (of seed and round) whenever all were used; rank r of W takes
    the places (step W + r) size, ... , + size - 1 of it.

    Args:
        rows: token rows {"input_ids", "labels"?}; those in which no token counts are left out. Read when they are drawn.
        size: rows of a batch.
        seed: of the permutations.

    Raises:
        InputError: no row has a token that counts, or size is below 1.
    """

    def __init__(self, rows: Sequence[Row], size: int, seed: int = 0) -> None:
        self.rows = Counted(rows)
        if not len(self.rows):
            raise InputError("memory: no row has a token to predict; give longer text")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"memory: batch_size must be a whole number of at least 1, got {size!r}")
        self.size, self.seed = size, seed
        self.collate = Collator(0)
        self.orders: dict[int, list[int]] = {}  # of the running turns

    def indices(self, step: int, rank: int = 0, world: int = 1) -> list[int]:
        """Which rows make this rank's batch of this step."""
        first = (step * world + rank) * self.size
        places = [divmod(place, len(self.rows)) for place in range(first, first + self.size)]
        turns = {turn for turn, _ in places}
        self.orders = {turn: self.orders.get(turn) or self._order(turn) for turn in turns}  # a turn lasts many steps
        return [self.orders[turn][place] for turn, place in places]

    def at(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The padded batch: input_ids, attention_mask, labels, all [B, T]."""
        return self.collate([self.rows[i] for i in self.indices(step, rank, world)])

    def of(self, run: Run) -> Batch:
        """The batch of the running step and rank, on the model's device."""
        device = tensors.local(next(run.model.parameters())).device
        return {name: value.to(device) for name, value in self.at(run.step, *ranks()).items()}

    def chosen(self, run: Run) -> list[int]:
        """Which rows make the batch `of(run)`."""
        return self.indices(run.step, *ranks())

    def _order(self, turn: int) -> list[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + turn) % 2**63)
        return torch.randperm(len(self.rows), generator=generator).tolist()


def memory_batches(name: str, memory: Any, plan: Plan, batch_size: int | None, length: int, seed: int) -> MemoryBatches:
    """Batches of `memory` (see `cltk.data.memory_rows`); the trainer's batch size of one device where none is given.

    Raises:
        InputError: the model cannot take next-token losses (names the method), or the memory has no row to predict.
    """
    check_causal(plan.model, name)
    size = plan.args.per_device_train_batch_size if batch_size is None else batch_size
    return MemoryBatches(old_rows(name, memory, plan, length), size, seed)


def forward_logits(forward: Any, batch: Batch, where_BT: Tensor) -> Tensor:
    """Logits [N, V] at the positions `where_BT`, through the (wrapped) model's own forward: safe under DDP and FSDP."""
    kept_K = where_BT.any(0).nonzero().squeeze(1)
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    if takes_logits_to_keep(forward):
        logits_BKV = forward(**given, logits_to_keep=kept_K).logits
    else:
        logits_BKV = forward(**given).logits[:, kept_K]
    return logits_BKV[where_BT[:, kept_K]]


def token_losses(forward: Any, batch: Batch) -> Tensor:
    """The negative log-likelihood [N] in nats of the batch's counted tokens, float32."""
    logits_NV = forward_logits(forward, batch, counted(batch))
    return F.cross_entropy(logits_NV.float(), targets(batch), reduction="none")


def add_gradient(run: Run, loss: Callable[[], Tensor]) -> float:
    """p.grad += d loss() / d p, in place and without a copy of the gradients; the value of the loss.

    Parameters that have no gradient in this step keep none. All ranks must call it; the gradient is the mean over ranks.
    """
    parameters = [parameter for _, parameter in tensors.trainable(run.model)]
    idle = [parameter for parameter in parameters if parameter.grad is None]
    _multiply(parameters, run.scale)  # a power of 2: exact
    with torch.enable_grad():
        value = loss()
        (value * run.scale).backward()
    for parameter in idle:
        parameter.grad = None
    _multiply(parameters, 1 / run.scale)
    return value.item()


def _multiply(parameters: Sequence[Tensor], factor: float) -> None:
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if factor != 1 and grads:
        torch._foreach_mul_(grads, factor)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside; every module's mode and every parameter's requires_grad as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    needed = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad in needed.items():
            parameter.requires_grad_(requires_grad)
