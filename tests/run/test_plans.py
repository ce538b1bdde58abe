"""What is said before a run: names, folders, tokens to be trained on; and tables that go through a pipe."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cltk
from cltk.cli import main


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


@pytest.mark.parametrize(("key", "kind"), [("off", "bool"), ("yes", "bool"), ("1", "int"), ("3.5", "float"), ("null", "null"),
                                           ("2026-01-01", "timestamp")])  # fmt: skip
def test_a_name_that_yaml_does_not_read_as_text(
    key: str, kind: str, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = experiment.read_text().replace("    plain: []", f"    {key}: []")
    experiment.write_text(text)
    assert main(["run", str(experiment), "--out", "out"]) == 2
    assert (
        f'experiment.yaml:14: the key {key} is read as {kind}, not as text; put it in quotes: "{key}"'
        in capsys.readouterr().err
    )
    experiment.write_text(text.replace(f"{key}: []", f'"{key}": []'))
    assert cltk.load(experiment, "out").cells[0].method == key


def test_a_merged_mapping_is_plain_yaml(experiment: Path) -> None:
    text = (
        experiment.read_text()
        .replace("train: {path", "train: &new {path")
        .replace("heldout: 0.2", "heldout: {<<: *new, limit: 9}")
    )
    experiment.write_text(text)
    found = cltk.load(experiment, "out").cells[0].data.heldout
    assert (found.path, found.limit) == ("new.jsonl", 9)


@pytest.mark.parametrize("grid", ["{train.output_dir: [a, b]}", "{train: [{output_dir: a}, {output_dir: b, max_steps: 2}]}"])
def test_cells_of_one_file_go_to_one_folder(grid: str, experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment.write_text(experiment.read_text().split("grid:")[0] + f"grid: {grid}\n")
    assert main(["run", str(experiment)]) == 2
    assert "train.output_dir: all cells of a file go to one folder" in capsys.readouterr().err


# ---- tokens

GRID = """grid:
  mitigators:
    plain: []
    replay: [replay: {memory: old.jsonl, fraction: 0.25, length: 40}]
    fewer: [replay: {memory: old.jsonl, fraction: 0.25, length: 24, extra_steps: false}]
    own: [self_replay: {fraction: 0.25, samples: 8, max_new_tokens: 12}]
    kept: [reservoir: {size: 30, fraction: 0.3, memory: old.jsonl, length: 50}]
keep_model: false
"""


def test_a_dry_run_counts_what_is_mixed_in(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps and rows exactly; tokens as the record has them, when every row is trained on once."""
    text = experiment.read_text().split("grid:")[0].replace("max_steps: 6", "num_train_epochs: 1")
    experiment.write_text(text + GRID)
    assert main(["run", str(experiment), "--out", "out", "--dry-run"]) == 0
    said = capsys.readouterr().out
    planned = {
        name: (int(steps), int(tokens))
        for name, steps, tokens in re.findall(r"(\w+)_seed=0 .*: (\d+) steps, \d+ rows, (\d+) training tokens", said)
    }
    for record in cltk.load(experiment, "out").run():
        steps, tokens = planned[record["method"]]
        assert record["train"]["steps"] == steps
        found = record["train"]["tokens"]
        if record["method"] == "own":
            assert found <= 1.08 * tokens  # texts may end early
        else:
            assert tokens == pytest.approx(found, rel=0.06)  # the last batch of an epoch is not full
    assert planned["replay"][1] > 1.2 * planned["plain"][1]


def test_a_reservoir_fills_from_stage_to_stage(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = experiment.read_text().split("grid:")[0]
    text = text.replace("data:\n", "stages:\n  - name: first\n    data: &data\n").replace("\n  train:", "\n      train:")
    text = text.replace("\n  validation:", "\n      validation:").replace("\n  heldout:", "\n      heldout:")
    text = text.replace("\n  max_length: 64\n", "\n      max_length: 64\n  - {name: second, data: *data}\n")
    experiment.write_text(text + "mitigators: [reservoir: {size: 30, fraction: 0.25}]\nkeep_model: false\n")
    assert main(["run", str(experiment), "--out", "out", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r", (first|second): (\d+) steps", said) == [("first", "6"), ("second", "8")]
    (record,) = cltk.load(experiment, "out").run()
    assert record["train"]["steps"] == 14


# ---- pipes


def test_tables_through_a_pipe_are_as_wide_as_they_need(study: Path) -> None:
    command = [sys.executable, "-m", "cltk", "power", "--tasks", "toy", "--include-path", "tasks"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert max(map(len, done.stdout.splitlines())) > 80
