"""An unfinished fisher() in a file: the sums so far, taken back for the same inputs alone."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cltk import tensors
from cltk.errors import InputError
from cltk.importance.estimators import PerSequence
from cltk.importance.sequences import Batch, data_digest
from cltk.ranks import ranks

PARTIAL_SECONDS = 30.0  # between two writes of a partial file; 20 times a write's duration where that is longer


class Partial:
    """The sums of an unfinished fisher() in a file: written whole or not at all, taken back for the same inputs alone."""

    def __init__(self, path: Path, data: Any, samples: int | None, inputs: list[Any]) -> None:
        if not hasattr(data, "__len__") or ranks()[1] > 1:
            raise InputError("fisher: partial needs rows that can be read twice, and one process; give a list, or leave it out")
        key = json.dumps([data_digest(data, samples), samples, torch.__version__, *inputs], sort_keys=True)
        self.path, self.key = path, hashlib.sha256(key.encode()).hexdigest()
        self.earlier, self.started = 0.0, time.perf_counter()
        self.written, self.cost = self.started, 0.0

    def resume(self, add: Any, batches: Iterator[Batch], sums: tensors.Named) -> list[float]:
        """Pass over the batches done and fill `sums`; the counts of those."""
        state = self._read()
        if state is None:
            return [0.0] * 8
        for i in range(int(state["counts"][2])):
            batch = next(batches)
            if i == 0 and isinstance(add, PerSequence):
                add.proceed(batch, state["method"])
        for name, value in sums.items():
            value.copy_(state["sums"][name])
        add.tail.load(state["tail"])
        self.earlier = state["seconds"]
        logging.getLogger(__name__).info("fisher: goes on at row %d, from %s", state["next"], self.path)
        return state["counts"]

    def keep(self, add: Any, sums: tensors.Named, counts: list[float], following: int) -> None:
        """Write, if it is time to."""
        now = time.perf_counter()
        if now - self.written < max(PARTIAL_SECONDS, 20 * self.cost):
            return
        state = {"key": self.key, "counts": counts, "next": following, "method": add.method, "sums": sums}
        state["tail"] = add.tail.state()
        tensors.save_tree(self.path, {**state, "seconds": self.earlier + now - self.started})
        self.written = time.perf_counter()
        self.cost = self.written - now

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            state = tensors.load_tree(self.path)
        except InputError as error:
            state = {"reason": str(error)}
        if state.get("key") == self.key:
            return state
        reason = state.get("reason", f"{self.path} is of another model, other data or other arguments")
        logging.getLogger(__name__).warning("fisher: starts afresh, because %s", reason)
        return None
