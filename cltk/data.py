"""Rows in, token ids out: reading files, building prompts, masking, cutting, splitting, padding."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cltk import assets
from cltk.errors import InputError

Row = dict[str, Any]
IGNORED = -100  # a label that does not count, as in transformers
BATCH = 1_000  # texts that are tokenised in one call


def locate(source: str | Path) -> Path | None:
    """The file or folder that `source` names ("asset:NAME/FILE" or a path); None when it can only be a hub id."""
    found = assets.resolve(str(source))
    if os.path.exists(found):
        return found
    looks_like_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) and found.suffix not in READERS
    if looks_like_hub_id:
        return None
    raise InputError(f"{source}: no such file or folder")


def read_rows(source: str | Path, *, name: str | None = None, split: str | None = None) -> list[Row]:
    """All rows of a .jsonl, .json, .csv, .parquet or .txt file, of a saved `datasets` folder, or of a hub data set.

    A .txt file gives one {"text": ...} row per paragraph (blank lines separate). Raises InputError naming file and line.
    """
    path = locate(source)
    if path is None or path.is_dir():
        return _read_dataset(str(source), path, name, split)
    if path.suffix not in READERS:
        raise InputError(f"{source}: unknown file type {path.suffix!r}; use one of {', '.join(READERS)}")
    rows = READERS[path.suffix](path)
    if not rows:
        raise InputError(f"{source}: the data set is empty")
    return rows


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not JSON: {error.msg}") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: expected an object with named columns, found {type(row).__name__}")
            rows.append(row)
    return rows


def _read_json(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of objects with named columns")
    return rows


def _read_csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def _read_text(path: Path) -> list[Row]:
    paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    return [{"text": paragraph.strip()} for paragraph in paragraphs if paragraph.strip()]


READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet, ".txt": _read_text}


def _read_dataset(source: str, path: Path | None, name: str | None, split: str | None) -> list[Row]:
    import datasets

    try:
        data = datasets.load_from_disk(str(path)) if path else datasets.load_dataset(source, name)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"{source}: no such file, and it cannot be loaded as a data set ({reason})") from None
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise InputError(f"{source}: split {split!r} does not exist; it has {', '.join(map(str, data))}")
        data = data[split]
    rows = [dict(row) for row in data]
    if not rows:
        raise InputError(f"{source}: the data set is empty")
    return rows


def fill(template: str, row: Row, where: str) -> str:
    """The text of a column name ("question") or of a template ("Q: {question}\\nA:") for this row."""
    if template in row:
        return str(row[template])
    columns = re.findall(r"\{(\w+)\}", template)
    missing = [column for column in columns if column not in row]
    if missing or not columns:
        wanted = missing[0] if missing else template
        raise InputError(f"{where}: column {wanted!r} is missing; the columns are {', '.join(map(str, row))}")
    return re.sub(r"\{(\w+)\}", lambda match: str(row[match[1]]), template)


def tokenize_pairs(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    prompt: str,
    completion: str,
    max_length: int = 512,
    chat_template: bool = False,
    completion_only: bool = True,
    where: str = "data",
) -> list[Row]:
    """Prompt and completion -> {"input_ids", "labels"}; labels are -100 on the prompt when `completion_only`.

    Prompt and completion are tokenised apart and joined, so that no token straddles the border and the loss never
    depends on a merge; the end-of-sequence token closes the completion. With `chat_template` the pair becomes one
    user and one assistant turn. Sequences are cut on the right to `max_length`; a completion that is empty, or that
    the cut removes whole, raises InputError naming the row.
    """
    done = []
    for index, row in enumerate(rows):
        question, answer = (fill(column, row, f"{where}, row {index}") for column in (prompt, completion))
        if not answer.strip():
            raise InputError(f"{where}, row {index}: the completion is empty")
        before, after = _chat_ids(tokenizer, question, answer) if chat_template else _plain_ids(tokenizer, question, answer)
        ids = (before + after)[:max_length]
        if len(ids) <= len(before):
            raise InputError(
                f"{where}, row {index}: nothing of the completion is left after the cut to max_length={max_length}"
                f" (the prompt has {len(before)} tokens); raise data.max_length or drop the row"
            )
        labels = [IGNORED] * len(before) + ids[len(before) :] if completion_only else list(ids)
        done.append({"input_ids": ids, "labels": labels})
    return done


def _plain_ids(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    before = tokenizer(question)["input_ids"]
    if tokenizer.eos_token_id is not None and before and before[-1] == tokenizer.eos_token_id:
        before = before[:-1]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return before, tokenizer(answer, add_special_tokens=False)["input_ids"] + end


def _chat_ids(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("data.chat_template: this tokenizer has no chat template; set it to false")
    turn = [{"role": "user", "content": question}]
    before = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": answer}], tokenize=False)
    if not whole.startswith(before):
        raise InputError("data.chat_template: this template does not put the generation prompt before the answer")
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, whole[len(before) :])]
    return ids[0], ids[1]


def text_of(row: Row, where: str) -> str:
    """The row's text: its "text" column, or the only string column there is."""
    if isinstance(row.get("text"), str):
        return row["text"]
    strings = [value for value in row.values() if isinstance(value, str)]
    if len(strings) != 1:
        raise InputError(f"{where}: column 'text' is missing; the columns are {', '.join(map(str, row))}")
    return strings[0]


