"""Prompt and completion in, token ids and labels out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cltk.data.conversations import Rewritten, encode
from cltk.data.faults import Faults
from cltk.data.messages import Conversation
from cltk.data.readers import Row
from cltk.data.rows import BATCH, IGNORED, NoText, fill
from cltk.errors import InputError


def tokenize_pairs(
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
) -> list[Row]:
    """Prompt and completion -> {"input_ids", "labels"}; labels are -100 on the prompt when `completion_only`.

    Prompt and completion are tokenised apart and joined, so that no token straddles the border and the loss never
    depends on a merge; the end-of-sequence token closes the completion. With `chat_template` the pair becomes one
    user and one assistant turn (`cltk.data.conversations`). Sequences are cut on the right to `max_length`.

    Args:
        drop_long: rows whose prompt alone fills `max_length` are left out; else they are refused.

    Raises:
        InputError: cells without text, empty completions, or prompts that leave nothing of the completion: how many rows, and
            which are the first.
    """
    faults = Faults(where, max_length, drop_long)
    encoder = PairEncoder(tokenizer, faults, prompt, completion, chat_template=chat_template, completion_only=completion_only)
    found = [row for first in range(0, len(rows), BATCH) for row in encoder(rows[first : first + BATCH])]
    faults.check()
    return [row for row in found if row is not None]


class PairEncoder:
    """Pairs as `tokenize_pairs` makes them, so many rows at a time; None for a row at fault, which is added to `faults`."""

    def __init__(
        self, tokenizer: Any, faults: Faults, prompt: str, completion: str, *, chat_template: bool = False,
        completion_only: bool = True,
    ) -> None:  # fmt: skip
        self.tokenizer, self.faults, self.columns = tokenizer, faults, (prompt, completion)
        self.chat_template, self.completion_only = chat_template, completion_only
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise InputError("data.chat_template: this tokenizer has no chat template; set it to false")

    def __call__(self, rows: Sequence[Row]) -> list[Row | None]:
        texts = [self._texts(row, self.faults.rows + i) for i, row in enumerate(rows)]
        whole = [pair for pair in texts if pair is not None]
        if self.chat_template:
            ids = iter([_chat_ids(self.tokenizer, question, answer) for question, answer in whole])
        else:
            ids = iter(_plain_ids(self.tokenizer, whole))
        done = [None if pair is None else self._row(*next(ids), self.faults.rows + i) for i, pair in enumerate(texts)]
        self.faults.rows += len(rows)
        return done

    def said(self, row: Row) -> tuple[str, str]:
        """What is asked, and what is answered."""
        question, answer = (fill(name, row, self.faults.where) for name in self.columns)
        return question, answer

    def _texts(self, row: Row, index: int) -> tuple[str, str] | None:
        place = self.faults.place(index)
        try:
            question, answer = (fill(name, row, place) for name in self.columns)
        except NoText as error:
            self.faults.without.add(index, str(error))
            return None
        if not answer.strip():
            self.faults.empty.add(index, f"{place}: the completion is empty ({self.columns[1]})")
            return None
        return question, answer

    def _row(self, before: list[int], after: list[int], index: int) -> Row | None:
        ids = (before + after)[: self.faults.max_length]
        if len(ids) <= len(before):
            self.faults.too_long(index, len(before))
            return None
        self.faults.kept += 1
        return {"input_ids": ids, "labels": [IGNORED] * len(before) + ids[len(before) :] if self.completion_only else list(ids)}


def _plain_ids(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    if not pairs:
        return []
    end = tokenizer.eos_token_id
    asked, answered = zip(*pairs, strict=True)
    before = tokenizer(list(asked))["input_ids"]
    after = tokenizer(list(answered), add_special_tokens=False)["input_ids"]
    if end is None:
        return list(zip(before, after, strict=True))
    return [(b[:-1] if b[-1:] == [end] else b, [*a, end]) for b, a in zip(before, after, strict=True)]


def _chat_ids(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        row = encode(Conversation(turns, 1), tokenizer, where="data.chat_template")
    except Rewritten:
        raise InputError("data.chat_template: this template does not put the generation prompt before the answer") from None
    first = next((i for i, label in enumerate(row["labels"]) if label != IGNORED), len(row["labels"]))
    return row["input_ids"][:first], row["input_ids"][first:]
