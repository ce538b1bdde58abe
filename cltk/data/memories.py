"""What users have kept of old data -> token rows: memories in blocks, prompts and examples one row a text."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from cltk.data.conversations import ConversationEncoder, Mask, counts, encode, question_ids
from cltk.data.faults import Faults
from cltk.data.lazy import TokenRows
from cltk.data.messages import Conversation, conversation, spoken
from cltk.data.opening import Reading, check_fits, kind_of, listed, opened
from cltk.data.pairs import PairEncoder
from cltk.data.readers import Row, Rows
from cltk.data.rows import BATCH, IGNORED, batched, cut_blocks, fill, text_of, token_row
from cltk.data.tables import Facts, table_of, tokenizer_digest
from cltk.errors import InputError

WHOLE = 2**62  # tokens: nothing is cut


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
    how, rows, where, first = opened(memory, "memory")
    kind = kind_of(first, how)
    check_fits(kind, how, where)
    if kind == "tokens":
        found = listed(rows)
        return TokenRows(found, where, min(len(found), limit or len(found)))
    if tokenizer is None:
        raise InputError(f"{where}: texts need a tokenizer; give the trainer a processing_class or pass rows with input_ids")
    size = rows.bytes if isinstance(rows, Rows) and limit is None else 0

    def key() -> list[Any]:
        return ["memory", rows.digest(), asdict(how) | {"path": ""}, block, tokenizer_digest(tokenizer)]

    def made(facts: Facts) -> Iterator[Row]:
        if kind == "text":
            found = cut_blocks(_texts(rows, how, where), tokenizer, block)
        else:
            found = _answered(rows, kind, how, tokenizer, block, where, facts, limit)
        return islice(found, limit)

    done, facts = table_of(size, key, made)
    if passed := facts.get("passed"):
        logging.getLogger(__name__).warning(
            "%s: %d rows have no answer within their first %d tokens and are left out", where, passed, block
        )
    if not len(done):
        raise InputError(f"{where}: the memory holds no text" + ("" if kind == "text" else f" within {block} tokens a row"))
    return done


def _texts(rows: Iterable[Any], how: Reading, where: str) -> Iterator[str]:
    for i, row in enumerate(rows):
        place = f"{where}, row {i}"
        yield row if isinstance(row, str) else fill(how.text, row, place) if how.text else text_of(row, place)


def _answered(
    rows: Any, kind: str, how: Reading, tokenizer: Any, length: int, where: str, facts: Facts, limit: int | None
) -> Iterator[Row]:  # fmt: skip
    """Conversations or pairs of which something counts within `length` tokens; how many were passed over is a fact."""
    faults = Faults(where, WHOLE)
    encoder = _encoder(next(iter(rows)), kind, how, tokenizer, faults)
    for some in batched(rows, most=min(limit or BATCH, BATCH)):
        found = encoder(some)
        if limit:  # the end may not be reached
            faults.check()
        cut = [{name: ids[:length] for name, ids in row.items()} for row in found if row is not None]
        kept = [row for row in cut if counts(row)]
        facts["passed"] = facts.get("passed", 0) + len(cut) - len(kept)
        yield from kept
    faults.check()


def _encoder(first: Row, kind: str, how: Reading, tokenizer: Any, faults: Faults) -> PairEncoder | ConversationEncoder:
    """What makes whole token rows with labels of conversations or pairs."""
    if kind == "messages":
        columns = spoken(first, how.prompt, how.completion, how.messages) or ("messages",)
        return ConversationEncoder(tokenizer, faults, columns, mask=how.mask)
    return PairEncoder(tokenizer, faults, *_columns(how), chat_template=how.chat_template, completion_only=how.mask != "all")


def whole_row(row: Any, tokenizer: Any, where: str, index: int, mask: Mask | None = None) -> Row:
    """A text, pair or conversation as it is, as one token row: labels where only an answer counts."""
    how = Reading("", mask=mask)
    kind = kind_of(row, how)
    faults = Faults(where, WHOLE, rows=index)
    check_fits(kind, how, faults.place(index))
    if kind == "text":
        return {"input_ids": tokenizer(text_of(row, faults.place(index)))["input_ids"]}
    found = _encoder(row, kind, how, tokenizer, faults)([row])[0]
    faults.check()
    return found or {}


def said(memory: Any) -> Iterator[str]:
    """What the rows of a memory say, one text each, without roles; nothing of rows that are tokens already."""
    how, rows, where, first = opened(memory, "memory")
    kind = kind_of(first, how)
    if kind == "text":
        yield from _texts(rows, how, where)
    elif kind == "pairs":
        for i, row in enumerate(rows):
            yield " ".join(fill(name, row, f"{where}, row {i}") for name in _columns(how))
    elif kind == "messages":
        columns = spoken(first, how.prompt, how.completion, how.messages)
        for i, row in enumerate(rows):
            yield conversation(row, columns, f"{where}, row {i}").text


def text_rows(texts: Any, tokenizer: Any, length: int, where: str, *, whole: bool = False) -> list[Row]:
    """One token row a text, cut on the right to `length`: prompts and examples, which `memory_rows` would join into blocks.

    Of a conversation the row is what is asked, up to where the assistant answers, and no label counts; with `whole` all of it.
    With `chat_template: true` a text, or a pair's prompt, is a user's turn.

    Args:
        texts: as for `memory_rows`; rows that hold input_ids are taken as they are.

    Raises:
        InputError: there is no text, or no tokenizer for it.
    """
    how, rows, where, first = opened(texts, where, "is empty; give texts")
    kind = kind_of(first, how)
    check_fits(kind, how, where, prompts=not whole)
    if kind == "tokens":
        return [token_row(row, f"{where}, row {i}") for i, row in enumerate(rows)]
    if tokenizer is None:
        raise InputError(f"{where}: texts need a tokenizer; give the trainer a processing_class or pass rows with input_ids")
    turns = kind == "messages" or how.chat_template
    if turns:
        ids = [_turns(row, kind, how, tokenizer, f"{where}, row {i}", whole) for i, row in enumerate(rows)]
    elif kind == "pairs":
        said = _columns(how)[: 1 + whole]
        ids = [
            tokenizer("".join(fill(name, row, f"{where}, row {i}") for name in said))["input_ids"] for i, row in enumerate(rows)
        ]
    else:
        ids = [tokenizer(text)["input_ids"] for text in _texts(rows, how, where) if text.strip()]
    if not ids:
        raise InputError(f"{where}: holds no text")
    if not turns and tokenizer.eos_token_id is not None:  # some tokenizers close a text, which a prompt must not be
        ids = [one[:-1] if len(one) > 1 and one[-1] == tokenizer.eos_token_id else one for one in ids]
    if turns and not whole:
        return [{"input_ids": one[:length], "labels": [IGNORED] * len(one[:length])} for one in ids]
    return [{"input_ids": one[:length]} for one in ids]


def _columns(how: Reading) -> tuple[str, str]:
    return how.prompt or "prompt", how.completion or "completion"


def _turns(row: Any, kind: str, how: Reading, tokenizer: Any, where: str, whole: bool) -> list[int]:
    if kind == "messages":
        columns = spoken(row, how.prompt, how.completion, how.messages) or ("messages",)
        if not whole:
            columns = tuple(name for name in columns if name in row) or columns  # prompts need no completion
        one = conversation(row, columns, where)
    elif kind == "pairs":
        texts = [fill(name, row, where) for name in _columns(how)[: 1 + whole]]
        one = Conversation([{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=False)])
    else:
        one = Conversation([{"role": "user", "content": next(_texts([row], how, where))}])
    return list(encode(one, tokenizer, "all", where)["input_ids"]) if whole else question_ids(one, tokenizer, where)
