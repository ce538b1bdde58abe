"""The sections of an experiment's YAML that say what is searched, and which documents a search may look at."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cltk.run.spec_data import Count, Fraction, Section

Ends = Annotated[list[int | float], Field(min_length=2, max_length=2)]


class SpaceSpec(Section):
    """The values of one key: a range, log or linear (of whole numbers, where both ends are), or a list."""

    later = ("log", "linear", "choices")
    log: Ends | None = Field(None, description="[from, to], as likely between 1 and 10 as between 10 and 100")
    linear: Ends | None = Field(None, description="[from, to]")
    choices: Annotated[list[Any], Field(min_length=1)] | None = Field(None, description="numbers or names")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(one is not None for one in (self.log, self.linear, self.choices)) != 1:
            raise ValueError("give one of log: [from, to], linear: [from, to] and choices: [...]")
        if self.choices is None:
            low, high = self.ends
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"a range goes from a number to a larger one, got [{low:g}, {high:g}]")
            if self.log and low <= 0:
                raise ValueError(f"a log range begins above 0, got {low:g}")
        elif not all(isinstance(one, str | int | float) for one in self.choices):
            raise ValueError("choices are numbers or names")
        elif any(one == other for i, one in enumerate(self.choices) for other in self.choices[:i]):
            raise ValueError("one of the choices stands twice")
        return self

    @property
    def ends(self) -> list[int | float]:
        """Of a range."""
        return self.log or self.linear or []

    @property
    def count(self) -> float:
        """How many values there are; infinite for a range of numbers that are not whole."""
        if self.choices is not None:
            return len(self.choices)
        low, high = self.ends
        return high - low + 1 if isinstance(low, int) and isinstance(high, int) else math.inf

    @property
    def extremes(self) -> list[Any]:
        """What must be allowed so that everything is: both ends, or all choices."""
        return self.choices or self.ends

    def __str__(self) -> str:
        kind = "log" if self.log else "linear"
        return f"one of {self.choices}" if self.choices else f"{kind} {self.ends[0]:g} to {self.ends[1]:g}"


class SplitSpec(Section):
    """The documents and rows that are measured, in two parts; clusters whole."""

    validation: Fraction = Field(0.5, description="the share of every task and text that choices are made on")
    measure: Literal["validation", "test"] = Field("test", description="which part; validation rows of the new task with it")

    @property
    def part(self) -> tuple[float, bool]:
        """The share, and whether it is what is measured: see `cltk.measure.splitting.part_of`."""
        return self.validation, self.measure == "validation"


class SearchSpec(Section):
    """The setting of one method with the most gain within budgets of forgetting, all of it on validation documents."""

    over: Annotated[dict[str, SpaceSpec], Field(min_length=1)] = Field(
        description="train.KEY or mitigators.NAME.KEY -> its values"
    )
    trials: Count = Field(description="trainings of the search; more of them later go on")
    budget: Annotated[dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)] = Field(
        description="{task, metric, TASK/METRIC or macro: loss}, as of `cltk gate --budget`"
    )
    by: Literal["estimate", "interval"] = Field(
        "estimate", description="what must be within: the loss, or the upper end of its 95 % interval"
    )
    gain: str = Field("validation", description="what is to be most: the new task's validation NLL, or an entry of evals.learn")
    method: str | None = Field(None, description="which method of the grid; not needed where there is one")
    validation: Fraction = Field(0.5, description="share of the measured documents for the search; the report has the others")
    parallel: Count = Field(1, description="trials that are drawn together, without the results of one another")
    seed: int = Field(0, description="of the sampler; trial n has the seed + n")

    @property
    def count(self) -> int:
        """Trials; no more than there are settings, as none is tried twice."""
        return int(min(self.trials, math.prod(space.count for space in self.over.values())))
