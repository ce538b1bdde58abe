"""Conversations from YAML: trained on, replayed, measured; sources mixed by weight; splits and revisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.cli import main
from cltk.data.conversations import conversations
from cltk.run.prepare import prepare_data, shares
from cltk.run.spec_data import DataSpec
from tests.conftest import CHATML, sentences, write_jsonl

CHATS = """\
model: {pretrained: tiny-llama}
data:
  train: {path: chats.jsonl}
  validation: 0.15
  heldout: 0.2
  max_length: 256
train: {learning_rate: 3.0e-3, max_steps: 3, per_device_train_batch_size: 4, save_strategy: "no"}
evals:
  retain: [{text: general.jsonl, name: general, limit: 6}]
  kl_rows: 4
grid:
  mitigators:
    plain: []
    replay: [replay: {memory: general.jsonl, fraction: 0.25}]
    last: [replay: {memory: {path: general.jsonl, mask: last}, fraction: 0.25}]
    ewc: [ewc: {strength: 1.0, importance: {memory: general.jsonl, samples: 4}}]
    kl: [kl: {strength: 0.1, prompts: general.jsonl}]
    stop: [early_stopping: {every: 2, budget: 5.0, memory: general.jsonl, limit: 4}]
keep_model: false
"""


def chats(n: int, seed: int) -> list[dict[str, Any]]:
    """n conversations of two turns."""
    said = iter(sentences(4 * n, seed))
    return [{"messages": [{"role": role, "content": next(said)} for role in ("user", "assistant") * 2]} for _ in range(n)]


@pytest.fixture
def talk(study: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`study` with a chat template, new and general conversations, and its experiment."""
    monkeypatch.chdir(study)
    (study / "tiny-llama/chat_template.jinja").write_text(CHATML)
    write_jsonl(study / "chats.jsonl", chats(40, 5))
    general = [{"conversations": [{"from": m["role"], "value": m["content"]} for m in row["messages"]]} for row in chats(30, 6)]
    write_jsonl(study / "general.jsonl", general)
    (study / "chats.yaml").write_text(CHATS)
    return study


def test_conversations_end_to_end(talk: Path, capsys: Any) -> None:
    """Every answer of the new conversations is trained on and measured; general ones are replayed with their masks."""
    assert main(["run", "chats.yaml", "--out", "out"]) == 0
    records = {record["method"]: record for record in cltk.load("chats.yaml", "out").run()}
    assert set(records) == {"plain", "replay", "last", "ewc", "kl", "stop"}
    run = cltk.load("chats.yaml", "out")
    data, tokenizer = run.inputs.data(run.cells[0]), run.inputs.tokenizer(run.cells[0])
    whole = [json.loads(line) for line in (talk / "chats.jsonl").read_text().splitlines()]
    wanted = conversations(whole, tokenizer, ("messages",), max_length=256)
    found = [*data.train, *data.validation, *data.heldout]
    assert sorted(map(str, found)) == sorted(map(str, wanted))
    for name in ("plain", "replay", "last"):
        rows = {row["task"]: row for role in ("retain", "learn") for row in records[name][role]["rows"]}
        assert {"general", "heldout"} <= set(rows)
        assert rows["general"]["pre"] > 0
    old = records["replay"]["train"]["notes"]["replay"]
    assert old["old_rows"] == round(old["new_rows"] / 3)
    assert old["old_tokens"] > 0
    moved = {name: next(r["post"] for r in records[name]["retain"]["rows"] if r["task"] == "general") for name in records}
    assert moved.pop("stop") == moved["plain"]  # within its budget
    assert len(set(moved.values())) == len(moved)  # also by which tokens of the memory count


