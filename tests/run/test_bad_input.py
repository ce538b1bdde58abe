"""Bad input: one clear line, exit code 2, and not one file written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cltk.cli import main


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, check that it refuses as promised, and give back its one line."""
    before = sorted(Path().rglob("*"))
    try:
        code = main(arguments)
    except SystemExit as exit_:  # argparse
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert len(captured.err.strip().split("\n")) == 1, captured.err
    assert "Traceback" not in captured.err
    assert sorted(Path().rglob("*")) == before, "files were written"
    return captured.err


EDITS: list[tuple[str, Callable[[str], str], list[str]]] = [
    ("unknown key", lambda t: t.replace("max_length", "max_lenght"), ["experiment.yaml:6", "max_lenght", "max_length"]),
    ("unknown key on top", lambda t: t + "keep_modle: true\n", ["keep_modle", "'keep_model'"]),
    ("wrong type", lambda t: t.replace("limit: 8", "limit: many"), ["experiment.yaml:11", "evals.limit", "'many'"]),
    ("limit of zero", lambda t: t.replace("limit: 8", "limit: 0"), ["experiment.yaml:11", "evals.limit"]),
    ("missing key", lambda t: t.replace("model: {pretrained: tiny-llama}\n", ""), ["model", "required"]),
    ("unknown training argument", lambda t: t.replace("max_steps", "max_step"), ["experiment.yaml:7", "'max_steps'"]),
    ("training argument's type", lambda t: t.replace("3.0e-3", "fast"), ["experiment.yaml:7", "learning_rate", "'fast'"]),
    ("training argument's value", lambda t: t.replace("logging_steps: 2", "lr_scheduler_type: wavy"), ["train", "wavy"]),
    ("float16 without a GPU", lambda t: t.replace("logging_steps: 2", "fp16: true"), ["experiment.yaml:7", "fp16", "no GPU"]),
    ("unknown mitigator", lambda t: t.replace("[ewc:", "[ecw:"), ["experiment.yaml:18", "'ecw'", "'ewc'"]),
    ("unknown argument", lambda t: t.replace("factor", "facter"), ["experiment.yaml:15", "low_lr.facter", "'factor'"]),
    ("argument's type", lambda t: t.replace("factor: 0.5", "factor: slow"), ["experiment.yaml:15", "low_lr.factor", "'slow'"]),
    ("argument's value", lambda t: t.replace("fraction: 0.25", "fraction: 1.5"), ["replay.fraction", "1.5"]),
    ("missing data file", lambda t: t.replace("new.jsonl", "gone.jsonl"), ["experiment.yaml:3", "gone.jsonl", "no such file"]),
    ("missing memory", lambda t: t.replace("memory: old.jsonl, fraction", "memory: gone.jsonl, fraction"), ["gone.jsonl"]),
    ("unknown asset", lambda t: t.replace("new.jsonl", "asset:medmcq/train.jsonl"), ["medmcq", "medmcqa"]),
    ("prompt column missing", lambda t: t.replace("prompt: question", "prompt: query"), ["'query'", "question, answer"]),
    ("unknown task", lambda t: t.replace("[toy,", "[toyy,"), ["'toyy'"]),
    ("missing model", lambda t: t.replace("tiny-llama", "./nowhere"), ["nowhere", "no such folder"]),
    ("no model on a hub", lambda t: t.replace("tiny-llama", "nobody/nothing"), ["nobody/nothing"]),
    ("nothing left of the completion", lambda t: t.replace("max_length: 64", "max_length: 2"), ["max_length=2", "completion"]),
    ("grid over an unknown key", lambda t: t.replace("grid:\n", "grid:\n  pace: [1, 2]\n"), ["grid.pace", "unknown key"]),
    ("empty grid axis", lambda t: t.replace("grid:\n", "grid:\n  seed: []\n"), ["grid.seed", "at least one"]),
    ("key twice", lambda t: t + "keep_model: true\n", ["keep_model", "twice"]),
    ("not YAML", lambda t: t + "a: [1, 2\n", ["experiment.yaml:"]),
    ("Python in YAML", lambda t: t + "seed: !!python/object/apply:os.system ['touch pwned']\n", ["python"]),
    ("a base that is not there", lambda t: t + "base: gone.yaml\n", ["gone.yaml", "no such file"]),
    ("a base that is itself", lambda t: t + "base: experiment.yaml\n", ["base"]),
    ("plain text that has a prompt", lambda t: t.replace("prompt: question", "text: answer, prompt: question"),
     ["experiment.yaml:3", "plain text", "prompt"]),
    ("plain text column missing", lambda t: t.replace("prompt: question, completion: answer", "text: body"), ["'body'"]),
    ("held-out file of the wrong kind", lambda t: t.replace("heldout: 0.2", "heldout: {path: tiny-llama/model.safetensors}"),
     ["model.safetensors"]),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "expected"), [pytest.param(e, x, id=name) for name, e, x in EDITS])
