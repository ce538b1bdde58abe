"""Rows, prompts, masks, blocks, splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cltk.data import Collator, blocks, fill, memory_rows, read_rows, split_by, tokenize_pairs
from cltk.errors import InputError


def test_readers_agree(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"a": "x", "b": "1"}, {"a": "y, z", "b": "2"}]
    (tmp_path / "r.jsonl").write_text('{"a": "x", "b": "1"}\n\n{"a": "y, z", "b": "2"}\n')
    (tmp_path / "r.json").write_text('[{"a": "x", "b": "1"}, {"a": "y, z", "b": "2"}]')
    (tmp_path / "r.csv").write_text('a,b\nx,1\n"y, z",2\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    for kind in ("jsonl", "json", "csv", "parquet"):
        assert read_rows(tmp_path / f"r.{kind}") == rows
    (tmp_path / "r.txt").write_text("one\ntwo\n\n\nthree\n")
    assert read_rows(tmp_path / "r.txt") == [{"text": "one\ntwo"}, {"text": "three"}]


def test_saved_data_sets(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list([{"a": 1}])}).save_to_disk(str(tmp_path / "d"))
    assert read_rows(tmp_path / "d", split="train") == [{"a": 1}]
    with pytest.raises(InputError, match="split 'test'"):
        read_rows(tmp_path / "d", split="test")


def test_fill() -> None:
    row = {"q": "why", "n": 3}
    assert fill("q", row, "w") == "why"
    assert fill("Q: {q}? {n}", row, "w") == "Q: why? 3"
    assert fill("{q}", {"q": "{n}", "n": 1}, "w") == "{n}"  # filled once, never again
    for template in ("x", "{x}", "{q.__class__}"):
        with pytest.raises(InputError, match="missing"):
            fill(template, row, "w")


def test_completion_only_masks_the_prompt(tokenizer: Any) -> None:
    pair = [{"q": "the cat", "a": " sat"}]
    (masked,) = tokenize_pairs(pair, tokenizer, prompt="q", completion="a")
    (whole,) = tokenize_pairs(pair, tokenizer, prompt="q", completion="a", completion_only=False)
    n = len(tokenizer("the cat")["input_ids"])
    assert masked["input_ids"] == whole["input_ids"] == whole["labels"]
    assert masked["labels"] == [-100] * n + whole["input_ids"][n:]
    assert masked["input_ids"][-1] == tokenizer.eos_token_id


def test_chat_template(tokenizer: Any) -> None:
    import copy

    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    (row,) = tokenize_pairs([{"q": "hi", "a": "yes"}], chat, prompt="q", completion="a", chat_template=True)
    assert chat.decode(row["input_ids"]) == "<user>hi<end><assistant>yes<end>"
    assert chat.decode([t for t in row["labels"] if t != -100]) == "yes<end>"
    with pytest.raises(InputError, match="no chat template"):
        tokenize_pairs([{"q": "hi", "a": "yes"}], tokenizer, prompt="q", completion="a", chat_template=True)


def test_truncation_keeps_some_completion_or_says_so(tokenizer: Any) -> None:
    pair = [{"q": "the cat sat on the mat", "a": " then it ran and ran"}]
    n = len(tokenizer(pair[0]["q"])["input_ids"])
    (row,) = tokenize_pairs(pair, tokenizer, prompt="q", completion="a", max_length=n + 1)
    assert len(row["input_ids"]) == n + 1
    with pytest.raises(InputError, match=f"max_length={n}"):
        tokenize_pairs(pair, tokenizer, prompt="q", completion="a", max_length=n)


def test_blocks_hold_every_token_once(tokenizer: Any) -> None:
    texts = ["the cat sat", "a dog ran under the tree", "it was not blue"]
    stream = [t for text in texts for t in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = blocks(texts, tokenizer, 4)
    assert [t for row in rows for t in row["input_ids"]] == stream[: len(stream) // 4 * 4]
    assert blocks(["the"], tokenizer, 100) == [{"input_ids": [*tokenizer("the")["input_ids"], tokenizer.eos_token_id]}]


def test_memory_in_every_form(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("the cat sat on the mat\n\na dog ran")
    from_file = memory_rows(tmp_path / "m.txt", tokenizer, 4)
    assert memory_rows(["the cat sat on the mat", "a dog ran"], tokenizer, 4) == from_file
    assert memory_rows([{"text": "the cat sat on the mat"}, {"text": "a dog ran"}], tokenizer, 4) == from_file
    assert memory_rows([{"input_ids": [1, 2]}], None) == [{"input_ids": [1, 2]}]
    for wrong in ([], [{"a": "x", "b": "y"}]):
        with pytest.raises(InputError):
            memory_rows(wrong, tokenizer)
    with pytest.raises(InputError, match="tokenizer"):
        memory_rows(["text"], None)


def test_split_depends_on_the_key_alone() -> None:
    keys = [f"question {i % 500}" for i in range(1000)]
    rest, a, b = split_by(keys, [0.2, 0.1])
    assert sorted(rest + a + b) == list(range(1000))
    assert not {keys[i] for i in rest} & {keys[i] for i in a + b}
    assert 150 < len(a) < 250
    reordered = split_by(keys[::-1], [0.2, 0.1])
    assert {keys[::-1][i] for i in reordered[1]} == {keys[i] for i in a}
    assert split_by(["Same  Question", "same question"], [0.5])[1] in ([], [0, 1])


def test_collator_pads_and_masks() -> None:
    batch = Collator(9)([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
