"""Reservoir: a memory filled from the stream of training rows itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cltk.data.readers import Row
from cltk.errors import InputError, RunError
from cltk.mitigate.interface import Mitigator, Plan, Run
from cltk.mitigate.memory import check_memory, labelled, old_rows
from cltk.mitigate.mixed import Mixed
from cltk.mitigate.replay import check_data, mix


def algorithm_r(kept: Sequence[Any], seen: int, rows: Sequence[Any], size: int, seed: int) -> tuple[list[Any], int]:
    """Reservoir sampling: after every row, each row seen so far is kept with probability min(1, size / seen).

    The first `size` rows are taken. The n-th after them replaces a random one of the kept with probability size / n.

    Args:
        kept, seen: the memory so far, and how many rows it was drawn from.
        rows: what comes next in the stream.
        size: rows of the memory.
        seed: with `seen` it decides the draws, so that the same stream in the same pieces gives the same memory.

    Returns:
        The new memory and the new `seen`.

    Source: Vitter 1985 (doi 10.1145/3147.3165), algorithm R.
    """
    kept = list(kept)
    places = np.random.default_rng([seed, seen]).integers(0, seen + 1 + np.arange(len(rows)))
    for row, place in zip(rows, places.tolist(), strict=True):
        if len(kept) < size:
            kept.append(row)
        elif place < size:
            kept[place] = row
    return kept, seen + len(rows)


class Reservoir(Mitigator):
    """Replay for a stream of trainings: a memory of `size` rows, a uniform sample of all new rows of earlier trainings.

    When a training ends its new rows run through algorithm R. The next training with the same object replays the memory
    as `Replay` does, with probability `fraction`. In the first training there is nothing to replay, unless `memory` is
    given: rows that stand before the stream. Rows keep their labels: a prompt that did not count does not count.

    Args:
        size: rows of the memory.
        fraction: p, 0 to below 1; 0 replays nothing (the memory fills all the same).
        memory: what was seen before the first training (see `cltk.data.memory_rows`).
        extra_steps: whether steps grow so that the new task keeps its tokens.
        length: tokens of a row of `memory`, when it is text.
        seed: of the choice.

    Raises:
        InputError: size below 1, fraction outside [0, 1), an empty memory, or training data without length or input_ids.
        RunError: a checkpoint of another memory than the one this training began with.

    Source: Vitter 1985 (doi 10.1145/3147.3165); as a rehearsal buffer: Chaudhry et al. 2019 (arXiv 1902.10486).
    """

    def __init__(
        self, size: int, fraction: float, *, memory: Any = None, extra_steps: bool = True, length: int = 256, seed: int = 0
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"reservoir.size: must be a whole number of at least 1, got {size!r}")
        if not 0 <= fraction < 1:
            raise InputError(f"reservoir.fraction: must be at least 0 and below 1, got {fraction}")
        if memory is not None:
            check_memory("reservoir", memory)
        self.size, self.fraction, self.memory = size, fraction, memory
        self.extra_steps, self.length, self.seed = extra_steps, length, seed
        self.rows: list[Row] = []
        self.seen = 0
        self.new: Any = None  # the new rows of the running training

    def setup(self, plan: Plan) -> None:
        new = check_data(plan, "reservoir")
        if self.memory is not None and self.seen == 0:
            old = old_rows("reservoir", self.memory, plan, self.length)
            kept, self.seen = algorithm_r([], 0, range(len(old)), self.size, self.seed)
            self.rows = [labelled(old[i]) for i in kept]
        note = {"size": self.size, "kept": len(self.rows), "seen": self.seen}
        if self.fraction and self.rows:
            note |= mix(plan, list(self.rows), self.fraction, self.extra_steps, "reservoir")
        plan.notes["reservoir"] = note
        while isinstance(new, Mixed):  # what another method replays is not new
            new = new.new
        self.new = new

    def finish(self, run: Run) -> None:
        if self.new is not None:
            # indices go through the draw, so that only the rows that stay are read
            kept, self.seen = algorithm_r(self.rows, self.seen, range(len(self.new)), self.size, self.seed)
            self.rows = [labelled(self.new[row]) if isinstance(row, int) else row for row in kept]
            self.new = None

    def state_dict(self) -> dict[str, Any]:
        if not self.seen:
            return {}
        return {
            "seen": self.seen,
            "lengths": torch.tensor([len(row["input_ids"]) for row in self.rows]),
            **{name: torch.tensor([x for row in self.rows for x in row[name]]) for name in ("input_ids", "labels")},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Before the training that goes on with the stream, or into one that began with the same memory."""
        parts: dict[str, tuple[Tensor, ...]] = {
            name: state[name].split(state["lengths"].tolist()) for name in ("input_ids", "labels")
        }
        rows = [
            {"input_ids": ids.tolist(), "labels": labels.tolist()}
            for ids, labels in zip(parts["input_ids"], parts["labels"], strict=True)
        ]
        if self.new is not None and (rows != self.rows or self.seen != int(state["seen"])):
            raise RunError(
                "reservoir: this training was set up with another memory than the checkpoint's;"
                " give the object its state (load_state_dict) before attach"
            )
        self.rows, self.seen = rows, int(state["seen"])
