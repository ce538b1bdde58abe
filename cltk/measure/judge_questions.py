"""Questions of several turns for a judge, in MT-Bench's format, and the two models' answers to them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from cltk import tensors
from cltk.data.readers import read_rows
from cltk.errors import InputError
from cltk.files import shipped
from cltk.measure.harness import make_lm, positions, quiet
from cltk.measure.identity import identity
from cltk.measure.prompting import own_randomness
from cltk.measure.tasks import SHIPPED
from cltk.measure.untouched import untouched
from cltk.models.thinking import thinking_of

Messages = list[dict[str, str]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What is asked turn by turn; `reference` holds a right answer to each turn, or nothing."""

    id: str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 (hex) of all that a judge is told of the question."""
        return hashlib.sha256(json.dumps([self.category, self.turns, self.reference]).encode()).hexdigest()


def read_questions(source: str | Path, limit: int | None = None) -> list[Question]:
    """The rows {"question_id", "category", "turns": [text, ...], "reference": [text, ...]} of a file, or the first `limit`.

    "cltk:prompts/two_turns.jsonl" is twelve such questions that come with cltk.

    Raises:
        InputError: no such file, a row of another form, an id that stands twice; names file and row.
    """
    found, seen = [], set()
    place = shipped("evals") / str(source).removeprefix(SHIPPED) if str(source).startswith(SHIPPED) else source
    for number, row in enumerate(read_rows(place), 1):
        question = _question(row, f"{source}: row {number}")
        if question.id in seen:
            raise InputError(f"{source}: row {number}: question_id {question.id!r} stands twice")
        seen.add(question.id)
        found.append(question)
    if limit is not None and limit < 1:
        raise InputError(f"limit: expected a whole number from 1, got {limit}")
    return found[:limit]


def _question(row: dict[str, Any], where: str) -> Question:
    turns, reference = row.get("turns"), row.get("reference")
    if not _texts(turns):
        raise InputError(f"{where}: `turns` must be a list of texts, the user's words turn by turn")
    if reference and not (_texts(reference) and len(reference) == len(turns)):
        raise InputError(f"{where}: `reference` must be a list of as many texts as there are turns ({len(turns)})")
    if not isinstance(row.get("question_id"), str | int) or isinstance(row.get("question_id"), bool):
        raise InputError(f"{where}: `question_id` must be a number or a name")
    return Question(str(row["question_id"]), str(row.get("category") or ""), tuple(turns), tuple(reference or ()))


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) and one.strip() for one in value)


def answers(
    model: Any, tokenizer: Any, questions: Sequence[Question], *, journal: Any = None, max_new_tokens: int = 1024,
    batch_size: Any = "auto", progress: Any = None, notes: list[str] | None = None,
) -> list[list[str]]:  # fmt: skip
    """The model's greedy answer to every turn, [questions][turns]: each turn is asked with the conversation before it.

    Args:
        journal: where answers are kept and looked up, by all that decides them (`cltk.measure.identity`).
        progress: called with (turns done, turns in all).
        notes: where lines go about conversations that were cut and thoughts without an end.

    Raises:
        InputError: the tokeniser has no chat template; a question alone does not fit into the model's positions.
    """
    from lm_eval.api.instance import Instance

    check_template(tokenizer, "judge")
    settings = {"until": [], "do_sample": False, "max_gen_toks": max_new_tokens}
    found: list[list[str]] = [[] for _ in questions]
    said = notes if notes is not None else []
    done, total = 0, sum(len(question.turns) for question in questions)
    with untouched(model), tensors.own_precision(model), own_randomness(), quiet():
        key = identity(model, tokenizer) if journal is not None else ""
        lm = make_lm(model, tokenizer, key, batch_size, journal, None, "prefix")
        for turn in range(max(len(question.turns) for question in questions)):
            asked = [i for i, question in enumerate(questions) if len(question.turns) > turn]
            prompts = [_prompt(tokenizer, questions[i], found[i]) for i in asked]
            _check_length(
                lm, [(questions[i], prompt) for i, prompt in zip(asked, prompts, strict=True)], turn, max_new_tokens, said
            )
            requests = [Instance("generate_until", {}, (prompt, dict(settings)), 0) for prompt in prompts]
            for i, text in zip(asked, lm.generate_until(requests, disable_tqdm=True), strict=True):
                found[i].append(text.strip())
            done += len(asked)
            if progress:
                progress(done, total)
    if unended := getattr(lm, "unended", 0):
        said.append(
            f"{unended} answers do not come to {lm.think_end_token!r}: all of such a text is the answer; give more new tokens"
        )
    for line in said:
        log.warning("judge: %s", line)
    return found


def _check_length(lm: Any, asked: Sequence[tuple[Question, str]], turn: int, new: int, said: list[str]) -> None:
    """lm-eval cuts from the left what has no room in the positions: a line of it, an error where nothing is answered yet."""
    room = lm.max_length - new
    long = [question.id for question, prompt in asked if len(lm.tok_encode(prompt)) > room]
    what = f"do not fit into {lm.max_length} positions with {new} new tokens"
    if long and turn == 0:
        raise InputError(f"judge: {len(long)} questions (first: {long[0]}) {what}; lower max_new_tokens")
    if long:
        said.append(f"{len(long)} conversations up to turn {turn + 1} {what}: cut from the left; lower max_new_tokens")


def check_room(config: Any, tokenizer: Any, max_new_tokens: int, who: str) -> None:
    """Raises InputError where the answers alone fill the model's positions."""
    room = positions(config, tokenizer)
    if max_new_tokens < 1 or max_new_tokens >= room:
        raise InputError(
            f"{who}: answers of up to {max_new_tokens} new tokens; give 1 to {room - 1}, the model has {room} positions"
        )


def check_template(tokenizer: Any, who: str) -> None:
    """Raises InputError for a tokeniser without a chat template."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(f"{who}: its tokenizer has no chat template, and the questions are conversations; save one with it")


def _prompt(tokenizer: Any, question: Question, before: Sequence[str]) -> str:
    """The conversation up to the turn that is to be answered, in the model's chat template."""
    messages: Messages = []
    for said, answer in zip(question.turns, before, strict=False):
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": question.turns[len(before)]})
    try:
        told = thinking_of(tokenizer).told
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **told))
    except Exception as error:
        raise InputError(f"question {question.id}: the chat template cannot be filled ({error})") from None