def blocks(texts: Iterable[str], tokenizer: Any, block: int) -> list[Row]:
    """Texts joined by the end-of-sequence token and cut into pieces of `block` tokens; the short rest is dropped.

    The language-model pre-training format: every token is seen once, every piece has the same length.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream: list[int] = []
    texts = list(texts)
    for start in range(0, len(texts), BATCH):  # a call for each text takes several times as long
        for ids in tokenizer(texts[start : start + BATCH], add_special_tokens=False)["input_ids"]:
            stream += ids + end
    if len(stream) < block:
        return [{"input_ids": stream}] if len(stream) > 1 else []
    return [{"input_ids": stream[start : start + block]} for start in range(0, len(stream) - block + 1, block)]


def memory_rows(memory: Any, tokenizer: Any, block: int = 256) -> list[Row]:
    """Old-domain data as token rows: a path, "asset:NAME/FILE", hub id, list of texts, or rows (texts or input_ids).

    Rows that hold `input_ids` are taken as they are, texts are cut into blocks. Raises InputError when it is empty.
    """
    where = str(memory) if isinstance(memory, str | Path) else "memory"
    rows = read_rows(memory) if isinstance(memory, str | Path) else list(memory)
    if not rows:
        raise InputError(f"{where}: the memory is empty")
    if isinstance(rows[0], dict) and "input_ids" in rows[0]:
        return [dict(row) for row in rows]
    if tokenizer is None:
        raise InputError(f"{where}: texts need a tokenizer; give the trainer a processing_class or pass rows with input_ids")
    texts = [row if isinstance(row, str) else text_of(row, f"{where}, row {i}") for i, row in enumerate(rows)]
    done = blocks(texts, tokenizer, block)
    if not done:
        raise InputError(f"{where}: the memory holds no text")
    return done


def split_by(keys: Sequence[str], fractions: Sequence[float]) -> list[list[int]]:
    """Indices of len(fractions) + 1 disjoint parts, the rest first; rows with equal keys stay together.

    A row's part depends on its key alone (sha256), so that it is the same on every machine, for every seed, and does
    not move when rows are added.
    """
    parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    for index, key in enumerate(keys):
        at = int.from_bytes(hashlib.sha256(" ".join(key.split()).lower().encode()).digest()[:8], "big") / 2**64
        for part, fraction in enumerate(fractions, 1):
            if at < fraction:
                parts[part].append(index)
                break
            at -= fraction
        else:
            parts[0].append(index)
    return parts


def digest_rows(rows: Sequence[Row]) -> str:
    """sha256 (hex) over the token ids and labels of all rows, in order."""
    sha = hashlib.sha256()
    for row in rows:
        labels = row.get("labels")
        sha.update(json.dumps([list(map(int, row["input_ids"])), None if labels is None else list(map(int, labels))]).encode())
    return sha.hexdigest()


class Collator:
    """Pads rows to the longest of the batch (multiple of `multiple_of`): input_ids, attention_mask, labels, all [B, T]."""

    def __init__(self, pad_id: int, multiple_of: int = 1) -> None:
        self.pad_id, self.multiple_of = pad_id, multiple_of

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        longest += -longest % self.multiple_of
        ids = torch.full((len(rows), longest), self.pad_id)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        labels = torch.full((len(rows), longest), IGNORED)
        for i, row in enumerate(rows):
            n = len(row["input_ids"])
            ids[i, :n] = torch.as_tensor(row["input_ids"])
            mask[i, :n] = 1
            labels[i, :n] = torch.as_tensor(row["labels"] if row.get("labels") is not None else row["input_ids"])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def pad_id(tokenizer: Any) -> int:
    """A token id to pad with; padded positions are masked, so any id gives the same result."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0
