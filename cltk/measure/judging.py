"""A judge's view of two models' answers: what is asked of it, every judgement kept, and what the judgements say."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from cltk.errors import InputError
from cltk.measure import judge_prompts
from cltk.measure.journal import Journal
from cltk.measure.judge_client import Client
from cltk.measure.judge_questions import Messages, Question

MODES = ("single", "pairwise")
Answers = Sequence[Sequence[str]]  # [questions][turns]
Tell = Callable[[str, int, int, Any], None]


@dataclass(frozen=True)
class Judges:
    """Who judges, and how: every model as often as `repeats` says.

    Raises:
        InputError: an unknown mode, no model or one twice, repeats below 1.
    """

    client: Client
    models: tuple[str, ...]
    mode: str = "single"
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"judge: mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if not self.models or len(set(self.models)) < len(self.models) or not all(self.models):
            raise InputError("judge: name at least one judge, each once")
        if self.repeats < 1:
            raise InputError(f"judge: repeats must be at least 1, got {self.repeats}")

    @property
    def readings(self) -> list[tuple[str, int]]:
        """(model, number of the repeat) of every judgement of one answer, or pair."""
        return [(model, repeat) for model in self.models for repeat in range(self.repeats)]


@dataclass(frozen=True)
class Item:
    """One judgement: of which turn, by whom, of whose answer ("base", "tuned"), or in which order ("AB": base first, "BA")."""

    question: int
    turn: int
    reading: tuple[str, int]
    side: str
    messages: Messages


def items(judges: Judges, questions: Sequence[Question], base: Answers, tuned: Answers) -> list[Item]:
    """All that is asked of the judges, two requests for every turn and reading."""
    return list(_items(judges, questions, base, tuned))


def _items(judges: Judges, questions: Sequence[Question], base: Answers, tuned: Answers) -> Iterator[Item]:
    for i, question in enumerate(questions):
        for turn in range(len(question.turns)):
            if judges.mode == "single":
                sides = {name: judge_prompts.graded(question, one[i], turn) for name, one in (("base", base), ("tuned", tuned))}
            else:
                sides = {
                    "AB": judge_prompts.compared(question, base[i], tuned[i], turn),
                    "BA": judge_prompts.compared(question, tuned[i], base[i], turn),
                }
            for reading in judges.readings:
                yield from (Item(i, turn, reading, side, messages) for side, messages in sides.items())


def key(judges: Judges, item: Item) -> str:
    """sha256 (hex) of all that a judgement follows from: the endpoint, the whole request, and which repeat it is."""
    body = judges.client.body(item.reading[0], item.messages)
    return hashlib.sha256(json.dumps([judges.client.url, body, item.reading[1]], sort_keys=True).encode()).hexdigest()


def ask(judges: Judges, asked: Sequence[Item], journal: Journal, tell: Tell | None = None) -> list[str]:
    """The judges' replies, from the journal or the endpoint; each is on disk before the next is waited for.

    What is the same is asked once. After a failure nothing more is sent; what has come is kept.

    Raises:
        RunError: the endpoint gives no reply.
    """
    keys = [key(judges, item) for item in asked]
    todo = {name: item for name, item in zip(keys, asked, strict=True) if journal.get(name) is None}
    done, lock, total = len(set(keys)) - len(todo), threading.Lock(), len(set(keys))

    def one(name: str, item: Item) -> None:
        text = judges.client.ask(judges.client.body(item.reading[0], item.messages))
        with lock:
            journal.put(name, {"text": text})

    pool = ThreadPoolExecutor(judges.client.concurrency)
    try:
        for finished in as_completed([pool.submit(one, name, item) for name, item in todo.items()]):
            finished.result()
            done += 1
            if tell:
                tell("judgements", done, total, "")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [(journal.get(name) or {})["text"] for name in keys]


def probe(judges: Judges) -> None:
    """Asks every judge for a word, so that a wrong address, key or name is known before answers are generated.

    Raises:
        RunError: one gives no reply.
    """
    for model in judges.models:
        judges.client.ask(judges.client.body(model, [{"role": "user", "content": "Reply with the word: ready"}]))


def written(asked: Sequence[Item], replies: Sequence[str], questions: Sequence[Question], mode: str) -> list[dict[str, Any]]:
    """Every judgement as a row of plain data: question, turn, judge, prompt, reply and verdict."""
    read = judge_prompts.rating if mode == "single" else judge_prompts.winner
    return [
        {
            "question_id": questions[item.question].id, "turn": item.turn + 1, "judge": item.reading[0],
            "repeat": item.reading[1], "side": item.side, "prompt": item.messages, "reply": reply, "verdict": read(reply),
        }
        for item, reply in zip(asked, replies, strict=True)
    ]  # fmt: skip
