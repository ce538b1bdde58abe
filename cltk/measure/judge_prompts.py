"""What a judge is asked, and what its words are worth. The protocol is MT-Bench's (Zheng et al. 2023, arXiv 2306.05685), the
words are not: grades of one answer from 1 to 10 as [[N]], or the better of two as [[A]], [[B]] or [[C]] (a tie)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cltk.measure.judge_questions import Messages, Question

RULES = (
    "You are a careful and fair judge. Look at how helpful, correct, relevant and complete an answer is, and whether it does"
    " what it was asked to do. Neither length nor style nor the place in which an answer stands counts for itself."
)
GRADE = (
    "Say in a few sentences what is good and what is wrong with {what}. Then give a grade from 1 (useless) to 10 (could not be"
    " better) on a last line of this form: Grade: [[N]]"
)
CHOICE = (
    "Compare {what} in a few sentences. Then say which assistant did better on a last line of one of these forms: [[A]] if it"
    " is assistant A, [[B]] if it is assistant B, [[C]] if neither is better."
)
# up to the last end of one: templates may have its beginning; one that has no end is all of the reply
THOUGHT = re.compile(r"^.*</think(?:ing)?>|^\s*<think(?:ing)?>.*$", re.DOTALL | re.IGNORECASE)
CUT = "\n[cut off: max_tokens]"  # behind a reply that did not come to its end, where a draft's grade may stand
RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)(?:\s*/\s*10)?\s*\]\]")
WINNER = re.compile(r"\[\[\s*([ABC])\s*\]\]")


def graded(question: Question, answers: Sequence[str], turn: int) -> Messages:
    """One model's conversation up to `turn`, whose answer is graded."""
    what = "the answer" if turn == 0 else f"the assistant's answer to message {turn + 1}, given what was said before it"
    parts = [_reference(question, turn), _conversation("Assistant", question, answers, turn), GRADE.format(what=what)]
    return _messages(parts)


def compared(question: Question, first: Sequence[str], second: Sequence[str], turn: int) -> Messages:
    """The conversations of two models up to `turn`; the first stands as assistant A."""
    what = "the two answers" if turn == 0 else f"the two assistants' answers to message {turn + 1}, given what was said before"
    parts = [
        _reference(question, turn), _conversation("Assistant A", question, first, turn),
        _conversation("Assistant B", question, second, turn), CHOICE.format(what=what),
    ]  # fmt: skip
    return _messages(parts)


def rating(reply: str) -> float | None:
    """The grade in a reply; None where there is none, several differ, or it is not from 1 to 10. Thoughts do not count."""
    found = {float(one) for one in RATING.findall(_meant(reply))}
    value = found.pop() if len(found) == 1 else None
    return value if value is not None and 1 <= value <= 10 else None


def winner(reply: str) -> str | None:
    """ "A", "B" or "C"; None where the reply names none of them, or several."""
    found = set(WINNER.findall(_meant(reply)))
    return found.pop() if len(found) == 1 else None


def _meant(reply: str) -> str:
    """A reply without its thoughts; nothing of one that was cut off."""
    return "" if reply.endswith(CUT) else THOUGHT.sub("", reply)


def _messages(parts: Sequence[str]) -> Messages:
    return [{"role": "system", "content": RULES}, {"role": "user", "content": "\n\n".join(part for part in parts if part)}]


def _reference(question: Question, turn: int) -> str:
    right = [f"Message {i + 1}: {text}" for i, text in enumerate(question.reference[: turn + 1])]
    return _block("Answers known to be right", right) if right else ""


def _conversation(who: str, question: Question, answers: Sequence[str], turn: int) -> str:
    said = []
    for i in range(turn + 1):
        said += [f"User, message {i + 1}: {question.turns[i]}", f"{who}: {answers[i] or '(no answer)'}"]
    return _block(f"Conversation with {who.lower() if who == 'Assistant' else who}", said)


def _block(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"=== {title} ===", *lines, "=== end ==="])
