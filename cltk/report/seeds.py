"""Training noise and document noise together: one estimate from several seeds. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from cltk.measure.bootstrap import resample
from cltk.measure.stats import Estimate, Floats, cluster_sums, paired_mean, sign_flip

DRAWS = 2_000  # only a standard error is taken from them: 2 % of it is their own error


@dataclass(frozen=True)
class Evidence:
    """What is known of one task: d [seeds, n] with a cluster label a document, or only what the records say."""

    points: Floats  # [seeds], the mean of each
    variance: float  # of the mean over documents: squared standard error, by cluster
    groups: int  # clusters
    n: int  # documents
    d: Floats | None = None
    cluster: Sequence[str] = ()


def from_documents(d: Floats, cluster: Sequence[str] = ()) -> Evidence:
    """Evidence from d [seeds, n]; the variance is that of each document's mean over seeds."""
    over_documents = paired_mean(d.mean(axis=0), cluster)
    return Evidence(d.mean(axis=1), over_documents.se**2, over_documents.clusters, d.shape[1], d, cluster)


def from_records(points: Sequence[float], errors: Sequence[float], groups: int, n: int) -> Evidence:
    """Evidence from each seed's mean and standard error over documents.

    The mean of the squared errors is what the seeds' average would have if they moved every document alike: the most it
    can be, so that intervals are wider than those from documents.
    """
    return Evidence(np.asarray(points, dtype=np.float64), float(np.mean(np.square(errors))), groups, n)


def combine(tasks: Sequence[Evidence], alpha: float = 0.05, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Mean over tasks, seeds and documents, with an interval for new seeds and new documents (tasks are fixed).

    SE^2 = V + s^2 / S^2, where V is the variance of a two-way bootstrap (seeds, common to all tasks, and clusters within
    each task, drawn independently; Owen 2007, arXiv 0711.1062), s^2 the variance of the S seeds' means, and s^2 / S^2 what
    V lacks because S seeds are drawn from S. Interval: mean +- t SE on Satterthwaite's (1946) degrees of freedom, from
    training noise s^2 / S on S - 1 and document noise on G - 1: the percentiles of 3 seeds would leave out the truth in
    one case of five. p: the larger of that t test's and of a sign flip of the documents' means over seeds, which does not
    trust a handful of flips. `n` is documents of a single task with the same standard error, `clusters` degrees + 1.

    Without d in all tasks: SE^2 = s^2 / S + document variance, and p is the t test's. One cluster: as `paired_mean`.
    """
    points = np.mean([task.points for task in tasks], axis=0)
    seeds, mean = len(points), float(points.mean())
    training = float(points.var(ddof=1)) / seeds if seeds > 1 else 0.0
    documents = sum(task.variance for task in tasks) / len(tasks) ** 2
    n = len(tasks) ** 2 / sum(1 / task.n for task in tasks)
    if math.isnan(documents):
        return Estimate(mean, math.nan, -math.inf, math.inf, 1.0, n, 1)
    degrees = _satterthwaite((training, seeds - 1), (documents, sum(task.groups - 1 for task in tasks)))
    whole = all(task.d is not None for task in tasks)
    drawn = float(np.var(_draw(tasks, draws, seed), ddof=1)) + training / seeds if whole else training + documents
    se = math.sqrt(drawn)
    half = float(stdtrit(degrees, 1 - alpha / 2)) * se
    p = 2 * float(stdtr(degrees, -abs(mean) / se)) if se > 0 else float(mean == 0)
    return Estimate(mean, se, mean - half, mean + half, max(p, _flip(tasks, seed)) if whole else p, n, max(2, int(degrees) + 1))


def _satterthwaite(*parts: tuple[float, int]) -> float:
    """Degrees of freedom of a sum of variances (variance, degrees); those of the last part when all are 0."""
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return parts[-1][1]
    return total**2 / sum(variance**2 / degrees for variance, degrees in parts if variance > 0)


def _draw(tasks: Sequence[Evidence], draws: int, seed: int) -> Floats:
    """Two-way bootstrap means [draws]."""
    rng = np.random.default_rng(seed)
    seeds = len(tasks[0].points)
    means = np.zeros((draws, seeds))
    for task in tasks:
        assert task.d is not None
        per_seed = [cluster_sums(row, task.cluster) for row in task.d]
        drawn = resample(np.column_stack([sums for sums, _ in per_seed] + [per_seed[0][1]]), draws, rng)
        means += drawn[:, :-1] / drawn[:, -1:] / len(tasks)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    return np.asarray((weights * means).sum(axis=1))


def _flip(tasks: Sequence[Evidence], seed: int) -> float:
    """p of the sign flip of the documents' means over seeds, each task with the same weight."""
    weighted, labels = [], []
    for number, task in enumerate(tasks):
        assert task.d is not None
        weighted.append(task.d.mean(axis=0) / task.n)
        labels += [f"{number}/{label}" for label in (task.cluster or range(task.n))]
    return sign_flip(np.concatenate(weighted), labels, seed=seed)


def churn(right: Floats) -> float:
    """Documents that flip one way between two seeds of a method, mean over all pairs: what chance alone turns over.

    With k of S seeds right, a document differs in k (S - k) of the S (S - 1) / 2 pairs; half of the flips are losses.
    `right` is [seeds, n] of 0 and 1, at least two seeds.
    """
    seeds = len(right)
    k = right.sum(axis=0)
    return float((k * (seeds - k)).sum() / (seeds * (seeds - 1)))
