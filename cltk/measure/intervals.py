"""A mean and what may be said of it: standard errors by cluster, tests and intervals that skew and rare losses do not fool.

d is the loss on one document, n the documents, G the clusters; w_c = m_c / n is the share of documents in cluster c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from cltk.errors import InputError
from cltk.measure.skewness import cluster_spread, skewness

Floats = NDArray[np.float64]
FEW = 10  # clusters that changed, below which their likeness within a cluster cannot be estimated


@dataclass(frozen=True)
class Part:
    """One task of an estimate: `weight` times the mean of its own documents."""

    variance: float  # of the task's mean: squared standard error
    df: float
    clusters: int
    n: int  # documents
    size: float  # independent documents that they are worth, for losses that they do not show
    gains: float  # the same, for gains
    span: float | None = None  # highest minus lowest score that the metric can have; None: unbounded
    weight: float = 1.0
    alike: float = 0.0  # as `gains`, if gains within a cluster are as much alike as all changes; the larger of both counts
    skew: float = 0.0  # of the task's mean, from all clusters alike (`skewness`); 0 where not known
    unsure: float = 0.0  # standard error of that / sqrt(6); 0 where not known: 1 / (df + 1)

    @property
    def simple(self) -> bool:
        """Independent documents of a metric with bounds: what they do not show cannot be worse than `unseen` says."""
        return self.span is not None and self.clusters == self.n


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error, interval [low, high] and two-sided p, all in the unit of d."""

    mean: float
    se: float
    low: float
    high: float
    p: float
    n: float
    clusters: int
    df: float = math.nan  # degrees of freedom of the standard error; clusters - 1 where not given
    skew: float = math.nan  # of the mean: its third central moment / se^3; nan where nothing is known of it
    parts: tuple[Part, ...] = ()  # what it is the sum of; empty where nothing is known of it
    beside: float = 0.0  # of se^2, what is not of documents: losses that these do not show come on top of it

    def __post_init__(self) -> None:
        if math.isnan(self.df):
            object.__setattr__(self, "df", float(self.clusters - 1))

    @property
    def ci(self) -> tuple[float, float]:
        return (self.low, self.high)

    def mirrored(self) -> Estimate:
        """The estimate of the mean of -d."""
        parts = tuple(replace(part, size=part.gains, gains=part.size, skew=-part.skew) for part in self.parts)
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low, skew=-self.skew, parts=parts)


