"""What a model cannot be asked: tokens without an embedding, more new tokens than it has positions, texts without a start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval import utils
from lm_eval.models.utils import normalize_gen_kwargs
from numpy.typing import ArrayLike

from cltk.errors import InputError, RunError
from cltk.measure.prefix_tree import Requests

Request = tuple[tuple[str, str] | None, list[int], list[int]]  # (text or None, context ids, continuation ids)


def embedding_rows(model: Any) -> int:
    """Tokens that a model can read and predict."""
    layers = (model.get_input_embeddings(), getattr(model, "get_output_embeddings", lambda: None)())
    weights = [getattr(layer, "weight", None) for layer in layers]
    return min(len(weight) for weight in weights if weight is not None and weight.ndim == 2)


def outside(tokens: ArrayLike, rows: int) -> str:
    """The line about the largest of these tokens."""
    return (
        f"token {int(np.max(tokens))} is outside the model's embedding of {rows} rows; the tokeniser has more tokens than the"
        " model: take the model's own, or resize the embeddings (and train them)"
    )


def name_of(request: Request, number: int) -> str:
    """How a scoring request is named in a message."""
    text = f", continuation {request[0][1]!r:.60}" if request[0] else ""
    return f"scoring request {number}{text}"


def truncated(request: Request, number: int, most: int) -> tuple[list[int], int]:
    """Token ids of context + continuation, cut from the left to `most` + 1 as HFLM does, and the number of scored ones."""
    _, context, continuation = request
    if not context or not 0 < len(continuation) <= most:
        raise InputError(
            f"{name_of(request, number)}: {len(context)} context and {len(continuation)} continuation tokens; lm-eval needs"
            f" at least one of each and at most {most} (the model's length) to score; change the task's text"
        )
    return (context + continuation)[-(most + 1) :], len(continuation)


def windows(lm: Any, texts: Sequence[str]) -> tuple[list[Request], list[int]]:
    """lm-eval's disjoint windows of at most `max_length` tokens of every text, and how many each text has."""
    found: list[Request] = []
    counts = []
    for text in texts:
        rolling = utils.get_rolling_token_windows(
            token_list=lm.tok_encode(text), prefix_token=lm.prefix_token_id, max_seq_len=lm.max_length, context_len=1
        )
        pairs = [utils.make_disjoint_window(window) for window in rolling]
        found.extend((None, *pair) for pair in pairs)
        counts.append(len(pairs))
    return found, counts


def check_tokens(model: Any, distinct: Requests, requests: Sequence[Request]) -> None:
    """Raise InputError for a scoring request with a token that the model has no embedding of."""
    rows = embedding_rows(model)
    for k in (k for k, tokens in enumerate(distinct.tokens) if int(tokens.max()) >= rows):
        number = int(np.flatnonzero(distinct.place == k)[0])
        raise InputError(f"{name_of(requests[number], number)}: {outside(distinct.tokens[k], rows)}")


def check_finite(answers: Mapping[int, tuple[float, bool]], distinct: Requests, requests: Sequence[Request]) -> None:
    """Raise RunError for an answer that is NaN. Minus infinity is an answer: a model may exclude tokens."""
    for k in (k for k, (logprob, _) in answers.items() if np.isnan(logprob)):
        number = int(np.flatnonzero(distinct.place == k)[0])
        raise RunError(
            f"{name_of(requests[number], number)}: the model gives NaN; look for weights that are not finite (a run that"
            " diverged) or use a wider dtype; batches before this one are kept where there is a journal"
        )


def check_prefix(lm: Any, what: str) -> None:
    """Raise InputError where nothing can stand in front of a text without context."""
    if lm.prefix_token_id is None:
        raise InputError(f"{what}: the tokeniser has no bos_token and no eos_token to put before a text without context")


def check_pairs(lm: Any, requests: Sequence[Any]) -> None:
    """Raise InputError for an empty context with an empty continuation, or with nothing to put in front of one; and where the
    model is to think before it answers (lm-eval raises a ValueError)."""
    if getattr(lm, "enable_thinking", None):
        raise InputError("enable_thinking: is of generated answers; a task that compares log-probabilities cannot be asked")
    for number, request in enumerate(requests):
        context, continuation = request.args
        if context == "":
            name = name_of((request.args, [], []), number)
            check_prefix(lm, name)
            if not lm.tok_encode(continuation, add_special_tokens=False):
                raise InputError(f"{name}: there is no token to score; change the task's text")


def check_room(lm: Any, requests: Sequence[Any]) -> None:
    """Raise InputError for generation requests whose new tokens leave no position for the prompt, or that cannot be read.

    lm-eval keeps the last (positions - new tokens) tokens of a prompt.
    """
    rows = embedding_rows(lm.model)
    if requests and lm.eot_token_id is None:
        raise InputError(f"task {requests[0].task_name}: the tokeniser has no eos_token to end a generated text by")
    for number, request in enumerate(requests):
        context, settings = request.args
        name = f"task {request.task_name}, request {number}"
        new = normalize_gen_kwargs(settings, lm.max_gen_toks)["max_gen_toks"]
        if settings.get("do_sample") and not float(settings.get("temperature") or 0) > 0:
            raise InputError(
                f"{name}: do_sample needs a temperature above 0; set temperature in gen_kwargs, or leave do_sample out"
            )
        if new < 1:
            raise InputError(f"{name}: it asks for {new} new tokens; set max_gen_toks to 1 or more")
        if lm.backend == "causal" and new >= lm.max_length:
            raise InputError(
                f"{name}: {new} new tokens leave no room for a prompt in the model's {lm.max_length} positions; set"
                " max_gen_toks in the task's generation_kwargs (or in gen_kwargs) lower"
            )
        tokens = lm.tok_encode(context)
        if not tokens:
            raise InputError(f"{name}: the prompt is empty; change the task's text")
        if max(tokens) >= rows:
            raise InputError(f"{name}: {outside(tokens, rows)}")
