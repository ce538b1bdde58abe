"""Prompt and completion in, token ids and labels out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cltk.data.conversations import Rewritten, encode, too_long
from cltk.data.messages import Conversation
from cltk.data.readers import Row
from cltk.data.rows import IGNORED, filled, others
from cltk.errors import InputError


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
    user and one assistant turn (`cltk.data.conversations`). Sequences are cut on the right to `max_length`.

    Args:
        drop_long: rows whose prompt alone fills `max_length` become None; else they are refused.

    Raises:
        InputError: cells without text, empty completions, or prompts that leave nothing of the completion: how many rows, and
            which are the first.
    """
    done: list[Row | None] = []
    empty, long = [], []
    if chat_template and not getattr(tokenizer, "chat_template", None):
        raise InputError("data.chat_template: this tokenizer has no chat template; set it to false")
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
        raise InputError(f"{where}, row {empty[0]}: the completion is empty ({completion})" + others(empty, len(rows)))
    if long and (not drop_long or not any(done)):
        raise InputError(too_long(long, len(rows), where, max_length, drop_long))
    return done


def _plain_ids(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    before = tokenizer(question)["input_ids"]
    if tokenizer.eos_token_id is not None and before and before[-1] == tokenizer.eos_token_id:
        before = before[:-1]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return before, tokenizer(answer, add_special_tokens=False)["input_ids"] + end


def _chat_ids(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        row = encode(Conversation(turns, 1), tokenizer, where="data.chat_template")
    except Rewritten:
        raise InputError("data.chat_template: this template does not put the generation prompt before the answer") from None
    first = next((i for i, label in enumerate(row["labels"]) if label != IGNORED), len(row["labels"]))
    return row["input_ids"][:first], row["input_ids"][first:]
