"""Paired statistics: pure functions of numbers, no model and no file.

Everywhere d is the loss on one document (positive is bad), n the number of documents and G the number of clusters:
groups of documents that share a passage or a subject and are therefore not independent. Without clusters G = n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from cltk.errors import InputError

Floats = NDArray[np.float64]
CHUNK = 1 << 22  # numbers held at once by the resampling loops: 32 MiB of float64


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

    @property
    def ci(self) -> tuple[float, float]:
        return (self.low, self.high)


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


def paired_mean(d: ArrayLike, clusters: Sequence[str] | None = None, alpha: float = 0.05) -> Estimate:
    """Mean of the paired differences, with a t interval on G - 1 degrees of freedom.

    SE = sqrt(G / (G - 1)) / n * sqrt(sum_c (sum_{i in c} (d_i - mean))^2), which is sd(d, ddof=1) / sqrt(n) without
    clusters. Source: Miller (2024), arXiv 2411.00640; the factor is the usual small-sample one (CR1).
    One cluster tells nothing about spread: SE is nan, the interval (-inf, inf), p 1. All d zero: SE 0, (0, 0), p 1.
    """
    sums, counts = cluster_sums(d, clusters)
    groups, n = len(sums), int(counts.sum())
    mean = float(sums.sum() / n)
    if groups == 1:
        return Estimate(mean, math.nan, -math.inf, math.inf, 1.0, n, 1)
    residuals = sums - counts * mean
    se = float(math.sqrt(groups / (groups - 1) * float(residuals @ residuals)) / n)
    half = float(stats.t.ppf(1 - alpha / 2, groups - 1)) * se
    return Estimate(mean, se, mean - half, mean + half, 2 * _upper_tail(abs(mean), se, groups - 1), n, groups)


def _upper_tail(distance: float, se: float, df: float) -> float:
    """P(T_df >= distance / se); one half at distance 0, also when se is 0."""
    if distance == 0:
        return 0.5
    if se == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stats.t.sf(distance / se, df))


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p of McNemar (1947): are 1 -> 0 and 0 -> 1 equally likely? Binomial(lost + gained, 1/2); 1 if none."""
    return float(stats.binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def sign_flip(d: ArrayLike, clusters: Sequence[str] | None = None, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test of mean d = 0; whole clusters flip together.

    All 2^m sign patterns of the m clusters with a non-zero sum when there are at most `draws` of them; otherwise
    (1 + hits) / (1 + draws) over random patterns, which is never 0. The null is that each cluster's d is symmetric.
    Source: Fisher (1935); Phipson and Smyth (2010), arXiv 1603.05766, for the added ones.
    """
    units = cluster_sums(d, clusters)[0]
    units = units[units != 0]
    m, total = len(units), float(units.sum())
    bound = abs(total) - 1e-12 * float(np.abs(units).sum())  # equal sums in another order of addition are ties
    exact = m < 63 and 2**m <= draws
    rng = np.random.default_rng(seed)
    count, hits, size = (2**m if exact else draws), 0, max(1, CHUNK // max(m, 1))
    for start in range(0, count, size):
        rows = min(size, count - start)
        if exact:
            flipped = ((np.arange(start, start + rows)[:, None] >> np.arange(m)) & 1).astype(np.float64)
        else:
            packed = np.frombuffer(rng.bytes(-(-rows * m // 8)), dtype=np.uint8)
            flipped = np.unpackbits(packed, count=rows * m).reshape(rows, m).astype(np.float64)
        hits += int((np.abs(total - 2 * (flipped @ units)) >= bound).sum())
    return hits / count if exact else (1 + hits) / (1 + count)


def holm(p: Sequence[float]) -> list[float]:
    """Holm (1979) adjusted p-values, in the order given: the chance of one false claim in the family stays below alpha."""
    order = np.argsort(p)
    scaled = np.asarray(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1)
    return _unsort(np.minimum(np.maximum.accumulate(scaled), 1), order)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg (1995) adjusted p-values, in the order given: the expected share of false claims."""
    order = np.argsort(p)
    scaled = np.asarray(p, dtype=np.float64)[order] * len(p) / np.arange(1, len(p) + 1)
    return _unsort(np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1), order)


def _unsort(values: Floats, order: NDArray[np.intp]) -> list[float]:
    out = np.empty_like(values)
    out[order] = values
    return [float(value) for value in out]


@dataclass(frozen=True)
class Flips:
    """Documents that changed sides; `_rate` fields and below are shares of all n documents, in 0..1."""

    n: int
    lost: int  # 1 -> 0
    gained: int  # 0 -> 1
    lost_rate: float  # F
    gained_rate: float  # BT, backward transfer
    chance_rate: float  # F_chance = BT_chance: flips of either kind that guessing alone makes
    lost_true: float  # F_true
    gained_true: float  # BT_true
    losable: float  # F_max: what is known before, beyond guessing


def flips(pre: ArrayLike, post: ArrayLike, choices: Sequence[float] | None = None) -> Flips:
    """Count 1 -> 0 (forgetting F) and 0 -> 1 (backward transfer BT) and take out what guessing explains.

    F_chance = BT_chance = (1 - a_pre) (1 - a_post) / (k - 1);  F_true = max(F - F_chance, 0);
    F_max = max((k a_pre - 1) / (k - 1), 0) = max(1 - (1 - a_pre) k / (k - 1), 0), for accuracies a and k choices.
    Where k differs per document, 1 / (k - 1) and k / (k - 1) are means over documents. Without choices nothing can be
    guessed: F_chance = 0, F_max = a_pre. Assumes uniform guesses, independent before and after: models that repeat
    their guesses flip less than F_chance. Source: Harmon et al. (2025), arXiv 2510.17776.

    Raises:
        InputError: scores other than 0 and 1, different lengths, or fewer than two choices.
    """
    before, after = cluster_sums(pre)[0], cluster_sums(post)[0]
    if len(before) != len(after):
        raise InputError(f"{len(before)} scores before and {len(after)} after; score the same documents")
    if not np.isin(np.concatenate([before, after]), (0, 1)).all():
        raise InputError("flips need scores of 0 and 1; use the difference of means for continuous metrics")
    n = len(before)
    lost, gained = int((before > after).sum()), int((before < after).sum())
    a_pre, a_post = float(before.mean()), float(after.mean())
    odds = guess_odds(choices)
    chance = (1 - a_pre) * (1 - a_post) * odds
    F, BT = lost / n, gained / n
    known = max(1 - (1 - a_pre) * (1 + odds), 0.0)
    return Flips(n, lost, gained, F, BT, chance, max(F - chance, 0.0), max(BT - chance, 0.0), known)


def guess_odds(choices: Sequence[float] | None) -> float:
    """Mean of 1 / (k - 1) over documents: right guesses for each wrong one. 0 when there is nothing to choose from.

    With r right answers of m choices, k = m / r, and 1 / (k - 1) = r / (m - r).
    """
    if choices is None or len(choices) == 0:
        return 0.0
    if min(choices) <= 1:
        raise InputError(f"a document has {min(choices)} choices; multiple choice needs at least 2")
    return float(np.mean(1 / (np.asarray(choices, dtype=np.float64) - 1)))


def churn(one: ArrayLike, other: ArrayLike, choices: Sequence[float] | None = None) -> Flips:
    """The empirical null of flips: two seeds of the same method, scored 0 or 1 on the same documents.

    Neither seed is "before", so a loss of (lost_rate + gained_rate) / 2 is what a method's F must exceed to be more than
    training noise.
    """
    return flips(one, other, choices)


def noninferiority(estimate: Estimate, margin: float, binary: bool = False) -> float:
    """One-sided p of "the mean loss is `margin` or more"; a small p says: it does not forget by more than the margin.

    p = P(T_{G-1} <= (mean - margin) / SE). With `binary` (d in -1, 0, 1) few or no flips would give SE near 0 and a
    certainty that n documents cannot carry. A d with mean M has variance of at least M (1 - M), so SE is at least
    sqrt(M (1 - M) / n), and half a document is added to the mean for continuity: no flips at all show a margin of
    0.01 from n = 363 on. The floor treats documents as independent, also in clusters. SE nan gives 1.
    """
    if not margin > 0:
        raise InputError(f"margin is {margin}; it must be above 0")
    if math.isnan(estimate.se):
        return 1.0
    mean, se = estimate.mean, estimate.se
    if binary:
        mean += 0.5 / estimate.n
        se = max(se, math.sqrt(margin * max(1 - margin, 0) / estimate.n))
    return _upper_tail(margin - mean, se, estimate.clusters - 1)


def tost(estimate: Estimate, margin: float, binary: bool = False) -> float:
    """p of "the mean is at least `margin` away from 0, on either side": two one-sided tests, the larger p.

    Source: Schuirmann (1987). `binary` as in `noninferiority`. A clear improvement is not equivalence: its p is large.
    """
    mirrored = Estimate(-estimate.mean, estimate.se, -estimate.high, -estimate.low, estimate.p, estimate.n, estimate.clusters)
    return max(noninferiority(estimate, margin, binary), noninferiority(mirrored, margin, binary))


def verdict(ci: tuple[float, float], p: float, p_margin: float, margin: str, alpha: float = 0.05, more: bool = False) -> str:
    """One of three sentences; `margin` is written out with its unit, `p_margin` is the p of `noninferiority`.

    "forgets": the interval lies above 0 and p < alpha (both, as an interval of a handful of flips is too narrow);
    with "(by less than M)" when non-inferiority holds too. "does not forget by more than M": p_margin < alpha, with
    "(improves)" when the interval lies below 0. Else "cannot tell at this n": a large p is never evidence for no loss.
    `more` words it for the difference of two methods: "forgets more".
    """
    within = p_margin < alpha
    word = " more" if more else ""
    if ci[0] > 0 and p < alpha:
        return f"forgets{word} (by less than {margin})" if within else f"forgets{word}"
    if within:
        return f"does not forget{word} by more than {margin}" + (" (improves)" if ci[1] < 0 and p < alpha else "")
    return "cannot tell at this n"


def mde(variance: float, n: float, alpha: float = 0.05, power: float = 0.8, binary: bool = False) -> float:
    """Smallest mean loss that a paired test on n documents shows with this power: (z_{1-alpha/2} + z_power) sqrt(var / n).

    `variance` is that of d: the share of documents that flip for accuracies, sd^2 for continuous metrics. With `binary`
    it is at least m / n, where m losses and no gain are what an exact McNemar test needs to reach alpha (6 at 0.05).
    """
    z = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    floor = math.ceil(1 - math.log2(alpha)) / n if binary else 0.0
    return max(z * math.sqrt(variance / n), floor)
