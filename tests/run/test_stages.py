"""A stream of trainings from YAML: the matrix, what mitigators carry, resuming between stages, bad input."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cltk
from cltk.cli import main
from cltk.run import cells
from cltk.run.records import read_json, write_json
from cltk.run.reproduce import values_of
from tests.conftest import sentences, write_jsonl

STREAM = """\
model: {pretrained: tiny-llama}
stages:
  - {name: first, data: {train: {path: new.jsonl, prompt: question, completion: answer}, max_length: 64}}
  - name: second
    data: {train: {path: other.jsonl, prompt: question, completion: answer}, max_length: 64}
    train: {max_steps: 3}
  - {name: third, data: {train: {path: third.jsonl, prompt: question, completion: answer}, max_length: 64}}
train: {learning_rate: 3.0e-3, max_steps: 4, per_device_train_batch_size: 4, save_strategy: "no", logging_steps: 2}
evals:
  retain: [{text: old.jsonl, name: old_text, limit: 12, cluster: document}]
  learn: [toy]
  include_path: tasks
  limit: 8
  kl_rows: 2
mitigators: MITIGATORS
keep_model: true
"""


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    for seed, name in ((7, "other.jsonl"), (8, "third.jsonl")):
        pairs = [
            {"question": f"{s} which?", "answer": f" {s.split()[-1]} {i % 5}"} for i, s in enumerate(sentences(60, seed=seed))
        ]
        write_jsonl(study / name, pairs)


def stream(mitigators: str = "[]", **changes: str) -> Path:
    text = STREAM.replace("MITIGATORS", mitigators)
    for old, new in changes.items():
        text = text.replace(old, new)
    file = Path("stream.yaml")
    file.write_text(text)
    return file


def only(out: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and the scores of the only cell."""
    (file,) = Path(out).glob("*/record.json")
    return read_json(file), read_json(file.with_name("scores.json"))


def test_the_matrix_is_that_of_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    """R after all stages equals a measurement of the saved model; each row is better on what was just learned."""
    assert main(["run", str(stream()), "--out", "out"]) == 0
    record, scores = only("out")
    found = record["stream"]
    assert found["stages"] == found["tasks"] == ["first", "second", "third"]
    assert set(found["matrix"]) == {"first", "second", "third", "old_text", "toy"}
    r = np.array([found["matrix"][name]["performance"] for name in found["tasks"]]).T
    assert r.shape == (4, 3)
    for i in range(3):
        assert r[-1, i] == pytest.approx(-np.mean(scores["tasks"][found["tasks"][i]]["values"]["nll"]), rel=1e-12)
        assert r[i + 1, i] > r[i, i]  # the stage's own task
    assert found["BWT"]["value"] == pytest.approx(((r[3, 0] - r[1, 0]) + (r[3, 1] - r[2, 1])) / 2)
    assert found["ACC"]["ci"][0] < found["ACC"]["value"] < found["ACC"]["ci"][1]
    assert record["train"]["steps"] == 4 + 3 + 4
    assert {line["stage"] for line in record["train"]["history"]} == {"first", "second", "third"}
    assert {row["task"] for row in record["learn"]["rows"]} == {"first", "second", "third", "toy"}
    assert not list(Path("out").glob("*/stages"))
    model, tokenizer = cltk.models.load_model(next(Path("out").glob("*/model")))
    suite = cltk.load("stream.yaml").inputs
    cell = cltk.load("stream.yaml").cells[0]
    again = suite.suite(cell).evaluate(model, tokenizer)
    assert again.tasks["third"].values == scores["tasks"]["third"]["values"]


FISHER = "importance: {memory: old.jsonl, samples: 8, block: 32}"
CARRIED = {
    "online_ewc": f"[online_ewc: {{strength: 10.0, decay: 0.9, samples: 8, {FISHER}}}]",
    "reservoir": "[reservoir: {size: 12, fraction: 0.3}]",
    "si": "[si: {strength: 1.0}]",
    "rwalk": f"[rwalk: {{strength: 1.0, {FISHER}}}]",
    "lora": "[lora: {r: 4}]",
    "mix": "[replay: {memory: old.jsonl, fraction: 0.25}, l2_sp: {strength: 0.1}, ema: {decay: 0.5}]",
}