def test_memories_and_sets_that_are_not_conversations_are_one_line(talk: Path, capsys: Any) -> None:
    for change, said in {
        ("{path: chats.jsonl}", "{path: chats.jsonl, mask: last}"): "train.mask: unknown key",
        ("max_length: 256", "max_length: 256\n  mask: user"): "data.mask",
        ("max_length: 256", "max_length: 256\n  mask: last\n  completion_only: false"): "mask: last counts answers",
        ("path: chats.jsonl", "path: chats.jsonl, messages: talk"): "row 0: column 'talk' is missing",
        ("mask: last", "mask: first"): "replay.memory.mask: must be one of",
        ("path: chats.jsonl", "path: pairs.jsonl"): "preference pairs",
    }.items():
        write_jsonl(talk / "pairs.jsonl", [{"prompt": f"{s}?", "chosen": " yes", "rejected": " no"} for s in sentences(20)])
        (talk / "x.yaml").write_text(CHATS.replace(*change))
        assert main(["run", "x.yaml", "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_without_a_template_it_is_one_line(talk: Path, capsys: Any) -> None:
    (talk / "tiny-llama/chat_template.jinja").unlink()
    assert main(["run", "chats.yaml", "--dry-run"]) == 2
    assert "row 0: column 'messages' holds messages, and this tokenizer has no chat template" in capsys.readouterr().err


def test_rows_are_split_by_question(talk: Path, tokenizer: Any) -> None:
    """Two answers to one question are never trained on and reported on."""
    import copy

    chat = copy.deepcopy(tokenizer)
    chat.chat_template = CHATML
    rows = [
        row for one in chats(30, 7) for row in (one, {"messages": [one["messages"][0], {"role": "assistant", "content": "no"}]})
    ]
    write_jsonl(talk / "twice.jsonl", rows)
    found = prepare_data(DataSpec(train={"path": "twice.jsonl"}, max_length=256), chat, talk)
    asked = [
        {chat.decode(row["input_ids"]).split("<|im_end|>")[0] for row in part}
        for part in (found.train, found.validation, found.heldout)
    ]
    assert sum(map(len, asked)) == 30
    assert len(found.train) == 2 * len(asked[0])


def test_named_columns_beside_messages(talk: Path, tokenizer: Any) -> None:
    rows = [{**row, "q": f"{s}?", "a": " yes"} for row, s in zip(chats(20, 5), sentences(20, 6), strict=True)]
    write_jsonl(talk / "both.jsonl", rows)
    found = prepare_data(DataSpec(train={"path": "both.jsonl", "prompt": "q", "completion": "a"}), tokenizer, talk)
    assert all(tokenizer.decode(row["input_ids"]).endswith("? yes<end>") for row in found.train)


# --- several sources ---------------------------------------------------------------------------------------------------
def test_shares() -> None:
    assert shares([100, 100], [0.8, 0.2], "data") == [100, 25]
    assert shares([1000, 10], [0.8, 0.2], "data") == [40, 10]
    assert shares([30, 60, 90], [1, 1, 2], "data") == [30, 30, 60]
    assert shares([7, 5], None, "data") == [7, 5]
    with pytest.raises(cltk.InputError, match="of source 1 less than one row"):
        shares([3, 1000], [0.99, 0.01], "data")


MIXED = CHATS.partition("grid:")[0].replace(
    "train: {path: chats.jsonl}",
    "train:\n    - {path: chats.jsonl, weight: 0.8}\n"
    "    - {path: new.jsonl, prompt: question, completion: answer, weight: 0.2}",
)


def test_sources_are_mixed_by_weight(talk: Path, capsys: Any) -> None:
    """Conversations and pairs in one training: shares of rows, no row twice, each split on its own; the record has them."""
    (talk / "mixed.yaml").write_text(MIXED + "keep_model: false\n")
    run = cltk.load("mixed.yaml", "out")
    data = run.inputs.data(run.cells[0])
    decoded = [run.inputs.tokenizer(run.cells[0]).decode(row["input_ids"]) for row in data.train]
    talks = sum("<|im_start|>" in text for text in decoded)
    assert data.sources == {"train.0 (chats.jsonl)": talks, "train.1 (new.jsonl)": len(decoded) - talks}
    assert len(decoded) - talks == round(talks / 4)
    assert len(set(decoded)) == len(decoded)
    assert any("<|im_start|>" not in run.inputs.tokenizer(run.cells[0]).decode(row["input_ids"]) for row in data.heldout)
    assert main(["run", "mixed.yaml", "--dry-run"]) == 0
    assert f"    {talks} rows of data.train.0 (chats.jsonl)\n" in capsys.readouterr().out
    (record,) = run.run()
    assert record["train"]["notes"]["sources"] == data.sources
    assert {"chats.jsonl", "new.jsonl"} <= set(record["digests"]["files"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((", weight: 0.2", ""), "a weight is a share beside other sources"),
        (("weight: 0.2", "weight: 0"), "data.train.1.weight"),
        (("path: new.jsonl", "path: none.jsonl"), "data.train.1.path"),
        (("weight: 0.2", "weigth: 0.2"), "data.train.1.weigth: unknown key; did you mean 'weight'?"),
        (("completion: answer", "completion: anser"), "data.train.1 (new.jsonl), row 0: column 'anser' is missing"),
    ],
)
def test_faults_of_a_mixture_name_the_source(change: tuple[str, str], said: str, talk: Path, capsys: Any) -> None:
    (talk / "mixed.yaml").write_text(MIXED.replace(*change))
    assert main(["run", "mixed.yaml", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# --- splits and revisions ----------------------------------------------------------------------------------------------
def test_splits_and_revisions_everywhere(talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub set's configuration, split and revision reach the library for data, texts and memories, and digests tell two
    revisions apart."""
    import datasets

    asked = []

    def load_dataset(path: str, name: Any = None, *, split: Any = None, revision: Any = None) -> Any:
        asked.append((path, name, split, revision))
        rows = chats(30, 8 if revision == "v1" else 9)
        return datasets.DatasetDict(
            {"train_sft": datasets.Dataset.from_list(rows), "test_sft": datasets.Dataset.from_list(rows[:9])}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    of = "name: all, split: train_sft, revision: v1"
    text = (
        CHATS.partition("grid:")[0]
        .replace("path: chats.jsonl", f"path: user/chats, {of}")
        .replace("text: general.jsonl", "text: user/chats, config: all, split: test_sft, revision: v1")
        + f"mitigators: [replay: {{memory: {{path: user/chats, {of}}}, fraction: 0.2}}]\n"
    )
    digests = []
    for revision in ("v1", "v2"):
        (talk / "hub.yaml").write_text(text.replace("v1", revision))
        run = cltk.load("hub.yaml", "out")
        files = run.inputs.files(run.cells[0])
        assert {f"user/chats:all:train_sft:{revision}", f"user/chats:all:test_sft:{revision}"} <= set(files)
        digests.append((run.inputs.digest(run.cells[0]), *files.values()))
        assert len(run.inputs.suite(run.cells[0]).texts[1].rows) == 6
    assert digests[0][0] != digests[1][0]
    assert digests[0][1] != digests[1][1]
    assert set(asked) == {("user/chats", "all", None, "v1"), ("user/chats", "all", None, "v2")}


def test_a_folder_of_files_and_a_part_of_a_split(talk: Path) -> None:
    from cltk.data import read_rows

    (talk / "hub").mkdir()
    write_jsonl(talk / "hub/train.jsonl", chats(20, 3))
    write_jsonl(talk / "hub/test.jsonl", chats(5, 4))
    assert len(read_rows("hub", split="test")) == 5
    assert len(read_rows("hub", split="train[:4]")) == 4
    assert len(read_rows("hub")) == 20
    with pytest.raises(cltk.InputError, match="split 'dev' does not exist; it has"):
        read_rows("hub", split="dev")
    with pytest.raises(cltk.InputError, match="revision 'v1' of what is on disk"):
        read_rows("chats.jsonl", revision="v1")


def test_records_from_before_these_keys_keep_their_digests() -> None:
    """What is not given is no part of a dump, which digests are made of."""
    old = {"train", "validation", "heldout", "max_length", "chat_template", "completion_only", "drop_long"}
    spec = DataSpec(train={"path": "a.jsonl"})
    assert set(spec.model_dump()) == old
    assert set(spec.model_dump()["train"]) == {"path", "name", "split", "prompt", "completion", "text", "limit", "sample"}
    assert DataSpec(train={"path": "a.jsonl", "revision": "v1"}, mask="last").model_dump()["train"]["revision"] == "v1"


# --- a real model and its template -------------------------------------------------------------------------------------
@pytest.mark.slow
def test_smollm2_on_conversations(talk: Path) -> None:
    """Two steps of SmolLM2 on conversations with replay of conversations, through its own chat template."""
    text = CHATS.partition("grid:")[0] + "mitigators: [replay: {memory: general.jsonl, fraction: 0.25}]\nkeep_model: false\n"
    for small, real in {
        "pretrained: tiny-llama": "pretrained: asset:smollm2-135m-instruct", "limit: 6": "limit: 2", "kl_rows: 4": "kl_rows: 0",
        "path: chats.jsonl": "path: chats.jsonl, limit: 16", "max_steps: 3": "max_steps: 1",
        "batch_size: 4": "batch_size: 2", "3.0e-3": "1.0e-4",
    }.items():  # fmt: skip
        assert small in text
        text = text.replace(small, real)
    (talk / "real.yaml").write_text(text)
    run = cltk.load("real.yaml", "real")
    tokenizer = run.inputs.tokenizer(run.cells[0])
    for row in run.inputs.data(run.cells[0]).train:
        answers = tokenizer.decode([label for label in row["labels"] if label != -100])
        said = tokenizer.decode(row["input_ids"])
        assert said.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
        assert answers.count("<|im_end|>\n") == 2 == said.count("<|im_start|>assistant\n")
        assert "<|im_start|>" not in answers
    (record,) = run.run()
    assert record["train"]["notes"]["replay"]["old_rows"] > 0
    (old,) = [row for row in record["retain"]["rows"] if row["metric"] == "nll"]
    assert 0 < old["pre"] < 20
