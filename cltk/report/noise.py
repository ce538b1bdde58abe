"""Training noise and document noise together: the one convention of everything that is said of several seeds.

d [S, n] holds the loss of S trainings on n documents in G clusters. Both are drawn anew (tasks are fixed):

    SE^2 = max(T + V - E, T, V)
    T = s^2 / S                                                        on S - 1 degrees: the S seeds' means
    V = the variance of the documents' means over seeds by cluster     on Bell and McCaffrey's: `stats.paired_mean`
    E = G / (G - 1) sum_{s,c} r_{s,c}^2 / ((S - 1) S n^2)              what T and V both count, r the cluster sums of
                                                                       d - seed's mean - document's mean + mean

    1 / df = (T / (T + V))^a / df_T + (V / (T + V))^a / df_V,   a = 1 + smaller df / larger df (0.6 + where the smaller is 1)

a = 2 is Satterthwaite's (1946). A training variance on one or two degrees is often far too small by chance, and then
Satterthwaite's degrees are far too many: with three seeds his intervals cover 92 %, these between 93 and 98 (docs, Statistics).
Means that are skewed or of rare losses get the intervals of `stats.corrected`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cltk.measure.intervals import degrees
from cltk.measure.stats import (
    Estimate,
    Floats,
    Part,
    cluster_sums,
    corrected,
    paired_mean,
    satterthwaite,
    sign_flip,
    t_estimate,
)

STEP = 0.1  # of a mean's standard error, over which a statistic's slope is taken
Statistic = Callable[[Sequence[Floats]], float]


@dataclass(frozen=True)
class Evidence:
    """What is known of one task: d [seeds, n] with a cluster label a document, or only what the records say."""

    points: Floats  # [seeds], the mean of each
    documents: Estimate  # of the mean over seeds, from documents alone
    both: float = 0.0  # E
    d: Floats | None = None
    cluster: Sequence[str] = ()

    @property
    def n(self) -> int:
        return int(self.documents.n)


def from_documents(d: Floats, cluster: Sequence[str] = (), span: float | None = None) -> Evidence:
    """Evidence from d [seeds, n]; `span` is what the metric's highest and lowest score differ by, None without bounds."""
    estimate = paired_mean(d.mean(axis=0), cluster, span=span)
    return Evidence(d.mean(axis=1), estimate, _both(d, cluster, estimate.clusters), d, cluster)


def from_records(
    points: Sequence[float], errors: Sequence[float], groups: int, n: int, span: float | None = None, size: float | None = None
) -> Evidence:
    """Evidence from each seed's mean and standard error over documents.

    The mean of the squared errors is what the seeds' average would have if they moved every document alike: the most it
    can be, so that intervals are wider than those from documents. `size`: documents that they count as for losses that none
    shows, the number of groups when not given.
    """
    variance, worth = sum(error * error for error in errors) / len(errors), groups if size is None else size
    part = Part(variance, groups - 1, groups, n, worth, worth, span)
    se = math.sqrt(variance) if groups > 1 else math.nan
    found = Estimate(sum(points) / len(points), se, -math.inf, math.inf, 1.0, n, groups, groups - 1, math.nan, (part,))
    return Evidence(np.asarray(points, dtype=np.float64), found)


