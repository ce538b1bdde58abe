"""Whether models can be asked to think, or not to, as their arguments say: found out before weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cltk.errors import InputError
from cltk.models.thinking import thinking_of

if TYPE_CHECKING:
    from cltk.measure.evaluate import Suite

CHOOSING = ("multiple_choice", "loglikelihood")  # output types that lm-eval asks no thinking model


def check_thinking(suite: Suite, tokenizers: Mapping[str, Any], templates: bool) -> None:
    """That what every side was told can be done.

    Args:
        tokenizers: who -> tokeniser, with the chat template that makes the side's prompts.
        templates: whether a chat template makes the prompts.

    Raises:
        InputError: arguments of a chat template without one, or with one that does not read them; a task that chooses by
            log-probability of a model that is to think (lm-eval refuses it too); an end of thinking that cannot be found.
    """
    tasks = (suite.load() or {"tasks": {}})["tasks"]
    choosing = [name for name, task in tasks.items() if task.OUTPUT_TYPE in CHOOSING]
    for who, tokenizer in tokenizers.items():
        asked = thinking_of(tokenizer)
        for name in asked.told:
            if not templates:
                raise InputError(f"{who}: {name} is told to a chat template, and no prompt is made with one; add chat_template")
            if not reads(tokenizer, name):
                raise InputError(
                    f"{who}: the chat template does not read {name}, which would change nothing; leave it out on this side"
                )
        if asked.enable_thinking and choosing:
            raise InputError(
                f"{who}: enable_thinking is of generated answers, and {', '.join(choosing[:5])} compares log-probabilities"
                " right behind the prompt; measure tasks that generate, or say enable_thinking=false"
            )
        _check_end(who, tokenizer, asked.end)


def reads(tokenizer: Any, name: str) -> bool:
    """Whether the text of the chat template names a variable."""
    return re.search(rf"\b{re.escape(name)}\b", str(getattr(tokenizer, "chat_template", None) or "")) is not None


def _check_end(who: str, tokenizer: Any, end: str | int | None) -> None:
    if isinstance(end, int) and not 0 <= end < len(tokenizer):
        raise InputError(f"{who}: think_end_token {end} is no token of its tokeniser, which has {len(tokenizer)}")
    if not isinstance(end, str):
        return
    number = tokenizer.get_vocab().get(end)
    if number in tokenizer.all_special_ids and number is not None:
        raise InputError(
            f"{who}: think_end_token {end!r} is a special token, which lm-eval takes out of a text before it looks; give its"
            f" number: think_end_token={number}"
        )
