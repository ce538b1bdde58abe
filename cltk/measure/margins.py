"""Claims about a mean: "forgets", "does not forget by more than M", and what neither skew nor rare losses make false."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.special import stdtr, stdtrit

from cltk.errors import InputError
from cltk.measure.intervals import Estimate, Part, lower_tail

LEAST = 20  # independent documents of an unbounded metric, below which nobody is told that it did not forget
STRETCH = 1.5  # how much more skewed than its sample a distribution is taken to be


def noninferiority(estimate: Estimate, margin: float, binary: bool = False) -> float:
    """One-sided p of "the mean loss is `margin` or more"; a small p says: it does not forget by more than the margin.

    The largest p of the tests of `below`. A metric without bounds (`Part.span` None) needs LEAST clusters in every task,
    else p is 1: no number of documents excludes a rare large loss, and few exclude nothing. `binary` gives parts without
    bounds the span 1, that of scores of 0 and 1. SE nan gives 1.
    """
    if not margin > 0:
        raise InputError(f"margin is {margin}; it must be above 0")
    if binary:
        n = estimate.n
        parts = estimate.parts or (Part(estimate.se**2, estimate.df, estimate.clusters, int(n), n, n),)
        estimate = replace(estimate, parts=tuple(replace(part, span=part.span or 1.0) for part in parts))
    if math.isnan(estimate.se) or any(part.span is None and part.clusters < LEAST for part in estimate.parts):
        return 1.0
    return below(estimate, margin)


def exceeds(estimate: Estimate, margin: float) -> float:
    """One-sided p of "the mean loss is `margin` or less"; a small p says: it forgets more than the margin.

    The test of `corrected`'s p, about `margin` in the place of 0. SE nan gives 1.
    """
    return 1.0 if math.isnan(estimate.se) else below(_gains(estimate), -margin)


def _gains(estimate: Estimate) -> Estimate:
    """The mirrored estimate, its gains as much alike within clusters as all changes are: see `corrected`."""
    mirrored = estimate.mirrored()
    if all(part.size >= part.alike for part in mirrored.parts):
        return mirrored
    return replace(mirrored, parts=tuple(replace(part, size=max(part.size, part.alike)) for part in mirrored.parts))


def tost(estimate: Estimate, margin: float, binary: bool = False) -> float:
    """p of "the mean is at least `margin` away from 0, on either side": two one-sided tests, the larger p.

    Source: Schuirmann (1987). `binary` as in `noninferiority`. A clear improvement is not equivalence: its p is large.
    """
    return max(noninferiority(estimate, margin, binary), noninferiority(estimate.mirrored(), margin, binary))


def below(estimate: Estimate, bound: float, careful: bool = True) -> float:
    """One-sided p of "the mean is `bound` or more": small when the mean lies below it. The largest p of

    1. the t test, T = (mean - bound) / SE on df degrees of freedom;
    2. the t test of Hall's transformation g(T) = T + l T^2 / 3 + l^2 T^3 / 27 + l / 6 with l the mean's skewness;
    3. where a loss that the documents do not show would have a larger variance than they do, the t test with that variance
       (`unseen`) and with what of SE^2 is not of documents (`Estimate.beside`).

    `careful` is for claims, without it the bound is the end of an interval. Then parts with bounds get half a document
    (R / 2 a document of the range R) on the mean and one more flip (R^2 / n^2) in the variance; and l is also
    taken as STRETCH max(l, 0) + its own standard error (sqrt(6) / G of equal clusters; `skewness`), as a sample seldom shows
    all of the skew, unless all documents are independent and of a metric with bounds.

    Source: Hall (1992), JRSS B 54(1), who makes Johnson's (1978) modified t monotone. Estimates that know no skewness (nan)
    have no 2, those that know no parts no 3.
    """
    df, half, flip = estimate.df, 0.0, 0.0
    hidden, continuity = unseen(estimate.parts, abs(estimate.mean - bound))
    hidden += estimate.beside
    if careful:
        half, flip = continuity, sum((part.weight * (part.span or 0.0) / part.size) ** 2 for part in estimate.parts)
    distance = estimate.mean + half - bound
    se = math.sqrt(estimate.se**2 + flip)
    p = [lower_tail(distance, math.sqrt(max(hidden, se**2)), df)]
    if estimate.se > 0 and not math.isnan(estimate.skew):
        skews = [estimate.skew * (estimate.se / se) ** 3]
        if careful and not (estimate.parts and all(part.simple for part in estimate.parts)):
            skews.append(_tail(estimate))
        p += [float(stdtr(df, hall(distance / se, skew))) for skew in skews]
        p.append(lower_tail(distance, se, df))
    return max(p)


def hall(t: float, skew: float) -> float:
    """Hall's (1992) transformation of a t statistic of a mean with this skewness: ((1 + l t / 3)^3 - 1) / l + l / 6."""
    return ((1 + skew * t / 3) ** 3 - 1) / skew + skew / 6 if abs(skew) > 1e-9 else t


