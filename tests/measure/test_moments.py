"""Several looks at one training: what is handed out, what a row is, and, simulated, how often something false is said."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cltk.measure import stats
from cltk.measure.forgetting import compare
from cltk.measure.moments import Spending, amount, losses, verdict
from cltk.measure.scores import Scores, TaskScores

MOMENTS, TRAININGS, N = 10, 400, 100
Draw = Callable[[np.random.Generator], np.ndarray]  # losses [MOMENTS, N] of mean 0


def test_the_shares_are_all_of_alpha_and_never_more() -> None:
    known = Spending(0.05)
    assert [known.share(4 - k) for k in range(4)] == pytest.approx([0.0125] * 4)
    assert known.share(3) == pytest.approx(0, abs=1e-15)
    longer = Spending(0.05)  # a training that is made longer after three of four moments
    shares = [*(longer.share(4 - k) for k in range(3)), *(longer.share(10 - k) for k in range(10))]
    assert sum(shares) == pytest.approx(0.05)
    assert min(shares) > 0
    unknown = Spending(0.05)
    assert [unknown.share(None) for _ in range(3)] == pytest.approx([0.025, 0.0125, 0.00625])


def scores(rows: dict[str, tuple[str, bool, list[float]]]) -> Scores:
    tasks = {}
    for name, (metric, higher, values) in rows.items():
        names = [f"{name}{i}" for i in range(len(values))]
        tasks[name] = TaskScores(name, {metric: values}, {metric: higher}, names, names, [3.0] * len(values) if higher else [])
    return Scores("", tasks)


def test_rows_at_95_percent_are_those_of_compare() -> None:
    rng = np.random.default_rng(0)
    sides = [
        scores({
            "a": ("acc", True, rng.integers(0, 2, 30).astype(float).tolist()),
            "b": ("acc", True, rng.integers(0, 2, 50).astype(float).tolist()),
            "t": ("nll", False, rng.normal(3, 1, 40).tolist()),
        })
        for _ in range(2)
    ]  # fmt: skip
    found, metrics = losses(*sides, 0.05)
    known = compare(*sides, draws=10)
    for row in [*known.rows, known.macro]:
        assert found[row.task].mean == pytest.approx(row.forgetting)
        assert found[row.task].ci == pytest.approx(row.ci)
    assert metrics == {"a": "acc", "b": "acc", "t": "nll", "macro": "acc"}
    wide = losses(*sides, {"a": 0.001})[0]
    assert wide["a"].high > found["a"].high
    assert wide["b"].ci == found["b"].ci
    assert losses(*sides, 0.05, apart=["a"])[0]["macro"].mean == pytest.approx(found["b"].mean)


def independent(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 1, (MOMENTS, N))


def drifting(rng: np.random.Generator) -> np.ndarray:
    """Documents that keep what they lost, and lose more: neighbouring moments are much alike."""
    steps = rng.normal(0, 1, (MOMENTS, N))
    return np.cumsum(steps, axis=0) / np.sqrt(np.arange(1, MOMENTS + 1))[:, None]


def skewed(rng: np.random.Generator) -> np.ndarray:
    return rng.exponential(1, (MOMENTS, N)) - 1


@pytest.mark.parametrize("draw", [independent, drifting, skewed])
def test_intervals_hold_over_all_moments_of_a_training(draw: Draw) -> None:
    """At least 95 % of trainings have the truth in every interval, and at most 2.5 % are stopped though no more was lost."""
    rng = np.random.default_rng(1)
    missed, stopped, naive = 0, 0, 0
    for _ in range(TRAININGS):
        spending = Spending()
        shares = [spending.share(MOMENTS - k) for k in range(MOMENTS)]
        plain = [stats.paired_mean(d) for d in draw(rng)]
        ends = [stats.corrected(one, share).ci for one, share in zip(plain, shares, strict=True)]
        missed += any(low > 0 or high < 0 for low, high in ends)
        stopped += any(low > 0 for low, _ in ends)
        naive += any(one.low > 0 for one in plain)

    def at_most(share: float) -> float:
        return TRAININGS * share + 3 * np.sqrt(TRAININGS * share * (1 - share))

    assert missed <= at_most(0.05)
    assert stopped <= at_most(0.025)
    if draw is not skewed:  # whose t intervals miss on the other side
        assert naive > at_most(0.05)  # a 95 % interval at every moment stops twice as many and more


def test_words_and_units() -> None:
    low, high = (stats.corrected(stats.paired_mean(np.r_[np.zeros(150), np.full(50, x)]), 0.01) for x in (0.001, 1.0))
    assert verdict(low, "nll", 0.01, 0.01) == "forgets (by less than 0.01 nats)"
    assert verdict(high, "acc", 0.02, 0.01) == "forgets"
    few = stats.corrected(stats.paired_mean(np.r_[np.zeros(5), np.full(5, 0.001)]), 0.01)
    assert verdict(few, "nll", 0.1, 0.01) == "cannot tell at this n"  # ten documents exclude no rare large loss
    assert (amount(0.0213, "acc", "+"), amount(0.5, "nll")) == ("+2.13 pp", "0.5 nats")
