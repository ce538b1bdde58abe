"""What users have kept of old data -> token rows: memories in blocks, prompts and examples one row a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cltk.data.readers import Row, read_rows
from cltk.data.rows import blocks, text_of, token_row
from cltk.errors import InputError


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


def text_rows(texts: Any, tokenizer: Any, length: int, where: str) -> list[Row]:
    """One token row a text, cut on the right to `length`: prompts and examples, which `memory_rows` would join into blocks.

    Args:
        texts: as for `memory_rows`; rows that hold input_ids are taken as they are.

    Raises:
        InputError: there is no text, or no tokenizer for it.
    """
    if isinstance(texts, Mapping):
        raise InputError(f"{where}: is a set of splits ({', '.join(map(str, texts))}); give one of them")
    rows = read_rows(texts) if isinstance(texts, str | Path) else list(texts)
    if not rows:
        raise InputError(f"{where}: is empty; give texts")
    if isinstance(rows[0], Mapping) and "input_ids" in rows[0]:
        return [token_row(row, f"{where}, row {i}") for i, row in enumerate(rows)]
    if tokenizer is None:
        raise InputError(f"{where}: texts need a tokenizer; give the trainer a processing_class or pass rows with input_ids")
    found = [row if isinstance(row, str) else text_of(row, f"{where}, row {i}") for i, row in enumerate(rows)]
    ids = [tokenizer(text)["input_ids"] for text in found if text.strip()]
    if not ids:
        raise InputError(f"{where}: holds no text")
    if tokenizer.eos_token_id is not None:  # some tokenizers close a text, which a prompt must not be
        ids = [one[:-1] if len(one) > 1 and one[-1] == tokenizer.eos_token_id else one for one in ids]
    return [{"input_ids": one[:length]} for one in ids]
