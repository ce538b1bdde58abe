"""Tables of streams and costs from records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from cltk.measure.stream import NAMES
from cltk.report.aggregate import Summary
from cltk.report.sources import Entry
from cltk.report.streams import costs, matrices, measure, streams


def summary(values: list[float], **train: Any) -> Summary:
    def record(seed: int, value: float) -> dict[str, Any]:
        one = {"value": value, "se": 0.01, "ci": [value - 0.02, value + 0.02], "clusters": 40, "n": 80}
        matrix = {
            "a": {"metric": "nll", "performance": [-3.0, -2.0 - value, -2.5]},
            "b": {"metric": "acc", "performance": [0.2, 0.3, 0.6]},
        }
        stream = {"stages": ["a", "b"], "tasks": ["a", "b"], "matrix": matrix, **dict.fromkeys(NAMES, one)}
        return {"method": "ewc", "seed": seed, "stream": stream, "train": {"seconds": 10, "tokens": 500, **train}}

    entries = [Entry(record(seed, value)) for seed, value in enumerate(values)]
    return Summary("ewc", "ewc", False, entries, [], [], None, None, [], False)


def test_one_seed_keeps_its_interval() -> None:
    found = measure(summary([0.5]), "BWT")
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.48, 0.52))


def test_seeds_widen_it_as_a_t_interval() -> None:
    values = [0.5, 0.7, 0.6]
    found = measure(summary(values), "BWT")
    alone = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert found.mean == pytest.approx(0.6)
    assert found.high - found.low == pytest.approx(alone[1] - alone[0], rel=0.1)


def test_tables() -> None:
    table = streams([summary([0.5])])
    assert table is not None
    assert table.rows == [["ewc", "1", *["+0.500 [+0.480, +0.520]"] * 4]]
    assert "a (nll), b (acc)" in table.note
    (matrix,) = matrices([summary([0.5, 0.7])])
    assert matrix.heads == ["task", "start model", "a", "b"]
    assert matrix.rows[0] == ["a (nll)", "-3.000", "-2.600", "-2.500"]
    assert costs([summary([0.5])]) is None
    found = costs([summary([0.5], parameters=2_500_000, peak_bytes=3_210_000_000)])
    assert found is not None
    assert found.rows == [["ewc", "2.50", "3.21", "10", "50"]]


def test_nothing_without_streams() -> None:
    one = summary([0.5])
    del one.entries[0].record["stream"]
    assert streams([one]) is None
    assert matrices([one]) == []
