"""Forgetting at several moments of one training: intervals that hold for all moments together.

The same documents are asked at every moment, and what is estimated moves with the weights. So there is no information that
accumulates, as there is in `looks`, and nothing is known of how the moments hang together; what holds whatever they do is that
the errors of all intervals together are at most the sum of each one's (Bonferroni). Pure functions of numbers and scores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cltk.measure import stats
from cltk.measure.forgetting import ACCURACIES, MARGINS, UNITS, averaged, headline, span
from cltk.measure.pairing import pair_all
from cltk.measure.scores import Scores
from cltk.measure.stats import Estimate

MACRO = "macro"
Point = dict[str, Any]  # step; forgetting_NAME, _low, _high of every row; what follows from them


@dataclass
class Spending:
    """The error of all moments together, handed out to one after the other.

        alpha_k = (alpha - sum_{j<k} alpha_j) / r,      r: moments that are still to come, this one among them

    Equal shares where the number of moments is known and stays; half of what is left each time where it is not. What a moment
    gets hangs on nothing that was measured, so the sum is at most alpha whatever the data are.
    """

    alpha: float = 0.05
    spent: float = 0.0

    def share(self, remaining: int | None) -> float:
        """Two-sided error of the moment at hand. `remaining`: r, or None where nobody knows."""
        mine = (self.alpha - self.spent) / (2 if remaining is None else max(remaining, 1))
        self.spent += mine
        return mine


def losses(
    pre: Scores, post: Scores, alpha: float | Mapping[str, float], apart: Collection[str] = ()
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Row -> how much the model lost on it, paired by document, with an interval at two-sided error `alpha`; and row -> metric.

    Rows are the tasks and texts, each by its headline metric, and "macro": their mean, of accuracies where there are any, else
    of NLL, as in `compare`. A task without a headline score for each document has no row.

    Args:
        alpha: for all rows, or by row; rows that are not named take 0.05.
        apart: rows that the macro leaves out (the new task's).

    Raises:
        InputError: no row can be compared.
    """
    pairs, _ = pair_all(pre, post)
    heads = {name: headline(list(pair.higher_is_better)) for name, pair in pairs.items()}
    heads = {name: metric for name, metric in heads.items() if metric in pairs[name].pre}
    found = {}
    for name, metric in heads.items():
        one = pairs[name]
        bounds = span(metric, one.pre[metric], one.post[metric])
        found[name] = stats.paired_mean(one.loss(metric), one.of(metric, one.cluster), span=bounds)
    counted = [name for name in found if name not in apart and name not in pre.members]
    kinds = [_kind(heads[name]) for name in counted]
    wanted = next((kind for kind in ("accuracy", "nll") if kind in kinds), kinds[0] if kinds else "")
    if chosen := [name for name, kind in zip(counted, kinds, strict=True) if kind == wanted]:
        if wanted == "nll":
            chosen = averaged({name: pairs[name].pre for name in chosen})
        found[MACRO] = stats.combine([found[name] for name in chosen])
        heads[MACRO] = heads[chosen[0]]
    shares = alpha if isinstance(alpha, Mapping) else dict.fromkeys(found, alpha)
    return {name: stats.corrected(one, shares.get(name, 0.05)) for name, one in found.items()}, heads


def _kind(metric: str) -> str:
    return "accuracy" if metric.split(",")[0] in ACCURACIES else metric


def margin_of(metric: str) -> float:
    """The loss of this metric that does not matter, where nobody says another."""
    return MARGINS.get(metric.split(",")[0], 0.01)


def amount(value: float, metric: str, sign: str = "") -> str:
    """A number with its unit: accuracies in percentage points."""
    unit = UNITS.get(metric.split(",")[0])
    return f"{100 * value:{sign}.3g} pp" if unit is None else f"{value:{sign}.3g} {unit}"


def verdict(estimate: Estimate, metric: str, margin: float, alpha: float) -> str:
    """One of the sentences of every table, at this moment's share of the error: see `cltk.measure.margins.verdict`."""
    p_margin = stats.noninferiority(estimate, margin)
    return stats.verdict(estimate.ci, estimate.p, p_margin, amount(margin, metric), alpha)


def moment(
    pre: Scores, post: Scores, step: int, share: float, limits: Mapping[str, float], apart: Collection[str] = (),
    told: Sequence[str] = (),
) -> Point:  # fmt: skip
    """One moment of the curve: rows with intervals, `verdicts`, `lost` where a limit is surely passed, and `alerts`.

    Args:
        share: two-sided error of this moment (`Spending`); 0 for the start model itself, which lost nothing.
        limits: row -> the loss at which training is to stop; several share the error.
        apart: rows that the macro leaves out.
        told: rows that were alerted before. An alert is (row, words): its interval lies above 0 with p < share / rows.
    """
    shares = {name: share / (len(limits) if name in limits else 1) for name in (*pre.tasks, MACRO)}
    found, metrics = losses(pre, post, shares if share else 0.05, apart)
    point: Point = {"step": step, "alerts": []}
    for name, one in found.items():
        metric, (low, high) = metrics[name], one.ci if share else (0.0, 0.0)
        point |= {f"forgetting_{name}": one.mean, f"forgetting_{name}_low": low, f"forgetting_{name}_high": high}
        if low > 0 and one.p * len(found) < share and name not in told:
            between = f"{amount(low, metric, '+')} to {amount(high, metric, '+')} over all moments"
            point["alerts"].append((name, f"{name} is forgotten: {amount(one.mean, metric, '+')} ({between})"))
        if name in limits and low > limits[name]:
            least, most = amount(low, metric), amount(limits[name], metric)
            point.setdefault("lost", f"{name} lost {amount(one.mean, metric)} (at least {least}), more than {most}")
    if share:
        margins = {name: limits.get(name) or margin_of(metrics[name]) for name in found}
        point["verdicts"] = {name: verdict(one, metrics[name], margins[name], shares[name]) for name, one in found.items()}
    return point
