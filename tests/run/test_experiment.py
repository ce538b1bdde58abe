"""A whole `cltk run` on a tiny model: every file it writes, and that a second run does nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

import cltk
from cltk.cli import main
from cltk.data import split_by
from cltk.models import load_model
from cltk.run.records import read_json
from cltk.run.spec_data import DataSpec
from cltk.run.train import prepare_data


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


def test_run_records_everything_and_a_second_run_does_nothing(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(experiment), "--out", "out"]) == 0
    records = [read_json(path) for path in sorted(Path("out").glob("*/record.json"))]
    assert sorted(record["method"] for record in records) == ["early_stopping", "ewc", "low_lr", "plain", "replay"]
    by_method: dict[str, Any] = {record["method"]: record for record in records}
    start = {record["digests"]["start_model"] for record in records}
    assert len(start) == 1
    assert by_method["plain"]["digests"]["tuned_model"] not in start
    assert by_method["plain"]["train"]["steps"] == 6
    assert by_method["replay"]["train"]["steps"] == 8  # 6 / (1 - 1/4)
    assert by_method["replay"]["train"]["notes"]["replay"]["extra_steps"] is True
    assert by_method["low_lr"]["train"]["notes"]["low_lr"]["learning_rate"] == pytest.approx(1.5e-3)
    assert {row["task"] for row in by_method["plain"]["retain"]["rows"]} == {"toy", "old_text"}
    assert by_method["plain"]["learn"]["rows"][0]["task"] == "heldout"
    assert set(by_method["plain"]["digests"]["tasks"]) == {"heldout", "old_text", "toy"}
    assert {"new.jsonl", "old.jsonl", "tiny-llama"} <= set(by_method["plain"]["digests"]["files"])
    assert by_method["plain"]["train"]["parameters"] == sum(p.numel() for p in load_model("tiny-llama")[0].parameters())
    assert by_method["plain"]["train"]["peak_bytes"] > 50e6  # the process's
    assert len(list(Path("out").glob("base-*/scores.json"))) == 1  # Perf_pre is shared by the five cells
    assert list(Path("out").glob("*/lm_eval/**/samples_toy_*.jsonl"))
    assert "plain" in capsys.readouterr().out

    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.is_file()}
    assert main(["run", str(experiment), "--out", "out"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.is_file()} == before


def test_library_and_report(experiment: Path, tmp_path: Path) -> None:
    text = experiment.read_text().split("grid:")[0] + "keep_model: true\n"
    experiment.write_text(text)
    records = cltk.load(experiment, "out").run()
    assert [record["method"] for record in records] == ["plain"]
    markdown = cltk.report(records, markdown=tmp_path / "report.md", show=False)
    assert (tmp_path / "report.md").read_text() == markdown
    assert "old_text" in markdown
    model = next(Path("out").glob("plain*/model"))
    result = cltk.measure("tiny-llama", model, ["toy"], limit=8, include_path="tasks", dtype="float32")
    row = next(row for row in records[0]["retain"]["rows"] if row["task"] == "toy" and row["metric"] == "acc")
    assert [r.forgetting for r in result.rows if r.metric == "acc"] == [row["forgetting"]]


def test_dry_run_loads_no_weights(experiment: Path, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "tiny-llama" / "model.safetensors").write_bytes(b"not weights")
    assert main(["run", str(experiment), "--out", "out", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "5 cells" in out
    assert "6 steps, 24 rows" in out
    assert "8 steps, 32 rows" in out  # replay
    assert not Path("out").exists()


def test_a_failed_cell_is_recorded_and_the_others_run(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = experiment.read_text()
    head = text.split("grid:")[0]
    experiment.write_text(head + "grid: {train.learning_rate: [1.0e+30, 1.0e-3]}\nkeep_model: false\n")
    assert main(["run", str(experiment), "--out", "out"]) == 1
    assert "not finite at step" in capsys.readouterr().err
    failed = read_json(next(Path("out").glob("*/failed.json")))
    assert failed["kind"] == "DivergedError"
    assert len(list(Path("out").glob("*/record.json"))) == 1
    assert list(Path("out").glob("*/checkpoints/last_good/model.safetensors"))


def test_measure_command_writes_json(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["measure", "tiny-llama", "tiny-llama", "--tasks", "toy", "--include-path", "tasks", "--limit", "5"]
    assert main([*arguments, "--json", "result.json"]) == 0
    data = json.loads(Path("result.json").read_text())
    assert all(row["forgetting"] == 0 and row["p"] == 1 for row in data["rows"])
    assert data["macro"]["lost"] == data["macro"]["gained"] == 0
    assert "toy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("pretrained: tiny-llama", "pretrained: tiny-llama, trust_remote_code: true"), "model.trust_remote_code runs"),
        (("include_path: tasks", "include_path: tasks"), "toy.yaml:6: runs Python (!function own.text)"),
    ],
)
def test_code_named_by_a_file_needs_consent(
    change: tuple[str, str], message: str, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --trust nothing runs and nothing is written; with it the file works."""
    head = experiment.read_text().split("grid:")[0] + "keep_model: false\n"
    experiment.write_text(head.replace(*change))
    if "!function" in message:
        task = Path("tasks/toy.yaml")
        task.write_text(task.read_text().replace("doc_to_text: '{{q}}'", "doc_to_text: !function own.text"))
        Path("tasks/own.py").write_text("open('ran', 'w').close()\ndef text(doc):\n    return doc['q']\n")
    assert main(["run", str(experiment), "--out", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("ran").exists()
    assert not Path("out").exists()
    assert main(["run", str(experiment), "--out", "out", "--trust"]) == 0
    assert Path("ran").exists() == ("!function" in message)


def test_everything_that_a_method_reads_is_in_its_digest(experiment: Path) -> None:
    """Memories in lists and by name, and the folders of other models."""
    head = experiment.read_text().split("grid:")[0]
    shutil.copytree("tiny-llama", "other")
    shutil.copy("old.jsonl", "older.jsonl")
    for entry, file in (
        ("gem: {memories: {old: older.jsonl}}", "older.jsonl"),
        ("gem: {memories: [older.jsonl]}", "older.jsonl"),
        ("lm_cocktail: {models: [other]}", "other/model.safetensors"),
        ("ties: {others: [other]}", "other/model.safetensors"),
    ):
        experiment.write_text(f"{head}mitigators: [{entry}]\n")
        run = cltk.load(experiment, "out")
        before = run.inputs.digest(run.cells[0])
        with Path(file).open("ab") as changed:
            changed.write(b" ")
        run = cltk.load(experiment, "out")
        assert run.inputs.digest(run.cells[0]) != before, entry


def test_models_are_loaded_whole_while_zero_3_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks a global reference whether to load in pieces."""
    from transformers.integrations import deepspeed

    asked: list[Any] = []
    configured = lambda: None  # noqa: E731  what a weak reference is to transformers: something to call
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", configured)
    load = transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        asked.append(deepspeed._hf_deepspeed_config_weak_ref)
        return load(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    load_model("tiny-llama")
    assert asked == [None]
    assert deepspeed._hf_deepspeed_config_weak_ref is configured


def test_plain_text_is_cut_into_blocks_that_count_whole(tokenizer: Any) -> None:
    rows = [json.loads(line) for line in Path("old.jsonl").read_text().splitlines()]
    spec = DataSpec.model_validate(
        {"train": {"path": "old.jsonl", "text": "text"}, "validation": 0.2, "heldout": 0.2, "max_length": 16}
    )
    found = prepare_data(spec, tokenizer, Path())
    parts = split_by([row["text"] for row in rows], [0.2, 0.2])
    for part, some in zip(parts, (found.train, found.validation, found.heldout), strict=True):
        stream = [t for i in part for t in [*tokenizer(rows[i]["text"])["input_ids"], tokenizer.eos_token_id]]
        assert [t for row in some for t in row["input_ids"]] == stream[: len(stream) // 16 * 16]
        assert all(row["labels"] == row["input_ids"] and len(row["labels"]) == 16 for row in some)
    pairs = {"path": "new.jsonl", "prompt": "question", "completion": "answer"}
    mixed = DataSpec.model_validate({**spec.model_dump(), "heldout": pairs, "max_length": 64})
    assert -100 in prepare_data(mixed, tokenizer, Path()).heldout[0]["labels"]  # a source says for itself what it is
