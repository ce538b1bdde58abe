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
from cltk.report.matched import against_frontier, frontier, matched, place
from cltk.report.settings import first_retained
from cltk.report.sources import Losses
from cltk.run.records import read_json, write_json

N, SEEDS = 60, (0, 1, 2, 3, 4)


GAINS, RISES = np.array([1.0, 3.0, 2.0, 2.5]), np.array([0.2, 1.0, 0.5, 2.0])  # the last is beaten by the second


@pytest.mark.parametrize(("at", "expected"), [(1.0, 0.2), (1.5, 0.35), (2.5, 0.75), (3.0, 1.0)])
def test_a_place_between_what_is_not_beaten(at: float, expected: float) -> None:
    assert frontier(GAINS, RISES) == [0, 2, 1]
    weights, slope = place(GAINS, RISES, at, np.zeros((4, 4)))
    assert weights @ RISES == pytest.approx(expected)
    assert weights.sum() == pytest.approx(1)
    assert slope == pytest.approx({1.0: 0.0, 1.5: 0.3, 2.5: 0.5, 3.0: 0.5}[at])


def test_below_the_first_that_is_not_beaten_nothing_is_joined_to_it() -> None:
    weights, slope = place(np.array([1.0, 3.0]), np.array([0.11, 0.10]), 2.0, np.zeros((2, 2)))
    assert (weights.tolist(), slope) == ([0, 1], 0)  # more gain and less forgetting: no way through the start model


def test_gains_that_noise_hides_are_taken_together() -> None:
    v = np.full((4, 4), 1e6)
    weights, slope = place(GAINS, RISES, 1.1, v)
    assert weights == pytest.approx([0.5, 0, 0.5, 0], abs=1e-5)
    assert slope == pytest.approx(0, abs=1e-5)


def noisy(settings: dict[str, tuple[float, float]], rng: Any, seeds: int, n: int = 40) -> dict[str, tuple[Losses, Losses]]:
    """Losses of settings with these gains and rises: noise of trainings, of documents and of both."""
    found, documents = {}, [str(i) for i in range(n)]
    for name, (gain, rise) in settings.items():
        sides = []
        for mean, training, spread in ((-gain, 0.05, 0.3), (rise, 0.01, 0.06)):
            d = mean + training * (seeds > 1) * rng.normal(size=(seeds, 1)) + spread * rng.normal(size=(1, n))
            d = d + spread / 2 * rng.normal(size=(seeds, n))
            sides.append(Losses(d, [], None, documents, d, d))
        found[name] = (sides[0], sides[1])
    return found


STUDIES: dict[str, dict[str, tuple[float, float]]] = {
    "two rates": {"p1": (1, 0.11), "p2": (3, 0.10), "m": (2, 0.10)},
    "equal rates": {"p1": (1, 0.10), "p2": (3, 0.10), "m": (2, 0.10)},
    "six nearly equal": {**{f"p{i}": (2 + 0.01 * (i - 2.5), 0.10) for i in range(6)}, "m": (2, 0.10)},
}


@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("study", list(STUDIES))
def test_no_bias_where_the_truth_is_no_difference(study: str, seeds: int) -> None:
    """120 studies: the mean D within three of its standard errors of 0 (0.013 to 0.031 above it when the least of the noisy
    settings, and lines from the start model, were the reference), and at most one false claim in ten."""
    rng = np.random.default_rng(0)
    truth = STUDIES[study]
    found = [against_frontier(noisy(truth, rng, seeds), "m", [name for name in truth if name != "m"]) for _ in range(120)]
    known = [one for one in found if one is not None]
    means = np.array([one.mean for one in known])
    assert len(known) > 60
    assert abs(means.mean()) < 3 * means.std() / np.sqrt(len(means))
    assert np.mean([one.low > 0 or one.high < 0 for one in known]) < 0.1


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
        "little": (0.5, 0.05),
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
    assert list(found) == ["good", "bad", "far", "little"]
    for name, truth in (("good", -0.15), ("bad", 0.2)):
        one = found[name]
        assert one.difference == pytest.approx(truth, abs=0.03)
        assert one.ci[0] < truth < one.ci[1]
        assert one.ci[1] - one.ci[0] < 0.1  # noise of seeds and documents cancels: alone it has an SE of 0.05
        assert one.adjusted < 0.01
    for name in ("far", "little"):  # no plain setting gains as much, or as little
        assert (found[name].reference, found[name].difference, found[name].adjusted) == (None, None, None)
    assert main(["matched", str(runs), "--json", str(runs / "m.json")]) == 0
    out = capsys.readouterr().out
    assert "Forgetting of old_text at matched" in out
    assert out.count("out of reach") == 3  # two rows and the note
    assert "training noise is left out" not in out
    assert [one["method"] for one in json.loads((runs / "m.json").read_text())["settings"]] == ["good", "bad", "far", "little"]


def test_another_reference(runs: Path) -> None:
    found = {one.method: one for one in matched([runs], reference="[bfl]*")}
    assert found["good"].difference == pytest.approx(-0.35, abs=0.04)  # `bad` gains as much and forgets 0.6


def test_one_setting_is_no_frontier(runs: Path) -> None:
    with pytest.raises(InputError, match="bad is its only setting, and tells nothing of other gains"):
        matched([runs], reference="bad")


def test_one_seed_says_that_training_noise_is_left_out(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in runs.glob("*_[1-4]/record.json"):
        file.unlink()
    assert main(["matched", str(runs)]) == 0
    assert "One seed: intervals are of documents alone, training noise is left out" in " ".join(capsys.readouterr().out.split())


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


@pytest.mark.parametrize(
    ("retain", "expected"),
    [
        ([{"text": "old.jsonl", "name": "old_text"}, "toy"], "old_text"),  # rows begin with lm-eval's tasks
        ([{"text": "data/old_text.jsonl"}, "toy"], "old_text"),
        (["toy", {"text": "old.jsonl", "name": "old_text"}], "toy"),
        ([{"task": "toy", "sample": 5}], "toy"),
        (["a_group"], "toy"),
        ([], "toy"),
    ],
)
def test_the_first_of_what_is_retained_is_the_files_first(retain: list[Any], expected: str) -> None:
    rows = [{"task": "toy"}, {"task": "old_text"}]
    assert first_retained({"config": {"evals": {"retain": retain}}, "retain": {"rows": rows}}) == expected


def test_no_old_task_is_one_line() -> None:
    with pytest.raises(InputError, match=r"evals\.retain is empty"):
        first_retained({"config": {}})