@pytest.mark.filterwarnings("ignore:si. nothing is protected")
@pytest.mark.parametrize("name", CARRIED)
def test_interrupted_between_stages_equals_uninterrupted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the second stage, continued: every number of the record is the same."""
    file = stream(CARRIED[name])
    cltk.load(file, "whole").run()
    train = cells.train_cell

    def stops(cell: Any, *args: Any, **kwargs: Any) -> Any:
        if cell.stage == "third":
            raise KeyboardInterrupt
        return train(cell, *args, **kwargs)

    monkeypatch.setattr(cells, "train_cell", stops)
    with pytest.raises(KeyboardInterrupt):
        cltk.load(file, "cut").run()
    assert len(list(Path("cut").glob("*/stages/*/stage.json"))) == 2
    monkeypatch.setattr(cells, "train_cell", train)
    cltk.load(file, "cut").run()
    (one, documents), (other, again) = only("whole"), only("cut")
    assert dict(values_of(one)) == dict(values_of(other))
    assert documents == again


def test_the_memory_of_a_stream_is_carried() -> None:
    """Online EWC's anchor and sum, the reservoir's rows: as with one object in a script of one's own."""
    cltk.load(stream(CARRIED["reservoir"]), "out").run()
    notes = only("out")[0]["train"]["notes"]
    assert [notes[stage]["reservoir"]["kept"] for stage in ("first", "second", "third")] == [0, 12, 12]
    shutil.rmtree("out")
    cltk.load(stream(CARRIED["online_ewc"]), "out").run()
    notes = only("out")[0]["train"]["notes"]
    assert [notes[stage]["online_ewc"]["training"] for stage in ("first", "second", "third")] == [1, 2, 3]


