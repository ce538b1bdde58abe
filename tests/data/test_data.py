"""Rows, prompts, masks, blocks, splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cltk.data import Collator, blocks, fill, memory_rows, read_rows, split_by, text_of, tokenize_pairs
from cltk.data.memories import text_rows
from cltk.errors import InputError
from tests.conftest import sentences


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


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")], ids=str)
def test_a_cell_that_holds_nothing_is_no_word(value: Any, tokenizer: Any) -> None:
    rows = [{"q": f"why {i}", "a": " so" if i % 3 else value} for i in range(20)]
    for template in ("a", "It is{a}"):
        with pytest.raises(InputError, match=r"row 0: column 'a' is .* \(7 such rows of 20: 0, 3, 6, 9, 12, \.\.\.\)"):
            tokenize_pairs(rows, tokenizer, prompt="q", completion=template)
    with pytest.raises(InputError, match=r"row 1: column 'a' is missing.*\(2 such rows of 3: 1, 2\)"):
        tokenize_pairs([{"q": "why", "a": " so"}, {"q": "why"}, {"q": "how"}], tokenizer, prompt="q", completion="a")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ([{"role": "user", "content": "hi"}], "messages"),
        (["a"], "list"),
        ({"a": 1}, "dict"),
        (b"a", "bytes"),
        (("a",), "tuple"),
    ],
)
def test_a_cell_that_is_no_text_is_refused(value: Any, word: str) -> None:
    import numpy

    for bad in (value, numpy.array([1, 2])) if word == "list" else (value,):
        with pytest.raises(InputError, match=f"w: column 'q' is .*{word if bad is value else 'ndarray'}"):
            fill("Q: {q}", {"q": bad}, "w")


def test_the_text_of_a_row_is_never_another_column() -> None:
    assert text_of({"body": "x", "n": 3}, "w") == "x"
    with pytest.raises(InputError, match="'text' is null"):
        text_of({"text": None, "source": "web"}, "w")
    with pytest.raises(InputError, match="'text' is missing"):
        text_of({"body": None, "source": "web"}, "w")
    with pytest.raises(InputError, match="'body' is null"):
        text_of({"body": None, "n": 3}, "w")


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        (["the cat", None], "row 1 is null"),
        ([{"text": "the cat"}, {"text": float("nan")}], "row 1: column 'text' is nan"),
        ([["the cat"]], "row 0 is a list, not text"),
        ([b"the cat"], "row 0 is a bytes, not text"),
        ([{"input_ids": [1, 2]}, {"input_ids": None}], "row 1: column 'input_ids' must be a list of token ids, got None"),
        ([{"input_ids": [1, 2]}, {"text": "a"}], "row 1: column 'input_ids' must be a list of token ids, got None"),
        ([{"input_ids": [[1, 2]]}], r"row 0: column 'input_ids' must be a list .*, got \[\[1, 2\]\]"),  # return_tensors
        ([{"input_ids": [1, 2], "labels": [1, None]}], "row 0: column 'labels' must be a list of token ids"),
        ([{"input_ids": [1, 2], "labels": [1]}], "row 0: 1 labels for 2 input_ids"),
    ],
)
def test_rows_of_a_memory_that_hold_nothing_to_train_on(memory: Any, said: str, tokenizer: Any) -> None:
    """Whoever reads them: as old text or as prompts."""
    for read in (memory_rows, lambda rows, tok: text_rows(rows, tok, 8, "memory")):
        with pytest.raises(InputError, match=f"^memory, {said}"):
            read(memory, tokenizer)


def test_prompts_are_of_one_split(tokenizer: Any) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"text": "the cat sat"}])
    with pytest.raises(InputError, match=r"^kl\.prompts: is a set of splits \(train\); give one of them$"):
        text_rows(DatasetDict(train=rows), tokenizer, 8, "kl.prompts")
    assert text_rows(rows, tokenizer, 8, "kl.prompts") == text_rows(["the cat sat"], tokenizer, 8, "kl.prompts")


def test_long_prompts_are_counted_or_left_out(tokenizer: Any) -> None:
    rows = [{"q": "the cat " * (40 if i in (2, 5) else 1), "a": f" sat {i}"} for i in range(8)]
    settings = {"prompt": "q", "completion": "a", "max_length": 32}
    with pytest.raises(InputError, match=r"row 2: .*max_length=32.*\(2 such rows of 8: 2, 5\).*drop_long"):
        tokenize_pairs(rows, tokenizer, **settings)
    kept = tokenize_pairs(rows, tokenizer, drop_long=True, **settings)
    assert kept == tokenize_pairs([row for i, row in enumerate(rows) if i not in (2, 5)], tokenizer, **settings)
    with pytest.raises(InputError, match=r"row 2: .*\(1 such row of 5\).*drop_long"):
        tokenize_pairs(rows[:5], tokenizer, **settings)
    with pytest.raises(InputError, match="2 such rows of 2"):  # nothing would be left
        tokenize_pairs([rows[2], rows[5]], tokenizer, drop_long=True, **settings)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json", "x.txt"])
def test_text_files_are_utf8_or_a_line(name: str, tmp_path: Path) -> None:
    text = {"x.csv": "a\né\n", "x.jsonl": '{"a": "é"}\n', "x.json": '[{"a": "é"}]', "x.txt": "é"}[name]
    file = tmp_path / name
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list(read_rows(file)[0].values()) == ["é"]
    assert list(read_rows(file)[0]) == ["text" if name == "x.txt" else "a"]
    for coding in ("latin-1", "utf-16", "utf-16-le"):
        file.write_bytes(text.encode(coding))
        with pytest.raises(InputError, match=rf"{name}:\d+: .*UTF-8"):
            read_rows(file)


def test_csv_files_as_they_come(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text('a,b\n1,"two\nlines"\n3\n\n4,' + "x" * 200_000 + "\n")
    assert read_rows(file) == [{"a": "1", "b": "two\nlines"}, {"a": "3", "b": None}, {"a": "4", "b": "x" * 200_000}]
    for text, said in (
        ("a,b\n1,2\n1,2,3\n", "x.csv:3: 3 cells"),
        ("a,a\n1,2\n", "called 'a'"),
        ('a\n"x\n', "x.csv:2: not CSV"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=said):
            read_rows(file)


@pytest.mark.parametrize("text", ['{"a": ' + "9" * 5000 + "}", "[" * 100_000], ids=["digits", "brackets"])
def test_json_that_python_cannot_hold_is_a_line(text: str, tmp_path: Path) -> None:
    for name in ("x.json", "x.jsonl"):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=name):
            read_rows(tmp_path / name)


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"x\.parquet: not a Parquet file"):
        read_rows(tmp_path / "x.parquet")


def test_splits_are_named_or_train(tmp_path: Path, tokenizer: Any) -> None:
    from datasets import Dataset, DatasetDict

    parts = {name: Dataset.from_list([{"text": f"the cat sat {name}"}] * 9) for name in ("train", "test")}
    DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    assert memory_rows(tmp_path / "both", tokenizer, 4) == memory_rows(parts["train"], tokenizer, 4)
    DatasetDict({"a": parts["test"], "b": parts["train"]}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(InputError, match="it has a, b"):
        memory_rows(tmp_path / "other", tokenizer, 4)
    with pytest.raises(InputError, match=r"set of splits \(train, test\)"):
        memory_rows(DatasetDict(parts), tokenizer, 4)
    (tmp_path / "x.txt").write_text("the cat")
    with pytest.raises(InputError, match="split 'test' of a single file"):
        read_rows(tmp_path / "x.txt", split="test")


def test_rows_that_datasets_gives_as_tensors_become_lists() -> None:
    from datasets import Dataset

    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}]
    for kind in ("torch", "numpy"):
        assert memory_rows(Dataset.from_list(rows).with_format(kind), None) == rows


def test_blocks_begin_as_the_tokeniser_begins_a_text(tokenizer: Any) -> None:
    """<s> stands before every text and every piece, where the tokeniser writes it; no text token is lost or doubled."""
    import copy

    from tokenizers.processors import TemplateProcessing

    texts = ["the cat sat on the mat", "a dog ran", "it was not blue and small"]
    bos = copy.deepcopy(tokenizer)
    bos.add_special_tokens({"bos_token": "<s>"})
    at = bos.convert_tokens_to_ids("<s>")
    bos.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", at)])
    pieces = [row["input_ids"] for row in blocks(texts, bos, 5)]
    assert {len(piece) for piece in pieces} == {5}
    assert all(piece[0] == at for piece in pieces)
    stream = [t for text in texts for t in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert [t for piece in pieces for t in piece if t != at] == stream[: sum(t != at for piece in pieces for t in piece)]
    assert blocks(texts, bos, 5, limit=2) == [{"input_ids": piece} for piece in pieces[:2]]
    with pytest.raises(InputError, match="longer blocks"):
        blocks(texts, bos, 1)


def test_no_more_of_a_memory_is_tokenised_than_is_needed(tokenizer: Any) -> None:
    asked: list[int] = []

    class Asked:
        eos_token_id, bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id

        def __call__(self, texts: Any, **settings: Any) -> Any:
            asked.append(len(texts))
            return tokenizer(texts, **settings)

    texts = ["the cat sat"] * 20_000
    whole = memory_rows(texts, tokenizer, 8)
    assert memory_rows(texts, Asked(), 8, limit=3) == whole[:3]
    assert sum(asked) < 2_000


@pytest.mark.parametrize("form", ["pandas", "arrow", "numpy", "torch"])
def test_a_memory_in_any_format_of_datasets_is_its_rows(form: str, tokenizer: Any) -> None:
    from datasets import Dataset

    texts = Dataset.from_list([{"text": sentence} for sentence in sentences(6)])
    plain = memory_rows(texts, tokenizer, 16)
    assert memory_rows(texts.with_format(form), tokenizer, 16) == plain
    assert memory_rows(Dataset.from_list(plain).with_format(form), tokenizer) == plain
