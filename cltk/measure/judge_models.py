"""A base and models tuned from it, judged: from their names to what judges say; all that was asked is kept in a folder."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cltk.files import write_text
from cltk.measure import judging, sides
from cltk.measure.journal import Journal
from cltk.measure.judge_questions import Question, answers, check_room, check_template
from cltk.measure.judged import Judged, judged
from cltk.measure.judging import Judges, Tell
from cltk.secrets import without_secrets

ANSWERS, JUDGEMENTS, WRITTEN = "answers.journal.jsonl", "judgements.journal.jsonl", "judgements.jsonl"


def check(models: Sequence[tuple[str, sides.Side]], max_new_tokens: int) -> None:
    """Raises InputError for what is wrong with a (who, model) and seen without weights: no template, few positions."""
    for who, model in models:
        tokenizer = sides.tokenizer_of(model)
        check_template(tokenizer, who)
        check_room(sides.config_of(model), tokenizer, max_new_tokens, who)


def judge_models(
    base: sides.Model, tuned: Sequence[sides.Model], questions: Sequence[Question], judges: Judges, out: Path,
    *, max_new_tokens: int = 1024, batch_size: Any = "auto", dtype: str = "auto", name: str = "judge",
    progress: Tell | None = None,
) -> list[Judged]:  # fmt: skip
    """What the judges say of each tuned model beside the base. An interrupted call goes on: all is kept in `out`.

    Args:
        base, tuned: folders, hub ids, asset:NAME or live pairs (model, tokenizer); as `cltk.measure`.
        out: a folder; `judgements.jsonl` there holds every prompt with its reply and verdict.
        name: what the set of questions is called.

    Raises:
        InputError: a model that is none, has no chat template or too few positions.
        RunError: an endpoint that gives no reply.
    """
    chosen = [sides.named_model(base, "base"), *(sides.named_model(one, "tuned") for one in tuned)]
    called = [sides.who(base, "base"), *(sides.who(one, "tuned") for one in tuned)]
    check(list(zip(called, chosen, strict=True)), max_new_tokens)
    dtype = sides.common_dtype(chosen[0], chosen[1:], dtype)
    judging.probe(judges)
    book, texts, notes = Journal(out / ANSWERS), [], list[list[str]]()
    for who, model in zip(called, chosen, strict=True):
        tell = (lambda done, total, who=who: progress(f"{who}: answers", done, total, "")) if progress else None
        pair = sides.live(model, dtype)
        said: list[str] = []
        how: Any = {"journal": book, "max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": tell}
        texts.append(answers(*pair, questions, **how, notes=said))
        notes.append([f"{who}: {line}" for line in said])
        del pair
        gc.collect()
    found = judge_answers(texts[0], texts[1:], questions, judges, out, name, progress, called=called[1:])
    return [replace(one, notes=[*one.notes, *notes[0], *own]) for one, own in zip(found, notes[1:], strict=True)]


def judge_answers(
    base: judging.Answers, tuned: Sequence[judging.Answers], questions: Sequence[Question], judges: Judges, out: Path,
    name: str = "judge", progress: Tell | None = None, place: Path | None = None, called: Sequence[str] = (),
) -> list[Judged]:  # fmt: skip
    """As `judge_models`, of answers that are there; `judgements.jsonl` goes to `place`, or to `out` where none is given.

    Rows of other judgements that stand there stay: another model's, another mode's.
    """
    book, found, file = Journal(out / JUDGEMENTS), [], (place or out) / WRITTEN
    for number, texts in enumerate(tuned):
        who = called[number] if called else str(number)
        asked = judging.items(judges, questions, base, texts)
        replies = judging.ask(judges, asked, book, progress)
        written = judging.written(asked, replies, questions, judges.mode)
        fresh = [without_secrets({"tuned": who, **row}) for row in written]
        rows = [*_others(file, fresh), *fresh]
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        found.append(judged(judges, questions, asked, replies, name))
    return found


def _others(file: Path, fresh: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the file that `fresh` has not: of other models, prompts, judges or repeats."""
    if not file.exists():
        return []
    what = ("tuned", "prompt", "judge", "repeat")
    known = {json.dumps([row[key] for key in what]) for row in fresh}
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    return [row for row in rows if json.dumps([row.get(key) for key in what]) not in known]
