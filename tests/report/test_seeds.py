"""Seeds and documents together: naive loops, closed forms, and a simulation of the coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as ref

from cltk.measure import stats
from cltk.report import seeds


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def noisy(rng, n_seeds, n, training, document=0.5):
    return rng.normal(0, training, (n_seeds, 1)) + rng.normal(0, document, (1, n)) + rng.normal(0, document, (n_seeds, n))


def test_the_error_is_that_of_the_naive_two_way_bootstrap(rng):
    """Two tasks: a draw takes the same seeds in both, and clusters within each."""
    a, b = 0.2 + noisy(rng, 4, 30, 0.3), noisy(rng, 4, 50, 0.3)
    labels = [f"c{i // 3}" for i in range(30)]
    naive = []
    for _ in range(4000):
        rows = rng.integers(4, size=4)
        columns = [3 * group + i for group in rng.integers(10, size=10) for i in range(3)]
        naive.append((a[np.ix_(rows, columns)].mean() + b[np.ix_(rows, rng.integers(50, size=50))].mean()) / 2)
    ours = seeds.combine([seeds.from_documents(a, labels), seeds.from_documents(b)], draws=40_000)
    points = (a.mean(axis=1) + b.mean(axis=1)) / 2
    assert ours.mean == pytest.approx(points.mean())
    assert ours.se**2 == pytest.approx(np.var(naive) + points.var(ddof=1) / 16, rel=0.06)


def test_interval_and_p_come_from_satterthwaites_t(rng):
    d = 0.4 + noisy(rng, 3, 40, 0.2)
    ours = seeds.combine([seeds.from_documents(d)])
    training, documents = d.mean(axis=1).var(ddof=1) / 3, d.mean(axis=0).var(ddof=1) / 40
    degrees = (training + documents) ** 2 / (training**2 / 2 + documents**2 / 39)
    assert ours.ci == pytest.approx(ref.t.interval(0.95, degrees, ours.mean, ours.se))
    assert ours.p == pytest.approx(2 * ref.t.sf(ours.mean / ours.se, degrees))  # here larger than the sign flip's
    assert ours.clusters == int(degrees) + 1


def test_one_seed_is_the_cluster_bootstrap_of_documents(rng):
    d, labels = rng.normal(0.1, 1, (1, 300)), [f"c{i // 3}" for i in range(300)]
    ours, closed = seeds.combine([seeds.from_documents(d, labels)], draws=20_000), stats.paired_mean(d[0], labels)
    assert ours.se == pytest.approx(closed.se, rel=0.03)
    assert ours.ci == pytest.approx(closed.ci, abs=0.01)
    assert ours.p == pytest.approx(closed.p, abs=0.02)


def test_a_handful_of_flips_is_not_trusted():
    """Five losses and no gain: the t test sees nothing but losses, the sign flip knows that 2 of 32 patterns are as far."""
    d = np.zeros((3, 200))
    d[:, :5] = 1
    assert seeds.combine([seeds.from_documents(d)]).p == pytest.approx(2 / 32)


def test_nothing_lost_and_one_cluster():
    none = seeds.combine([seeds.from_documents(np.zeros((3, 20)))])
    assert (none.mean, none.se, none.ci, none.p) == (0, 0, (0, 0), 1)
    alone = seeds.combine([seeds.from_documents(np.ones((2, 3)), ["c"] * 3), seeds.from_documents(np.ones((2, 9)))])
    assert math.isnan(alone.se)
    assert (alone.ci, alone.p) == ((-math.inf, math.inf), 1.0)


def test_records_alone_give_a_wider_interval_than_their_documents(rng):
    d = 0.3 + noisy(rng, 4, 100, 0.2)
    rows = [stats.paired_mean(row) for row in d]
    ours = seeds.combine([seeds.from_records([row.mean for row in rows], [row.se for row in rows], 100, 100)])
    points = d.mean(axis=1)
    assert ours.mean == pytest.approx(points.mean())
    assert ours.se**2 == pytest.approx(points.var(ddof=1) / 4 + np.mean([row.se**2 for row in rows]))
    assert ours.se > seeds.combine([seeds.from_documents(d)]).se


def test_coverage(rng):
    """400 studies of no effect with 3 seeds: some 6 % false claims, where percentiles make three times as many."""
    wrong = []
    for repeat in range(400):
        d = noisy(rng, 3, 60, 0.3)
        ours = seeds.combine([seeds.from_documents(d)], draws=300, seed=repeat)
        wrong.append(ours.low > 0 or ours.high < 0)
    assert 0.02 < np.mean(wrong) < 0.1


def test_churn_is_the_mean_over_pairs_of_seeds(rng):
    right = (rng.random((4, 50)) < 0.6).astype(float)
    pairs = [stats.churn(a, b) for a, b in itertools.combinations(right, 2)]
    assert seeds.churn(right) == pytest.approx(np.mean([(pair.lost + pair.gained) / 2 for pair in pairs]))
