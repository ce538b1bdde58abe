"""Conversations in, token ids and labels out: the tokens are the chat template's, the labels those of what is answered."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from cltk.data.faults import Faults
from cltk.data.messages import Conversation, conversation
from cltk.data.readers import Row
from cltk.data.rows import IGNORED, NoText
from cltk.errors import InputError

Mask = Literal["last", "assistant", "all"]
MASKS = ("last", "assistant", "all")
log = logging.getLogger(__name__)
_told: set[str] = set()  # templates that were warned of
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Rewritten(InputError):
    """A template that writes a turn otherwise once others follow it: what is answered cannot be told from the rest."""


class ConversationEncoder:
    """Token rows of conversations, so many at a time: {"input_ids", "labels"}; labels are -100 where nothing counts.

    None for a row at fault, which is added to `faults`: no answer, a template that does not say which tokens are the answer,
    nothing left of what counts after the cut on the right.

    Args:
        columns: which hold the messages (see `spoken`).
        mask: "assistant" counts every assistant turn (of the completion), "last" the last one, "all" every token. By default
            the whole completion of a prompt-and-completion row, and every assistant turn of a conversation.

    Raises:
        InputError: no chat template, or messages that are none (`conversation`).
    """

    def __init__(self, tokenizer: Any, faults: Faults, columns: Sequence[str], *, mask: Mask | None = None) -> None:
        self.tokenizer, self.faults, self.columns, self.mask = tokenizer, faults, columns, mask

    def __call__(self, rows: Sequence[Row]) -> list[Row | None]:
        done = [self._row(row, self.faults.rows + i) for i, row in enumerate(rows)]
        self.faults.rows += len(rows)
        return done

    def said(self, row: Row) -> tuple[str, str]:
        """What is asked, and all that is said."""
        found = conversation(row, self.columns, self.faults.where)
        return found.question, found.text

    def _row(self, row: Row, index: int) -> Row | None:
        place = self.faults.place(index)
        try:
            one = conversation(row, self.columns, place)
            found = encode(one, self.tokenizer, self.mask, f"{place}: column {self.columns[0]!r}")
        except (NoText, Rewritten) as error:
            self.faults.without.add(index, str(error))
            return None
        cut = {name: ids[: self.faults.max_length] for name, ids in found.items()}
        if index == 0:
            _warn_without_end(one, found, self.tokenizer, self.faults.where)
        if not counts(cut):
            self.faults.too_long(index, next((i for i, label in enumerate(found["labels"]) if label != IGNORED), 0))
            return None
        self.faults.kept += 1
        return cut


def conversations(
    rows: Sequence[Row], tokenizer: Any, columns: Sequence[str], *, mask: Mask | None = None, max_length: int = 512,
    drop_long: bool = False, where: str = "data",
) -> list[Row | None]:  # fmt: skip
    """One token row a conversation (`ConversationEncoder`).

    Args:
        drop_long: rows of which nothing that counts is left become None; else they are refused.

    Raises:
        InputError: rows at fault: how many, and which are the first.
    """
    faults = Faults(where, max_length, drop_long)
    found = ConversationEncoder(tokenizer, faults, columns, mask=mask)(rows)
    faults.check()
    return found


def _warn_without_end(one: Conversation, row: Row, tokenizer: Any, where: str) -> None:
    """Say once where nothing counts behind an answer: some templates end it with the next turn's beginning (trl#5988)."""
    content = str(one.messages[one.turns()[-1]].get("content") or "").strip() if one.turns() else ""
    counted = [label for label in row["labels"] if label != IGNORED]
    template = str(tokenizer.get_chat_template(tools=one.tools))
    if content and template not in _told and tokenizer.decode(counted).rstrip().endswith(content):
        _told.add(template)
        log.warning(
            "%s: the chat template ends an answer with no token that counts, so that the model does not learn to stop; save a"
            " template whose {%% generation %%} block holds the end of the turn",
            where,
        )


def counts(row: Row) -> bool:
    """Whether a token behind the first counts."""
    return any(label != IGNORED for label in row["labels"][1:])


def encode(one: Conversation, tokenizer: Any, mask: Mask | None = None, where: str = "conversation") -> Row:
    """Token ids of the whole conversation, as `apply_chat_template` gives them, and labels (see `ConversationEncoder`).

    Where the template marks answers ({% generation %}) its marks hold. Elsewhere a turn reaches from behind the generation
    prompt of what stands before it to the end of what the template makes of it, if that is how the whole begins.

    Raises:
        NoText: nothing is answered.
        Rewritten: the whole does not begin so.
        InputError: no template, or one that cannot be filled.
    """
    text, end = render(one, tokenizer, where), None
    if mask == "all":
        ids = _ids(text, tokenizer)
        return {"input_ids": ids, "labels": list(ids)}
    turns = one.turns()[-1:] if mask == "last" else one.turns()
    _check_turns(one, turns, where)
    if one.asked and mask is None:
        spans: list[tuple[int, int | None]] = [(_behind(one, one.asked, text, tokenizer, where, ask=True), end)]
    elif GENERATION.search(_template(one, tokenizer, where)):
        ids, marks = _marked(one, tokenizer, where)
        first = _behind(one, turns[0], text, tokenizer, where, ask=False) if one.asked or mask == "last" else 0
        start = _cuts(text, [first], tokenizer)[1][0]
        labels = [token if marks[i] and i >= start else IGNORED for i, token in enumerate(ids)]
        if all(label == IGNORED for label in labels):
            raise Rewritten(f"{where}: the chat template marks no token of the answers ({{% generation %}})")
        return {"input_ids": ids, "labels": labels}
    else:
        spans = [_span(one, i, text, tokenizer, where) for i in turns]
    ids, cuts = _cuts(text, [len(text) if edge is None else edge for span in spans for edge in span], tokenizer)
    labels = [IGNORED] * len(ids)
    for begin, stop in zip(cuts[::2], cuts[1::2], strict=True):
        labels[begin:stop] = ids[begin:stop]
    return {"input_ids": ids, "labels": labels}


