"""Two measures of one name are refused with file and line, or told apart: tables and records know them by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.evaluate import Suite, TextTask
from cltk.run.config import load_config
from tests.conftest import TINY, sentences, write_jsonl

STREAM = """\
model: {pretrained: tiny-llama}
stages:
  - {name: one, data: {train: {path: new.jsonl, prompt: question, completion: answer}}}
  - {name: NAME, data: {train: {path: new.jsonl, prompt: question, completion: answer}}}
evals: {retain: [{text: old.jsonl, name: TEXT}]}
"""
TWICE = {
    "named heldout": "retain: [toy, {text: heldout.jsonl}]",
    "called heldout": "retain: [{text: old.jsonl, name: heldout}]",
    "two of one stem": "retain: [{text: a/t.jsonl}, {text: b/t.jsonl}]",
    "one file twice": "retain: [{text: old.jsonl}, {text: old.jsonl, limit: 3}]",
    "named as a task": "retain: [toy, {text: old.jsonl, name: toy}]",
    "a task in both roles": "retain: [toy]\n  learn: [toy]",
    "a text in both roles": "retain: [{text: old.jsonl}]\n  learn: [{text: old.jsonl}]",
    "a task twice": "retain: [toy, toy]",
}


@pytest.fixture(autouse=True)
def _texts(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    for i, name in enumerate(("a/t.jsonl", "b/t.jsonl", "heldout.jsonl")):
        Path(name).parent.mkdir(exist_ok=True)
        write_jsonl(Path(name), [{"text": s} for s in sentences(6 + i, seed=10 + i)])


@pytest.mark.parametrize("name", TWICE)
def test_two_measures_of_one_name_are_refused_with_file_and_line(name: str) -> None:
    Path("x.yaml").write_text(TINY + f"evals:\n  {TWICE[name]}\n  include_path: tasks\n")
    with pytest.raises(InputError, match=r"x\.yaml:\d+: evals\.(retain|learn)\.\d: the name '\w+' is taken"):
        load_config("x.yaml")


def test_names_that_a_grid_brings_together_are_refused() -> None:
    Path("x.yaml").write_text(TINY + "grid: {evals.retain: [[{text: old.jsonl}], [{text: old.jsonl}, {text: old.jsonl}]]}\n")
    with pytest.raises(InputError, match=r"x\.yaml:\d+: evals\.retain\.1: the name 'old' is taken"):
        load_config("x.yaml")


@pytest.mark.parametrize(("stage", "text"), [("one", "old"), ("two", "one"), ("two", "two")])
def test_stages_and_texts_of_one_name_are_refused(stage: str, text: str) -> None:
    Path("x.yaml").write_text(STREAM.replace("NAME", stage).replace("TEXT", text))
    with pytest.raises(InputError, match=r"x\.yaml:\d+: stages\.\d\.name: the name '\w+' is taken"):
        load_config("x.yaml")


def test_a_stream_may_have_a_text_called_heldout() -> None:
    Path("x.yaml").write_text(STREAM.replace("NAME", "two").replace("TEXT", "heldout"))
    assert load_config("x.yaml").cells


def test_two_files_of_one_name_are_told_apart_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["--text", "a/t.jsonl", "--text", "b/t.jsonl"]
    assert main(["measure", "tiny-llama", "tiny-llama", *texts, "--json", "r.json"]) == 0, capsys.readouterr().err
    rows = {row["task"]: row["n"] for row in json.loads(Path("r.json").read_text())["rows"] if row["metric"] == "nll"}
    assert rows == {"a/t": 6, "b/t": 7}
    assert main(["measure", "tiny-llama", "tiny-llama", *texts[:2], *texts[:2]]) == 2
    assert "names two measures" in capsys.readouterr().err


def test_measure_refuses_texts_and_tasks_of_one_name(tiny, tokenizer) -> None:
    texts = [TextTask.read(name, "old.jsonl", limit=3) for name in ("toy", "old", "old")]
    model = (tiny(), tokenizer)
    for given, tasks in ((texts[1:], []), (texts[:1], ["toy"])):
        with pytest.raises(InputError, match="names two measures"):
            cltk.measure(model, model, tasks, include_path="tasks", texts=given)
    with pytest.raises(InputError, match="names two measures"):
        Suite(["toy"], include_path="tasks").with_texts(texts[:1])


def test_a_text_named_as_a_member_of_a_group_is_refused() -> None:
    Path("tasks/grp.yaml").write_text("group: grp\ntask: [toy]\n")
    suite = Suite(["grp"], include_path="tasks", texts=[TextTask.read("toy", "old.jsonl", limit=3)])
    with pytest.raises(InputError, match="'toy' names two measures"):
        suite.load()


@pytest.mark.parametrize(
    ("key", "line"), [("data.validation.limit", "validation"), ("train.learning_rate.x", "learning_rate"), ("train.a.b.c", "")]
)
def test_a_grid_under_a_value_is_one_line(key: str, line: str) -> None:
    Path("x.yaml").write_text(TINY + f"train: {{learning_rate: 0.1}}\ngrid: {{{key}: [5]}}\n")
    with pytest.raises(InputError, match=rf"x\.yaml:\d+: .*{line}"):
        load_config("x.yaml")


def test_matched_without_old_tasks_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    train = 'train: {learning_rate: 3.0e-3, max_steps: 1, per_device_train_batch_size: 4, save_strategy: "no"}\n'
    Path("x.yaml").write_text(TINY + train + "keep_model: false\n")
    assert main(["run", "x.yaml", "--out", "out"]) == 0, capsys.readouterr().err
    assert main(["matched", "out"]) == 2
    assert "evals.retain is empty" in capsys.readouterr().err
