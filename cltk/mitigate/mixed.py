"""Old rows among the rows to train on, in their columns: behind them, or between those of a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from cltk.data.readers import Row
from cltk.data.rows import IGNORED
from cltk.data.tables import lengths
from cltk.errors import InputError
from cltk.mitigate.memory import labelled


class Mixed:
    """New rows, then `count` old rows (the memory in turn); the trainer shuffles. Old rows take the new rows' columns.

    Old rows that say what counts (labels, or the masks of TRL) keep it; in others every token counts. Columns that only the
    new rows have and that no model reads are left out of both.

    Args:
        reads: whether the trainer's collator gets a column of this name.

    Raises:
        InputError: a column of the new rows that old rows lack and that cannot be told from their tokens.
    """

    def __init__(
        self, new: Any, old: Sequence[Row], count: int, name: str = "replay", reads: Callable[[str], bool] = lambda _: True
    ) -> None:
        self.new, self.old, self.count = new, old, count
        first = new[0]
        self.columns = [
            column for column, value in first.items() if column in _COLUMNS or (reads(column) and not isinstance(value, str))
        ]
        for column in self.columns:
            if column not in _COLUMNS and column not in old[0]:
                raise InputError(
                    f"{name}: the training rows have a column {column!r} that old rows lack; remove the column, or"
                    " give a memory of rows that have it"
                )
        self.like = {column: first[column] for column in self.columns}

    def __len__(self) -> int:
        return len(self.new) + self.count

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        old = [len(self.old[i % len(self.old)]["input_ids"]) for i in range(self.count)]
        return np.concatenate([lengths(self.new), np.asarray(old, np.int64)])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.new):
            row = self.new[index]
            return {name: row[name] for name in self.columns}
        if index >= len(self):
            raise IndexError(index)  # what ends an iteration
        given = self.old[(index - len(self.new)) % len(self.old)]
        row = labelled(given, padding=True)  # a collator that pads nothing takes rows of one length
        own = {"attention_mask"} & given.keys()
        return {
            name: _as(
                like, given[name] if name in own or name not in _COLUMNS else _COLUMNS[name](row["input_ids"], row["labels"])
            )
            for name, like in self.like.items()
        }


def _as(like: Any, value: Any) -> Any:
    """`value` as a tensor or array where the new rows' are (datasets' set_format)."""
    if isinstance(like, Tensor):
        return torch.as_tensor(value, dtype=like.dtype)
    return np.asarray(value, dtype=like.dtype) if isinstance(like, np.ndarray | np.generic) else value


def _marks(ids: list[int], labels: list[int]) -> list[int]:
    return [int(label != IGNORED) for label in labels]


_COLUMNS: dict[str, Callable[[list[int], list[int]], Any]] = {  # how a column of a token row looks, from its ids and labels
    "input_ids": lambda ids, labels: ids,
    "labels": lambda ids, labels: labels,
    "attention_mask": lambda ids, labels: [1] * len(ids),
    "token_type_ids": lambda ids, labels: [0] * len(ids),
    "position_ids": lambda ids, labels: list(range(len(ids))),
    "completion_mask": _marks,
    "assistant_masks": _marks,
    "length": lambda ids, labels: len(ids),
    "seq_lengths": lambda ids, labels: [len(ids)],
}


def is_stream(data: Any) -> bool:
    """Whether rows come one after the other and are not counted (torch's or datasets' IterableDataset)."""
    return isinstance(data, IterableDataset) and not hasattr(data, "__len__")


class MixedStream(IterableDataset[Row]):
    """New rows as they come, and old ones between them (the memory in turn): after n new rows floor(n p / (1 - p)) old ones."""

    def __init__(self, new: Any, old: Sequence[Row], fraction: float, name: str, reads: Callable[[str], bool]) -> None:
        first = next(iter(new), None)
        if first is None or "input_ids" not in first:
            raise InputError(f"{name}: the trainer's data must hold tokenised rows with input_ids")
        self.new, self.fraction, self.size = new, fraction, len(old)
        self.rows = Mixed([first], old, len(old), name, reads)  # old rows in the columns of new ones

    def set_epoch(self, epoch: int) -> None:
        """What the trainer says before each pass, to the new rows, which may be shuffled by it."""
        if hasattr(self.new, "set_epoch"):
            self.new.set_epoch(epoch)

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        at, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        old = 0
        for new, row in enumerate(self.new, 1):
            yield {name: row[name] for name in self.rows.columns}
            while (old + 1) * (1 - self.fraction) <= new * self.fraction:
                yield self.rows[1 + (at + old * step) % self.size]
                old += 1
