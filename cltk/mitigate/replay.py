"""Replay: mix old-domain sequences into the new task's. Reservoir: a memory that fills itself from a stream of trainings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from cltk.data.readers import Row
from cltk.data.rows import IGNORED
from cltk.data.tables import Table
from cltk.errors import InputError
from cltk.mitigate.interface import Mitigator, Plan
from cltk.mitigate.memory import check_memory, labelled, old_rows
from cltk.mitigate.mixed import Mixed, MixedStream, is_stream


def replay_count(new: int, fraction: float) -> int:
    """Old sequences to add to `new` ones so that a `fraction` p of all is old: round(new * p / (1 - p))."""
    return round(new * fraction / (1 - fraction))


class Replay(Mitigator):
    """Each training sequence comes from old-domain data with probability `fraction`.

        E[loss] = (1 - p) E_new[loss] + p E_old[loss]

    All new rows stay; round(N p / (1 - p)) old rows join them and the trainer shuffles both together, so that the new
    task is seen exactly as often as without replay and the steps grow by 1 / (1 - p). With `extra_steps=False` the
    number of steps stays what it was, and the new task gets the share 1 - p of it. Every token of an old row counts
    in the loss, so that with short completions the share of counted tokens that are old is far above p: the record has both.
    Where the trainer packs (TRL's `packing`), p is the share of packed rows; the record has sequences and tokens.

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
        if memory is not None or fraction:
            check_memory("replay", memory)
        self.memory, self.fraction, self.extra_steps, self.length = memory, fraction, extra_steps, length

    def setup(self, plan: Plan) -> None:
        if self.fraction and is_stream(plan.data):
            old = old_rows("replay", self.memory, plan, self.length, stream_count(plan, self.fraction, self.extra_steps))
            plan.notes["replay"] = mix_stream(plan, old, self.fraction, self.extra_steps, "replay")
        elif self.fraction:
            count = old_count(check_data(plan, "replay"), self.fraction, "replay")
            old = old_rows("replay", self.memory, plan, self.length, limit=count)
            plan.notes["replay"] = mix(plan, old, self.fraction, self.extra_steps, "replay")


def mix(plan: Plan, old: Sequence[Row], fraction: float, extra_steps: bool, name: str) -> dict[str, Any]:
    """Make `fraction` of `plan.data` old rows, and as many steps as that asks for.

    Returns:
        What the record keeps: rows, tokens and steps with and without.

    Raises:
        InputError: training data without length or input_ids, or a fraction that is less than one row.
    """
    new = check_data(plan, name)
    count = old_count(new, fraction, name)
    before, after = _steps(plan.args, len(new), len(new) + count, None if not extra_steps else fraction)
    tokens, counted, sequences = _tokens(new)
    plan.data = Mixed(new, old, count, name, _reads(plan))
    old_tokens = sum(len(old[i % len(old)]["input_ids"]) for i in range(count))
    return {
        "fraction": fraction, "extra_steps": extra_steps, "steps": after, "steps_without": before,
        "new_rows": len(new), "old_rows": count, "old_rows_distinct": min(count, len(old)),
        "new_tokens": tokens, "old_tokens": old_tokens, "new_tokens_counted": counted,
        **({"new_sequences": sequences} if sequences > len(new) else {}),  # the trainer's rows are packed
    }  # fmt: skip


def stream_count(plan: Plan, fraction: float, extra_steps: bool) -> int:
    """Old rows that the whole training takes, at most."""
    args = plan.args
    steps = replay_steps(args.max_steps, fraction) if extra_steps else args.max_steps
    rows = steps * args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return max(1, round(rows * fraction))


def mix_stream(plan: Plan, old: Sequence[Row], fraction: float, extra_steps: bool, name: str) -> dict[str, Any]:
    """`cltk.mitigate.replay.mix` for a stream: as many steps as that asks for; what the record keeps."""
    before = plan.args.max_steps
    if extra_steps:
        plan.args.max_steps = replay_steps(before, fraction)
    plan.data = MixedStream(plan.data, old, fraction, name, _reads(plan))
    return {
        "fraction": fraction, "extra_steps": extra_steps, "steps": plan.args.max_steps, "steps_without": before,
        "old_rows_distinct": len(old), "streamed": True,
    }  # fmt: skip


def old_count(new: Any, fraction: float, name: str) -> int:
    """`replay_count` for the training rows `new`. Raises InputError when it is less than one row."""
    count = replay_count(len(new), fraction)
    if count == 0:
        raise InputError(f"{name}.fraction: {fraction} of {len(new)} rows is less than one old row; raise it")
    return count


def _reads(plan: Plan) -> Callable[[str], bool]:
    """Whether a column reaches the collator: Trainer drops what the model's forward does not take."""
    if not getattr(plan.args, "remove_unused_columns", False):
        return lambda column: True
    model: Any = plan.model
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    taken = inspect.signature(model.forward).parameters
    return lambda column: column in taken


def check_data(plan: Plan, name: str) -> Any:
    """The training data. Raises InputError unless it has a length and tokenised rows."""
    new = plan.data
    if not hasattr(new, "__len__") or len(new) == 0 or "input_ids" not in new[0]:
        raise InputError(f"{name}: the trainer's data must have a length and hold tokenised rows with input_ids")
    labels = new[0].get("labels")
    if labels is not None and np.shape(labels) != np.shape(new[0]["input_ids"]):
        raise InputError(f"{name}: old text has one label a token, and the training rows have others; for causal models only")
    if getattr(getattr(plan.model, "config", None), "is_encoder_decoder", False):
        raise InputError(f"{name}: {type(plan.model).__name__} is an encoder-decoder; the method is for causal language models")
    return new


def _steps(args: Any, rows: int, mixed: int, fraction: float | None) -> tuple[int, int]:
    """Optimiser steps without and with replay; sets `max_steps` where epochs do not give them. Fraction None: none more."""
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    def steps(n: int) -> int:
        return math.ceil(math.ceil(n / per_step) * args.num_train_epochs)

    before = args.max_steps if args.max_steps > 0 else steps(rows)
    if fraction is None:
        args.max_steps = before
    elif args.max_steps > 0:
        args.max_steps = replay_steps(args.max_steps, fraction)
    return before, args.max_steps if args.max_steps > 0 else steps(mixed)


def replay_steps(steps: int, fraction: float) -> int:
    """Steps in which the new task keeps its `steps`: ceil(steps / (1 - p)), of the decimal number that p is written as."""
    return math.ceil(steps / (1 - Fraction(str(fraction))))


def _tokens(rows: Any) -> tuple[int, int, int]:
    """Tokens of the new rows, those that count in the loss, and sequences (a packed row is several)."""
    if isinstance(rows, Table):
        return int(rows.lengths().sum()), int(rows.counted(0).sum()), len(rows)
    total = counted = sequences = 0
    for i in range(len(rows)):  # read once: a row of a data set is decoded anew at every look
        row = rows[i]
        labels = labelled(row)["labels"]
        total, counted = total + len(labels), counted + sum(label != IGNORED for label in labels)
        sequences += len(row["seq_lengths"]) if row.get("seq_lengths") is not None else 1
    return total, counted, sequences
