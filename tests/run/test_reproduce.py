"""`cltk reproduce` on the tiny experiment: the same numbers, changed inputs, tampered numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cltk.cli import main
from cltk.run.records import read_json, write_json
from cltk.run.reproduce import Difference, Reproduction, changes, differences, values_of

METHODS = """\
    low_lr: [low_lr: {factor: 0.5}]
    early_stopping: [early_stopping: {patience: 1, every: 2, budget: 5.0, memory: old.jsonl, limit: 8}]
    replay: [replay: {memory: old.jsonl, fraction: 0.25}]
"""


@pytest.fixture
def record(experiment: Path, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The record of the experiment's EWC cell, run in the study's folder."""
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    experiment.write_text(experiment.read_text().replace(METHODS, ""))
    assert main(["run", "experiment.yaml", "--out", "out"]) == 0
    capsys.readouterr()
    return next(Path("out").glob("ewc*/record.json"))


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def edit(record: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a record and give it a checksum that holds again."""
    data = read_json(record)
    change(data)
    write_json(record, data)


def test_reproduces_bit_for_bit_and_leaves_the_record_alone(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(Path("out"))
    assert main(["reproduce", str(record)]) == 0
    out = capsys.readouterr().out
    assert "ewc_seed=0: reproduced bit for bit" in out
    assert files(Path("out")) == before
    again = read_json(next(Path("runs/reproduced-experiment").glob("ewc*/record.json")))
    assert again["digests"]["tuned_model"] == read_json(record)["digests"]["tuned_model"]
    there = files(Path("runs/reproduced-experiment"))
    assert main(["reproduce", str(record), "--out", "runs/reproduced-experiment"]) == 0  # never over a record
    assert "not run again: " in capsys.readouterr().out
    assert files(Path("runs/reproduced-experiment")) == there
    assert main(["reproduce", str(record), "--out", "out"]) == 2
    assert files(Path("out")) == before


def test_json_is_alone_on_the_standard_output(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json -` of run, report and reproduce; tables and lines go to the standard error."""

    def told(*words: str, code: int = 0) -> Any:
        assert main([*words, "--json", "-"]) == code
        said = capsys.readouterr()
        assert "ewc" in said.err
        return json.loads(said.out)

    assert [one["method"] for one in told("run", "experiment.yaml", "--out", "out")] == ["plain", "ewc"]
    assert [one["method"] for one in told("report", "out")] == ["plain", "ewc"]
    (found,) = told("reproduce", str(record))
    assert (found["cell"], found["reproduced"], found["differences"]) == ("ewc_seed=0", True, [])
    edit(record, lambda data: data["digests"].update(tuned_model="0" * 64))
    (found,) = told("reproduce", str(record), "--out", "again", code=1)
    assert not found["reproduced"]
    assert "digests.tuned_model" in found["differences"][0]
    assert main(["run", "experiment.yaml", "--out", "out", "--dry-run", "--json", "-"]) == 2


def test_a_tampered_number_is_named(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tamper(data: dict[str, Any]) -> None:
        (row,) = [row for row in data["retain"]["rows"] if (row["task"], row["metric"]) == ("old_text", "nll")]
        row["post"] += 0.125

    edit(record, tamper)
    assert main(["reproduce", str(record), "--out", "again"]) == 1
    out = capsys.readouterr().out
    assert "not reproduced: 1 of" in out
    assert "retain.rows.old_text.nll.post: was" in out
    assert "off by -0.125" in out
    assert main(["reproduce", str(record), "--out", "again2", "--tolerance", "0.2"]) == 0
    assert "reproduced within 0.2" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["new.jsonl", "old.jsonl", "tiny-llama/config.json", "tasks/docs.jsonl"])
def test_changed_inputs_are_refused(name: str, record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path(name).read_text()
    if name.endswith("config.json"):
        Path(name).write_text(json.dumps({**json.loads(text), "rms_norm_eps": 1e-5}))
    else:
        Path(name).write_text(text.replace("cat", "ferret"))
    before = files(Path())
    assert main(["reproduce", str(record), "--out", "again"]) == 2
    message = capsys.readouterr().err
    assert sum(line.startswith("cltk: ") for line in message.split("\n")) == 1
    assert {"tiny-llama/config.json": "tiny-llama", "tasks/docs.jsonl": "task toy"}.get(name, name) in message
    assert str(record) in message
    assert files(Path()) == before


def test_other_refusals(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("new.jsonl").rename("moved.jsonl")
    assert main(["reproduce", str(record), "--out", "again"]) == 2
    assert "new.jsonl" in capsys.readouterr().err
    assert main(["reproduce", "gone", "--out", "again"]) == 2
    assert main(["reproduce", str(record), "--tolerance", "-1"]) == 2
    assert "tolerance" in capsys.readouterr().err
    edit(record, lambda data: data.pop("config"))
    assert main(["reproduce", str(record), "--out", "again"]) == 2
    assert "config is missing" in capsys.readouterr().err
    record.write_text(record.read_text().replace('"order"', '"odrer"'))
    assert main(["reproduce", str(record), "--out", "again"]) == 2
    assert "checksum" in capsys.readouterr().err
    assert not Path("again").exists()


def test_differences_and_verdicts() -> None:
    old = {"a": 1.0, "b": 200.0, "c": "x", "d": math.nan, "e": None}
    new = {"a": 1.5, "b": 201.0, "c": "y", "d": math.nan, "f": 1}
    found = list(differences(old, new))
    assert [d.name for d in found] == ["a", "b", "c", "f"]
    assert [d.size for d in found] == [0.5, 0.005, math.inf, math.inf]

    def of(*some: Difference, tolerance: float = 0.0) -> Reproduction:
        return Reproduction(Path("r"), "plain", tolerance, 9, some, ("torch 1, now 2",), Path("n"))

    assert of().lines() == ["plain: reproduced bit for bit (9 values)"]
    assert of(*found[:2]).beyond == found[:2]
    assert "not reproduced: 2 of 9" in of(*found[:2]).lines()[0]
    assert of(*found[:2]).lines()[-1] == "  not as it was: torch 1, now 2"
    assert of(*found[:2], tolerance=0.01).beyond == [found[0]]
    assert of(found[1], tolerance=0.01).verdict == "reproduced within 0.01 (largest: b: was 200.0, is 201.0, off by +1)"
    assert of(found[2], tolerance=9).beyond  # a text has no tolerance
    digest = Difference("digests.tuned_model", "aa", "bb")
    assert of(digest).beyond
    assert not of(digest, found[1], tolerance=0.01).beyond
    assert len(of(*(Difference(str(i), 0, 1) for i in range(30))).lines(20)) == 1 + 20 + 1 + 1


def test_times_are_not_compared() -> None:
    record = {
        "digests": {"start_model": "a", "tuned_model": "b", "cell": "c"},
        "train": {
            "steps": 2,
            "tokens": 9,
            "seconds": 3.0,
            "history": [{"loss": 1.0, "train_runtime": 9.0, "x_per_second": 1.0}],
        },
    }
    assert dict(values_of(record)) == {
        "digests.start_model": "a", "digests.tuned_model": "b", "train.steps": 2, "train.tokens": 9,
        "train.history[0].loss": 1.0,
    }  # fmt: skip


def test_causes() -> None:
    old = {"packages": {"torch": "1", "numpy": "1"}, "device": "CPU x, 1 threads", "python": "3"}
    new = {"packages": {"torch": "2", "numpy": "1"}, "device": "CPU x, 2 threads", "python": "3"}
    assert list(changes(old, new)) == ["torch 1, now 2", "device CPU x, 1 threads, now CPU x, 2 threads"]
