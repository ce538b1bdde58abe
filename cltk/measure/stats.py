"""Paired statistics: pure functions of numbers, no model and no file.

Everywhere d is the loss on one document (positive is bad), n the number of documents and G the number of clusters:
groups of documents that share a passage or a subject and are therefore not independent. Without clusters G = n.
Here are the tests by signs; means and intervals are in `intervals`, claims in `margins`, families in `multiple`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from cltk.measure.detectable import mcnemar_power, mde
from cltk.measure.flips import Flips, churn, flips, guess_odds
from cltk.measure.intervals import (
    Estimate,
    Floats,
    Part,
    cluster_sums,
    clustered_moments,
    clustered_se,
    combine,
    paired_mean,
    satterthwaite,
    t_estimate,
)
from cltk.measure.margins import corrected, noninferiority, tost, verdict
from cltk.measure.multiple import benjamini_hochberg, holm

__all__ = [
    "CHUNK",
    "Estimate",
    "Flips",
    "Floats",
    "Part",
    "benjamini_hochberg",
    "churn",
    "cluster_sums",
    "clustered_moments",
    "clustered_se",
    "combine",
    "corrected",
    "flips",
    "guess_odds",
    "holm",
    "mcnemar",
    "mcnemar_power",
    "mde",
    "noninferiority",
    "paired_mean",
    "satterthwaite",
    "sign_flip",
    "t_estimate",
    "tost",
    "verdict",
]

CHUNK = 1 << 22  # numbers held at once by the resampling loops: 32 MiB of float64


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
    count, hits, size = (2**m if exact else draws), 0, max(1, CHUNK // max(m, 1))
    if not exact and m <= KEPT:
        sums, flipped = _byte_sums(units), np.zeros(draws)
        for table, column in zip(sums, _patterns(m, draws, seed), strict=True):
            flipped += table[column]
        return (1 + int((np.abs(total - 2 * flipped) >= bound).sum())) / (1 + draws)
    rng = np.random.default_rng(seed)
    for start in range(0, count, size):
        rows = min(size, count - start)
        if exact:
            signs = ((np.arange(start, start + rows)[:, None] >> np.arange(m)) & 1).astype(np.float64)
        else:
            signs = _drawn(rng, rows, m).astype(np.float64)
        hits += int((np.abs(total - 2 * (signs @ units)) >= bound).sum())
    return hits / count if exact else (1 + hits) / (1 + count)


KEPT = 1 << 12  # units up to which patterns are kept for the next metric: 5 MB


@lru_cache(maxsize=4)
def _patterns(m: int, draws: int, seed: int) -> NDArray[np.uint8]:
    """Random sign patterns of m units, eight a byte, [m / 8, draws]: the same for all metrics of as many documents."""
    rng, size = np.random.default_rng(seed), max(1, CHUNK // m)
    packed = [np.packbits(_drawn(rng, min(size, draws - start), m), axis=1).T for start in range(0, draws, size)]
    return np.ascontiguousarray(np.concatenate(packed, axis=1))


def _drawn(rng: np.random.Generator, rows: int, m: int) -> NDArray[np.uint8]:
    """Random bits [rows, m]."""
    return np.unpackbits(np.frombuffer(rng.bytes(-(-rows * m // 8)), dtype=np.uint8), count=rows * m).reshape(rows, m)


def _byte_sums(units: Floats) -> Floats:
    """[m / 8, 256]: the sum of those of eight units whose bit is set, for every byte."""
    padded = np.zeros(-(-len(units) // 8) * 8)
    padded[: len(units)] = units
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float64)
    return np.asarray(padded.reshape(-1, 8) @ bits.T)