def test_a_damaged_stage_is_named_and_never_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file, train = stream(), cells.train_cell

    def stops(cell: Any, *args: Any, **kwargs: Any) -> Any:
        if cell.stage == "second":
            raise KeyboardInterrupt
        return train(cell, *args, **kwargs)

    monkeypatch.setattr(cells, "train_cell", stops)
    assert main(["run", str(file), "--out", "out"]) == 130
    monkeypatch.setattr(cells, "train_cell", train)
    (weights,) = Path("out").glob("*/stages/1-first/model/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["run", str(file), "--out", "out"]) == 1
    assert "1-first: the weights or states of this finished training are damaged" in capsys.readouterr().err
    assert not list(Path("out").glob("*/record.json"))


def test_scores_of_a_stage_can_be_a_task() -> None:
    cltk.load(stream(**{"name: third, data": "name: third, score: toy, data"}), "out").run()
    found = only("out")[0]["stream"]
    assert found["tasks"] == ["first", "second", "toy"]
    assert found["matrix"]["toy"]["metric"] == "acc_norm"


def more_tasks(tag: str = "tag: pair\n") -> None:
    """Two tasks of one tag, a task file elsewhere, and a group that weighs its members alike."""
    text = Path("tasks/toy.yaml").read_text()
    for name in ("one", "two"):
        Path(f"tasks/{name}.yaml").write_text(
            text.replace("task: toy", f"task: {name}") + (tag if name == "one" else "tag: pair\n")
        )
    Path("own").mkdir()
    Path("own/file.yaml").write_text(text.replace("task: toy", "task: filed"))
    short = text.replace("task: toy", "task: short").replace("docs.jsonl", "few.jsonl")
    Path("tasks/few.jsonl").write_text("".join(Path("tasks/docs.jsonl").read_text().splitlines(keepends=True)[:3]))
    Path("tasks/short.yaml").write_text(short)
    weigh = "aggregate_metric_list: [{metric: acc, weight_by_size: false}]\n"
    Path("tasks/grp.yaml").write_text(f"group: grp\ntask: [one, short]\n{weigh}")


def test_task_files_and_groups_are_learned_from_and_stand_for_stages() -> None:
    """A task file is a task in either role; a tag of one task is that task; a group counts as the group does."""
    more_tasks(tag="tag: [pair, single]\n")
    first = {"name: first, data": "name: first, score: own/file.yaml, data", "learn: [toy]": "learn: [own/file.yaml, grp]"}
    cltk.load(
        stream(**first, **{"name: third, data": "name: third, score: grp, data", "retain: [": "retain: [tasks/two.yaml, "}),
        "out",
    ).run()
    record = only("out")[0]
    found = record["stream"]
    assert found["tasks"] == ["filed", "second", "grp"]
    rows = {row["task"]: row for row in record["learn"]["rows"] if row["metric"] in ("acc", "nll")}
    assert {"filed", "grp"} <= rows.keys()
    assert "two" in {row["task"] for row in record["retain"]["rows"]}
    assert found["matrix"]["grp"]["performance"][0] == pytest.approx(rows["grp"]["pre"], abs=1e-12)  # 8 and 3 documents


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learn: [toy]": "learn: [pair]", "name: third, data": "name: third, score: pair, data"},
            "stages.2.score: 'pair' stands for 2 rows (one, two)",
        ),
        ({"retain: [": "retain: [tasks/toy.yaml, "}, "evals.learn: 'toy' is in evals.retain too"),
        ({"learn: [toy]": "learn: [own/gone.yaml]"}, "own/gone.yaml"),
    ],
)
def test_what_stands_for_a_stage_is_found_before_anything_is_written(
    changes: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more_tasks()
    assert main(["run", str(stream(**changes)), "--out", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model: {", "data: {train: {path: new.jsonl}}\nmodel: {", "give `data` (one task) or `stages`, not both"),
        ("name: second", "name: first", "'first' is taken"),
        ("name: second", "name: old_text", "'old_text' is taken"),
        ("name: second", "name: ../up", "stages.1.name"),
        ("train: {max_steps: 3}", "train: {max_step: 3}", "max_step: unknown training argument"),
        ("train: {max_steps: 3}", "score: piqa", "'piqa' is not in evals.learn"),
        ("path: third.jsonl", "path: absent.jsonl", "absent.jsonl: no such file"),
        ("name: third, data", "name: third, dat", "stages.2.dat"),
    ],
)
def test_bad_streams_name_the_line(old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(stream(**{old: new})), "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "stream.yaml:" in error
    assert not Path("out").exists()


def test_dry_run_and_reproduce(capsys: pytest.CaptureFixture[str]) -> None:
    file = stream()
    assert main(["run", str(file), "--out", "out", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "second: 3 steps" in shown
    assert main(["run", str(file), "--out", "out"]) == 0
    (record,) = Path("out").glob("*/record.json")
    assert main(["reproduce", str(record), "--out", "again"]) == 0
    assert "reproduced bit for bit" in capsys.readouterr().out
    data = read_json(record)
    data["stream"]["BWT"]["value"] += 0.5
    write_json(record, data)
    assert main(["reproduce", str(record), "--out", "again2"]) == 1
    assert "stream.BWT.value: was" in capsys.readouterr().out


def test_numbers_of_a_stage_are_read_as_those_of_the_file(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-5 as text: `train` made a number of it, a stage handed it to AdamW."""
    text = STREAM.replace("MITIGATORS", "[]").replace("train: {max_steps: 3}", "train: {max_steps: 3, learning_rate: 1e-5}")
    Path("x.yaml").write_text(text)
    (cell,) = cltk.load("x.yaml", "out").cells
    assert [one.config.train["learning_rate"] for one in cell.trainings] == [3e-3, 1e-5, 3e-3]
