"""A reproduction notices any number and any document that was changed: in records, in scores, in flat results."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cltk.cli import main
from cltk.run.records import read_json, read_record, write_json
from cltk.run.reproduce import _base, _scores
from cltk.run.sameness import Difference, causes, choices, differences, documents_of, values_of
from tests.conftest import TINY

RESULTS = Path(__file__).parents[2] / "experiments/ewc-path/results"
UNREPEATED = ("environment", "seconds", "order", "format", "sha256", "folder")  # of a record: the run's own
TIMED = ("seconds", "peak_bytes")  # of its train


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every number and text of a JSON file stands."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))
    elif value is not None:
        yield path


def counts(path: tuple[Any, ...]) -> bool:
    """Whether a place of a record is one that a rerun repeats. Written out by hand: the comparison has its own list."""
    if path[0] in UNREPEATED or (path[0] == "train" and path[1] in TIMED):
        return False
    if path[:2] == ("train", "history"):
        return not str(path[3]).endswith(("_runtime", "_per_second"))
    if path[:2] == ("train", "notes"):
        return "speed" not in path and path[-1] != "seconds"  # the seconds that a Fisher took
    return path[:2] not in (("digests", "cell"), ("digests", "measurement"))  # with the version of cltk in them


def changed(data: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """A copy in which one place has another value of the same kind, as little off as a float can be."""
    data = copy.deepcopy(data)
    at: Any = data
    for key in path[:-1]:
        at = at[key]
    value = at[path[-1]]
    if isinstance(value, bool):
        at[path[-1]] = not value
    elif isinstance(value, int | float):
        at[path[-1]] = value + (1 if isinstance(value, int) else 1e-9 * max(1.0, abs(value)))
    else:
        at[path[-1]] = f"{value}x"
    return data


@pytest.fixture(scope="module")
def ewc() -> tuple[dict[str, Any], dict[str, Any]]:
    """A committed record of the first format, and its per-document scores."""
    return read_record(RESULTS / "ewc-1e1_seed=0.json"), read_json(RESULTS / "ewc-1e1_seed=0.scores.json")


def test_any_change_of_a_record_is_noticed(ewc: tuple[dict[str, Any], dict[str, Any]]) -> None:
    record = copy.deepcopy(ewc[0])
    from cltk.run.records import digest_of

    record["digests"]["config"] = digest_of(record["config"])  # as the second format has it
    record["digests"]["tasks"] = {"heldout": "a"}
    whole = values_of(record)
    all_places = [path for path in places(record) if counts(path)]
    assert len(all_places) > 150
    for path in random.Random(0).choices(all_places, k=300):
        assert list(differences(values_of(changed(record, path)), whole)), path


def test_any_change_of_scores_is_noticed(ewc: tuple[dict[str, Any], dict[str, Any]]) -> None:
    scores = ewc[1]
    whole = documents_of(scores, "documents")
    all_places = [path for path in places(scores) if path != ("sha256",)]
    assert len(all_places) > 300
    for path in random.Random(1).choices(all_places, k=200):
        found = list(differences(documents_of(changed(scores, path), "documents"), whole))
        assert len(found) == 1, path
    assert not list(differences(documents_of({**scores, "dtype": "float32"}, "documents"), whole))  # which older files lack


@pytest.mark.parametrize(("old", "new"), [(0.5, math.nan), (math.nan, 0.5), (math.inf, 3.0)])
def test_what_is_no_number_any_more_is_a_difference(old: float, new: float) -> None:
    assert Difference("train.history.0.loss", old, new).size == math.inf


def test_names_that_sound_like_times_are_names() -> None:
    row = {"task": "sixty_seconds", "metric": "nll", "pre": 1.0, "post": 2.0}
    record = {
        "digests": {}, "retain": {"rows": [row]}, "divergence": {"x_per_second": {"kl": 3.0}},
        "train": {"history": [{"eval_runtime": 9.0}], "notes": {"seconds": {"ewc": {"seconds": 4.0, "mean": 1.0}}}},
    }  # fmt: skip
    found = values_of(record)
    assert found["retain.rows.sixty_seconds.nll.post"] == 2.0
    assert found["divergence.x_per_second.kl"] == 3.0
    assert found["train.notes.seconds.ewc.mean"] == 1.0
    assert not [name for name, value in found.items() if value in (9.0, 4.0)]
    assert documents_of({"tasks": {"x_runtime": {"values": {"nll": [5.0]}}}}, "d") == {"d.tasks.x_runtime.values.nll[0]": 5.0}


def test_scores_of_flat_results_and_their_start_models() -> None:
    file = RESULTS / "plain_seed=0.json"
    record, scores = read_record(file), _scores(file)
    assert scores is not None
    assert scores["digest"] == record["digests"]["tuned_model"]
    bases = [read_json(base) for base in sorted(RESULTS.glob("base*.scores.json"))]
    for base in bases:
        found = _base(file, record, base)
        assert found is not None
        assert found["tasks"] == base["tasks"]


def test_choices_of_speed_are_causes() -> None:
    def record(*on: bool, stage: str = "") -> dict[str, Any]:
        speed = [{"what": what, "on": one, "why": "1/1.2"} for what, one in zip(("autocast", "onednn"), on, strict=True)]
        return {"train": {"notes": {stage: {"speed": speed}} if stage else {"speed": speed}}, "environment": {}}

    assert list(causes(record(True, False), record(True, False))) == []
    assert list(causes(record(True, False), record(False, False))) == ["speed.autocast on, now off"]
    assert list(causes(record(True, True, stage="a"), record(True, False, stage="a"))) == ["speed.onednn of a on, now off"]
    assert choices(record(True, False, stage="a")) == {"a": {"autocast": True, "onednn": False}}


def test_a_record_is_run_again_with_its_own_choices(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Autocast and oneDNN were measured; a rerun takes what was found then. From another folder, with documents changed."""
    (study / "x.yaml").write_text(
        TINY + "train: {max_steps: 2, save_strategy: 'no'}\nevals: {kl_rows: 0}\nkeep_model: false\nspeed: {onednn: false}\n"
    )
    monkeypatch.chdir(study)
    monkeypatch.setattr("cltk.run.machine.faster_in_bfloat16", lambda device: True)
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    monkeypatch.setattr("cltk.run.machine.faster_in_bfloat16", lambda device: False)
    elsewhere = study / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    record = next(Path("../out").glob("plain*/record.json"))
    capsys.readouterr()
    assert main(["reproduce", str(record), "--out", "again"]) == 0
    assert "bit for bit" in capsys.readouterr().out
    again = read_json(next(Path("again").glob("plain*/record.json")))
    assert choices(again)[""]["autocast"] is True

    flat = Path("flat")
    scores = read_json(record.with_name("scores.json"))
    values = scores["tasks"]["heldout"]["values"]["nll"]
    values[0], values[1] = values[0] + 1, values[1] - 1  # the mean stays
    edited = read_json(record)
    edited["config"]["evals"]["margins"] = {"nll": 0.5}
    edited["folder"] = "../x.yaml"
    write_json(flat / "plain.json", edited)
    write_json(flat / "plain.scores.json", scores)
    assert main(["reproduce", str(flat), "--out", "second"]) == 1
    out = capsys.readouterr().out
    assert "documents.tasks.heldout.values.nll[0]: was" in out
    assert "config: was edited since it was run" in out
    assert "not compared: start model, document by document: no base-" in out


def test_where_relative_paths_start_is_said(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    record = read_json(RESULTS / "plain_seed=0.json")
    write_json(study / "lone" / "plain.json", record | {"folder": "gone/x.yaml"})
    monkeypatch.chdir(study)
    assert main(["reproduce", "lone", "--out", "again"]) == 2
    message = capsys.readouterr().err
    assert "run this from the folder in which `cltk run` was typed" in message
    assert message.count("\n") == 1
