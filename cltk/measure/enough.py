"""What a difference is worth beside the noise between equal runs, and how many documents would decide. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import ndtri

from cltk.errors import InputError
from cltk.measure.intervals import Estimate, degrees
from cltk.measure.margins import exceeds, noninferiority
from cltk.measure.results import Result, Row

ALPHA, POWER = 0.05, 0.8
MOST = 1 << 20  # times as many documents, beyond which no number of them is named


def needed(estimate: Estimate, budget: float, extra: float = 0.0, df: float = 1.0, alpha: float = ALPHA) -> int | None:
    """Documents that decide in 4 of 5 draws (POWER), were the loss the one measured; None where no number does.

    So many that the test at the budget still decides when the mean is z_0.8 standard errors nearer to it than measured. All
    that grows with documents is scaled: variance, degrees of freedom, clusters, skewness. `extra`, `df`: see `with_noise`.
    """
    if math.isnan(estimate.se) or estimate.mean == budget:
        return None
    low, high = 0.0, 1.0
    while not _decides(estimate, high, budget, extra, df, alpha):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while (high - low) * estimate.n > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if _decides(estimate, middle, budget, extra, df, alpha) else (middle, high)
    return math.ceil(high * estimate.n - 1e-3)


def with_noise(estimate: Estimate, extra: float, df: float) -> Estimate:
    """The estimate for one more draw of what is random beside documents: SE^2 + `extra`, on `intervals.degrees` of freedom."""
    if not extra:
        return estimate
    se = math.sqrt(estimate.se**2 + extra)
    skew = estimate.skew * (estimate.se / se) ** 3
    beside = estimate.beside + extra
    return replace(estimate, se=se, skew=skew, beside=beside, df=degrees((extra, df), (estimate.se**2, estimate.df)))


def spread(noise: Sequence[Result], row: Row) -> tuple[float, float]:
    """(variance of the difference of two runs that should be equal, beyond documents; its degrees of freedom), of a row.

    max(0, mean of D^2 - SE^2) over the k comparisons, D their mean difference, SE^2 its variance over documents, which the
    row's own variance has too. 4 k / (k + 3) degrees, those of k differences from one common run.
    """
    if not noise:
        return 0.0, 1.0
    same = [one for result in noise for one in [*result.rows, result.macro] if (one.task, one.metric) == (row.task, row.metric)]
    if len(same) < len(noise):
        raise InputError(f"noise: a repeated run has no {row.task} {row.metric}; score it on the same tasks as the base")
    squares = [one.forgetting**2 - (0.0 if math.isnan(one.se) else one.se**2) for one in same]
    return max(0.0, float(np.mean(squares))), 4 * len(same) / (len(same) + 3)


def _decides(estimate: Estimate, times: float, budget: float, extra: float, df: float, alpha: float) -> bool:
    """Whether so many times the documents decide, by a mean that lies nearer to the budget by the luck of 1 draw in 5."""
    parts = tuple(
        replace(
            part, variance=part.variance / times, df=part.df * times, clusters=int(part.clusters * times),
            n=int(part.n * times), size=part.size * times, gains=part.gains * times, alike=part.alike * times,
        )
        for part in estimate.parts
    )  # fmt: skip
    se, skew = estimate.se / math.sqrt(times), estimate.skew / math.sqrt(times)
    larger = replace(estimate, se=se, skew=skew, df=max(estimate.df * times, 1.0), n=estimate.n * times, parts=parts)
    larger = with_noise(larger, extra, df)
    nearer = math.copysign(float(ndtri(POWER)) * larger.se, budget - estimate.mean)
    if abs(nearer) >= abs(budget - estimate.mean):
        return False
    larger = replace(larger, mean=estimate.mean + nearer)
    return (noninferiority if estimate.mean < budget else exceeds)(larger, budget) < alpha
