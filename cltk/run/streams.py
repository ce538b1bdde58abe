"""Rows to train on that are read while they are trained on: `data.train: {path: ..., streaming: true}`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from cltk.data.readers import Row
from cltk.errors import InputError

WINDOW = 1_000  # rows that are shuffled together
LOOKED = 256  # rows by which lengths are told


class Stream(IterableDataset[Row]):
    """Token rows without an end: one pass over the set after the other, each shuffled through a window of its own order.

    The order follows from the seed alone, so that a resumed training goes on where it was; it skips what it had read. A pass
    that ends does not end the training, nor a resumed one. Data loader workers share the rows.

    Args:
        rows: begins a pass.
        seed: of the order.
    """

    def __init__(self, rows: Callable[[], Iterable[Row]], seed: int = 0) -> None:
        self.rows, self.seed = rows, seed

    def seeded(self, seed: int) -> Stream:
        """The same rows in another order."""
        return Stream(self.rows, seed)

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        return self._endless() if worker is None else islice(self._endless(), worker.id, None, worker.num_workers)

    def _endless(self) -> Iterator[Row]:
        for turn in count():
            row = None
            for row in shuffled(self.rows(), WINDOW, random.Random(f"{self.seed} {turn}")):
                yield row
            if row is None:
                raise InputError("data.train: the stream has no row to train on")

    def first(self, size: int = LOOKED) -> list[Row]:
        """The first rows of a pass."""
        return list(islice(self.rows(), size))

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each of the first `LOOKED` rows."""
        return np.asarray([len(row["input_ids"]) for row in self.first()], np.int64)


def shuffled(rows: Iterable[Row], window: int, rng: random.Random) -> Iterator[Row]:
    """A row that is drawn from the window goes out, and the next of `rows` takes its place; then what is left, at random."""
    held: list[Row] = []
    for row in rows:
        if len(held) < window:
            held.append(row)
            continue
        at = rng.randrange(window)
        out, held[at] = held[at], row
        yield out
    rng.shuffle(held)
    yield from held
