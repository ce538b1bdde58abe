"""What a training will cost in tokens, from its rows and arguments alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cltk.data.tables import lengths
from cltk.mitigate.generate import SelfReplay
from cltk.mitigate.interface import Plan
from cltk.mitigate.mixed import is_stream
from cltk.mitigate.replay import Replay, mix
from cltk.mitigate.reservoir import Reservoir
from cltk.run.arguments import training_arguments
from cltk.run.plans import Cell
from cltk.run.prepare import Prepared


def cost_in_tokens(cell: Cell, prepared: Prepared, mitigators: Sequence[Any] = (), tokenizer: Any = None) -> dict[str, int]:
    """What the cell will train on: steps, rows and tokens, without loading weights.

    What methods mix in is mixed in here too: old rows with their own lengths, kept rows of earlier trainings, and texts that
    the model has not written yet at their longest.

    Args:
        cell: one training.
        prepared: its rows.
        mitigators: its methods; of a stream the same objects from training to training.
        tokenizer: for the text of memories.
    """
    args = training_arguments(cell.config.train, cell.config.seed, Path("unused"))
    nothing: Any = None  # there is no model
    plan = Plan(nothing, prepared.train, args, tokenizer)
    for one in mitigators:
        if isinstance(one, Replay | Reservoir):
            one.setup(plan)
        elif isinstance(one, SelfReplay) and one.fraction:
            longest = {"input_ids": [0] * int(one.settings["max_new_tokens"])}
            mix(plan, [longest] * one.samples, one.fraction, one.extra_steps, "self_replay")
    for one in mitigators:
        if isinstance(one, Reservoir):
            one.finish(nothing)
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if is_stream(plan.data):  # by its first rows
        steps, mean = args.max_steps, float(lengths(prepared.train).mean())
    else:
        rows = len(plan.data)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(math.ceil(rows / per_step) * args.num_train_epochs)
        mean = int(lengths(plan.data).sum()) / rows
    dropped = {f"{key} rows left out": count for key, count in prepared.dropped.items()}
    sources = {f"rows of data.{key}": count for key, count in prepared.sources.items()}
    return {"steps": steps, "rows": steps * per_step, "tokens": round(steps * per_step * mean), **sources, **dropped}
