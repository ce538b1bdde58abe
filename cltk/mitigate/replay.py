"""Replay: mix old-domain sequences into the new task's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cltk.data import IGNORED, memory_rows
from cltk.errors import InputError
from cltk.mitigate.interface import Mitigator, Plan


def replay_count(new: int, fraction: float) -> int:
    """Old sequences to add to `new` ones so that a `fraction` p of all is old: round(new * p / (1 - p))."""
    return round(new * fraction / (1 - fraction))


class Mixed:
    """New rows, then `count` old rows (the memory in turn); the trainer shuffles. Old rows take the new rows' columns."""

    def __init__(self, new: Any, old: Sequence[dict[str, Any]], count: int) -> None:
        self.new, self.old, self.count = new, old, count
        self.columns = [name for name in new[0] if name in _COLUMNS or not isinstance(new[0][name], str)]

    def __len__(self) -> int:
        return len(self.new) + self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.new):
            row = self.new[index]
            return {name: row[name] for name in self.columns}
        if index >= len(self):
            raise IndexError(index)  # what ends an iteration
        ids = list(self.old[(index - len(self.new)) % len(self.old)]["input_ids"])
        return {name: _COLUMNS[name](ids) for name in self.columns if name in _COLUMNS}


_COLUMNS = {  # how a column of a token row looks when every token counts
    "input_ids": lambda ids: ids,
    "labels": lambda ids: list(ids),
    "attention_mask": lambda ids: [1] * len(ids),
    "completion_mask": lambda ids: [1] * len(ids),
    "assistant_masks": lambda ids: [1] * len(ids),
    "length": len,
    "seq_lengths": lambda ids: [len(ids)],
}


class Replay(Mitigator):
    """Each training sequence comes from old-domain data with probability `fraction`.

        E[loss] = (1 - p) E_new[loss] + p E_old[loss]

    All new rows stay; round(N p / (1 - p)) old rows join them and the trainer shuffles both together, so that the new
    task is seen exactly as often as without replay and the steps grow by 1 / (1 - p). With `extra_steps=False` the
    number of steps stays what it was, and the new task gets the share 1 - p of it. Every token of an old row counts
    in the loss, so that with short completions the share of counted tokens that are old is far above p: the record has both.

    Args:
        memory: old-domain text or token rows (see `cltk.data.memory_rows`).
        fraction: p, 0 to below 1; 0 changes nothing. 0.01 to 0.05 for a weak shift, 0.25 for a strong one.
        extra_steps: whether steps grow so that the new task keeps its tokens.
        length: tokens of an old row, when the memory is text. Short pieces protect little: what is measured is text in
            its context.

    Raises:
        InputError: fraction outside [0, 1), empty memory, or training data without length or input_ids.

    Source: Scialom et al. 2022 (arXiv 2205.12393); Ibrahim et al. 2024 (arXiv 2403.08763).
    """

    def __init__(self, memory: Any, fraction: float, *, extra_steps: bool = True, length: int = 256) -> None:
        if not 0 <= fraction < 1:
            raise InputError(f"replay.fraction: must be at least 0 and below 1, got {fraction}")
        self.memory, self.fraction, self.extra_steps, self.length = memory, fraction, extra_steps, length

    def setup(self, plan: Plan) -> None:
        if self.fraction == 0:
            return
        new = plan.data
        if not hasattr(new, "__len__") or len(new) == 0 or "input_ids" not in new[0]:
            raise InputError("replay: the trainer's data must have a length and hold tokenised rows with input_ids")
        lengths = [len(new[i]["input_ids"]) for i in range(len(new))]
        old = memory_rows(self.memory, plan.tokenizer, self.length)
        count = replay_count(len(new), self.fraction)
        if count == 0:
            raise InputError(f"replay.fraction: {self.fraction} of {len(new)} rows is less than one old row; raise it")
        before, after = self._steps(plan.args, len(new), len(new) + count)
        plan.data = Mixed(new, old, count)
        old_tokens = sum(len(old[i % len(old)]["input_ids"]) for i in range(count))
        plan.notes["replay"] = {
            "fraction": self.fraction, "extra_steps": self.extra_steps, "steps": after, "steps_without": before,
            "new_rows": len(new), "old_rows": count, "old_rows_distinct": min(count, len(old)),
            "new_tokens": sum(lengths), "old_tokens": old_tokens, "new_tokens_counted": _counted(new),
        }  # fmt: skip

    def _steps(self, args: Any, rows: int, mixed: int) -> tuple[int, int]:
        """Optimiser steps without and with replay; sets `max_steps` where epochs do not give them."""
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

        def steps(n: int) -> int:
            return math.ceil(math.ceil(n / per_step) * args.num_train_epochs)

        before = args.max_steps if args.max_steps > 0 else steps(rows)
        if not self.extra_steps:
            args.max_steps = before
        elif args.max_steps > 0:
            args.max_steps = math.ceil(args.max_steps / (1 - self.fraction))
        return before, args.max_steps if args.max_steps > 0 else steps(mixed)


def _counted(rows: Any) -> int:
    """Tokens of the new rows that count in the loss."""
    return sum(sum(label != IGNORED for label in rows[i].get("labels", rows[i]["input_ids"])) for i in range(len(rows)))