def cluster_sums(d: ArrayLike, clusters: Sequence[str] | None = None) -> tuple[Floats, Floats]:
    """(sum of d, number of documents) of every cluster, both [G]; a document alone is a cluster of one.

    Raises:
        InputError: no documents, a value that is not finite, or not one label a document.
    """
    values = np.asarray(d, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise InputError(f"expected a list with at least one number, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise InputError(f"value {int(np.argmin(np.isfinite(values)))} is not a finite number; remove or repair the document")
    if clusters is None or len(clusters) == 0:
        return values, np.ones_like(values)
    if len(clusters) != len(values):
        raise InputError(f"{len(clusters)} cluster labels for {len(values)} documents; give one label a document")
    index = np.unique(np.asarray(clusters), return_inverse=True)[1].ravel()
    return np.bincount(index, values).astype(np.float64), np.bincount(index).astype(np.float64)


def paired_mean(
    d: ArrayLike, clusters: Sequence[str] | None = None, alpha: float = 0.05, span: float | None = None
) -> Estimate:
    """Mean of the paired differences with a t interval; `clustered_moments` has the formulas.

    Without clusters SE = sd(d, ddof=1) / sqrt(n) on n - 1 degrees of freedom: the paired t test. One cluster tells nothing
    about spread: SE is nan, the interval (-inf, inf), p 1. All d zero: SE 0, (0, 0), p 1. `span` is what the metric's
    highest and lowest score differ by. `corrected` makes the interval that also holds for skewed d and rare losses.
    """
    sums, counts = cluster_sums(d, clusters)
    values, n, groups = np.asarray(d, dtype=np.float64), int(counts.sum()), len(sums)
    mean = float(sums.sum() / n)
    if groups == 1:
        part = Part(math.nan, 0.0, 1, n, 1.0, 1.0, span)
        return Estimate(mean, math.nan, -math.inf, math.inf, 1.0, n, 1, 0.0, math.nan, (part,))
    residuals = sums - counts * mean
    variance, df, skew = (float(x) for x in clustered_moments(residuals, counts))
    squares = float(np.square(values - mean).sum())
    hit = [int(np.count_nonzero(cluster_sums(side, clusters)[0])) for side in (values > 0, values < 0, values != 0)]
    size, gains, alike = (effective_size(variance, squares, counts, changed) for changed in hit)
    shown = skewness(residuals, cluster_spread(residuals, counts, squares))
    part = Part(variance, df, groups, n, size, gains, span, 1.0, alike, *shown)
    return t_estimate(mean, variance, df, n, groups, alpha, skew, (part,))


def clustered_moments(residuals: Floats, counts: Floats) -> tuple[Floats, Floats, Floats]:
    """(variance, degrees of freedom, skewness) of a mean, from the residuals' sums r_c [..., G] and the counts m_c [..., G].

        variance = n^-2 sum_c r_c^2 / (1 - w_c)                                            (CR2)
        df       = 1 / (sum w_c^2 + (sum u_c)^2 - sum u_c^2),  u_c = w_c^2 / (1 - w_c)     (Bell-McCaffrey)
        skewness = sqrt(G (G - 1)) / (G - 2) sum r_c^3 / (sum r_c^2)^(3/2)                 (0 for G < 3)

    Equal clusters: G - 1 degrees of freedom and the usual variance; none of both depends on how documents are alike within
    a cluster. The closed forms follow from CR2's adjustment of the intercept, (1 - w_c)^(-1/2).
    Sources: Bell and McCaffrey (2002); Imbens and Kolesar (2016), Review of Economics and Statistics 98(4); Pustejovsky and
    Tipton (2018), Journal of Business and Economic Statistics 36(4).
    """
    n = counts.sum(-1)
    w = counts / n[..., None]
    squares = np.square(residuals)
    variance = (squares / (1 - w)).sum(-1) / n**2
    u = w**2 / (1 - w)
    df = 1 / ((w**2).sum(-1) + u.sum(-1) ** 2 - (u**2).sum(-1))
    groups, total = residuals.shape[-1], squares.sum(-1)
    factor = math.sqrt(groups * (groups - 1)) / (groups - 2) if groups > 2 else 0.0
    skew = factor * np.divide((residuals**3).sum(-1), total**1.5, out=np.zeros_like(total), where=total > 0)
    return variance, df, skew


def clustered_se(residuals: ArrayLike, clusters: Sequence[str] | None = None) -> tuple[float, float]:
    """(standard error, degrees of freedom) of the mean whose influence values are these: for estimators that are no mean.

    The influence values are centred first; weights belong into them. One cluster: (nan, 0).
    """
    estimate = paired_mean(residuals, clusters)
    return estimate.se, estimate.df


def effective_size(variance: float, squares: float, counts: Floats, changed: int) -> float:
    """Independent documents that n documents in clusters are worth: n / design effect, between 1 / sum_c w_c^2 and n.

    The design effect is the clustered variance over that of independent documents, `squares` / (n (n - 1)), and more by the
    relative error of a variance, sqrt(2 / k), where k clusters changed. With fewer than FEW it cannot be known: whole
    clusters are taken to change together.
    """
    n = float(counts.sum())
    least = n**2 / float(np.square(counts).sum())
    if changed < FEW or squares == 0:
        return least
    effect = variance * n * (n - 1) / squares * (1 + math.sqrt(2 / changed))
    return min(max(n / effect, least), n) if effect else n


def t_estimate(
    mean: float, variance: float, df: float, n: float, clusters: int, alpha: float, skew: float, parts: tuple[Part, ...]
) -> Estimate:
    """The t interval and two-sided p of a mean with this variance."""
    se = math.sqrt(variance)
    half = float(stdtrit(df, 1 - alpha / 2)) * se
    p = 2 * lower_tail(-abs(mean), se, df)
    return Estimate(mean, se, mean - half, mean + half, p, n, clusters, df, skew, parts)


def lower_tail(distance: float, se: float, df: float) -> float:
    """P(T_df <= distance / se); one half at distance 0, also when se is 0."""
    if distance == 0:
        return 0.5
    if se == 0:
        return 0.0 if distance < 0 else 1.0
    return float(stdtr(df, distance / se))


def combine(estimates: Sequence[Estimate], alpha: float = 0.05) -> Estimate:
    """The mean of T independent estimates (a macro over tasks that are fixed), each of weight 1 / T.

    SE^2 = sum_t SE_t^2 / T^2 on Satterthwaite's (1946) degrees of freedom, (sum V_t)^2 / sum (V_t^2 / df_t). `n` is
    documents of a single task with the same standard error, `clusters` all clusters. A part without SE leaves none.
    """
    if not estimates:
        raise InputError("no task to average over")
    count = len(estimates)
    mean = float(np.mean([one.mean for one in estimates]))
    size, clusters = count**2 / sum(1 / one.n for one in estimates), sum(one.clusters for one in estimates)
    parts = tuple(replace(part, weight=part.weight / count) for one in estimates for part in one.parts)
    whole = parts if all(one.parts for one in estimates) else ()
    variances = [(one.se / count) ** 2 for one in estimates]
    variance = sum(variances)
    if math.isnan(variance):
        return Estimate(mean, math.nan, -math.inf, math.inf, 1.0, size, clusters, 0.0, math.nan, whole)
    df = satterthwaite([(v, one.df) for v, one in zip(variances, estimates, strict=True)])
    third = sum(one.skew * v**1.5 for v, one in zip(variances, estimates, strict=True) if v > 0)
    return t_estimate(mean, variance, df, size, clusters, alpha, third / variance**1.5 if variance else 0.0, whole)


def degrees(*parts: tuple[float, float]) -> float:
    """Degrees of freedom of the sum of two noises of different kinds (trainings, documents), (variance, degrees) each:

        1 / df = (T / (T + V))^a / df_T + (V / (T + V))^a / df_V,   a = 1 + smaller df / larger (0.6 + where the smaller is 1)

    a = 2 is Satterthwaite's, whose degrees are far too many where a variance has one or two of them and is too small by chance.
    """
    whole = [(variance, df) for variance, df in parts if variance > 0]
    if len(whole) < 2:
        return whole[0][1] if whole else parts[-1][1]
    total, (least, most) = sum(variance for variance, _ in whole), sorted(df for _, df in whole)
    power = (0.6 if least <= 1 else 1.0) + least / most
    return max(1 / sum((variance / total) ** power / df for variance, df in whole), least)


def satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of independent variances, (variance, degrees) each; all degrees when the sum is 0."""
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return sum(degrees for _, degrees in parts)
    return total**2 / sum(variance**2 / degrees for variance, degrees in parts if variance > 0)
