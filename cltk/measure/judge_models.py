"""A base and models tuned from it, judged: from their names to what judges say; all that was asked is kept in a folder."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
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
    book, texts = Journal(out / ANSWERS), []
    for who, model in zip(called, chosen, strict=True):
        tell = (lambda done, total, who=who: progress(f"{who}: answers", done, total, "")) if progress else None
        pair = sides.live(model, dtype)
        texts.append(
            answers(*pair, questions, journal=book, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=tell)
        )
        del pair
        gc.collect()
    return judge_answers(texts[0], texts[1:], questions, judges, out, name, progress)


def judge_answers(
    base: judging.Answers, tuned: Sequence[judging.Answers], questions: Sequence[Question], judges: Judges, out: Path,
    name: str = "judge", progress: Tell | None = None, place: Path | None = None,
) -> list[Judged]:  # fmt: skip
    """As `judge_models`, of answers that are there; `judgements.jsonl` goes to `place`, or to `out` where none is given."""
    book, found, rows = Journal(out / JUDGEMENTS), [], []
    for number, texts in enumerate(tuned):
        asked = judging.items(judges, questions, base, texts)
        replies = judging.ask(judges, asked, book, progress)
        written = judging.written(asked, replies, questions, judges.mode)
        rows += [{"tuned": number, **row} for row in written]
        text = "".join(json.dumps(without_secrets(row), ensure_ascii=False) + "\n" for row in rows)
        write_text((place or out) / WRITTEN, text)
        found.append(judged(judges, questions, asked, replies, name))
    return found
