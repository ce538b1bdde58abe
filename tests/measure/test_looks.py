"""Alpha spending against published tables and simulated paths."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from cltk.errors import InputError
from cltk.measure.looks import PLANNED, Looks, boundaries, next_look, spent
from cltk.measure.stepwise import _look

PUBLISHED = {  # Lan-DeMets boundaries of O'Brien-Fleming type, two-sided .05, equally spaced looks
    2: [2.9626, 1.9686],
    3: [3.7103, 2.5114, 1.9930],
    4: [4.3326, 2.9631, 2.3590, 2.0141],
    5: [4.8769, 3.3569, 2.6803, 2.2898, 2.0310],
}


@pytest.mark.parametrize("looks", PUBLISHED)
def test_boundaries_are_the_published_ones(looks):
    assert boundaries([k / looks for k in range(1, looks + 1)]) == pytest.approx(PUBLISHED[looks], abs=2e-4)


def test_one_look_is_the_usual_quantile():
    assert boundaries([1.0]) == pytest.approx([stats.norm.isf(0.025)])
    assert boundaries([1.0], alpha=0.2) == pytest.approx([stats.norm.isf(0.1)])
    assert boundaries([0.3], last=True) == pytest.approx([stats.norm.isf(0.025)])  # documents ran out early
    assert (spent(0), spent(1), spent(7)) == (0, 0.05, 0.05)
    assert spent(0.2587722, 0.05) / 2 == pytest.approx(1.052152e-05, rel=1e-5)  # gsDesign2#534, one side at .025


def crossed(information, bounds, draws=400_000):
    rng = np.random.default_rng(3)
    steps = np.sqrt(np.diff([0.0, *information]))
    path = np.cumsum(rng.normal(size=(draws, len(steps))) * steps, axis=1)
    return float((np.abs(path) >= np.array(bounds) * np.sqrt(information)).any(axis=1).mean())


@pytest.mark.parametrize("information", [[0.2, 0.4, 0.6, 0.8, 1.0], [0.05, 0.5, 0.55, 1.0], [0.3, 1.4], [0.1, 0.2, 0.7]])
def test_chance_crosses_with_the_probability_that_was_spent(information):
    for last in (False, True):
        wanted = 0.05 if last else spent(information[-1])
        share = crossed(information, boundaries(information, last=last))
        assert abs(share - wanted) < 4 * math.sqrt(max(wanted, 1e-5) / 400_000)


def test_no_new_information_decides_nothing():
    assert boundaries([0.5, 0.5, 0.4, 1.0])[1:3] == [math.inf, math.inf]
    assert boundaries([0.5, 0.5, 0.4, 1.0])[3] == pytest.approx(boundaries([0.5, 1.0])[1])
    assert boundaries([1.0, 1.2])[1] == math.inf  # everything is spent
    for bad in ([], [0.0], [-1.0], [math.inf], [math.nan]):
        with pytest.raises(InputError, match="looks"):
            boundaries(bad)
    with pytest.raises(InputError, match="half width"):
        Looks(0.0)


def test_the_look_that_is_narrow_enough_is_the_last():
    for fractions in ([1.0], [0.5, 1.05], [0.1, 0.3, 0.6, 0.7, 0.8, 1.1]):
        looks = Looks(0.01)
        widths = []
        for t in fractions:
            assert not looks.ended
            widths.append(looks.look(0.01 / PLANNED / math.sqrt(t), df=1e6))
        assert looks.ended
        assert widths[-1] <= 0.01 < min([*widths[:-1], 1.0])
        expected = boundaries(fractions, last=True, most=0.9)[-1]
        assert widths[-1] == pytest.approx(expected * 0.01 / PLANNED / math.sqrt(fractions[-1]), rel=1e-4)
    few = Looks(0.01)
    assert few.look(0.01 / PLANNED, df=5) > 0.01  # all the information, but the t quantile of 5 degrees of freedom is 2.57
    assert not few.ended
    assert few.look(0.011 / PLANNED, df=500) == math.inf  # a standard error that grew: the rest is for the last look
    assert few.look(0.01 / PLANNED, df=500, last=True) < 0.0105


def test_documents_that_are_alike_end_nothing():
    looks = Looks(0.01)
    assert looks.look(0.0, 10) == math.inf
    assert looks.look(math.nan, 10) == math.inf
    assert not looks.ended
    assert looks.look(0.0, 10, last=True) == math.inf


def test_p_and_interval_agree():
    looks = Looks(0.02)
    for n in (50, 150, 400):
        width = looks.look(0.3 / math.sqrt(n), n - 1)
    assert looks.p(width * 1.0001, 0.3 / 20) < 0.05 < looks.p(width * 0.9999, 0.3 / 20)
    assert looks.p(0.0, 0.3 / 20) == pytest.approx(1, abs=1e-6)
    assert Looks(0.02).p(0.5, 0.1) == 1.0


def test_the_next_look_is_where_it_should_end():
    assert next_look(100, 0.5, 1000) == 221
    assert next_look(100, 0.01, 1000) == 400
    assert next_look(100, 0.99, 1000) == 125
    assert next_look(100, 0.0, 1000) == 400
    assert next_look(100, 0.5, 150) == 150


def stopped(rng, draw, truth, half, most=2000):
    """(documents, whether the interval at the stop covers, its half width)."""
    d, n, looks = draw(rng, most), 50, Looks(half)
    while True:
        mean, se = d[:n].mean(), d[:n].std(ddof=1) / math.sqrt(n)
        width = looks.look(se, n - 1, last=n == most)
        if looks.ended:
            return n, abs(mean - truth) <= width, width
        n = next_look(n, looks.fraction(se), most)


def test_intervals_at_the_stop_cover_and_few_documents_are_lost():
    """Binary losses (12 % lost, 5 % gained): variance and mean move together, so where it stops depends on the mean."""
    rng, half = np.random.default_rng(11), 0.03
    ends = [stopped(rng, lambda r, n: r.choice([1.0, -1.0, 0.0], n, p=[0.12, 0.05, 0.83]), 0.07, half) for _ in range(250)]
    documents, covered, widths = map(np.array, zip(*ends, strict=True))
    assert abs(covered.mean() - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 250)
    assert (widths <= half).all()
    known = (1.96 / half) ** 2 * (0.17 - 0.07**2)  # documents, had the variance been known
    assert known < np.mean(documents) < 1.25 * known


@pytest.mark.parametrize(("df", "expected"), [(5.0, 5.0), (None, 1005.0)])
def test_a_look_has_the_degrees_of_its_estimate(df, expected):
    """A task of 6 clusters beside one of 1000 documents: their 1006 clusters less one are not what the variance has."""
    estimate = None if df is None else SimpleNamespace(df=df)
    looks = Looks(0.02)
    _look(looks, SimpleNamespace(ci=(-0.01, 0.01), forgetting=0.0, se=0.005, clusters=1006, estimate=estimate), last=True)
    assert looks.df == expected