def test_experiment_file(
    edit: Callable[[str], str], expected: list[str], experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment.write_text(edit(experiment.read_text()))
    message = refused(["run", str(experiment), "--out", "out"], capsys)
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", ["empty"]),
        ('{"question": "a", "answer": "b"}\nnot json\n', ["new.jsonl:2", "not JSON"]),
        ('{"question": "a", "answer": "  "}\n' * 40, ["row 0", "completion is empty"]),
        ("[1, 2]\n", ["new.jsonl:1", "object"]),
    ],
)
def test_data_file(rows: str, expected: list[str], experiment: Path, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "new.jsonl").write_text(rows)
    message = refused(["run", str(experiment), "--out", "out"], capsys)
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "gone.yaml"], ["gone.yaml", "no such file"]),
        (["run", "experiment.yaml", "--out", "tiny-llama"], ["start model"]),
        (["run", "experiment.yaml", "--out", "tiny-llama/runs"], ["start model"]),
        (["measure", "tiny-llama", "nowhere/at/all", "--tasks", "toy", "--include-path", "tasks"], ["nowhere/at/all"]),
        (["measure", "tiny-llama", "tiny-llama", "--tasks", "toi", "--include-path", "tasks"], ["'toi'"]),
        (["measure", "tiny-llama", "tiny-llama"], ["at least one task"]),
        (["measure", "tiny-llama", "tiny-llama", "--tasks", "toy", "--limit", "0", "--include-path", "tasks"], ["limit"]),
        (["measure", "tiny-llama", "tiny-llama", "--tasks", "toy", "--dtype", "int3", "--include-path", "tasks"], ["int3"]),
        (["measure", "tiny-llama", "tiny-llama", "--tasks", "toy", "--include-path", "gone"], ["gone", "not a folder"]),
        (["report", "."], ["no records"]),
        (["fisher", "tiny-llama", "--memory", "gone.jsonl", "--out", "f.safetensors"], ["gone.jsonl"]),
        (["fisher", "tiny-llama", "--memory", "old.jsonl", "--out", "f.bin"], [".safetensors"]),
        (["assets", "fetch", "smollm"], ["smollm2-135m-instruct"]),
        (["assets", "path"], ["at least one"]),
        (["fly"], ["fly"]),
    ],
)
def test_arguments(arguments: list[str], expected: list[str], experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(arguments, capsys)
    assert all(part in message for part in expected), message


def test_damaged_record_is_named_and_kept(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment.write_text(experiment.read_text().split("grid:")[0] + "keep_model: false\n")
    assert main(["run", str(experiment), "--out", "out"]) == 0
    record = next(Path("out").glob("*/record.json"))
    damaged = record.read_text().replace('"steps": 6', '"steps": 7')
    record.write_text(damaged)
    capsys.readouterr()
    assert "checksum" in refused(["run", str(experiment), "--out", "out"], capsys)
    assert record.read_text() == damaged


def test_where_the_paths_of_a_base_start_is_said(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("below").mkdir()
    Path("below/x.yaml").write_text("base: ../experiment.yaml\n")
    assert experiment.name == "experiment.yaml"
    line = refused(["run", "below/x.yaml", "--dry-run"], capsys)
    assert "relative paths start at below, the folder of x.yaml, those of its base too" in line