def hall_inverse(x: float, skew: float) -> float:
    """The t at which `hall` is x."""
    return 3 / skew * (float(np.cbrt(1 + skew * (x - skew / 6))) - 1) if abs(skew) > 1e-9 else x


def _tail(estimate: Estimate) -> float:
    """The skewness that claims are held to: STRETCH times the one shown, by sums or by all clusters alike, whichever is larger,
    and its standard error; each task by its share of the variance to the 3/2."""
    if not estimate.parts:
        return STRETCH * max(estimate.skew, 0.0) + math.sqrt(6) / (estimate.df + 1)
    shares = [(part.weight * math.sqrt(part.variance) / estimate.se) ** 3 for part in estimate.parts]
    pairs = list(zip(shares, estimate.parts, strict=True))
    shown = max(estimate.skew, sum(share * part.skew for share, part in pairs), 0.0)
    return STRETCH * shown + math.sqrt(6) * math.hypot(*(share * (part.unsure or 1 / (part.df + 1)) for share, part in pairs))


def unseen(parts: tuple[Part, ...], loss: float) -> tuple[float, float]:
    """(variance, continuity) of the mean if `loss` is made by whole losses of a few documents, the way that shows least.

    `loss` is how far the mean that is asked for lies above the one that the documents show. A d between 0 and R with mean M
    has a variance of at most M (R - M), namely where a share M / R of the documents loses R: a share that may well be
    missing among n documents. The larger of this variance and of the one shown counts; parts without bounds keep theirs.
    The loss is either in every task alike or all in one task (whichever is worse), whose own loss is then loss / weight.
    Continuity: half a document. Without losses, 363 documents exclude a mean loss of 0.01 in a range of 1.
    """
    bounded = [part for part in parts if part.span is not None]
    if not bounded:
        return 0.0, 0.0
    shown = sum(part.weight**2 * part.variance for part in parts)
    alike = shown + sum(part.weight**2 * max(_binary_variance(part, loss) - part.variance, 0.0) for part in bounded)
    halves = sum(part.weight**2 * (part.span or 0.0) / part.size for part in bounded)
    worst = (alike, halves / 2 / sum(part.weight for part in bounded))
    for part in bounded:
        more = max(_binary_variance(part, loss / part.weight) - part.variance, 0.0)
        worst = max(worst, (shown + part.weight**2 * more, part.weight * (part.span or 0.0) / part.size / 2))
    return worst


def _binary_variance(part: Part, loss: float) -> float:
    """Variance of a task's mean when a share of its documents loses the whole range; most at one half."""
    span = part.span or 0.0
    share = min(loss, span / 2)
    return share * (span - share) / part.size


def corrected(estimate: Estimate, alpha: float = 0.05) -> Estimate:
    """The estimate with an interval and a p that also hold for skewed d and for losses that few documents show.

    Interval: every mean that `below` (not careful) accepts from both sides at alpha / 2, so the union of the t interval,
    of Hall's and of that of unseen losses, within the bounds of the metric; of up to LEAST documents without bounds also of
    Hall's with STRETCH times the skewness. p: twice the careful one-sided p of 0. Losses that clusters do not show may be of
    whole clusters; gains are taken to be as much alike within clusters as all changes are, else a loss in each of 20 clusters
    could still be luck.
    """
    if math.isnan(estimate.se):
        return estimate
    mirrored = _gains(estimate)
    high, low = _end(estimate, alpha / 2), -_end(mirrored, alpha / 2)
    spans = [part.span for part in estimate.parts]
    if spans and None not in spans:
        most = sum(part.weight * (part.span or 0.0) for part in estimate.parts)
        low, high = max(low, -most), min(high, most)
    side = mirrored if estimate.mean > 0 else estimate
    return replace(estimate, low=low, high=high, p=min(1.0, 2 * below(side, 0.0)))


def _end(estimate: Estimate, tail: float) -> float:
    """The upper end of the interval."""
    reach, skews = -float(stdtrit(estimate.df, tail)), [] if math.isnan(estimate.skew) else [estimate.skew]
    if skews and estimate.df < LEAST and all(part.span is None and part.clusters == part.n for part in estimate.parts):
        skews.append(STRETCH * estimate.skew)
    near = estimate.mean + estimate.se * max([reach, *(-hall_inverse(-reach, skew) for skew in skews)])
    spans = [part.weight * part.span for part in estimate.parts if part.span is not None]
    if not spans or below(estimate, near, careful=False) <= tail:
        return near
    far = near + max(estimate.se, sum(spans))
    while below(estimate, far, careful=False) > tail:
        far += far - estimate.mean
    for _ in range(40):
        middle = (near + far) / 2
        near, far = (middle, far) if below(estimate, middle, careful=False) > tail else (near, middle)
    return far


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
