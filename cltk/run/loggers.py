"""The reporters of a training (TensorBoard, W&B, MLflow, trackio): a run a cell, open until the cell's last numbers are in it.

transformers ends some runs when training ends, which is before anything is scored, and leaves W&B's open, so that the next
cell would log into it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

LATE = ("TensorBoardCallback", "MLflowCallback", "TrackioCallback")  # their run ends with their on_train_end
WANDB = "WandbCallback"


class Loggers:
    """The reporting callbacks of `trainer`, without the trainer itself.

    Args:
        trainer: before it trains.
    """

    def __init__(self, trainer: Any) -> None:
        self.args = trainer.args
        self.callbacks = [one for one in trainer.callback_handler.callbacks if type(one).__name__ in (*LATE, WANDB)]
        self.state: Any = None
        self.control = trainer.control
        self.ends: list[Callable[[], Any]] = []
        for one in self.callbacks:
            if type(one).__name__ in LATE:
                one.on_train_end = partial(self._later, one.on_train_end)

    def _later(self, end: Callable[..., Any], args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.ends.append(partial(end, args, state, control, model=model))

    def trained(self, trainer: Any) -> None:
        """Training is over; its state says at which step."""
        self.state = trainer.state

    def log(self, line: dict[str, Any]) -> None:
        """Numbers and words, at the last step. Words go where runs have a place for them."""
        if self.state is None or not self.state.is_world_process_zero:
            return
        for one in self.callbacks:
            name, numbers = type(one).__name__, {key: value for key, value in line.items() if not isinstance(value, str)}
            if name == "MLflowCallback":
                one.on_log(self.args, self.state, self.control, logs=numbers)
                for key in line.keys() - numbers.keys():
                    one._ml_flow.set_tag(key, line[key])
            else:
                one.on_log(self.args, self.state, self.control, logs=dict(line), model=None)

    def close(self) -> None:
        """End the runs."""
        for end in self.ends:
            end()
        for one in self.callbacks:
            if type(one).__name__ == WANDB and one._initialized and one._wandb.run is not None:
                one._wandb.finish()
        self.ends, self.callbacks = [], []


def progress(say: Callable[[str, int, int, str], None], name: str) -> Callable[[int, int, dict[str, float]], None]:
    """What a training says as it goes on: the last loss, and what a watch measured last."""
    seen: dict[str, float] = {}
    told = {"loss": "loss {:.3f}", "eval_forgetting_macro": "forgetting {:+.4f}"}

    def tell(step: int, steps: int, last: dict[str, float]) -> None:
        seen.update(last)
        say(f"{name}: train", step, steps, ", ".join(how.format(seen[key]) for key, how in told.items() if key in seen))

    return tell


def last_line(record: dict[str, Any]) -> dict[str, Any]:
    """The headline rows of a record: what was forgotten and learned, with intervals and verdicts."""
    line: dict[str, Any] = {}
    for role, name, sign in (("retain", "forgetting", 1), ("learn", "learned", -1)):
        result = record.get(role) or {"rows": [], "headline": {}}
        rows = [row for row in result["rows"] if result["headline"].get(row["task"]) == row["metric"]]
        for row in [*rows, *([result["macro"]] if role == "retain" and rows else [])]:
            ends: list[Any] = [None, None] if None in row["ci"] else sorted(sign * end for end in row["ci"])
            numbers = {"": sign * row["forgetting"], "_low": ends[0], "_high": ends[1]}
            line |= {
                f"eval_final_{name}_{row['task']}{key}": float(value)
                for key, value in numbers.items()
                if value is not None and math.isfinite(value)
            }
            if role == "retain":
                line[f"eval_final_verdict_{row['task']}"] = row["verdict"]
    return line
