"""One number of a report: the forgetting on a task, or on a mean of tasks, over all seeds of a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np

from cltk.measure import stats
from cltk.measure.forgetting import ACCURACIES, UNITS, span
from cltk.measure.stats import Estimate
from cltk.report import noise
from cltk.report.sources import Losses, Record

ALPHA = 0.05


@dataclass(frozen=True)
class Effect:
    """Forgetting on one task or a mean of tasks, over all seeds; estimate, points and margin in the metric's unit."""

    task: str
    metric: str
    n: int  # documents
    pre: float
    post: float  # mean over seeds
    estimate: Estimate
    points: tuple[float, ...]  # a seed
    margin: float
    p_margin: float  # of "forgets the margin or more"
    lost: float | None  # documents 1 -> 0, mean over seeds; None for continuous metrics
    gained: float | None
    churn: float | None = None  # documents that flip one way between two seeds of this method
    adjusted: float | None = None  # p of no change, over the family that the effect is claimed in
    adjusted_margin: float | None = None  # p_margin, the same
    more: bool = False  # the difference of two methods

    @property
    def binary(self) -> bool:
        return is_accuracy(self.metric)

    @cached_property
    def verdict(self) -> str:
        """By the adjusted p's where there are some."""
        p, p_margin = self._claims[-1]
        if self.more and self.estimate.high < 0 and p < ALPHA:
            return "forgets less"
        return stats.verdict(self.estimate.ci, p, p_margin, self.margin_text, more=self.more)

    @property
    def rests_on(self) -> tuple[float, float | None]:
        """The p that the verdict's words rest on, as tested and adjusted: of "does not forget by more than M" that of the
        margin, of "forgets (by less than M)" the larger of both, else that of no change."""
        words = self.verdict
        both = "(by less than" in words
        found = [max(p, p_margin) if both else p_margin if words.startswith("does not") else p for p, p_margin in self._claims]
        return found[0], found[1] if len(found) > 1 else None

    @property
    def _claims(self) -> list[tuple[float, float]]:
        """(p of no change, p of the margin), as tested and, where there is a family, adjusted."""
        found = [(self.estimate.p, self.p_margin)]
        if self.adjusted is not None and self.adjusted_margin is not None:
            found.append((self.adjusted, self.adjusted_margin))
        return found

    @property
    def margin_text(self) -> str:
        return f"{100 * self.margin:g} pp" if self.binary else f"{self.margin:g} {unit(self.metric)}".strip()

    def over_family(self, p: float, p_margin: float) -> Effect:
        """With its p's adjusted over a family; `dataclasses.replace` takes ten times as long, of tens of thousands."""
        made = object.__new__(Effect)
        vars(made).update(vars(self), adjusted=p, adjusted_margin=p_margin)
        vars(made).pop("verdict", None)  # what was computed of the others
        return made

    @classmethod
    def of(cls, row: Record, name: str, churn: float | None = None) -> Effect:
        """One run's own row, as its record holds it."""
        low, high = row["ci"]
        estimate = Estimate(
            row["forgetting"], finite(row["se"], math.nan), finite(low, -math.inf), finite(high, math.inf), row["p"],
            row["n"], row["clusters"],
        )  # fmt: skip
        return cls(
            name, row["metric"], row["n"], row["pre"], row["post"], estimate, (row["forgetting"],), row["margin"],
            row["noninferiority_p"], row["lost"], row["gained"], churn,
        )  # fmt: skip


@cache
def is_accuracy(metric: str) -> bool:
    """Whether it is a share of documents, shown in percent."""
    return metric.split(",")[0] in (*ACCURACIES, "accuracy")


def unit(metric: str) -> str:
    """The unit of a difference; empty when it has none."""
    return "pp" if is_accuracy(metric) else UNITS.get(metric, "")


def kind(metric: str) -> str:
    """Metrics of one kind are averaged over tasks."""
    return "accuracy" if is_accuracy(metric) else metric


def scaled(effect: Effect, value: Any, sign: int = 1) -> Any:
    """A number or an array in the unit shown: accuracies in percentage points."""
    return sign * (100 * value if effect.binary else value)


def finite(value: float | None, missing: float) -> float:
    """Records write null for what is not finite."""
    return missing if value is None else value


@dataclass(frozen=True)
class Item:
    """One task of one method: its rows, one a seed, and what they weigh, which is computed when it is asked for."""

    rows: list[Record]
    whole: Losses | None  # document by document, where the scores of all seeds are there
    churn: float | None

    @cached_property
    def evidence(self) -> noise.Evidence:
        rows, whole = self.rows, self.whole
        if whole is not None:
            return noise.from_documents(whole.d, whole.cluster, span(rows[0]["metric"], whole.before, whole.after))
        scores = np.array([row[key] for row in rows for key in ("pre", "post")])
        return noise.from_records(
            [row["forgetting"] for row in rows], [finite(row["se"], math.nan) for row in rows], rows[0]["clusters"],
            rows[0]["n"], span(rows[0]["metric"], scores), _size(rows),
        )  # fmt: skip

    @property
    def kind(self) -> str:
        return kind(self.rows[0]["metric"])


def _size(rows: Sequence[Record]) -> float | None:
    """What the documents of these rows count as at least, where they were drawn with unequal probabilities."""
    return min((one["size"] for row in rows if (one := row.get("documents")) and "size" in one), default=None)


def combined(items: list[Item], name: str) -> Effect:
    """The mean over the items' tasks, of all seeds."""
    first = items[0]
    if len(items) == len(first.rows) == 1:
        return Effect.of(first.rows[0], name, first.churn)
    rows = [row for item in items for row in item.rows]
    flips = [[row[key] for row in rows] for key in ("lost", "gained")]
    counts = [None if None in found else sum(found) / len(first.rows) for found in flips]
    effect = judged(name, rows, [item.evidence for item in items])
    return replace(effect, lost=counts[0], gained=counts[1], churn=first.churn if len(items) == 1 else None)


def judged(name: str, rows: list[Record], evidence: Sequence[noise.Evidence]) -> Effect:
    """The estimate from this evidence, held against the smallest margin of its rows."""
    estimate = noise.combine(evidence)
    margin, metrics = min(row["margin"] for row in rows), {row["metric"] for row in rows}
    binary = all(row["lost"] is not None for row in rows)
    return Effect(
        task=name,
        metric=metrics.pop() if len(metrics) == 1 else "accuracy",
        n=sum(one.n for one in evidence),
        pre=sum(row["pre"] for row in rows) / len(rows),
        post=sum(row["post"] for row in rows) / len(rows),
        estimate=estimate,
        points=tuple(sum(of_seed) / len(evidence) for of_seed in zip(*(one.points for one in evidence), strict=True)),
        margin=margin,
        p_margin=stats.noninferiority(estimate, margin, binary),
        lost=None,
        gained=None,
    )
