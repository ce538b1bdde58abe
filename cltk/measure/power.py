"""Before any run: what forgetting can be seen with so many documents, and how much there is to lose."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats as distributions

from cltk.errors import InputError
from cltk.measure.forgetting import ACCURACIES
from cltk.measure.scores import Scores
from cltk.measure.stats import guess_odds, mde

FEW = 50  # clusters below which documents in clusters show less than their number says
FEWEST = 6  # clusters that a sign-flip test needs to reach 0.05, and lost documents that McNemar's needs


@dataclass(frozen=True)
class Plan:
    """What n documents of a task can show. Accuracies and effects are shares: 0.03 is 3 pp."""

    task: str
    n: int
    mde: float | None  # smallest forgetting that a paired test shows with the power asked for; None: no loss is shown
    needed: int | None  # documents that show `effect`; None when no effect was given, or for the macro average
    base: float | None
    losable: float | None  # F_max = (k a - 1) / (k - 1): what the base knows beyond guessing
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    n: Mapping[str, int],
    base: Mapping[str, float] | None = None,
    choices: Mapping[str, float] | None = None,
    *,
    discordance: float = 0.10,
    effect: float | None = None,
    power: float = 0.8,
    alpha: float = 0.05,
    clusters: Mapping[str, Sequence[int]] | None = None,
    likeness: float = 0.05,
) -> list[Plan]:
    """Smallest detectable forgetting of each task, and of their macro average when there are several.

    mde is where the exact McNemar test of n documents has the power (`detectable.mcnemar_power`). Documents in clusters of
    m_1 to m_G are worth n / (1 + (sum m_c^2 / n - 1) likeness) independent ones; fewer than 6 clusters show nothing, as no
    sign-flip test of them reaches 0.05. T tasks are worth T^2 / sum_t (1 / n_t) documents of one.

    Args:
        n: task -> documents.
        base: task -> accuracy of the model before training on these documents; tasks may be left out.
        choices: task -> answers to choose from, for each right one; a task left out is free form, where a guess is never right.
        discordance: share of documents that flip, either way, between the two models.
        effect: forgetting that the study wants to show; a warning says where it cannot.
        clusters: task -> documents in each group of dependent ones (a passage, a subject); left out: all are independent.
        likeness: correlation of the losses of two documents of one cluster.

    Raises:
        InputError: a number out of its range, or a base or choices for a task that has no n.
    """
    base, choices = base or {}, choices or {}
    _check(n, base, choices, {"discordance": discordance, "effect": effect, "power": power, "alpha": alpha})
    rows, worth = [], {task: _worth(count, (clusters or {}).get(task, ()), likeness) for task, count in n.items()}
    for task, count in n.items():
        smallest = mde(discordance, worth[task], alpha, power, binary=True)
        needed = _needed(effect, discordance, alpha, power, worth[task] / count) if effect and worth[task] else None
        accuracy, k = base.get(task), choices.get(task)
        losable = None if accuracy is None else max(1 - (1 - accuracy) * (1 + guess_odds([k] if k else None)), 0.0)
        warnings = _effect_warnings(effect, smallest, losable, count)
        groups = len((clusters or {}).get(task, ()))
        if FEWEST <= groups < FEW:
            warnings.append(f"{groups} clusters of documents: their power is lower than is said here; {FEW} have it")
        if accuracy is not None and at_chance(accuracy, count, k, alpha):
            warnings.append("base score is at chance: nothing can be lost")
        rows.append(Plan(task, count, _finite(smallest), needed, accuracy, losable, tuple(warnings)))
    return rows + ([_macro(rows, list(worth.values()), discordance, effect, power, alpha)] if len(rows) > 1 else [])


def at_chance(accuracy: float, n: int, choices: float | None, alpha: float = 0.05) -> bool:
    """Whether n documents do not show that the accuracy is above 1 / k: one-sided exact binomial test, p >= alpha.

    In free form (choices None) chance is 0, and only a model without a single right answer is at it.
    """
    right = round(accuracy * n)
    if choices is None:
        return right == 0
    return bool(distributions.binomtest(right, n, 1 / choices, alternative="greater").pvalue >= alpha)


def _effect_warnings(effect: float | None, smallest: float, losable: float | None, n: int) -> list[str]:
    if math.isinf(smallest):
        return [f"n={n} shows no loss at all: {FEWEST} documents, or clusters of them, have to be lost"]
    warnings = []
    if effect and smallest > effect:
        warnings.append(
            f"cannot show an effect of {100 * effect:.1f} pp at n={n}: the smallest detectable is {100 * smallest:.1f} pp"
        )
    if losable and smallest > losable:
        warnings.append(f"only {100 * losable:.1f} pp above chance can be lost: less than the smallest detectable")
    return warnings


def _finite(smallest: float) -> float | None:
    return None if math.isinf(smallest) else smallest


def _worth(n: int, clusters: Sequence[int], likeness: float) -> float:
    """Independent documents that n documents in these clusters are worth; 0 where there are too few to show anything."""
    if not clusters:
        return n
    return n / (1 + (sum(m * m for m in clusters) / n - 1) * likeness) if len(clusters) >= FEWEST else 0.0


def _needed(effect: float, discordance: float, alpha: float, power: float, share: float) -> int:
    """Documents, each worth `share` of an independent one, for which `mde` is at most the effect: by bisection."""
    short, enough = 1, 2
    while mde(discordance, enough, alpha, power, binary=True) > effect:
        short, enough = enough, 2 * enough
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (middle, enough) if mde(discordance, middle, alpha, power, binary=True) > effect else (short, middle)
    return math.ceil(enough / share)


def _macro(
    rows: list[Plan], worth: Sequence[float], discordance: float, effect: float | None, power: float, alpha: float
) -> Plan:
    size = len(rows) ** 2 / sum(1 / one for one in worth) if all(worth) else 0.0
    smallest = mde(discordance, size, alpha, power, binary=True)
    known = [row.base for row in rows if row.base is not None]
    losable = [row.losable for row in rows if row.losable is not None]
    complete = len(known) == len(rows)
    total = sum(row.n for row in rows)
    mean_losable = sum(losable) / len(losable) if complete else None
    warnings = tuple(_effect_warnings(effect, smallest, mean_losable, total))
    base = sum(known) / len(known) if complete else None
    return Plan("macro", total, _finite(smallest), None, base, mean_losable, warnings)


def _check(
    n: Mapping[str, int], base: Mapping[str, float], choices: Mapping[str, float], shares: Mapping[str, float | None]
) -> None:
    for name, share in shares.items():
        if share is not None and not (0 < share <= 1 if name in ("discordance", "effect") else 0 < share < 1):
            raise InputError(f"{name} is {share}; give a share between 0 and 1 (3 pp is 0.03)")
    if not n:
        raise InputError("no task to plan; give the number of documents of at least one")
    for name, given in (("base", base), ("choices", choices)):
        if odd := sorted(set(given) - set(n)):
            raise InputError(f"{name} names {', '.join(odd)}, which has no number of documents; give its n too")
    for task, count in n.items():
        if count < 1:
            raise InputError(f"task {task}: n is {count}; give at least one document")
        if not 0 <= base.get(task, 0.0) <= 1:
            raise InputError(f"task {task}: base accuracy is {base[task]}; give a share between 0 and 1")
        if choices.get(task, 2) <= 1:
            raise InputError(
                f"task {task}: {choices[task]} choices; multiple choice needs at least 2, leave it out when free form"
            )


def known(scores: Scores) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy of each task that has one, and 1 / the mean chance of a guess if it is multiple choice."""
    accuracy, choices = {}, {}
    for name, task in scores.tasks.items():
        own = [metric for wanted in ACCURACIES for metric in task.values if metric.split(",")[0] == wanted]
        if own:
            weights = task.weights.get(own[0], [1.0] * len(task))
            accuracy[name] = sum(w * v for w, v in zip(weights, task.values[own[0]], strict=True)) / sum(weights)
            if task.choices:
                choices[name] = statistics.harmonic_mean(task.choices)
    return accuracy, choices
