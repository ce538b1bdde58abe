"""What users have kept of old data -> token rows: memories in blocks, prompts and examples one row a text."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from cltk.data.conversations import MASKS, Mask, conversations, counts, encode, question_ids
from cltk.data.lazy import TokenRows
from cltk.data.messages import conversation, is_pair, spoken
from cltk.data.pairs import pairs
from cltk.data.readers import Row, read_rows
from cltk.data.rows import IGNORED, blocks, fill, text_of, token_row
from cltk.errors import InputError

WHOLE = 2**62  # tokens: nothing is cut


@dataclass(frozen=True)
class Reading:
    """How a memory is read, where its path does not say it all: `memory: {path: old.jsonl, prompt: question, ...}`.

    Args:
        path: a file, a saved data set, "asset:NAME/FILE" or a hub id.
        name, split, revision: of a data set.
        prompt, completion: columns or templates of pairs. text: of plain text. messages: the column of a conversation.
        mask: which tokens of a conversation count: the assistant's, those of the last turn, or all.
        chat_template: whether pairs of text become a user's and an assistant's turn.
        limit: the first N rows.
    """

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    messages: str | None = None
    mask: Mask | None = None
    chat_template: bool = False
    limit: int | None = None


def reading(memory: Any, where: str = "memory") -> Reading | None:
    """The `Reading` that a mapping stands for; None for rows and texts that are at hand.

    Raises:
        InputError: a mapping without a path (a set of splits), or with keys or values that there are not.
    """
    if isinstance(memory, str | Path):
        return Reading(str(memory))
    if not isinstance(memory, Mapping):
        return None
    if "path" not in memory:
        raise InputError(f"{where}: is a set of splits ({', '.join(map(str, memory))}); give one of them")
    known = {one.name: one.type for one in fields(Reading)}
    for key, value in memory.items():
        if key not in known:
            raise InputError(f"{where}.{key}: unknown key; there are {', '.join(known)}")
        right = {"mask": value in (None, *MASKS), "chat_template": isinstance(value, bool)}.get(key)
        if right is None:
            right = value is None or (type(value) is int and value > 0 if key == "limit" else isinstance(value, str))
        if not right or (key == "path" and not value):
            wanted = {"mask": f"one of {', '.join(MASKS)}", "chat_template": "true or false", "limit": "a whole number above 0"}
            raise InputError(f"{where}.{key}: must be {wanted.get(key, 'text')}, got {value!r}")
    found = Reading(**memory)
    if found.text and (found.prompt or found.completion or found.messages):
        raise InputError(f"{where}: plain text (text) has no prompt, completion and messages; give the one or the other")
    return found


def _opened(memory: Any, where: str) -> tuple[Reading, Any, str]:
    """How it is read, its rows (with a length and places), and how errors name it."""
    how = reading(memory, where)
    if how is not None:
        where = how.path
        rows: Any = read_rows(how.path, name=how.name, split=how.split, revision=how.revision)[: how.limit]
    else:
        rows = memory.with_format(None) if hasattr(memory, "with_format") else memory  # a `datasets` format may give no rows
        rows = rows if hasattr(rows, "__len__") and hasattr(rows, "__getitem__") else list(rows)
    return how or Reading(""), rows, where


def kind_of(row: Any, how: Reading) -> Literal["tokens", "messages", "pairs", "text"]:
    """What the rows of a memory are, by their first."""
    if how.text or not isinstance(row, Mapping):
        return "text"
    if "input_ids" in row:
        return "tokens"
    if spoken(row, how.prompt, how.completion, how.messages):
        return "messages"
    return "pairs" if how.prompt or how.completion or is_pair(row) else "text"


def memory_rows(memory: Any, tokenizer: Any, block: int = 256, limit: int | None = None) -> list[Row]:
    """`memory_view`, read whole."""
    return list(memory_view(memory, tokenizer, block, limit))


def memory_view(memory: Any, tokenizer: Any, block: int = 256, limit: int | None = None) -> Sequence[Row]:
    """Old-domain data as token rows: a path, "asset:NAME/FILE", hub id, list of texts, rows, or a mapping (`Reading`).

    Rows that hold `input_ids` are taken as they are, as lists, when they are asked for; texts are joined and cut into blocks.
    Conversations (`cltk.data.messages`) and pairs of prompt and completion stay one row each, cut on the right, and only what
    is answered counts; those of which nothing is left are passed over.

    Args:
        block: tokens of a block, at most of a conversation or pair.
        limit: the first so many rows; the rest is not tokenised.

    Raises:
        InputError: it is empty, a set of splits, or a row has no text.
    """
    how, rows, where = _opened(memory, "memory")
    if not len(rows):
        raise InputError(f"{where}: the memory is empty")
    kind = kind_of(rows[0], how)
    if kind == "text" and how.mask not in (None, "all"):
        raise InputError(f"{where}: mask: {how.mask}: its rows are plain text, which has no turns")
    if kind == "tokens":
        return TokenRows(rows, where, min(len(rows), limit or len(rows)))
    if tokenizer is None:
        raise InputError(f"{where}: texts need a tokenizer; give the trainer a processing_class or pass rows with input_ids")
    if kind == "text":
        done = blocks(_texts(rows, how, where), tokenizer, block, limit)
    else:
        done = _answered(rows, kind, how, tokenizer, block, limit, where)
    if not done:
        raise InputError(f"{where}: the memory holds no text" + ("" if kind == "text" else f" within {block} tokens a row"))
    return done


def _texts(rows: Iterable[Any], how: Reading, where: str) -> Iterator[str]:
    for i, row in enumerate(rows):
        place = f"{where}, row {i}"
        yield row if isinstance(row, str) else fill(how.text, row, place) if how.text else text_of(row, place)


def _answered(
    rows: Any, kind: str, how: Reading, tokenizer: Any, length: int, limit: int | None, where: str
) -> list[Row]:  # fmt: skip
    """Conversations or pairs of which something counts within `length` tokens; no more are tokenised than `limit` needs."""
    done: list[Row] = []
    passed = 0
    step = limit or len(rows)
    for first in range(0, len(rows), step):
        some = [rows[i] for i in range(first, min(first + step, len(rows)))]
        found = _encoded(some, kind, how, tokenizer, where + (f" from row {first}" if first else ""))
        cut = [{name: ids[:length] for name, ids in row.items()} for row in found]
        done += [row for row in cut if counts(row)]
        passed += sum(not counts(row) for row in cut)
        if limit and len(done) >= limit:
            break
    if passed:
        logging.getLogger(__name__).warning(
            "%s: %d rows have no answer within their first %d tokens and are left out", where, passed, length
        )
    return done[:limit]


def _encoded(rows: list[Row], kind: str, how: Reading, tokenizer: Any, where: str) -> list[Row]:
    """Conversations or pairs as whole token rows with labels."""
    prompt, completion = how.prompt or "prompt", how.completion or "completion"
    found: list[Row | None]
    if kind == "messages":
        columns = spoken(rows[0], how.prompt, how.completion, how.messages) or ("messages",)
        found = conversations(rows, tokenizer, columns, mask=how.mask, max_length=WHOLE, where=where)
    else:
        found = pairs(
            rows, tokenizer, prompt=prompt, completion=completion, max_length=WHOLE, chat_template=how.chat_template,
            completion_only=how.mask != "all", where=where,
        )  # fmt: skip
    return [row for row in found if row is not None]


def whole_row(row: Any, tokenizer: Any, where: str) -> Row:
    """A text, pair or conversation as it is, as one token row: labels where only an answer counts."""
    kind = kind_of(row, Reading(""))
    if kind == "text":
        return {"input_ids": tokenizer(text_of(row, where))["input_ids"]}
    return _encoded([row], kind, Reading(""), tokenizer, where)[0]


def said(memory: Any) -> list[str]:
    """What the rows of a memory say, one text each, without roles; nothing of rows that are tokens already."""
    how, rows, where = _opened(memory, "memory")
    kind = kind_of(rows[0], how)
    if kind == "tokens":
        return []
    if kind == "text":
        return list(_texts(rows, how, where))
    asked, answered = how.prompt or "prompt", how.completion or "completion"
    if kind == "pairs":
        return [" ".join(fill(name, row, f"{where}, row {i}") for name in (asked, answered)) for i, row in enumerate(rows)]
    columns = spoken(rows[0], how.prompt, how.completion, how.messages)
    return [conversation(row, columns, f"{where}, row {i}").text for i, row in enumerate(rows)]


def text_rows(texts: Any, tokenizer: Any, length: int, where: str, *, whole: bool = False) -> list[Row]:
    """One token row a text, cut on the right to `length`: prompts and examples, which `memory_rows` would join into blocks.

    Of a conversation the row is what is asked, up to where the assistant answers, and no label counts; with `whole` all of it.

    Args:
        texts: as for `memory_rows`; rows that hold input_ids are taken as they are.

    Raises:
        InputError: there is no text, or no tokenizer for it.
    """
    how, rows, where = _opened(texts, where)
    if not len(rows):
        raise InputError(f"{where}: is empty; give texts")
    kind = kind_of(rows[0], how)
    if kind == "tokens":
        return [token_row(rows[i], f"{where}, row {i}") for i in range(len(rows))]
    if tokenizer is None:
        raise InputError(f"{where}: texts need a tokenizer; give the trainer a processing_class or pass rows with input_ids")
    if kind == "messages":
        ids = [_asked(row, how, tokenizer, f"{where}, row {i}", whole) for i, row in enumerate(rows)]
    elif kind == "pairs":
        asked = how.prompt or "prompt"
        ids = [tokenizer(fill(asked, row, f"{where}, row {i}"))["input_ids"] for i, row in enumerate(rows)]
    else:
        ids = [tokenizer(text)["input_ids"] for text in _texts(rows, how, where) if text.strip()]
    if not ids:
        raise InputError(f"{where}: holds no text")
    if kind != "messages" and tokenizer.eos_token_id is not None:  # some tokenizers close a text, which a prompt must not be
        ids = [one[:-1] if len(one) > 1 and one[-1] == tokenizer.eos_token_id else one for one in ids]
    if kind == "messages" and not whole:
        return [{"input_ids": one[:length], "labels": [IGNORED] * len(one[:length])} for one in ids]
    return [{"input_ids": one[:length]} for one in ids]


def _asked(row: Row, how: Reading, tokenizer: Any, where: str, whole: bool) -> list[int]:
    columns = spoken(row, how.prompt, how.completion, how.messages) or ("messages",)
    if not whole:
        columns = tuple(name for name in columns if name in row) or columns  # prompts need no completion
        return question_ids(conversation(row, columns, where), tokenizer, where)
    return list(encode(conversation(row, columns, where), tokenizer, "all", where)["input_ids"])
