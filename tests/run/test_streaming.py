"""`data.train: {streaming: true}`: rows that are read while they are trained on. A folder of files stands for the hub."""

from __future__ import annotations

import random
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import cltk
from cltk.cli import main
from cltk.data import tokenize_pairs
from cltk.errors import InputError
from cltk.run.sources import contents
from cltk.run.streams import Stream, shuffled
from tests.conftest import sentences, write_jsonl

YAML = """\
model: {pretrained: tiny-llama}
data:
  train: {path: hub, prompt: question, completion: answer, streaming: true}
  validation: {path: new.jsonl, limit: 8}
  heldout: {path: other.jsonl, limit: 12}
  max_length: 64
train: {learning_rate: 3.0e-3, max_steps: 6, per_device_train_batch_size: 4, save_strategy: "no", logging_steps: 2}
evals: {kl_rows: 2}
grid: {mitigators: {plain: [], replay: [replay: {memory: old.jsonl, fraction: 0.25, length: 32}]}}
keep_model: false
"""


def pairs(n: int, seed: int) -> list[dict[str, str]]:
    return [{"question": f"{s} what?", "answer": f" {s.split()[0]} {i % 7}"} for i, s in enumerate(sentences(n, seed))]


@pytest.fixture
def streamed(study: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(study)
    (study / "hub").mkdir()
    write_jsonl(study / "hub" / "train.jsonl", pairs(30, 21))
    write_jsonl(study / "other.jsonl", pairs(20, 22))
    file = study / "stream.yaml"
    file.write_text(YAML)
    return file


def test_a_stream_is_trained_on_and_old_rows_come_between(streamed: Path, capsys: Any) -> None:
    """Trained weights equal those of Trainer on the same rows in the same order, by hand."""
    assert main(["run", str(streamed), "--out", "out"]) == 0
    records = {record["method"]: record for record in cltk.load(streamed, "out").run()}
    assert records["plain"]["train"]["steps"] == 6
    note = records["replay"]["train"]["notes"]["replay"]
    assert (note["steps"], note["steps_without"], note["streamed"]) == (8, 6, True)
    run = cltk.load(streamed, "out")
    data, tokenizer = run.inputs.data(run.cells[0]), run.inputs.tokenizer(run.cells[0])
    wanted = tokenize_pairs(pairs(30, 21), tokenizer, prompt="question", completion="answer", max_length=64)
    one_pass = list(islice(data.train, 30))
    assert sorted(map(str, one_pass)) == sorted(map(str, wanted))
    assert one_pass != wanted  # shuffled
    order = random.Random("0 0")
    held = list(wanted)
    order.shuffle(held)
    assert one_pass == held
    tokens = sum(len(row["input_ids"]) for row in islice(data.train, 24))
    assert records["plain"]["train"]["tokens"] == tokens
    capsys.readouterr()
    assert main(["run", str(streamed), "--out", "elsewhere", "--dry-run"]) == 0
    assert "6 steps, 24 rows" in capsys.readouterr().out


def test_conversations_and_text_stream_too(streamed: Path, study: Path, tokenizer: Any) -> None:
    write_jsonl(study / "hub" / "train.jsonl", [{"text": s} for s in sentences(40, 3)])
    text = YAML.replace("prompt: question, completion: answer", "text: text").replace("new.jsonl, limit", "old.jsonl, limit")
    streamed.write_text(text.replace("other.jsonl", "old.jsonl"))
    run = cltk.load(streamed, "out")
    rows = list(run.inputs.data(run.cells[0]).train.rows())
    whole = cltk.load(streamed, "out")
    streamed.write_text(text.replace(", streaming: true", "").replace("other.jsonl", "old.jsonl"))
    whole = cltk.load(streamed, "out")
    assert rows == list(whole.inputs.data(whole.cells[0]).train)
    assert all(row["labels"] == row["input_ids"] for row in rows)


def test_a_resumed_stream_goes_on_behind_its_end(streamed: Path, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Past the end of the first pass, where Trainer alone finds no batch to skip to and stops without a word."""
    from transformers import Trainer, TrainingArguments

    from cltk.data import Collator

    rows = tokenize_pairs(pairs(10, 21), tokenizer, prompt="question", completion="answer", max_length=64)

    def train(folder: str, steps: int, resume: bool = False) -> Any:
        args = TrainingArguments(
            str(tmp_path / folder), max_steps=steps, per_device_train_batch_size=4, save_steps=5, report_to="none",
            disable_tqdm=True, remove_unused_columns=False, use_cpu=True, lr_scheduler_type="constant",
        )  # fmt: skip
        trainer = Trainer(tiny(), args, data_collator=Collator(0), train_dataset=Stream(lambda: rows, 3))
        trainer.train(resume_from_checkpoint=resume or None)
        return trainer

    whole = train("whole", 8)
    train("parts", 5)
    again = train("parts", 8, resume=True)
    assert again.state.global_step == 8
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_workers_share_the_rows() -> None:
    rows = [{"input_ids": [i]} for i in range(20)]
    for workers in (0, 2):
        loader = DataLoader(
            Stream(lambda: rows), batch_size=1, num_workers=workers, collate_fn=lambda some: some[0]["input_ids"][0]
        )
        assert sorted(islice(loader, 20)) == list(range(20))


def test_the_window_shuffles_and_loses_nothing() -> None:
    rows = [{"input_ids": [i]} for i in range(200)]
    some = [row["input_ids"][0] for row in shuffled(rows, 16, random.Random(0))]
    assert sorted(some) == list(range(200))
    assert some != sorted(some)
    assert max(at - i for at, i in enumerate(some)) > 0
    assert min(at - i for at, i in enumerate(some)) >= -16  # none goes out before it came in


OLD = "replay: {memory: old.jsonl, fraction: 0.25, length: 32}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_steps: 6, ", "", r"stream\.yaml:3: data\.train\.streaming: the length of a stream is not known; give train\.max"),
        ("max_steps: 6", "max_steps: 6, num_train_epochs: 2", r"yaml:7: train\.num_train_epochs: data\.train is a stream"),
        ("validation: {path: new.jsonl, limit: 8}", "validation: 0.1", r"streaming: no fraction can be split off a stream"),
        ("streaming: true", "streaming: true, sample: 5", r"a stream is not sampled"),
        ("limit: 12}", "limit: 12, streaming: true}", r"streaming: validation and heldout are read whole"),
        (OLD, "reservoir: {size: 4, fraction: 0.1}", r"reservoir: draws from all rows"),
        (OLD, "token_weights: {setting: flow}", r"token_weights: draws from all rows"),
    ],
)
def test_what_a_stream_cannot_is_one_line(streamed: Path, capsys: Any, old: str, new: str, said: str) -> None:
    assert old in YAML
    streamed.write_text(YAML.replace(old, new))
    assert main(["run", str(streamed), "--out", "out"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(said, error), error


def test_a_bad_row_is_named_when_it_is_its_turn(streamed: Path, study: Path, tokenizer: Any) -> None:
    rows: list[dict[str, Any]] = [*pairs(100, 21), {"question": None, "answer": "x"}]
    write_jsonl(study / "rows.jsonl", rows)
    streamed.write_text(YAML.replace("path: hub", "path: rows.jsonl"))
    run = cltk.load(streamed, "out")
    with pytest.raises(InputError, match=r"data\.train \(rows\.jsonl\), row 100: column 'question' is null"):
        list(run.inputs.data(run.cells[0]).train.rows())
    with pytest.raises(InputError, match="no row to train on"):
        next(iter(Stream(lambda: [])))


def test_strict_cannot_look_at_a_stream(streamed: Path, capsys: Any) -> None:
    assert main(["run", str(streamed), "--out", "out", "--strict"]) == 2
    assert "a stream, which --strict cannot look at" in capsys.readouterr().err


def test_a_hub_set_that_streams_is_known_by_its_commit(monkeypatch: Any, tmp_path: Path) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr(
        "huggingface_hub.HfApi.dataset_info", lambda self, name, revision=None: SimpleNamespace(sha=f"{name}@{revision}")
    )
    assert contents("org/set", tmp_path, None, "train", "v2", "streams") == "org/set@v2"
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"org/set: its commit on the hub cannot be asked for"):
        contents("org/set", tmp_path, None, None, None, "streams")
