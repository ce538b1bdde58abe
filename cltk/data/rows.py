"""Rows in, token ids out: reading files, building prompts, masking, cutting, splitting, padding."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

from cltk.data.readers import Row, read_rows
from cltk.errors import InputError

IGNORED = -100  # a label that does not count, as in transformers
BATCH = 1_000  # texts that are tokenised in one call


class NoText(InputError):
    """A cell that is missing or holds nothing where a text is needed."""


def as_text(value: Any, where: str) -> str:
    """The text of a value: strings as they are, numbers as Python writes them.

    Raises:
        NoText: None, or a number that is not finite.
        InputError: a list, a mapping or bytes, which have no text of their own.
    """
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):  # pandas writes a missing cell as NaN
        raise NoText(f"{where} is {'null' if value is None else value}; fill the cell or drop the row")
    if isinstance(value, list | tuple) and value and all(isinstance(turn, Mapping) and "role" in turn for turn in value):
        raise InputError(f"{where} is a list of messages, not text; give columns of text, or train on it with TRL's SFTTrainer")
    if isinstance(value, Mapping | Sequence | set) or hasattr(value, "__array__"):
        raise InputError(f"{where} is a {type(value).__name__}, not text; give a column of text or numbers")
    return str(value)


def fill(template: str, row: Row, where: str) -> str:
    """The text of a column name ("question") or of a template ("Q: {question}\nA:") for this row.

    Raises:
        NoText: a column that is missing or null; names row and column.
        InputError: a column that holds no text (`as_text`).
    """
    if template in row:
        return as_text(row[template], f"{where}: column {template!r}")
    columns = re.findall(r"\{(\w+)\}", template)
    missing = [column for column in columns if column not in row]
    if missing or not columns:
        wanted = missing[0] if missing else template
        raise NoText(f"{where}: column {wanted!r} is missing; the columns are {', '.join(map(str, row))}")
    return re.sub(r"\{(\w+)\}", lambda match: as_text(row[match[1]], f"{where}: column {match[1]!r}"), template)


def filled(rows: Sequence[Row], templates: Sequence[str], where: str) -> list[list[str]]:
    """`fill` of every template for every row. Raises InputError that counts the rows without text and names the first."""
    done, bad = [], []
    for index, row in enumerate(rows):
        try:
            done.append([fill(template, row, f"{where}, row {index}") for template in templates])
        except NoText as error:
            bad.append((index, str(error)))
    if bad:
        raise InputError(bad[0][1] + others([index for index, _ in bad], len(rows)))
    return done


def tokenize_pairs(rows: Sequence[Row], tokenizer: Any, **settings: Any) -> list[Row]:
    """The rows of `pairs` that are left: {"input_ids", "labels"}. Same arguments, same errors."""
    return [row for row in pairs(rows, tokenizer, **settings) if row is not None]


def pairs(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    prompt: str,
    completion: str,
    max_length: int = 512,
    chat_template: bool = False,
    completion_only: bool = True,
    drop_long: bool = False,
    where: str = "data",
) -> list[Row | None]:
    """Prompt and completion -> {"input_ids", "labels"}; labels are -100 on the prompt when `completion_only`.

    Prompt and completion are tokenised apart and joined, so that no token straddles the border and the loss never
    depends on a merge; the end-of-sequence token closes the completion. With `chat_template` the pair becomes one
    user and one assistant turn. Sequences are cut on the right to `max_length`.

    Args:
        drop_long: rows whose prompt alone fills `max_length` become None; else they are refused.

    Raises:
        InputError: cells without text, empty completions, or prompts that leave nothing of the completion: how many rows, and
            which are the first.
    """
    done: list[Row | None] = []
    empty, long = [], []
    for index, (question, answer) in enumerate(filled(rows, (prompt, completion), where)):
        if not answer.strip():
            empty.append(index)
            continue
        before, after = _chat_ids(tokenizer, question, answer) if chat_template else _plain_ids(tokenizer, question, answer)
        ids = (before + after)[:max_length]
        if len(ids) <= len(before):
            long.append((index, len(before)))
            done.append(None)
            continue
        labels = [IGNORED] * len(before) + ids[len(before) :] if completion_only else list(ids)
        done.append({"input_ids": ids, "labels": labels})
    if empty:
        raise InputError(f"{where}, row {empty[0]}: the completion is empty" + others(empty, len(rows)))
    if long and (not drop_long or not any(done)):
        raise InputError(
            f"{where}, row {long[0][0]}: nothing of the completion is left after the cut to max_length={max_length} (the"
            f" prompt has {long[0][1]} tokens; the longest {max(n for _, n in long)})"
            + others([index for index, _ in long], len(rows))
            + "; raise data.max_length"
            + ("" if drop_long else ", or leave such rows out (data.drop_long: true)")
        )
    return done


def others(found: Sequence[int], rows: int) -> str:
    """How many rows share a fault, and which are the first."""
    shown = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
    return f" ({len(found)} such rows of {rows}: {shown})" if len(found) > 1 else ""


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
    try:
        before = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": answer}], tokenize=False)
    except Exception as error:  # whatever a stranger's template does, in its sandbox
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"data.chat_template: the tokenizer's template cannot be filled ({type(error).__name__}: {reason})"
        ) from None
    if not whole.startswith(before):
        raise InputError("data.chat_template: this template does not put the generation prompt before the answer")
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, whole[len(before) :])]
    return ids[0], ids[1]


def text_of(row: Row, where: str) -> str:
    """The row's text: its "text" column, or the only column there is that holds text (or nothing); the row that is a text.

    Raises:
        InputError: there is no such column, or the cell is null or no text.
    """
    if not isinstance(row, Mapping):
        return as_text(row, where)
    if "text" in row:
        return as_text(row["text"], f"{where}: column 'text'")
    columns = [name for name, value in row.items() if value is None or isinstance(value, str)]
    if len(columns) != 1:
        raise InputError(f"{where}: column 'text' is missing; the columns are {', '.join(map(str, row))}")
    return as_text(row[columns[0]], f"{where}: column {columns[0]!r}")


def blocks(texts: Iterable[str], tokenizer: Any, block: int, limit: int | None = None) -> list[Row]:
    """Texts joined by the end-of-sequence token and cut into pieces of `block` tokens; the short rest is dropped.

    The language-model pre-training format: every token is seen once, every piece has the same length. Where the tokeniser
    begins a text with a token of its own (<s>, <bos>), every text and every piece begins with it: models that were
    trained so (Llama 2, Gemma) are far off without it.

    Args:
        limit: the first so many pieces; no more text is read than they need.
    """
    start = starts_with(tokenizer)
    if block <= len(start):
        raise InputError(f"blocks: {block} tokens hold no text behind {tokenizer.bos_token!r}; give longer blocks")
    pieces: list[Row] = []
    rest: list[int] = []
    for ids in _streamed(texts, tokenizer, start):
        rest += ids
        at = 0
        while at < len(rest):
            first = start if rest[at : at + 1] != start else []
            if len(first) + len(rest) - at < block:
                break
            stop = at + block - len(first)
            pieces.append({"input_ids": first + rest[at:stop]})
            at = stop
            if len(pieces) == limit:
                return pieces
        rest = rest[at:]
    return pieces or ([{"input_ids": rest}] if len(rest) > 1 + len(start) else [])


def starts_with(tokenizer: Any) -> list[int]:
    """The token that this tokeniser puts before every text, as a list of one; empty where it puts none."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return whole[:1] if whole != bare and whole[:1] == [tokenizer.bos_token_id] else []


