"""ACC, BWT, FWT and forgetting against loops over the definitions, and their intervals against repeated sampling."""

from __future__ import annotations

import numpy as np
import pytest

from cltk.errors import InputError
from cltk.measure.stream import measures, summarise


def by_hand(r: list[list[float]]) -> dict[str, float]:
    """r[t][i], t = 0 to T, i = 0 to T - 1: task i is trained at t = i + 1."""
    last = len(r) - 1
    acc = sum(r[last]) / last
    bwt = sum(r[last][i] - r[i + 1][i] for i in range(last - 1)) / (last - 1)
    fwt = sum(r[i][i] - r[0][i] for i in range(1, last)) / (last - 1)
    forgetting = sum(max(r[t][i] - r[last][i] for t in range(1, last)) for i in range(last - 1)) / (last - 1)
    return {"ACC": acc, "BWT": bwt, "FWT": fwt, "forgetting": forgetting}


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_equals_the_definitions(tasks: int) -> None:
    r = np.random.default_rng(tasks).normal(size=(tasks + 1, tasks))
    assert {name: pytest.approx(float(value)) for name, value in measures(r).items()} == by_hand(r.tolist())


def test_a_known_matrix() -> None:
    r = [[0.2, 0.3, 0.1], [0.9, 0.4, 0.1], [0.6, 0.8, 0.3], [0.7, 0.5, 0.9]]
    found = {name: float(value) for name, value in measures(np.array(r)).items()}
    assert found == pytest.approx({"ACC": 0.7, "BWT": (-0.2 - 0.3) / 2, "FWT": (0.1 + 0.2) / 2, "forgetting": (0.2 + 0.3) / 2})


def test_one_training_has_no_transfer() -> None:
    assert list(measures(np.array([[0.1], [0.4]]))) == ["ACC"]


def test_a_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"T \+ 1 rows"):
        measures(np.zeros((3, 3)))


def test_intervals_hold_what_new_documents_give() -> None:
    """The bootstrap's standard error is that of fresh samples of documents; clusters of equal documents widen it."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(3, 2))

    def draw(generator: np.random.Generator) -> list[np.ndarray]:
        common = [generator.normal(size=(1, 80)) for _ in range(2)]
        return [means[:, i : i + 1] + common[i] + 0.5 * generator.normal(size=(3, 80)) for i in range(2)]

    sample = draw(rng)
    found = summarise(sample, [None, None], draws=4000)
    fresh = [measures(np.stack([s.mean(1) for s in draw(rng)], axis=-1)) for _ in range(2000)]
    for name in ("ACC", "BWT", "FWT"):
        spread = np.std([one[name] for one in fresh])
        assert found[name].se == pytest.approx(spread, rel=0.2)
        assert found[name].ci[0] < found[name].value < found[name].ci[1]
    four = [np.repeat(s[:, :20], 4, axis=1) for s in sample]
    labels = [str(i // 4) for i in range(80)]
    naive, clustered = summarise(four, [None, None]), summarise(four, [labels, labels])
    assert (naive["ACC"].clusters, clustered["ACC"].clusters, clustered["ACC"].n) == (160, 40, 160)
    assert clustered["ACC"].se == pytest.approx(2 * naive["ACC"].se, rel=0.1)
