"""Did a fine-tune stay within a budget of forgetting? Three answers, by the tests that verdicts rest on. Pure functions.

within   a loss of the budget or more is excluded, in every check      `margins.noninferiority` at the budget
over     a loss above the budget is shown, in some check               `margins.exceeds` at the budget, Holm over all checks
unknown  neither

A model is within when each of its checks is. That takes no correction: whoever is passed by luck was passed by the check that
it fails (intersection-union test; Berger 1982, Technometrics 24(4)). Several models are a family (Holm over models). So the
chance that any model passes which should not is at most 5 %, and so is the chance that any is called over which is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy.special import ndtri

from cltk.errors import InputError
from cltk.measure.budgets import Answer, Budget, Check, held
from cltk.measure.enough import ALPHA, POWER, needed, spread, with_noise
from cltk.measure.intervals import Estimate
from cltk.measure.margins import exceeds, noninferiority
from cltk.measure.multiple import holm
from cltk.measure.results import Result, Row

__all__ = ["Answer", "Budget", "Check", "Gate", "gate"]

CODES = {"within": 0, "over": 3, "unknown": 4}


@dataclass(frozen=True)
class Gate:
    """What was held against the budgets: checks by model, and the notes of its comparison."""

    models: dict[str, list[Check]]
    notes: dict[str, list[str]]

    def answer(self, model: str | None = None) -> Answer:
        """Of one model; without a name the worst of all."""
        found = {check.answer for name, checks in self.models.items() if model in (None, name) for check in checks}
        return "over" if "over" in found else "unknown" if "unknown" in found else "within"

    def code(self, on_unknown: str = "fail") -> int:
        """Exit code: 0 within, 3 over, 4 cannot tell (0 with on_unknown "pass")."""
        answer = self.answer()
        return 0 if answer == "unknown" and on_unknown == "pass" else CODES[answer]

    def to_json(self) -> dict[str, Any]:
        models = {
            name: {"answer": self.answer(name), "checks": [check.to_json() for check in checks], "notes": self.notes[name]}
            for name, checks in self.models.items()
        }
        return {"answer": self.answer(), "alpha": ALPHA, "power": POWER, "models": models}


def gate(
    results: Result | Mapping[str, Result], budgets: Mapping[str, float] | Sequence[Budget], noise: Sequence[Result] = ()
) -> Gate:
    """Hold comparisons of a base with tuned models against budgets.

    The most specific budget counts: TASK/METRIC, then TASK (its headline metric and no other), then METRIC on the tasks that
    have no budget of their own; a metric's name without its filter stands for all filters. What could not be compared is
    unknown: a number that went missing is not one that is fine.

    Args:
        results: one comparison, or model -> comparison.
        budgets: name -> the most that may be lost.
        noise: comparisons of runs that should be equal: a base with the same base scored again, two seeds of one training.
            What they differ by beyond what their documents explain is added to every variance (`with_noise`).

    Raises:
        InputError: no budget; one that is not above 0, is all that the metric has, or is about nothing that was measured;
            noise that was not measured on the same tasks.
    """
    given = budgets.items() if isinstance(budgets, Mapping) else [(one.name, one) for one in budgets]
    named = {name: one if isinstance(one, Budget) else Budget(name, one) for name, one in given}
    found = {"tuned": results} if isinstance(results, Result) else dict(results)
    if not named or not found:
        raise InputError("gate: name at least one budget, such as acc=0.01, nll=0.02, macro=0.01 or TASK=0.03")
    tested = {name: [_tested(check, noise) for check in held(result, named)] for name, result in found.items()}
    over = iter(holm([check.p_over for checks in tested.values() for check in checks]))
    within, count = _over_models(tested), sum(map(len, tested.values()))
    models = {
        name: [
            _answered(replace(check, p_within=p, p_over=next(over)), noise, len(tested), count)
            for check, p in zip(checks, within[name], strict=True)
        ]
        for name, checks in tested.items()
    }
    return Gate(models, {name: result.notes for name, result in found.items()})


def _tested(check: Check, noise: Sequence[Result]) -> Check:
    """With both p's, not yet adjusted."""
    if check.row is None:
        return check
    extra, df = spread(noise, check.row)
    estimate = with_noise(_estimate(check.row), extra, df)
    # what exceeds a budget above 0 forgets, and no test of forgetting may say otherwise
    p_over = max(exceeds(estimate, check.budget), check.row.p / 2) if check.row.forgetting > 0 else 1.0
    p_within = noninferiority(estimate, check.budget)
    return replace(check, p_within=p_within, p_over=p_over, noise=math.sqrt(extra) if noise else None)


def _estimate(row: Row) -> Estimate:
    """What other margins are tested on; of a row that has none (several looks) what its interval is worth."""
    if row.estimate is not None:
        return row.estimate
    half = max(row.ci[1] - row.forgetting, row.forgetting - row.ci[0])
    se = half / float(ndtri(0.975)) if math.isfinite(half) else math.nan
    return Estimate(row.forgetting, se, *row.ci, row.p, row.n, row.clusters, df=1e9)


def _over_models(tested: Mapping[str, Sequence[Check]]) -> dict[str, list[float]]:
    """Model -> p_within of its checks, adjusted by Holm over models, each of which stands or falls by its largest p."""
    done: dict[str, list[float]] = {}
    floor = 0.0
    order = sorted(tested, key=lambda name: max((check.p_within for check in tested[name]), default=0.0))
    for left, name in zip(range(len(order), 0, -1), order, strict=True):
        done[name] = [min(1.0, max(floor, left * check.p_within)) for check in tested[name]]
        floor = max(done[name], default=floor)
    return done


def _answered(check: Check, noise: Sequence[Result], models: int, checks: int) -> Check:
    if check.p_over < ALPHA:
        return replace(check, answer="over")
    if check.p_within < ALPHA:
        return replace(check, answer="within")
    if check.row is None:
        return check
    alpha = ALPHA / (models if check.row.forgetting < check.budget else checks)
    return replace(check, needed=needed(_estimate(check.row), check.budget, *spread(noise, check.row), alpha=alpha))
