"""What can be said of old text beside its path: columns, masks, splits; for texts, memories, prompts, on the command line."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cltk
from cltk.cli import main
from cltk.data import memory_rows
from cltk.data.conversations import conversations
from cltk.data.memories import text_rows
from cltk.errors import InputError
from cltk.measure.evaluate import Suite, TextTask, token_rows
from tests.conftest import CHATML, sentences, write_jsonl
from tests.data.test_conversations import LONG, MARKED, SKY, TWO, ours


@pytest.fixture
def chat(tokenizer: Any) -> Any:
    own = copy.deepcopy(tokenizer)
    own.chat_template = CHATML
    return own


# --- texts -------------------------------------------------------------------------------------------------------------
def test_a_mask_of_a_text_says_what_its_nll_counts(chat: Any, tiny: Any) -> None:
    """Against the model's own log-probabilities of the tokens behind what the template makes of all that stands before.

    A held-out set that counts other turns than the training showed a loss that rose for no reason (LLaMA-Factory#5165).
    """
    model = tiny(max_position_embeddings=512).eval()
    ids = chat.apply_chat_template(LONG, return_dict=True)["input_ids"]
    begin = len(chat.apply_chat_template(LONG[:-1], add_generation_prompt=True, return_dict=True)["input_ids"])
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    own = [-float(logp[i - 1, ids[i]]) for i in range(1, len(ids))]
    rows = [{"messages": LONG}]
    found = {
        mask: Suite([], texts=[TextTask("talk", rows, mask=mask)]).evaluate(model, chat).tasks["talk"].values["nll"][0]
        for mask in (None, "assistant", "last", "all")
    }
    assert found["last"] == pytest.approx(sum(own[begin - 1 :]) / len(own[begin - 1 :]), rel=1e-5)
    assert found["all"] == pytest.approx(sum(own) / len(own), rel=1e-5)
    assert found[None] == found["assistant"] != found["last"]
    assert token_rows(TextTask("talk", TWO, mask="last"), chat) == ours(TWO, chat, "last")
    texts = [TextTask("talk", TWO, mask=mask) for mask in (None, "last", "all")]
    assert len({Suite([], texts=[text]).digests()["talk"] for text in texts}) == 3


@pytest.mark.parametrize(
    ("rows", "mask", "words"),
    [
        ([{"text": "the cat"}], "last", "t, row 0: mask: last: its rows are plain text"),
        ([{"input_ids": [2, 3, 4]}], "last", "t: mask: last: its rows are token ids"),
        ([{"messages": SKY[:1]}], "last", "t, row 0: column 'messages': holds no assistant turn"),
    ],
)
def test_a_mask_that_a_text_does_not_have(rows: Any, mask: Any, words: str, chat: Any) -> None:
    with pytest.raises(InputError, match=words):
        token_rows(TextTask("t", rows, mask=mask), chat)


def test_columns_of_other_names(chat: Any, tmp_path: Path) -> None:
    talk = [{"talk": row["messages"], "messages": "of the moderator", "from": "a"} for row in TWO]
    pairs = [{"q": s, "a": " yes", "text": "both", "from": "b"} for s in sentences(3)]
    write_jsonl(tmp_path / "talk.jsonl", talk)
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    text = TextTask.read("t", str(tmp_path / "talk.jsonl"), messages="talk", mask="last", cluster="from")
    assert token_rows(text, chat) == ours(TWO, chat, "last")
    assert text.labels() == ["a", "a"]
    text = TextTask.read("t", str(tmp_path / "pairs.jsonl"), prompt="{q}?", completion="a")
    plain = TextTask("t", [{"prompt": f"{row['q']}?", "completion": " yes"} for row in pairs])
    assert token_rows(text, chat) == token_rows(plain, chat)
    assert Suite([], texts=[text]).digests() == Suite([], texts=[plain]).digests()
    turns = TextTask.read("t", str(tmp_path / "talk.jsonl"), messages="talk").rows
    write_jsonl(tmp_path / "parts.jsonl", [{"asked": row["messages"][:-1], "said": row["messages"][-1:]} for row in turns])
    text = TextTask.read("t", str(tmp_path / "parts.jsonl"), prompt="asked", completion="said")
    assert token_rows(text, chat) == ours(TWO, chat, "last")
    for how in ("messages", "prompt"):
        with pytest.raises(InputError, match="row 0: column 'q' is missing"):
            TextTask.read("t", str(tmp_path / "talk.jsonl"), **{how: "q"})


YAML = """\
model: {pretrained: tiny-llama}
data: {train: {path: talks.jsonl, messages: talk}, validation: {path: talks.jsonl}, heldout: {path: talks.jsonl}, mask: last}
train: {max_steps: 1, per_device_train_batch_size: 2, save_strategy: "no"}
evals: {retain: [{text: talks.jsonl, messages: talk, mask: last, name: old}], kl_rows: 0}
keep_model: false
"""


@pytest.fixture
def talks(study: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(study)
    (study / "tiny-llama/chat_template.jinja").write_text(CHATML)
    write_jsonl(study / "talks.jsonl", [{"talk": row["messages"]} for row in TWO * 4])
    return study


def test_masks_of_texts_from_yaml(talks: Path, capsys: Any) -> None:
    """One file under one mask is one NLL, be it the new task's held-out rows or an old text."""
    (talks / "x.yaml").write_text(YAML)
    (record,) = cltk.load("x.yaml", "out").run()
    rows = {row["task"]: row for role in ("retain", "learn") for row in record[role]["rows"]}
    assert rows["old"]["pre"] == pytest.approx(rows["heldout"]["pre"], rel=1e-6)
    other = cltk.load("x.yaml", "out")
    (talks / "x.yaml").write_text(YAML.replace("mask: last, name", "mask: all, name"))
    changed = cltk.load("x.yaml", "out")
    assert changed.inputs.digest(changed.cells[0]) != other.inputs.digest(other.cells[0])
    for change, words in {
        ("mask: last, name", "mask: first, name"): "evals.retain.0.mask",
        ("messages: talk, mask: last, name", "messages: talk, prompt: talk, name"): "give the one or the other",
        ("messages: talk, mask: last, name", "messages: talks, name"): "column 'talks' is missing",
    }.items():
        (talks / "x.yaml").write_text(YAML.replace(*change))
        capsys.readouterr()
        assert main(["run", "x.yaml", "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


# --- the command line --------------------------------------------------------------------------------------------------
def test_texts_and_memories_of_the_command_line(talks: Path, capsys: Any) -> None:
    one = "{text: talks.jsonl, messages: talk, mask: last, name: last turns, limit: 3}"
    texts = ["--text", one, "--text", "old.jsonl", "--limit", "2"]
    assert main(["measure", "tiny-llama", "tiny-llama", *texts, "--json", "x.json"]) == 0
    rows = {row["task"]: row for row in json.loads(Path("x.json").read_text())["rows"]}
    assert {"last turns", "old"} <= set(rows)
    assert (rows["last turns"]["n"], rows["old"]["n"]) == (3, 2)
    how = "{path: talks.jsonl, messages: talk, mask: last, limit: 2}"
    assert main(["fisher", "tiny-llama", "--memory", how, "--out", "f.safetensors", "--json", "f.json"]) == 0
    tokenizer = cltk.models.load_model("tiny-llama")[1]
    counted = sum(label != -100 for row in ours(TWO, tokenizer, "last") for label in row["labels"][1:])
    assert json.loads(Path("f.json").read_text())["tokens"] == counted
    capsys.readouterr()
    for words, said in {
        ("measure", "--text", "{text: talks.jsonl, colum: a}"): "--text: colum: unknown key",
        ("measure", "--text", "{text: talks.jsonl, limit: 0}"): "--text: limit",
        ("measure", "--text", "{text: [}"): "--text",
        ("measure", "--text", "{text: none.jsonl}"): "none.jsonl: no such file",
        ("fisher", "--memory", "{path: talks.jsonl, mask: none}"): "memory.mask: must be one of",
    }.items():
        command, *rest = words
        given = ["tiny-llama", "tiny-llama"] if command == "measure" else ["tiny-llama", "--out", "f.safetensors"]
        assert main([command, *given, *rest]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.strip().count("\n") == 0


# --- memories and prompts ----------------------------------------------------------------------------------------------
def test_rows_at_hand_can_say_how_they_are_read(chat: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    for rows in (TWO, Dataset.from_list(TWO), iter(TWO)):
        assert memory_rows({"rows": rows, "mask": "last"}, chat) == ours(TWO, chat, "last")
    talk = [{"talk": row["messages"]} for row in TWO]
    assert memory_rows({"rows": talk, "messages": "talk", "limit": 1}, chat) == ours(TWO[:1], chat)
    write_jsonl(tmp_path / "x.jsonl", TWO)
    assert memory_rows({"path": tmp_path / "x.jsonl", "mask": "last"}, chat) == ours(TWO, chat, "last")
    cltk.Replay({"rows": TWO, "mask": "last"}, 0.5)
    with pytest.raises(InputError, match="at hand have no path"):
        memory_rows({"rows": TWO, "path": "x.jsonl"}, chat)
    with pytest.raises(InputError, match=r"memory\.path: must be text"):
        memory_rows({"path": ["a.jsonl", "b.jsonl"]}, chat)


@pytest.mark.parametrize(
    ("rows", "how", "words"),
    [
        ([{"input_ids": [2, 3, 4]}], {"mask": "last"}, "mask: its rows are token ids already"),
        ([{"input_ids": [2, 3, 4]}], {"prompt": "q"}, "prompt: its rows are token ids already"),
        (["the cat sat"], {"chat_template": True}, "chat_template: its rows are plain text"),
        (["the cat sat"], {"mask": "last"}, "mask: last: its rows are plain text"),
    ],
)
def test_what_rows_do_not_have_is_refused(rows: Any, how: dict[str, Any], words: str, chat: Any) -> None:
    with pytest.raises(InputError, match=words):
        memory_rows({"rows": rows, **how}, chat)


def test_prompts_take_the_chat_template(chat: Any) -> None:
    asked = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    for rows in ([{"prompt": "the cat", "completion": " sat"}], ["the cat"]):
        (row,) = text_rows({"rows": rows, "chat_template": True}, chat, 512, "prompts")
        assert chat.decode(row["input_ids"]) == asked
        assert set(row["labels"]) == {-100}
    pair = [{"prompt": "the cat", "completion": " sat"}]
    (row,) = text_rows(pair, chat, 512, "prompts")
    assert chat.decode(row["input_ids"]) == "the cat"
    (row,) = text_rows(pair, chat, 512, "examples", whole=True)
    assert chat.decode(row["input_ids"]) == "the cat sat"
    (row,) = text_rows({"rows": pair, "chat_template": True}, chat, 512, "examples", whole=True)
    assert chat.decode(row["input_ids"]) == f"{asked} sat<|im_end|>\n"


def test_an_answer_without_an_end_is_said_once(chat: Any, caplog: Any) -> None:
    """Templates that close a turn with the next one's beginning train no end (trl#5988)."""
    chat.chat_template = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    for _ in range(2):
        assert conversations(TWO, chat, ("messages",), max_length=2048)
    assert sum("does not learn to stop" in record.message for record in caplog.records) == 1
    for template in (CHATML, MARKED):
        caplog.clear()
        chat.chat_template = template
        conversations(TWO, chat, ("messages",), max_length=2048)
        assert not caplog.records


def test_a_text_keeps_its_mask_where_rows_are_drawn() -> None:
    text = TextTask("t", TWO * 5, mask="last")
    assert text.sampled(3).mask == replace(text, rows=[]).mask == "last"
