"""Seeds and documents together: naive loops, closed forms, and a simulation of the coverage."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as ref

from cltk.measure import stats
from cltk.report import noise


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def noisy(rng, n_seeds, n, training, document=0.5):
    return rng.normal(0, training, (n_seeds, 1)) + rng.normal(0, document, (1, n)) + rng.normal(0, document, (n_seeds, n))


def test_the_error_is_that_of_a_two_way_table_and_tasks_share_their_seeds(rng):
    """Mean squares by hand: seeds' means over both tasks, clusters of each task, and what both count."""
    a, b = 0.2 + noisy(rng, 4, 30, 0.3), noisy(rng, 4, 50, 0.3)
    labels = [f"c{i // 3}" for i in range(30)]
    ours = noise.combine([noise.from_documents(a, labels), noise.from_documents(b)])
    points = (a.mean(axis=1) + b.mean(axis=1)) / 2
    documents, both = 0.0, 0.0
    for table in (a.reshape(4, 10, 3).mean(axis=2), b):
        rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
        groups = table.shape[1]
        documents += table.mean(axis=0).var(ddof=1) / groups / 4
        both += (rest**2).sum() / (3 * (groups - 1)) / (4 * groups) / 4
    assert ours.mean == pytest.approx(points.mean())
    assert ours.se**2 == pytest.approx(points.var(ddof=1) / 4 + documents - both)


def test_interval_and_p_come_from_one_t_distribution(rng):
    d = 0.4 + noisy(rng, 3, 40, 0.2)
    ours = noise.combine([noise.from_documents(d)])
    training, documents = d.mean(axis=1).var(ddof=1) / 3, d.mean(axis=0).var(ddof=1) / 40
    share, power = training / (training + documents), 1 + 2 / 39
    df = 1 / (share**power / 2 + (1 - share) ** power / 39)
    assert ours.df == pytest.approx(df)
    low, high = ref.t.interval(0.95, df, ours.mean, ours.se)
    assert ours.low <= low
    assert ours.high >= high  # and as far as skewed documents ask for
    assert ours.high - ours.low < 1.2 * (high - low)
    assert ours.p >= 2 * ref.t.sf(ours.mean / ours.se, df) * (1 - 1e-9)


def test_one_seed_is_the_paired_mean_of_documents(rng):
    d, labels = rng.normal(0.1, 1, (1, 300)), [f"c{i // 3}" for i in range(300)]
    ours, closed = noise.combine([noise.from_documents(d, labels)]), stats.corrected(stats.paired_mean(d[0], labels))
    assert (ours.se, ours.ci, ours.df) == (pytest.approx(closed.se), pytest.approx(closed.ci), closed.df)
    assert ours.p == max(closed.p, stats.sign_flip(d[0], labels))


def test_a_statistic_of_means_has_the_error_of_its_tangent(rng):
    """log of a ratio: d log(b / a) = db / b - da / a, by hand; and a plain mean is what `combine` says of it."""
    a, b = 2 + noisy(rng, 4, 60, 0.05), 3 + noisy(rng, 4, 60, 0.05)
    found = noise.delta(lambda means: float(np.log(means[0][1] / means[0][0])), [(np.stack([a, b]), ())])
    by_hand = noise.combine([noise.from_documents(b / b.mean() - a / a.mean())])
    assert found.mean == pytest.approx(np.log(b.mean() / a.mean()))
    assert found.se == pytest.approx(by_hand.se, rel=1e-3)
    plain = noise.delta(lambda means: float(means[0][1] - means[0][0]), [(np.stack([a, b]), ())])
    assert plain.ci == pytest.approx(noise.combine([noise.from_documents(b - a)], total=True).ci, rel=1e-6)
    assert noise.delta(lambda means: np.nan, [(np.stack([a, b]), ())]) is None


def test_a_handful_of_flips_is_not_trusted():
    """Five losses and no gain: the t test sees nothing but losses, the sign flip knows that 2 of 32 patterns are as far."""
    d = np.zeros((3, 200))
    d[:, :5] = 1
    assert noise.combine([noise.from_documents(d)]).p == pytest.approx(2 / 32)


def test_nothing_lost_and_one_cluster():
    none = noise.combine([noise.from_documents(np.zeros((3, 20)))])
    assert (none.mean, none.se, none.ci, none.p) == (0, 0, (0, 0), 1)
    alone = noise.combine([noise.from_documents(np.ones((2, 3)), ["c"] * 3), noise.from_documents(np.ones((2, 9)))])
    assert math.isnan(alone.se)
    assert (alone.ci, alone.p) == ((-math.inf, math.inf), 1.0)


def test_records_alone_give_a_wider_interval_than_their_documents(rng):
    d = 0.3 + noisy(rng, 4, 100, 0.2)
    rows = [stats.paired_mean(row) for row in d]
    ours = noise.combine([noise.from_records([row.mean for row in rows], [row.se for row in rows], 100, 100)])
    points = d.mean(axis=1)
    assert ours.mean == pytest.approx(points.mean())
    assert ours.se**2 == pytest.approx(points.var(ddof=1) / 4 + np.mean([row.se**2 for row in rows]))
    assert ours.se > noise.combine([noise.from_documents(d)]).se


def test_churn_is_the_mean_over_pairs_of_seeds(rng):
    right = (rng.random((4, 50)) < 0.6).astype(float)
    pairs = [stats.churn(a, b) for a, b in itertools.combinations(right, 2)]
    assert noise.churn(right) == pytest.approx(np.mean([(pair.lost + pair.gained) / 2 for pair in pairs]))


def test_training_noise_is_beside_losses_that_no_document_shows():
    """Three seeds whose means differ, on documents of which hardly any flips: one variance and the other, not the larger."""
    seeds = [0.003, -0.003, 0.0]
    estimate = noise.combine([noise.from_records(seeds, [1e-5] * 3, 1000, 1000, span=1.0)])
    assert estimate.beside == pytest.approx(np.var(seeds, ddof=1) / 3)
    alone, both = (stats.noninferiority(one, 0.01) for one in (replace(estimate, beside=0.0), estimate))
    hidden, half = 0.01 * 0.99 / 1000, 0.5 / 1000  # of a loss of the margin, and half a document
    assert both == pytest.approx(ref.t.sf((0.01 - half) / math.sqrt(hidden + estimate.beside), estimate.df), rel=1e-3)
    assert both > alone