def _streamed(texts: Iterable[str], tokenizer: Any, start: list[int]) -> Iterator[list[int]]:
    """Token ids of text after text, between the tokens that begin and end it."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    waiting = iter(texts)
    while some := list(islice(waiting, BATCH)):  # a call for each text takes several times as long
        for ids in tokenizer(some, add_special_tokens=False)["input_ids"]:
            yield start + ids + end


def memory_rows(memory: Any, tokenizer: Any, block: int = 256, limit: int | None = None) -> list[Row]:
    """Old-domain data as token rows: a path, "asset:NAME/FILE", hub id, list of texts, or rows (texts or input_ids).

    Rows that hold `input_ids` are taken as they are, as lists; texts are cut into blocks.

    Args:
        block: tokens of a block.
        limit: the first so many rows; the rest is not tokenised.

    Raises:
        InputError: it is empty, a set of splits, or a row has no text.
    """
    where = str(memory) if isinstance(memory, str | Path) else "memory"
    if isinstance(memory, Mapping):
        raise InputError(f"memory: is a set of splits ({', '.join(map(str, memory))}); give one of them")
    rows = read_rows(memory) if isinstance(memory, str | Path) else memory
    rows = rows.with_format(None) if hasattr(rows, "with_format") else rows  # a `datasets` format may give no rows at all
    rows = rows if hasattr(rows, "__len__") and hasattr(rows, "__getitem__") else list(rows)
    if not len(rows):
        raise InputError(f"{where}: the memory is empty")
    if isinstance(rows[0], Mapping) and "input_ids" in rows[0]:
        return [token_row(rows[i], f"{where}, row {i}") for i in range(min(len(rows), limit or len(rows)))]
    if tokenizer is None:
        raise InputError(f"{where}: texts need a tokenizer; give the trainer a processing_class or pass rows with input_ids")
    texts = (row if isinstance(row, str) else text_of(row, f"{where}, row {i}") for i, row in enumerate(rows))
    done = blocks(texts, tokenizer, block, limit)
    if not done:
        raise InputError(f"{where}: the memory holds no text")
    return done


def token_row(row: Row, where: str) -> Row:
    """The row with lists in the place of tensors and arrays (`set_format`).

    Raises:
        InputError: its input_ids are no list of token ids, or its labels are others than one a token.
    """
    found = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()}
    ids: Any = found.get("input_ids")
    labels: Any = found.get("labels")
    for name, value in (("input_ids", ids), ("labels", [] if labels is None else labels)):
        if not isinstance(value, list | tuple) or not all(issubclass(kind, Integral) for kind in set(map(type, value))):
            raise InputError(f"{where}: column {name!r} must be a list of token ids, got {str(value)[:40]}")
    if labels is not None and len(labels) != len(ids):
        raise InputError(f"{where}: {len(labels)} labels for {len(ids)} input_ids; give one a token, -100 where none counts")
    return found


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
