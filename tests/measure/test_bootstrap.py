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
