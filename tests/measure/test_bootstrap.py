"""Resampling against naive loops, closed forms, scikit-learn and a simulation of the coverage."""

import math

import numpy as np
import pytest
from scipy import stats as ref

from cltk.errors import InputError
from cltk.measure import bootstrap


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def clustered(rng, groups, mean=0.0):
    labels = np.repeat(np.arange(groups), rng.integers(1, 5, groups))
    return mean + rng.normal(0, 1, groups)[labels] + rng.normal(0, 1, len(labels)), [f"c{label}" for label in labels]


def naive_draw(rng, d, labels):
    """One cluster bootstrap mean, document by document."""
    members = {label: [i for i, other in enumerate(labels) if other == label] for label in sorted(set(labels))}
    names = list(members)
    picked = [i for name in rng.choice(names, len(names)) for i in members[name]]
    return np.mean(np.asarray(d)[picked])


def test_macro_is_the_naive_cluster_bootstrap(rng):
    tasks = {"a": clustered(rng, 12), "b": clustered(rng, 30, 0.4)}
    naive = [np.mean([naive_draw(rng, *task) for task in tasks.values()]) for _ in range(3000)]
    ours = bootstrap.macro(tasks, draws=20_000)
    assert ours.mean == pytest.approx(np.mean([np.mean(d) for d, _ in tasks.values()]))
    assert ours.points == pytest.approx([np.mean(d) for d, _ in tasks.values()])
    assert ours.se == pytest.approx(np.std(naive), rel=0.06)
    assert ours.ci == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=0.15 * ours.se)
    below = np.mean(np.asarray(naive) <= 0)
    assert ours.p == pytest.approx(2 * min(below, 1 - below), abs=0.03)


def test_macro_of_flips_has_the_closed_form_error(rng):
    tasks = {name: (rng.choice([-1.0, 0, 1], n, p=[0.04, 0.9, 0.06]), None) for name, n in (("a", 150), ("b", 900))}
    ours = bootstrap.macro(tasks, draws=40_000)
    assert ours.se == pytest.approx(math.sqrt(sum(np.var(d) / len(d) for d, _ in tasks.values())) / 2, rel=0.02)


@pytest.mark.parametrize("kinds", [3, 500])
def test_resample_has_the_moments_of_its_law(kinds, rng):
    """Both ways of drawing: the totals have mean G m and covariance G cov of the columns."""
    values = rng.normal(size=(kinds, 2))
    columns = values[rng.integers(kinds, size=500)] if kinds == 3 else values
    drawn = bootstrap.resample(columns, 40_000, rng)
    error = np.sqrt(500 * np.var(columns, axis=0) / 40_000)
    assert np.all(np.abs(drawn.mean(axis=0) - columns.sum(axis=0)) < 4 * error)
    covariance = 500 * np.cov(columns.T, bias=True)
    assert np.cov(drawn.T) == pytest.approx(covariance, abs=0.03 * np.trace(covariance))


def test_resample_in_chunks(rng, monkeypatch):
    columns = rng.normal(size=(100, 2))
    whole = bootstrap.resample(columns, 50, np.random.default_rng(0))
    monkeypatch.setattr(bootstrap, "CHUNK", 700)
    assert bootstrap.resample(columns, 50, np.random.default_rng(0)) == pytest.approx(whole)


def test_seeds_repeat_and_differ(rng):
    tasks = {"a": clustered(rng, 80)}
    assert bootstrap.macro(tasks, 500) == bootstrap.macro(tasks, 500)
    assert bootstrap.macro(tasks, 500).ci != bootstrap.macro(tasks, 500, seed=1).ci


def test_no_difference_is_exactly_zero():
    ours = bootstrap.macro({"a": (np.zeros(30), None), "b": (np.zeros(9), None)}, 200)
    assert (ours.mean, ours.se, ours.ci, ours.p) == (0, 0, (0, 0), 1)


def test_a_draw_is_a_mean_over_the_documents_it_holds():
    """Clusters of 1 and 9 documents that all lose 1: a draw of any size has the mean 1."""
    ours = bootstrap.macro({"a": (np.ones(20), list("abbbbbbbbbcddddddddd"))}, 200)
    assert (ours.mean, ours.se, ours.ci) == (1, 0, (1, 1))
    assert bootstrap.two_way(np.ones((3, 20)), list("abbbbbbbbbcddddddddd"), 200).ci == (1, 1)


