"""Prompt and completion in, token ids and labels out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        raise InputError(f"{where}, row {empty[0]}: the completion is empty ({completion})" + others(empty, len(rows)))
    if long and (not drop_long or not any(done)):
        raise InputError(
            f"{where}, row {long[0][0]}: nothing of the completion is left after the cut to max_length={max_length} (the"
            f" prompt has {long[0][1]} tokens; the longest {max(n for _, n in long)})"
            + others([index for index, _ in long], len(rows))
            + "; raise data.max_length"
            + ("" if drop_long else ", or leave such rows out (data.drop_long: true)")
        )
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
