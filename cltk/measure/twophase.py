"""Two-phase measuring: predictions for all N documents, scores for n of them, and still a valid interval.

Everywhere d is the loss on one document (positive is bad), S the n scored documents, pi a document's inclusion probability,
c a cluster (a document alone is a cluster of one), G the number of clusters among the N documents and m that in S.
Pure functions of numbers: no model and no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cltk.errors import InputError
from cltk.measure.intervals import Estimate, Floats, Part, paired_mean, satterthwaite, t_estimate
from cltk.measure.skewness import skewness

RIDGES = (1.0, 1e9)  # documents that say "no slope", beside the scored ones; with the last one only the mean is left


@dataclass(frozen=True)
class TwoPhase:
    """An estimate from n of N documents: the mean of d, and what the predictions were worth."""

    estimate: Estimate  # for documents like these, the N being a sample themselves: the one to report
    here: Estimate  # for these N documents and no others
    scored: int  # n
    total: int  # N
    r2: float  # 1 - (squared errors of the predictions) / (those of the mean), both left out; below 0: of no use
    n_eff: float  # random documents whose plain mean has the standard error of `estimate`

    def sentence(self) -> str:
        """What a row says of it."""
        if self.scored == self.total:
            return f"all {self.total} scored"
        return f"{self.scored} scored of {self.total}, R^2 {self.r2:.2f}, worth {self.n_eff:.0f} documents"


@dataclass(frozen=True)
class _Drawn:
    """Which clusters were drawn, and how likely that was."""

    at: NDArray[np.intp]  # [n] places among the N
    unit: NDArray[np.intp]  # [N] the cluster of each document
    sizes: Floats  # [G] documents of each cluster
    drawn: NDArray[np.bool_]  # [G]
    chance: Floats  # [G]

    def sums(self, values: Floats) -> Floats:
        """[n] -> [m]: sums over the drawn clusters."""
        return np.bincount(self.unit[self.at], values, len(self.sizes))[self.drawn].astype(np.float64)


def two_phase(
    d: ArrayLike,
    scored: ArrayLike,
    predictors: ArrayLike,
    clusters: Sequence[str] | None = None,
    probability: ArrayLike | None = None,
    span: float | None = None,
    alpha: float = 0.05,
) -> TwoPhase:
    """Mean of d over documents like the N, from the scores of n: the difference (AIPW) estimator.

        F = (1/N) sum_N g_i + (1/N) sum_S (d_i - g_i) / pi_i

    g is a ridge regression on the standardised predictors, every cluster predicted without itself: g_i = z_i beta_(-c) in S,
    z_i mean_c(beta_(-c)) elsewhere. At equal probabilities F is unbiased for the N documents whatever the predictors are: given
    the others, the cluster left out is a random one of the rest. The ridge is the one of `RIDGES` best for the others.

    For documents like these (`estimate`), sums being over a cluster, with e_c = d_c - g_c, k = sqrt(1 - 1/m), and
    psi_c = d_c + (1/pi_c - 1) k e_c in S, g_c elsewhere:

        V = G/(G-1) N^-2 sum_c (psi_c - n_c F)^2,      at equal probabilities about S_d^2 [(1 - R^2)/n + R^2/N]

    For these N (`here`): V = N^-2 sum_S (1 - pi_c) (k e_c / pi_c)^2, about (1 - n/N)(1 - R^2) S_d^2/n. Residuals that were left
    out make both of them the jackknife's (HC3). The intervals are t's: residuals have M(S) - tr(H) degrees of freedom,
    predictions M(N) - 1 with M = (sum n_c^2)^2 / sum n_c^4, joined by Satterthwaite. All N scored: `paired_mean`.
    Sources: Saerndal, Swensson and Wretman (1992), chapters 6 and 9; Zrnic and Candes (2024), arXiv 2403.03208.

    Args:
        d: [n] losses of the scored documents.
        scored: [n] their places among the N, each once; clusters whole.
        predictors: [N, p] numbers known for all N whatever d is: scores of the start model, losses of other models.
        clusters: N labels; documents with equal ones are drawn together.
        probability: [N] each document's chance to be scored, equal in a cluster; m/G when None.
        span: what the metric's highest and lowest score differ by; None where it has no bounds.

    Returns:
        TwoPhase. For a loss that none of the n shows they count as N min(pi) documents, or as their clusters' number where
        those are unequal (`Part.size`): predictions say nothing of it.

    Raises:
        InputError: lengths that do not match, a number that is not finite, a document twice, part of a cluster, or a
            probability outside (0, 1].
    """
    values, places, features = _checked(d, scored, predictors)
    drawn = _drawn(places, len(features), clusters, probability)
    n, total, m = len(values), len(features), int(drawn.drawn.sum())
    if n == total:
        plain = paired_mean(values[np.argsort(places)], [str(unit) for unit in drawn.unit], alpha, span)
        here = replace(plain, se=0.0, low=plain.mean, high=plain.mean, p=float(plain.mean == 0))
        return TwoPhase(plain, here, n, total, math.nan, float(n))
    if m < 2:
        lone = Estimate(float(values.mean()), math.nan, -math.inf, math.inf, 1.0, n, m)
        return TwoPhase(lone, lone, n, total, math.nan, math.nan)
    z = np.column_stack([np.ones(total), _standardised(features)])
    residuals, beta, parameters = _left_out(values, z, drawn, RIDGES)
    plain_residuals = _left_out(values, z[:, :1], drawn, (0.0,))[0]
    return _estimate(values, z @ beta, (residuals, plain_residuals), parameters, drawn, span, alpha)


MARGIN_OF = {"acc": "margin", "acc_norm": "margin_norm"}  # the start model's margin whose sign is the answer


def predictors(metric: str, start: Mapping[str, ArrayLike], references: Sequence[Mapping[str, ArrayLike]]) -> Floats:
    """[N, p]: the start model's score and, of an accuracy, its margin; what every reference lost.

    Args:
        start, references: metric -> [N] scores of the start model and of models that were scored on all N documents.
    """
    before = np.asarray(start[metric], np.float64)
    margin = MARGIN_OF.get(metric.split(",")[0], "")
    columns = [before, *([np.asarray(start[margin], np.float64)] if margin in start else [])]
    return np.column_stack([*columns, *(before - np.asarray(one[metric], np.float64) for one in references)])


def _estimate(
    values: Floats, elsewhere: Floats, residuals: tuple[Floats, Floats], parameters: float, drawn: _Drawn,
    span: float | None, alpha: float,
) -> TwoPhase:  # fmt: skip
    """The estimator and its variances; the second residuals are those of the mean alone."""
    n, total, groups, m = len(values), len(elsewhere), len(drawn.sizes), int(drawn.drawn.sum())
    pi, e, shrunk = drawn.chance[drawn.drawn], drawn.sums(residuals[0]), 1 - 1 / m
    elsewhere[drawn.at] = values - residuals[0]  # g
    mean = float(elsewhere.sum() + (e / pi).sum()) / total
    psi = np.bincount(drawn.unit, elsewhere, groups).astype(np.float64)
    psi[drawn.drawn] += e + (1 / pi - 1) * math.sqrt(shrunk) * e
    variance = groups / (groups - 1) * float(((psi - drawn.sizes * mean) ** 2).sum()) / total**2
    residual = shrunk * float(((e / pi) ** 2).sum()) / total**2
    finite = shrunk * float(((1 - pi) * (e / pi) ** 2).sum()) / total**2
    left = max(_equals(drawn.sizes[drawn.drawn]) - parameters, 1.0)
    most = max(_equals(drawn.sizes) - 1, 1.0)
    df = min(satterthwaite([(residual, left), (max(variance - residual, 0.0), most)]), most) if variance else left
    spread = float((drawn.sums(residuals[1]) ** 2 / pi).sum())
    random = groups / m * shrunk * spread / total**2  # the variance of the plain mean of n random documents
    sizes = drawn.sizes[drawn.drawn]
    raw, (pooled, unsure) = skewness(e / pi, np.ones(m))[0], skewness(e / pi, sizes)
    share = min(residual / variance, 1.0) ** 1.5 if variance else 0.0  # predictions are taken to have none
    size = float(sizes.sum() ** 2 / (sizes**2).sum()) * min(1.0, total * float(drawn.chance.min()) / n)
    parts = (Part(variance, df, m, n, size, size, span, skew=pooled * share, unsure=unsure),)
    return TwoPhase(
        t_estimate(mean, variance, df, n, m, alpha, raw * share, parts),
        t_estimate(mean, finite, left, n, m, alpha, raw, (replace(parts[0], variance=finite, df=left),)),
        n, total,
        1 - float((e**2 / pi).sum()) / spread if spread else math.nan,
        n * random / variance if variance else float(n),
    )  # fmt: skip


def _left_out(values: Floats, z: Floats, drawn: _Drawn, ridges: Sequence[float]) -> tuple[Floats, Floats, float]:
    """Residuals [n] of every scored document, its cluster left out; mean coefficients [p]; tr(H).

    Documents weigh 1/pi^2, for which the squared residuals are the variance of F. A cluster has no say in its own ridge:
    with one, estimates from 20 documents were off by up to a fifth of their standard error.
    """
    inside = z[drawn.at]
    number = np.unique(drawn.unit[drawn.at], return_inverse=True)[1].ravel()
    weight = (drawn.chance.min() / drawn.chance[drawn.unit[drawn.at]]) ** 2
    weight /= weight.mean()
    products = np.zeros((number.max() + 1, z.shape[1], z.shape[1]))
    np.add.at(products, number, np.einsum("n,ni,nj->nij", weight, inside, inside))
    right = np.zeros(products.shape[:2])
    np.add.at(right, number, (weight * values)[:, None] * inside)
    slopes = np.diag([0.0] + [1.0] * (z.shape[1] - 1))
    full, betas, residuals = products.sum(axis=0), [], []
    for ridge in ridges:
        beta = np.linalg.solve(full + ridge * slopes - products, (right.sum(axis=0) - right)[..., None])[..., 0]
        betas.append(beta)
        residuals.append(values - np.einsum("ni,ni->n", inside, beta[number]))
    errors = np.array([(drawn.sums(one) / drawn.chance[drawn.drawn]) ** 2 for one in residuals])
    best = (errors.sum(axis=1, keepdims=True) - errors).argmin(axis=0)  # [m]
    traces = np.array([float(np.trace(np.linalg.solve(full + ridge * slopes, full))) for ridge in ridges])
    own = np.array(residuals)[best[number], np.arange(len(values))]
    return own, np.array(betas)[best, np.arange(len(best))].mean(axis=0), float(traces[best].mean())


def _equals(sizes: Floats) -> float:
    """How many clusters of equal size have as much to say about a variance."""
    return float((sizes**2).sum() ** 2 / (sizes**4).sum())


def _standardised(features: Floats) -> Floats:
    """Every predictor with mean 0 and variance 1 over the N documents; constant ones are gone."""
    centred = features - features.mean(axis=0)
    sd = centred.std(axis=0)
    kept = sd > 1e-12 * np.maximum(np.abs(features).max(axis=0, initial=0.0), 1e-300)
    return centred[:, kept] / sd[kept]


def _checked(d: ArrayLike, scored: ArrayLike, predictors: ArrayLike) -> tuple[Floats, NDArray[np.intp], Floats]:
    values, features = np.asarray(d, np.float64), np.asarray(predictors, np.float64)
    places = np.asarray(scored)
    features = features[:, None] if features.ndim == 1 else features
    if values.ndim != 1 or features.ndim != 2 or places.shape != values.shape or not len(values):
        raise InputError(f"two-phase: shapes {values.shape}, {places.shape} and {features.shape}; give [n], [n] and [N, p]")
    if not np.issubdtype(places.dtype, np.integer) or len(np.unique(places)) < len(places):
        raise InputError("two-phase: `scored` must be whole numbers, each document once")
    if places.min() < 0 or places.max() >= len(features):
        raise InputError(f"two-phase: a scored document is none of the {len(features)} that have predictions")
    for name, found in (("loss", values), ("predictor", features)):
        if not np.isfinite(found).all():
            raise InputError(f"two-phase: a {name} of document {int(np.argwhere(~np.isfinite(found))[0][0])} is not finite")
    return values, places.astype(np.intp), features


def _drawn(places: NDArray[np.intp], total: int, clusters: Sequence[str] | None, probability: ArrayLike | None) -> _Drawn:
    unit = np.arange(total)
    if clusters is not None and len(clusters):
        if len(clusters) != total:
            raise InputError(f"two-phase: {len(clusters)} cluster labels for {total} documents; give one label a document")
        unit = np.unique(np.asarray(clusters), return_inverse=True)[1].ravel()
    sizes = np.bincount(unit).astype(np.float64)
    counts = np.bincount(unit[places], minlength=len(sizes))
    if ((counts > 0) & (counts < sizes)).any():
        raise InputError("two-phase: a cluster is scored in part; draw whole clusters")
    if probability is None:
        chance = np.full(len(sizes), (counts > 0).sum() / len(sizes))
    else:
        given = np.asarray(probability, np.float64)
        if given.shape != (total,) or not ((given > 0) & (given <= 1)).all():
            raise InputError(f"two-phase: give {total} probabilities above 0 and up to 1")
        chance = np.zeros(len(sizes))
        chance[unit] = given
        if (chance[unit] != given).any():
            raise InputError("two-phase: the documents of a cluster must have one probability")
    return _Drawn(places, unit, sizes, counts > 0, chance)