def test_one_cluster_and_no_task():
    ours = bootstrap.macro({"a": ([0.1, 0.2], ["c", "c"]), "b": ([0.1, 0.2], None)}, 50)
    assert math.isnan(ours.se)
    assert ours.ci == (-math.inf, math.inf)
    assert ours.p == 1
    with pytest.raises(InputError, match="no task"):
        bootstrap.macro({})


def test_coverage(rng):
    """1500 samples; the percentile interval of 100 clusters is a little narrow (94.5 %)."""
    inside = []
    for repeat in range(1500):
        d, labels = clustered(rng, 100)
        flips = rng.choice([-1.0, 0, 1], 200, p=[0.05, 0.85, 0.1]) - 0.05
        low, high = bootstrap.macro({"a": (d, labels), "b": (flips, None)}, 400, seed=repeat).ci
        inside.append(low < 0 < high)
    assert 0.93 < np.mean(inside) < 0.97


def test_two_way_is_the_naive_bootstrap_of_seeds_and_documents(rng):
    labels = [f"c{i // 2}" for i in range(40)]
    d = 0.1 + rng.normal(0, 0.3, (6, 1)) + rng.normal(0, 0.5, (1, 40)) + rng.normal(0, 0.5, (6, 40))
    naive = []
    for _ in range(3000):
        rows = rng.integers(6, size=6)
        groups = rng.integers(20, size=20)
        columns = [2 * g + i for g in groups for i in (0, 1)]
        naive.append(d[np.ix_(rows, columns)].mean())
    ours = bootstrap.two_way(d, labels, draws=20_000)
    assert ours.mean == pytest.approx(d.mean())
    assert ours.points == pytest.approx(d.mean(axis=1))
    assert ours.se == pytest.approx(np.std(naive), rel=0.06)
    assert ours.ci == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=0.15 * ours.se)


def test_two_way_of_one_seed_draws_documents_only(rng):
    d = rng.normal(size=300)
    ours = bootstrap.two_way(d[None], draws=20_000)
    assert ours.se == pytest.approx(np.std(d) / math.sqrt(300), rel=0.03)
    assert ours.points == (pytest.approx(d.mean()),)


def test_two_way_sees_training_noise(rng):
    """Seeds that differ by far more than documents: the documents alone would give a tenth of the error."""
    d = rng.normal(0, 1, (8, 1)) + rng.normal(0, 0.1, (1, 100))
    assert bootstrap.two_way(d).se > 5 * bootstrap.two_way(d.mean(axis=0)).se


@pytest.mark.parametrize(("metric", "name"), [("f1", "f1_score"), ("mcc", "matthews_corrcoef")])
def test_confusion_metrics_and_errors(metric, name, rng):
    metrics = pytest.importorskip("sklearn.metrics")
    truth = rng.random(300) < 0.35
    guess = np.where(rng.random(300) < 0.75, truth, rng.random(300) < 0.5)

    def cells(t, g):
        return [int((t & g).sum()), int((~t & g).sum()), int((t & ~g).sum()), int((~t & ~g).sum())]

    assert float(bootstrap.METRICS[metric](cells(truth, guess))) == pytest.approx(getattr(metrics, name)(truth, guess))
    draws = [rng.integers(300, size=300) for _ in range(4000)]
    naive = [float(bootstrap.METRICS[metric](cells(truth[i], guess[i]))) for i in draws]
    assert bootstrap.confusion_se(cells(truth, guess), metric) == pytest.approx(np.std(naive), rel=0.05)


def test_confusion_metrics_without_positives_are_zero():
    assert float(bootstrap.f1([0, 0, 0, 9])) == float(bootstrap.mcc([0, 0, 0, 9])) == 0
    assert bootstrap.confusion_se([0, 0, 0, 9], "f1") == 0


def test_mcc_error_against_the_correlation_of_large_samples():
    """For a symmetric 2 x 2 table the error of mcc is that of the phi coefficient: sqrt((1 - r^2) / n) at equal margins."""
    assert bootstrap.confusion_se([400, 100, 100, 400], "mcc") == pytest.approx(math.sqrt((1 - 0.6**2) / 1000), rel=0.02)
    assert float(bootstrap.mcc([400, 100, 100, 400])) == pytest.approx(
        ref.pearsonr([1] * 5 + [0] * 5, [1] * 4 + [0, 1] + [0] * 4)[0]
    )


@pytest.mark.parametrize(
    ("cells", "metric"), [([1, 2, 3], "f1"), ([0, 0, 0, 0], "f1"), ([-1, 2, 3, 4], "mcc"), ([1, 1, 1, 1], "acc")]
)
def test_confusion_refuses(cells, metric):
    with pytest.raises(InputError):
        bootstrap.confusion_se(cells, metric)
