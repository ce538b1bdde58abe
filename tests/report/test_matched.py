"""Forgetting at matched gain: interpolation against numpy on sorted points, a truth that is known, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.scores import Scores, TaskScores
from cltk.report.matched import interpolated, matched
from cltk.run.records import read_json, write_json

N, SEEDS = 60, (0, 1, 2, 3, 4)


def test_interpolates_between_what_is_not_beaten() -> None:
    g = np.array([[1.0], [3.0], [2.0], [2.5]])
    f = np.array([[0.2], [1.0], [0.5], [2.0]])  # the last is beaten by the second: more gain, less forgetting
    for at, expected in ((0.0, 0.0), (0.5, 0.1), (1.5, 0.35), (2.5, 0.75), (3.0, 1.0)):
        assert interpolated(g, f, np.array([at]))[0] == pytest.approx(expected)
    assert np.isnan(interpolated(g, f, np.array([3.1]))[0])


def scores(digest: str, new: np.ndarray, old: np.ndarray) -> Scores:
    def task(name: str, values: np.ndarray) -> TaskScores:
        documents = [f"{name}{i}" for i in range(N)]
        return TaskScores(name, {"nll": values.tolist()}, {"nll": False}, documents, documents)

    return Scores(digest, {"heldout": task("heldout", new), "old_text": task("old_text", old)})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Plain at gains 1, 2, 3 forgets 0.1, 0.4, 0.9; `good` at gain 2 forgets 0.25, `bad` 0.6; 'far' gains 4."""
    rng = np.random.default_rng(0)
    new, old = 6 + rng.normal(size=N), 3 + rng.normal(size=N)
    write_json(tmp_path / "base-1" / "scores.json", scores("start", new, old).to_json())
    settings = {
        "plain 1": (1, 0.1),
        "plain 2": (2, 0.4),
        "plain 3": (3, 0.9),
        "good": (2, 0.25),
        "bad": (2, 0.6),
        "far": (4, 1.0),
    }
    per_document = rng.normal(size=(2, N)) * 0.2  # shared by all settings: it must cancel
    for order, (name, (gain, forgetting)) in enumerate(settings.items()):
        for seed in SEEDS:
            noise = np.random.default_rng(seed).normal(size=2) * 0.1  # shared by all settings of a seed
            own = np.random.default_rng(100 * order + seed).normal(size=(2, N)) * 0.02
            after = [new - gain + noise[0] + per_document[0] + own[0], old + forgetting + noise[1] + per_document[1] + own[1]]
            folder = tmp_path / f"{name}_{seed}"
            rows = {role: {"rows": [{"task": task, "metric": "nll", "pre": pre.mean()}], "headline": {task: "nll"}}
                    for role, task, pre in (("retain", "old_text", old), ("learn", "heldout", new))}  # fmt: skip
            digests = {"start_model": "start", "tuned_model": f"{name} {seed}"}
            record = {"method": name, "seed": seed, "order": order, "digests": digests, "train": {}, **rows}
            write_json(folder / "record.json", record)
            write_json(folder / "scores.json", scores(f"{name} {seed}", after[0], after[1]).to_json())
    return tmp_path


def test_a_known_truth(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {one.method: one for one in matched([runs])}
    assert list(found) == ["good", "bad", "far"]
    for name, truth in (("good", -0.15), ("bad", 0.2)):
        one = found[name]
        assert one.difference == pytest.approx(truth, abs=0.03)
        assert one.ci[0] < truth < one.ci[1]
        assert one.ci[1] - one.ci[0] < 0.1  # noise of seeds and documents cancels: alone it has an SE of 0.05
        assert one.adjusted < 0.01
    assert found["far"].reference is None
    assert found["far"].difference is None
    assert main(["matched", str(runs), "--json", str(runs / "m.json")]) == 0
    assert "out of reach" in capsys.readouterr().out
    assert [one["method"] for one in json.loads((runs / "m.json").read_text())["settings"]] == ["good", "bad", "far"]


def test_another_reference(runs: Path) -> None:
    found = {one.method: one for one in matched([runs], reference="[bf]a*")}
    assert found["good"].difference == pytest.approx(-0.35, abs=0.03)


def test_a_sweep_of_the_grid_is_a_setting_each(runs: Path) -> None:
    """`grid: {train.learning_rate: [...]}` leaves one method name: "plain"."""
    expected = [(one.method, one.difference) for one in matched([runs])]
    for file in runs.glob("plain*/record.json"):
        record = read_json(file)
        name, _, rate = record["method"].partition(" ")
        write_json(file, record | {"method": name, "labels": {"seed": record["seed"], "train.learning_rate": int(rate) * 1e-4}})
    assert [(one.method, one.difference) for one in matched([runs])] == expected


def test_bad_input(runs: Path) -> None:
    with pytest.raises(InputError, match="no method has such a name"):
        matched([runs], reference="absent*")
    with pytest.raises(InputError, match="no scores of 'piqa'"):
        matched([runs], old="piqa")
    record = read_json(runs / "good_4" / "record.json")
    write_json(runs / "good_5" / "record.json", record)
    with pytest.raises(InputError, match="good: two records have seed 4"):
        matched([runs])
    (runs / "good_5" / "record.json").unlink()
    (runs / "good_4" / "record.json").unlink()
    with pytest.raises(InputError, match=r"good: has the seeds \[0, 1, 2, 3\]"):
        matched([runs])
