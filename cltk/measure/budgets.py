"""Which rows of a comparison a budget is about. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cltk.errors import InputError
from cltk.measure.forgetting import ACCURACIES
from cltk.measure.results import Result, Row, finite

Answer = Literal["within", "over", "unknown"]


@dataclass(frozen=True)
class Budget:
    """What may be lost of `name`: a task (its headline metric), a metric (of every task), TASK/METRIC, or "macro"."""

    name: str
    most: float  # in the metric's unit; 0.01 is 1 pp of an accuracy
    where: str = ""  # for messages: "budget.yaml:3"

    def error(self, what: str) -> InputError:
        return InputError(f"{self.where}: {what}" if self.where else what)


@dataclass(frozen=True)
class Check:
    """One row held against its budget."""

    task: str
    metric: str
    budget: float  # in the metric's unit, as are the row's numbers
    row: Row | None = field(default=None, repr=False)  # None: there is no number, `why` says why
    why: str = ""
    p_within: float = 1.0  # of "forgets the budget or more"; adjusted over models
    p_over: float = 1.0  # of "forgets the budget or less"; adjusted over all checks of all models
    answer: Answer = "unknown"
    needed: int | None = None  # documents that would decide; None: decided, or no number would
    noise: float | None = None  # standard deviation of a difference between runs that should be equal, beyond documents

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the row's own numbers."""
        names = ("n", "pre", "post", "forgetting", "se", "ci", "p", "lost", "gained", "verdict")
        row = {name: getattr(self.row, name) for name in names} if self.row else {}
        own = ("task", "metric", "budget", "answer", "p_within", "p_over", "needed", "noise", "why")
        return finite({**{name: getattr(self, name) for name in own}, **row})


def held(result: Result, budgets: Mapping[str, Budget]) -> list[Check]:
    """A check for every row that has a budget, then for what could not be compared; p's and answers are not there yet.

    Raises:
        InputError: a budget that is not above 0, is all that its metric has, or is about nothing, or two things, measured.
    """
    for budget in budgets.values():
        _check(budget, result)
    pairs = [(row, budget_of(budgets, row.task, row.metric, result.headline[row.task] == row.metric)) for row in result.rows]
    pairs += [(result.macro, budgets.get("macro"))]
    for row, found in pairs:
        if found and found.most >= 1 and (row.lost is not None or row.metric.split(",")[0] in ACCURACIES):
            raise found.error(f"budget {found.name}={found.most:g}: {row.metric} is a share of 1; 1 pp is 0.01")
    return [*(Check(row.task, row.metric, found.most, row) for row, found in pairs if found), *_missing(result, budgets)]


def budget_of(budgets: Mapping[str, Budget], task: str, metric: str, head: bool) -> Budget | None:
    """The most specific budget of a task's metric, which may be its headline; "" is the task as a whole."""
    if own := next((budgets[key] for key in _keys(task, metric) if key in budgets), None):
        return own
    if task in budgets:
        return budgets[task] if head else None
    return next((budgets[name] for name in _names(metric) if name in budgets), None)


def _check(budget: Budget, result: Result) -> None:
    name, most = budget.name, budget.most
    if isinstance(most, bool) or not isinstance(most, int | float) or not 0 < most < math.inf:
        raise budget.error(f"budget {name}={most}: give a number above 0, in the metric's unit (1 pp is 0.01)")
    gone = _gone(result)
    pairs = [*((row.task, row.metric) for row in result.rows), *(pair for pair in gone if pair[1])]
    tasks = {*result.headline, *(task for task, _ in gone)}
    metrics = {one for _, metric in pairs for one in _names(metric)}
    if name in tasks and name in metrics:
        raise budget.error(f"budget {name}: a task and a metric have this name; write {name}/METRIC")
    if name not in {"macro", *tasks, *metrics, *(key for pair in pairs for key in _keys(*pair))}:
        lost = "".join(f"; left out: {task}: {why}" for (task, metric), why in gone.items() if not metric)
        have = ", ".join(sorted({row.metric for row in result.rows}))
        raise budget.error(
            f"budget {name}: nothing measured has this name; the tasks are {', '.join(result.headline)}, the metrics {have}, "
            f"and macro is their mean{lost}"
        )


def _missing(result: Result, budgets: Mapping[str, Budget]) -> list[Check]:
    """What has a budget and could not be compared; a whole task by any budget that is not another task's."""
    found, gone = [], _gone(result)
    tasks = {*result.headline, *(task for task, metric in gone if not metric)}
    for (task, metric), why in gone.items():
        others = tasks - {task}
        own = [key for key in budgets if not any(key == one or key.startswith(f"{one}/") for one in others)]
        whole = budgets.get(task) or next((budgets[key] for key in own), None)
        if budget := budget_of(budgets, task, metric, head=False) if metric else whole:
            found.append(Check(task, metric, budget.most, why=why))
    return found


def _gone(result: Result) -> dict[tuple[str, str], str]:
    """(task, metric) -> why it could not be compared; the metric is "" where it is the whole task."""
    found = {}
    for name, why in result.left_out.items():
        task = max((one for one in result.headline if name.startswith(f"{one}/")), key=len, default="")
        found[(task, name.removeprefix(f"{task}/")) if task else (name, "")] = why
    return found


def _names(metric: str) -> list[str]:
    return list(dict.fromkeys([metric, metric.split(",")[0]]))


def _keys(task: str, metric: str) -> list[str]:
    return [f"{task}/{name}" for name in _names(metric)]
