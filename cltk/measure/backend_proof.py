"""Whether a server's log-probabilities are what they are said to be, found out with a few requests before a suite is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cltk.errors import InputError
from cltk.measure.backend import Backend

PIECES = ("The zebra sang", " violets 7", " marble oranges")  # each ends in what no model expects
OPENINGS = ("1 2 3 4 5 6 7", "Monday, Tuesday, Wednesday,", "the cat and the dog and the")


def prove(lm: Any, backend: Backend) -> None:
    """Ask for a few short answers, and hold the log-probabilities to what they are.

    Each is below 0; log p(b c | a) = log p(b | a) + log p(c | a b); what is generated greedily scores as greedy. A server that
    ignores `echo` gives 0 for everything (ggml-org/llama.cpp#27174), one that puts a BOS before a text is off by a token, one
    whose vocabulary is another reads other words, one that scores a token by what follows it (llama-cpp-python, where a model
    has no BOS) obeys the chain rule all the same: each would score a whole suite without a word.

    Raises:
        InputError: it does not hold, or the server does not answer.
    """
    a, b, c = PIECES
    try:
        first, then, both = (float(answer[0]) for answer in _scores(lm, [(a, b), (a + b, c), (a, b + c)]))
        said, greedy = _read_back(lm), _as_generated(lm)
    except Exception as error:
        raise backend.failed(error) from None
    who = f"backend {backend.name}, model {backend.model}: "
    if not all(-math.inf < one < 0 for one in (first, then, both)):
        raise InputError(
            f"{who}it does not score what it is given: log p({b!r}) is {first:g}, of {b + c!r} {both:g}; it must give the"
            " log-probabilities of a prompt (completions with echo and logprobs, as servers of vLLM and SGLang do)"
        )
    if said and not any(word in said for word in ("zebra", "violets", "token_id:")):
        raise InputError(
            f"{who}the server reads the tokens of this tokenizer as {said[:60]!r}; give the served model's own: tokenizer="
        )
    if _splits(lm) and abs(first + then - both) > 0.5 + 0.02 * abs(both):
        raise InputError(
            f"{who}its log-probabilities break the chain rule: {first:.2f} and {then:.2f} for two pieces, {both:.2f} for both;"
            " it cuts a text otherwise than the tokenizer here (a BOS that one of them adds: tokenized_requests, add_bos_token)"
        )
    if greedy and not any(greedy):
        raise InputError(
            f"{who}what it generates greedily it does not score as greedy: its log-probabilities are of other tokens"
            " (llama-cpp-python's server counts one token off where a model has no BOS); use another server, or --backend hf"
        )


def _scores(lm: Any, pairs: Sequence[tuple[str, str]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return list(lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]))


def _as_generated(lm: Any) -> list[bool]:
    """Whether short greedy answers score as greedy: those of which the text gives back the tokens. Empty: it cannot be said."""
    from lm_eval.api.instance import Instance

    if getattr(lm, "backend", "causal") != "causal" or not hasattr(lm, "tok_encode"):
        return []
    how = {"max_gen_toks": 2, "until": [], "do_sample": False, "temperature": 0}
    try:
        texts = lm.generate_until([Instance("generate_until", {}, (one, dict(how)), i) for i, one in enumerate(OPENINGS)])
    except NotImplementedError:
        return []
    pairs = [(one, text) for one, text in zip(OPENINGS, texts, strict=True) if text.strip() and "\ufffd" not in text]
    pairs = [(one, text) for one, text in pairs if _extends(lm, one, one + text)]
    return [bool(greedy) for _, greedy in _scores(lm, pairs)] if pairs else []


def _read_back(lm: Any) -> str:
    """What a server that echoes says it was given; "" where that is not to be had."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    if not isinstance(lm, LocalCompletionsAPI) or not getattr(lm, "tokenized_requests", False):
        return ""
    (answer,) = lm.model_call([lm.tok_encode("".join(PIECES))], generate=False)["choices"]
    return str(answer.get("text") or "") + "".join(map(str, (answer.get("logprobs") or {}).get("tokens") or []))


def _splits(lm: Any) -> bool:
    """Whether the pieces are tokens of their own, in a model that reads from left to right."""
    if getattr(lm, "backend", "causal") != "causal" or not hasattr(lm, "tok_encode"):
        return False
    return all(_extends(lm, "".join(PIECES[:n]), "".join(PIECES[: n + 1])) for n in (1, 2))


def _extends(lm: Any, text: str, longer: str) -> bool:
    """Whether the tokens of a text begin those of a longer one."""
    less, more = list(lm.tok_encode(text)), list(lm.tok_encode(longer))
    return len(less) < len(more) and more[: len(less)] == less
