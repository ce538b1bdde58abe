"""Resampling: intervals for scores of a whole corpus, for f1 and mcc, and draws for what is no mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from cltk.errors import InputError
from cltk.measure.stats import CHUNK, Estimate, Floats


def paired(drawn: ArrayLike, n: float, clusters: int, alpha: float = 0.05) -> Estimate:
    """The difference of a corpus score, `drawn[0]`, with what B resamples of the documents make of it, `drawn[1:]`.

    Both models are resampled together. SE = sqrt(G / (G - 1)) sd(draws), for G clusters (documents, where there are none).
    The interval is the expanded percentile one: the quantiles of the draws at Phi(-+ t_{G-1, 1-alpha/2} sqrt(G / (G - 1))),
    which has a t interval's width for a mean and follows a skewed score such as a perplexity. p is the alpha at which that
    interval ends at 0, with one added above and below. One cluster: SE nan, (-inf, inf), p 1.
    Sources: Koehn (2004), EMNLP; Hesterberg (2015), The American Statistician 69(4), section 4.
    """
    mean, *rest = np.asarray(drawn, dtype=np.float64)
    if clusters < 2 or len(rest) < 2:
        return Estimate(float(mean), math.nan, -math.inf, math.inf, 1.0, n, clusters)
    draws = np.asarray(rest)
    wider = math.sqrt(clusters / (clusters - 1))
    level = float(stats.norm.cdf(stats.t.ppf(1 - alpha / 2, clusters - 1) * wider))
    low, high = (float(q) for q in np.quantile(draws, [1 - level, level]))
    tail = (1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))) / (1 + len(draws))
    p = 2 * float(stats.t.sf(max(stats.norm.isf(min(tail, 0.5)), 0.0) / wider, clusters - 1))
    return Estimate(float(mean), wider * float(draws.std(ddof=1)), low, high, min(p, 1.0), n, clusters)


def resample(columns: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Column totals [draws, k] of `columns` [G, k] when G rows are drawn from them with replacement.

    Rows that are equal are drawn together from one multinomial, which makes accuracies (three kinds of document) cheap.
    """
    groups = len(columns)
    kinds, counts = np.unique(columns, axis=0, return_counts=True)
    if len(kinds) <= 64:
        return rng.multinomial(groups, counts / groups, size=draws) @ kinds
    out = np.empty((draws, columns.shape[1]))
    size = max(1, CHUNK // groups)
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        picks = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        out[start : start + rows] = np.bincount(picks.ravel(), minlength=rows * groups).reshape(rows, groups) @ columns
    return out


def f1(cells: ArrayLike) -> Floats:
    """F1 = 2 tp / (2 tp + fp + fn) of confusion cells [..., 4] in the order tp, fp, fn, tn; 0 when nothing is positive."""
    tp, fp, fn, _ = np.moveaxis(np.asarray(cells, dtype=np.float64), -1, 0)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def mcc(cells: ArrayLike) -> Floats:
    """Matthews correlation (tp tn - fp fn) / sqrt((tp+fp)(tp+fn)(tn+fp)(tn+fn)) of cells [..., 4]; 0 when undefined."""
    tp, fp, fn, tn = np.moveaxis(np.asarray(cells, dtype=np.float64), -1, 0)
    return _ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


METRICS = {"f1": f1, "mcc": mcc}


def confusion_se(cells: Sequence[int], metric: str, draws: int = 100_000, seed: int = 0) -> float:
    """Standard error of f1 or mcc from its four cells (tp, fp, fn, tn) alone.

    Drawing the cells from a multinomial of n documents is the same law as drawing the documents with replacement, so
    this is the document bootstrap, exact but for the number of draws, at no cost in n.
    """
    counts = np.asarray(cells)
    if metric not in METRICS:
        raise InputError(f"metric {metric!r} has no confusion cells; use one of {', '.join(METRICS)}")
    if counts.shape != (4,) or (counts < 0).any() or counts.sum() == 0:
        raise InputError(f"cells are {list(cells)}; give the four counts tp, fp, fn, tn of at least one document")
    n = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=draws)
    return float(METRICS[metric](drawn).std(ddof=1))