def combine(
    tasks: Sequence[Evidence], alpha: float = 0.05, total: bool = False, choice: float = 0.0, seed: int = 0
) -> Estimate:
    """The mean over tasks (their sum with `total`), seeds and documents: interval and p for new seeds and new documents.

    p: the largest of the t test's, of those of `stats.corrected`, and of a sign flip of the documents' means over seeds, which
    does not trust a handful of flips; without d in all tasks, and of a total, no sign flip. `n` is documents of a single task
    with the same standard error, `clusters` all clusters. `choice`: the variance that choosing adds, where what is averaged was
    chosen by other noisy numbers. A task of one cluster: SE nan, (-inf, inf), p 1.
    """
    weight = 1.0 if total else 1 / len(tasks)
    points: Floats = weight * sum((task.points for task in tasks), np.zeros(()))
    seeds, mean = len(points), float(points.sum()) / len(points)
    found = [task.documents for task in tasks]
    n, clusters = 1 / sum(weight**2 / one.n for one in found), sum(one.clusters for one in found)
    variances = [(weight * one.se) ** 2 for one in found]
    known = [part for one in found for part in one.parts]  # a total has no bounds: what is summed may have been weighted
    parts = tuple(replace(part, weight=weight, span=None if total else part.span) for part in known)
    documents = sum(variances)
    if math.isnan(documents):
        return Estimate(mean, math.nan, -math.inf, math.inf, 1.0, n, 1, 0.0, math.nan, parts)
    training = float(points.var(ddof=1)) / seeds if seeds > 1 else 0.0
    both = weight**2 * sum(task.both for task in tasks)
    variance = max(training + documents - both, training, documents)
    df = degrees(
        (training, seeds - 1), (documents, satterthwaite(list(zip(variances, (one.df for one in found), strict=True))))
    )
    variance += choice
    third = sum(one.skew * v**1.5 for v, one in zip(variances, found, strict=True) if v > 0)
    skew = third / variance**1.5 if variance else 0.0
    plain = t_estimate(mean, variance, df, n, clusters, alpha, skew, parts)
    estimate = corrected(replace(plain, beside=max(variance - documents, 0.0)), alpha)
    whole = not total and all(task.d is not None for task in tasks)
    return replace(estimate, p=max(estimate.p, _flip(tasks))) if whole else estimate


def delta(statistic: Statistic, tasks: Sequence[tuple[Floats, Sequence[str]]]) -> Estimate | None:
    """A statistic of means, with what noise of seeds and documents its means have: None where it has no value.

    Each task is (d [K, S, n], clusters) of K settings; `statistic` takes the means [K] of every task. It is replaced by its
    tangent (slopes over STEP standard errors), which makes of every document and seed one number to `combine`.
    """
    means = [d.mean(axis=(1, 2)) for d, _ in tasks]
    value, evidence = statistic(means), []
    for k, (d, cluster) in enumerate(tasks):
        slopes = np.array([_slope(statistic, means, k, i, one) for i, one in enumerate(d)])
        if not np.isfinite([value, *slopes]).all():
            return None
        moved = np.einsum("k,ksn->sn", slopes, d)
        evidence.append(from_documents(moved - moved.mean() + value / len(tasks), cluster))
    return combine(evidence, total=True)


def _slope(statistic: Statistic, means: Sequence[Floats], task: int, place: int, d: Floats) -> float:
    """How the statistic changes with one mean; 0 where that mean has no noise."""
    step = STEP * max(float(d.mean(axis=0).std()) / math.sqrt(d.shape[1]), float(d.mean(axis=1).std()) / math.sqrt(len(d)))
    if step == 0:
        return 0.0
    ends = []
    for sign in (1, -1):
        moved = [one.copy() for one in means]
        moved[task][place] += sign * step
        ends.append(statistic(moved))
    return (ends[0] - ends[1]) / (2 * step)


def _both(d: Floats, cluster: Sequence[str], groups: int) -> float:
    """E of d [S, n]."""
    seeds, n = d.shape
    if seeds < 2 or groups < 2:
        return 0.0
    residuals = d - d.mean(axis=1, keepdims=True) - d.mean(axis=0) + d.mean()
    squares = sum(float(np.square(cluster_sums(row, cluster)[0]).sum()) for row in residuals)
    return groups / (groups - 1) * squares / ((seeds - 1) * seeds * n**2)


def _flip(tasks: Sequence[Evidence]) -> float:
    """p of the sign flip of the documents' means over seeds, each task with the same weight."""
    weighted, labels = [], []
    for number, task in enumerate(tasks):
        assert task.d is not None
        weighted.append(task.d.mean(axis=0) / task.n)
        labels += [f"{number}/{label}" for label in (task.cluster or range(task.n))]
    return sign_flip(np.concatenate(weighted), labels)


def churn(right: Floats) -> float:
    """Documents that flip one way between two seeds of a method, mean over all pairs: what chance alone turns over.

    With k of S seeds right, a document differs in k (S - k) of the S (S - 1) / 2 pairs; half of the flips are losses.
    `right` is [seeds, n] of 0 and 1, at least two seeds.
    """
    seeds = len(right)
    k = right.sum(axis=0)
    return float((k * (seeds - k)).sum() / (seeds * (seeds - 1)))