def question_ids(one: Conversation, tokenizer: Any, where: str = "conversation") -> list[int]:
    """Token ids of what is asked, up to where the assistant would answer: without the answers at the end."""
    last = one.asked or len(one.messages)
    while last and one.messages[last - 1]["role"] == "assistant":
        last -= 1
    if not last:
        raise NoText(f"{where}: nothing is asked")
    return _ids(render(one, tokenizer, where, last, ask=True), tokenizer)


def _check_turns(one: Conversation, turns: Sequence[int], where: str) -> None:
    if not turns:
        raise NoText(f"{where}: holds no assistant turn, so that nothing counts")
    for i in turns:
        if not str(one.messages[i].get("content") or "").strip() and not one.messages[i].get("tool_calls"):
            raise NoText(f"{where}, message {i}: the completion is empty")


def _template(one: Conversation, tokenizer: Any, where: str) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{where} holds messages, and this tokenizer has no chat template; save one with the model's tokenizer"
            " (tokenizer.chat_template = ...), or give columns of text"
        )
    return str(tokenizer.get_chat_template(tools=one.tools))


def render(one: Conversation, tokenizer: Any, where: str, upto: int | None = None, *, ask: bool = False) -> str:
    """The text of the first `upto` messages; with `ask` and the beginning of an answer behind them."""
    return str(_apply(one, tokenizer, where, upto, add_generation_prompt=ask, tokenize=False))


def _apply(one: Conversation, tokenizer: Any, where: str, upto: int | None = None, **how: Any) -> Any:
    _template(one, tokenizer, where)
    try:
        return tokenizer.apply_chat_template(one.messages[:upto], tools=one.tools, **{**one.settings, **how})
    except Exception as error:  # whatever a stranger's template does, in its sandbox
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{where}: the tokenizer's chat template cannot be filled ({type(error).__name__}: {reason})"
        ) from None


def _marked(one: Conversation, tokenizer: Any, where: str) -> tuple[list[int], list[int]]:
    found = _apply(one, tokenizer, where, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    return list(found["input_ids"]), list(found["assistant_masks"])


def _behind(one: Conversation, upto: int, text: str, tokenizer: Any, where: str, *, ask: bool) -> int:
    """Where in `text` the first `upto` messages end (and the beginning of the answer)."""
    before = render(one, tokenizer, where, upto, ask=ask) if upto else ""
    if not text.startswith(before) or not (upto or not ask):
        raise Rewritten(
            f"{where}: this template does not put the generation prompt before the answer (message {upto}), so that it cannot"
            " be told which tokens are the answer; save a template with {% generation %}, or count every token (mask: all)"
        )
    return len(before)


def _span(one: Conversation, turn: int, text: str, tokenizer: Any, where: str) -> tuple[int, int | None]:
    """Where in `text` an assistant turn begins and ends."""
    start = _behind(one, turn, text, tokenizer, where, ask=True)
    whole = render(one, tokenizer, where, turn + 1)
    unended = whole.rstrip().removesuffix(tokenizer.eos_token or "")  # some end the last turn, and only that, with it
    for shown in (whole, unended):
        if text.startswith(shown) and len(shown) > start:
            return start, len(shown)
    raise Rewritten(
        f"{where}: this chat template writes message {turn} otherwise once others follow it, so that it cannot be told which"
        " tokens are answers; save a template with {% generation %}, or count the last turn (mask: last) or all (mask: all)"
    )


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # the template has written them


def _cuts(text: str, edges: Sequence[int], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of the text, and how many of them stand before each (ascending) edge; one across an edge stands behind it."""
    parts = [text[start:stop] for start, stop in pairwise([0, *edges, len(text)])]
    ids, *pieces = tokenizer([text, *parts], add_special_tokens=False)["input_ids"]
    cuts = [sum(map(len, pieces[: n + 1])) for n in range(len(edges))]
    if [token for piece in pieces for token in piece] != list(ids):  # tokens that grow together across an edge
        cuts = [_common(_ids(text[:edge], tokenizer), ids) for edge in edges]
    return list(ids), cuts
