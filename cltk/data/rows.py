"""Rows in, texts and token ids out: columns, templates, blocks, splitting, padding."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cltk.data.readers import Row
from cltk.errors import InputError

IGNORED = -100  # a label that does not count, as in transformers
BATCH = 1_000  # texts that are tokenised in one call
TEXT = 2**20  # or so many characters of them
SHOWN = 5  # rows of a fault that are named


def attended(row: Mapping[str, Any], length: int) -> list[int]:
    """The places of a token row that are text: all, but for padding, which an attention_mask of 0 marks."""
    mask = row.get("attention_mask")
    if mask is None or len(mask) != length or getattr(mask, "ndim", 1) != 1:
        return list(range(length))
    return [i for i, seen in enumerate(mask) if seen]


def unpadded(row: Mapping[str, Any]) -> Row:
    """The ids, and the labels where there are some, of a token row without its padding, as lists."""
    seen = attended(row, len(row["input_ids"]))
    return {key: [int(row[key][i]) for i in seen] for key in ("input_ids", "labels") if row.get(key) is not None}


class NoText(InputError):
    """A cell that is missing or holds nothing where a text is needed."""


def as_text(value: Any, where: str) -> str:
    """The text of a value: strings as they are, numbers as Python writes them.

    Raises:
        NoText: None, or a number that is not finite.
        InputError: a list, a mapping or bytes, which have no text of their own; half of a character.
    """
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(value[error.start]):x}, half of a character"
                raise InputError(f"{where} holds {half} at {error.start}, as a cut emoji leaves it; repair the row") from None
        return value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):  # pandas writes a missing cell as NaN
        raise NoText(f"{where} is {'null' if value is None else value}; fill the cell or drop the row")
    if isinstance(value, list | tuple) and value and all(isinstance(turn, Mapping) and "role" in turn for turn in value):
        raise InputError(f"{where} is a list of messages, not text; name its column alone, or give text in every row")
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


def others(first: Sequence[int], count: int, rows: int) -> str:
    """How many rows share a fault, and which are the first."""
    shown = ", ".join(map(str, first[:SHOWN])) + (", ..." if count > SHOWN else "")
    return f" ({count} such rows of {rows}: {shown})" if count > 1 else f" (1 such row of {rows})"


def text_of(row: Row, where: str) -> str:
    """The row's text: its "text" column, or the only column there is that holds text (or nothing); the row that is a text.

    Raises:
        NoText: there is no such column, or the cell is null.
        InputError: the cell is no text.
    """
    if not isinstance(row, Mapping):
        return as_text(row, where)
    if "text" in row:
        return as_text(row["text"], f"{where}: column 'text'")
    columns = [name for name, value in row.items() if value is None or isinstance(value, str)]
    if len(columns) != 1:
        raise NoText(f"{where}: column 'text' is missing; the columns are {', '.join(map(str, row))}")
    return as_text(row[columns[0]], f"{where}: column {columns[0]!r}")


def blocks(texts: Iterable[str], tokenizer: Any, block: int, limit: int | None = None) -> list[Row]:
    """The pieces of `cut_blocks`, or the first `limit` of them; no more text is read than they need."""
    return list(islice(cut_blocks(texts, tokenizer, block), limit))


def cut_blocks(texts: Iterable[str], tokenizer: Any, block: int) -> Iterator[Row]:
    """Texts joined by the end-of-sequence token and cut into pieces of `block` tokens; the short rest is dropped.

    The language-model pre-training format: every token is seen once, every piece has the same length. Where the tokeniser
    begins a text with a token of its own (<s>, <bos>), every text and every piece begins with it: models that were
    trained so (Llama 2, Gemma) are far off without it.

    Raises:
        InputError: a block that holds nothing.
    """
    start = starts_with(tokenizer)
    if block <= len(start):
        raise InputError(f"blocks: {block} tokens hold no text behind {tokenizer.bos_token!r}; give longer blocks")
    rest: list[int] = []
    pieces = 0
    for ids in _streamed(texts, tokenizer, start):
        rest += ids
        at = 0
        while at < len(rest):
            first = start if rest[at : at + 1] != start else []
            if len(first) + len(rest) - at < block:
                break
            stop = at + block - len(first)
            yield {"input_ids": first + rest[at:stop]}
            pieces, at = pieces + 1, stop
        rest = rest[at:]
    if not pieces and len(rest) > 1 + len(start):
        yield {"input_ids": rest}


def starts_with(tokenizer: Any) -> list[int]:
    """The token that this tokeniser puts before every text, as a list of one; empty where it puts none."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return whole[:1] if whole != bare and whole[:1] == [tokenizer.bos_token_id] else []


def _streamed(texts: Iterable[str], tokenizer: Any, start: list[int]) -> Iterator[list[int]]:
    """Token ids of text after text, between the tokens that begin and end it."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for some in batched(texts, len):  # a call for each text takes several times as long
        for ids in tokenizer(some, add_special_tokens=False)["input_ids"]:
            yield start + ids + end


def batched(items: Iterable[Any], size: Callable[[Any], int] = lambda _: 0, most: int = BATCH) -> Iterator[list[Any]]:
    """Up to `most` items at a time, or as many as hold `TEXT` characters by their `size`."""
    some: list[Any] = []
    held = 0
    for item in items:
        some.append(item)
        held += size(item)
        if len(some) == most or held >= TEXT:
            yield some
            some, held = [], 0
    if some:
        yield some


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
    parts = parts_of(np.fromiter(map(key_number, keys), np.uint64, len(keys)), fractions)
    return [np.flatnonzero(parts == part).tolist() for part in range(len(fractions) + 1)]


def key_number(key: str) -> int:
    """The number below 2^64 by which `split_by` places a key; case and runs of blanks do not count."""
    return int.from_bytes(hashlib.sha256(" ".join(key.split()).lower().encode()).digest()[:8], "big")


def parts_of(numbers: NDArray[np.uint64], fractions: Sequence[float]) -> NDArray[np.int64]:
    """The part (0 is the rest) of each key, by its `key_number`."""
    at = numbers.astype(np.float64) / 2**64
    parts = np.zeros(len(at), np.int64)
    for part, fraction in enumerate(fractions, 1):
        parts[(parts == 0) & (at >= 0) & (at < fraction)] = part
        at = at - fraction
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
