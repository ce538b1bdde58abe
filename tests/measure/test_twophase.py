"""Two-phase estimates against loops that refit without every cluster, the paired t interval, and a simulation."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

from cltk.errors import InputError
from cltk.measure.inclusion import flip_sizes, inclusion, systematic
from cltk.measure.stats import corrected, noninferiority, paired_mean
from cltk.measure.twophase import RIDGES, two_phase


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def world(rng, total=60, clusters=False):
    """(d, predictors, labels) of N documents; clusters have 1 to 4 of them, in mixed order."""
    x = rng.normal(size=(total, 3)) * [1, 5, 0.1] + [0, 2, 0]
    labels = np.repeat(np.arange(total), rng.integers(1, 5, total))[:total] if clusters else np.arange(total)
    d = x[:, 0] - 0.2 * x[:, 1] + rng.normal(size=total) + 0.5 * rng.normal(size=total)[labels] + 0.7
    return d, x, [f"c{label}" for label in rng.permutation(labels)]


def by_hand(d, scored, x, labels, pi, ridge):
    """F, V and V for these N, cluster by cluster with lstsq on rows that stand for the ridge."""
    total, chosen = len(x), sorted({labels[i] for i in scored})
    z = np.column_stack([np.ones(total), (x - x.mean(0)) / x.std(0)])
    pseudo = math.sqrt(ridge) * np.eye(z.shape[1])[1:]
    weight = (min(pi) / pi[scored]) ** 2
    weight = weight / weight.mean()
    g, betas = np.zeros(total), []
    for label in chosen:
        rest = [k for k, i in enumerate(scored) if labels[i] != label]
        rows = np.vstack([np.sqrt(weight[rest])[:, None] * z[[scored[k] for k in rest]], pseudo])
        beta = np.linalg.lstsq(rows, np.concatenate([np.sqrt(weight[rest]) * d[rest], np.zeros(len(pseudo))]), rcond=None)[0]
        betas.append(beta)
        for i in scored:
            if labels[i] == label:
                g[i] = z[i] @ beta
    elsewhere = [i for i in range(total) if i not in scored]
    g[elsewhere] = z[elsewhere] @ np.mean(betas, axis=0)
    e = dict(zip(scored, d - g[scored], strict=True))
    estimate = (g.sum() + sum(e[i] / pi[i] for i in scored)) / total
    groups, variance, finite, m = sorted(set(labels)), 0.0, 0.0, len(chosen)
    for label in groups:
        members = [i for i in range(total) if labels[i] == label]
        psi = sum(g[members])
        if label in chosen:
            error, p = sum(e[i] for i in members), pi[members[0]]
            psi += error + (1 / p - 1) * math.sqrt(1 - 1 / m) * error
            finite += (1 - p) * (1 - 1 / m) * (error / p) ** 2 / total**2
        variance += len(groups) / (len(groups) - 1) * (psi - len(members) * estimate) ** 2 / total**2
    return estimate, variance, finite


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("unequal", [False, True])
def test_it_is_the_formula_worked_out_cluster_by_cluster(rng, clusters, unequal, monkeypatch):
    d, x, labels = world(rng, clusters=clusters)
    names = sorted(set(labels))
    chance = dict(zip(names, rng.uniform(0.2, 0.9, len(names)) if unequal else np.full(len(names), 1 / 3), strict=True))
    drawn = set(rng.permutation(names)[: len(names) // 3])
    scored = rng.permutation([i for i in range(len(d)) if labels[i] in drawn])
    pi = np.array([chance[label] for label in labels])
    pi = pi if unequal else np.full(len(d), len(drawn) / len(names))
    for ridge in (RIDGES[0], 50.0):
        monkeypatch.setattr("cltk.measure.twophase.RIDGES", (ridge,))
        found = two_phase(d[scored], scored, x, labels if clusters else None, pi if unequal else None)
        mean, variance, finite = by_hand(d[scored], list(scored), x, labels, pi, ridge)
        assert found.estimate.mean == pytest.approx(mean, rel=1e-9)
        assert found.here.mean == found.estimate.mean
        assert found.estimate.se == pytest.approx(math.sqrt(variance), rel=1e-9)
        assert found.here.se == pytest.approx(math.sqrt(finite), rel=1e-9)
        assert (found.scored, found.total, found.estimate.clusters) == (len(scored), 60, len(drawn))


def test_a_cluster_has_no_say_in_its_own_ridge(rng, monkeypatch):
    """Each residual is that of the ridge with the smaller squared errors on all others; predictions of no use are dropped."""
    d, x, _ = world(rng)
    d, scored, ridges = d - 0.9 * x[:, 0] + 0.2 * x[:, 1], list(range(25)), (1.0, 1e9)  # little is left to predict
    alone = []
    for ridge in ridges:
        monkeypatch.setattr("cltk.measure.twophase.RIDGES", (ridge,))
        alone.append(_residuals(d, scored, x))
    errors = np.square(alone)
    best = (errors.sum(1, keepdims=True) - errors).argmin(0)
    monkeypatch.setattr("cltk.measure.twophase.RIDGES", ridges)
    assert _residuals(d, scored, x) == pytest.approx(np.array(alone)[best, range(25)])
    assert 0 < best.sum() < 25 or len(set(best)) == 1
    noise = rng.normal(size=(60, 3))
    assert two_phase(d[scored], scored, noise).n_eff == pytest.approx(25, rel=0.12)


def _residuals(d, scored, x):
    from cltk.measure import twophase

    drawn = twophase._drawn(np.array(scored), len(x), None, None)
    z = np.column_stack([np.ones(len(x)), twophase._standardised(x)])
    return twophase._left_out(d[scored], z, drawn, twophase.RIDGES)[0]


def test_without_predictions_it_is_the_paired_t_interval(rng):
    d = rng.normal(size=40)
    found, plain = two_phase(d[:12], np.arange(12), np.ones((40, 1))), paired_mean(d[:12])
    assert found.estimate.mean == pytest.approx(plain.mean)
    # N is finite and counted with 1/N, not as known: to an order of n/N^2 the same standard error
    assert found.estimate.se == pytest.approx(plain.se, rel=0.02)
    assert found.here.se == pytest.approx(plain.se * math.sqrt(1 - 12 / 40))
    assert found.here.ci == pytest.approx(tuple(plain.mean + (end - plain.mean) * math.sqrt(0.7) for end in plain.ci))
    assert (found.r2, found.n_eff) == (pytest.approx(0, abs=1e-12), pytest.approx(12, rel=0.04))
    assert found.here.skew == pytest.approx(plain.skew)


@pytest.mark.parametrize("clusters", [False, True])
def test_all_scored_is_the_full_sample(rng, clusters):
    d, x, labels = world(rng, clusters=clusters)
    order = rng.permutation(60)
    found, plain = two_phase(d[order], order, x, labels if clusters else None), paired_mean(d, labels)
    assert found.estimate == plain or found.estimate.ci == pytest.approx(plain.ci)
    assert (found.here.se, found.n_eff, found.sentence()) == (0, 60, "all 60 scored")


def test_equal_draws_are_unbiased_whatever_the_predictions_are():
    """All 15 draws of 2 of 6: the mean of F is the mean of d, to rounding, also with wild predictors."""
    from itertools import combinations

    d, x = np.array([3.0, -1, 4, 1, -5, 9]), np.array([[1.0], [100], [-3], [7], [0], [2]])
    for size in (2, 3, 4):
        draws = [two_phase(d[list(s)], list(s), x).estimate.mean for s in combinations(range(6), size)]
        if size == 2:  # one other document decides the ridge's fit: every ridge leaves the mean alone
            assert np.mean(draws) == pytest.approx(d.mean())
    fixed = [_with_ridge(d, list(s), x, 1.0) for s in combinations(range(6), 4)]
    assert np.mean(fixed) == pytest.approx(d.mean(), abs=1e-12)


def _with_ridge(d, scored, x, ridge):
    return by_hand(d[scored], scored, x, [str(i) for i in range(len(d))], np.full(len(d), len(scored) / len(d)), ridge)[0]


def test_perfect_predictions_leave_the_noise_of_the_n(rng):
    x = rng.normal(size=400)
    d = 2 * x + 1
    found = two_phase(d[:100], np.arange(100), x)
    assert found.estimate.mean == pytest.approx(d.mean(), abs=0.01)
    assert found.estimate.se == pytest.approx(d.std(ddof=1) / 20, rel=0.02)
    assert found.n_eff == pytest.approx(400 * d[:100].var(ddof=1) / d.var(ddof=1), rel=0.01)
    assert found.r2 > 0.99
    assert found.sentence().startswith("100 scored of 400, R^2 1.00, worth ")


def test_documents_that_are_alike_carry_no_certainty(rng):
    found = two_phase(np.zeros(30), np.arange(30), rng.normal(size=(90, 2)))
    assert (found.estimate.mean, found.estimate.se, found.estimate.p, found.n_eff) == (0, 0, 1, 30)
    assert math.isnan(found.r2)
    lone = two_phase([1.0, 2.0], [0, 1], np.arange(6.0), ["a", "a", "b", "b", "c", "c"])
    assert lone.estimate.ci == (-math.inf, math.inf)
    assert lone.estimate.p == 1


def test_an_unequal_draw_counts_as_few_documents_for_a_floor(rng):
    pi = np.where(np.arange(200) < 50, 0.8, 0.1)
    scored = systematic(pi, seed=3)
    found = two_phase(rng.normal(size=len(scored)), scored, rng.normal(size=200), probability=pi)
    assert found.estimate.parts[0].size == pytest.approx(20)  # 200 x 0.1: the document that is drawn least stands for ten
    assert found.estimate.n == len(scored)


def test_a_loss_that_no_document_shows_is_not_excluded_by_predictions(rng):
    """None of 100 flips, nor does the reference: 1,000 predictions of 0 add nothing to what 100 documents exclude."""
    found = two_phase(np.zeros(100), np.arange(100), np.zeros((1000, 1)), span=1.0).estimate
    alone = paired_mean(np.zeros(100), span=1.0)
    assert noninferiority(found, 0.01, binary=True) == pytest.approx(noninferiority(alone, 0.01, binary=True), rel=0.05)
    assert noninferiority(found, 0.01, binary=True) > 0.1
    assert corrected(found).high == pytest.approx(corrected(alone).high, rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scored": [0, 1, 1]}, "each document once"),
        ({"scored": [0.0, 1.0, 2.0]}, "whole numbers"),
        ({"scored": [0, 1, 6]}, "none of the 6"),
        ({"scored": [0, 1, -1]}, "none of the 6"),
        ({"d": [1.0, math.nan, 0.0]}, "loss of document 1 is not finite"),
        ({"predictors": [0, 1, 2, math.inf, 4, 5]}, "predictor of document 3"),
        ({"d": [1.0, 2.0]}, "shapes"),
        ({"clusters": list("aabbcc")}, "scored in part"),
        ({"clusters": list("aab")}, "3 cluster labels for 6"),
        ({"probability": [0.5] * 5 + [0.0]}, "above 0"),
        ({"probability": [0.5] * 3}, "6 probabilities"),
        ({"scored": [0, 1, 2], "clusters": list("aaabbb"), "probability": [0.5, 0.4, 0.5, 0.5, 0.5, 0.5]}, "one probability"),
    ],
)
def test_what_cannot_be_estimated_is_refused(change, message):
    given = {"d": [1.0, 2.0, 0.5], "scored": [0, 1, 2], "predictors": np.arange(6.0), **change}
    with pytest.raises(InputError, match=message):
        two_phase(**given)


def test_inclusion_is_proportional_between_its_bounds(rng):
    sizes = rng.lognormal(sigma=1.5, size=300)
    pi = inclusion(sizes, 60, floor=0.3)
    assert pi.sum() == pytest.approx(60)
    assert pi.min() >= 0.3 * 60 / 300 - 1e-9
    assert pi.max() <= 1
    free = (pi > pi.min() + 1e-9) & (pi < 1 - 1e-9)
    assert free.sum() > 100
    assert (pi == 1).sum() > 0
    assert np.ptp(pi[free] / sizes[free]) < 1e-6 * (pi[free] / sizes[free]).mean()
    assert inclusion(np.zeros(10), 4) == pytest.approx(0.4)
    assert inclusion(np.ones(10), 10) == pytest.approx(1.0)
    assert inclusion([1, 1, 0, 0], 3) == pytest.approx([1, 1, 0.5, 0.5])
    for bad in ({"size": [1, -1], "n": 1}, {"size": [1, 1], "n": 3}, {"size": [1, 1], "n": 1, "floor": 0}):
        with pytest.raises(InputError, match="inclusion"):
            inclusion(**bad)


def test_systematic_draws_have_their_probabilities_and_size():
    pi = inclusion(np.arange(1, 41), 12)
    counts = np.zeros(40)
    for seed in range(4000):
        drawn = systematic(pi, seed)
        assert len(drawn) == 12
        assert (np.diff(drawn) > 0).all()
        counts[drawn] += 1
    assert (np.abs(counts / 4000 - pi) < 4.5 * np.sqrt(pi * (1 - pi) / 4000) + 1e-9).all()


def test_documents_near_the_boundary_are_taken_to_flip(rng):
    margin = rng.normal(size=1000) * 3
    moved = (rng.uniform(size=1000) < np.exp(-np.abs(margin))) * rng.choice([-1, 1], 1000)
    size = flip_sizes(margin, moved)
    assert (np.diff(size[np.argsort(np.abs(margin))]) <= 1e-12).all()  # falls with |margin|
    assert np.mean(size**2) == pytest.approx(np.mean(moved**2))
    assert size.max() > 3 * size.min()
    with pytest.raises(InputError, match="one of each"):
        flip_sizes([1.0], [1.0, 2.0])


@pytest.mark.slow
def test_the_simulation_keeps_its_promise(monkeypatch):
    """A reduced run of benchmarks/twophase.py: coverage, bias, the variance that was said, and the gain."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    for row in importlib.import_module("twophase").table(draws=1000, reduced=True):
        noise = 3 * math.sqrt(0.95 * 0.05 / 1000)
        assert 0.94 - noise < row["coverage"] < 0.96 + noise, row
        assert 0.94 - noise < row["here"] < 0.96 + noise, row
        assert abs(row["bias"]) < 4, row
        assert 0.8 < row["said"] < 1.2, row
        assert row["gain"] > 1.1, row
