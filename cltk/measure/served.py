"""A comparison of two models that lm-eval's other classes run (servers, vLLM, ...), through the same suite and statistics."""

from __future__ import annotations

import gc
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cltk.data.readers import Row
from cltk.data.rows import IGNORED
from cltk.errors import InputError
from cltk.measure.answers import answered
from cltk.measure.backend import RANDOM, Backend, check_gives
from cltk.measure.backend_proof import prove
from cltk.measure.evaluate import Progress, Suite, TextTask
from cltk.measure.forgetting import Result, compare
from cltk.measure.groups import grouped
from cltk.measure.harness import fits_room, quiet
from cltk.measure.lost import with_lost
from cltk.measure.prompting import own_randomness
from cltk.measure.scores import Scores
from cltk.measure.selection import with_notes
from cltk.measure.templates import by_documents
from cltk.measure.texts import read_text
from cltk.measure.windows import WINDOW, by_windows, labels_of
from cltk.models.origin import arguments

ABSENT = "no digest of its weights, no kept answers and no shared contexts"
WARNINGS = 5  # kinds of lm-eval's warnings that are passed on


def backends(name: str, base: Any, tuned: Sequence[Any], all_args: Any, base_args: Any, tuned_args: Any) -> list[Backend]:
    """Both sides, the base first; what is said of one side goes before what is said of all. Raises InputError."""
    both = arguments(all_args, "model_args")
    found = [Backend(name, base, both | arguments(base_args, "base_args"))]
    found += [Backend(name, one, both | arguments(tuned_args, "tuned_args")) for one in tuned]
    if len(found) < 2:
        raise InputError("measure: name at least one tuned model")
    return found


def measure_by(
    suite: Suite, sides: Sequence[Backend], settings: Mapping[str, Any], *, margins: Mapping[str, float] | None = None,
    lost: int = 0, progress: Progress | None = None, keep: Callable[[str, Scores], None] | None = None,
) -> list[Result]:  # fmt: skip
    """`cltk.measure.compare.measure` of models that a backend runs: one model at a time, the base first.

    Args:
        settings: those of the call, by the names of `measure`'s arguments.

    Raises:
        InputError: what the backend cannot give is asked for; its server does not answer, or not as it must; scores that cannot
            be compared.
    """
    base, kind = sides[0], str(settings["chat_template_of"])
    if settings["until"] is not None:
        raise InputError(f"until: looks need kept answers, and backend {base.name} has none; take a sample")
    _check_template(kind, base)
    settings = {**settings, "scorer": f"backend {base.name}", "kl_rows": 0}
    scores = []
    for backend in sides:
        side = "base" if backend is base else "tuned"
        scores.append(score_by(suite, backend, settings["batch_size"], settings["dtype"], side, progress))
        if keep:
            keep(str(backend.model), scores[-1][0])
    (pre, said), found = scores[0], []
    for backend, (post, notes) in zip(sides[1:], scores[1:], strict=True):
        pair, apart = _paired(pre, post, kind)
        result = with_lost(compare(*pair, margins=margins), pre, post, lost)
        models = {side: _described(one) for side, one in (("base", base), ("tuned", backend))}
        asked = {name: task.settings for name, task in pre.tasks.items() if task.settings}
        how = {**settings, "tuned": str(backend.model), "models": models, "tasks": asked, **suite.prompting.exported(None)}
        lines = [*_absent(base, suite), *said, *notes, *apart, *suite.notes, *result.notes]
        found.append(replace(result, notes=list(dict.fromkeys(lines)), settings=how))
    return found


def score_by(
    suite: Suite, backend: Backend, batch_size: Any, dtype: str, side: str, progress: Progress | None
) -> tuple[Scores, list[str]]:
    """A model's scores on the suite, and what a reader must know of them. Random states are as before afterwards."""
    tasks = (suite.load() or {"tasks": {}})["tasks"]
    documents = sum(suite.sizes().values())
    tell = progress or (lambda *_: None)
    with own_randomness(), quiet(), overheard() as heard:
        lm = backend.make(batch_size, dtype)
        why = check_gives(lm, backend, tasks)
        room = getattr(lm, "max_length", None)
        fits_room(tasks, room if isinstance(room, int) else None)
        texts, notes = _readable(suite.texts, lm, backend, why)
        if not tasks and not texts:
            raise InputError("; ".join(notes))
        if backend.name != RANDOM and (texts or any(task.OUTPUT_TYPE != "generate_until" for task in tasks.values())):
            prove(lm, backend)
        tell(f"{side}: documents", 0, documents, 0)
        try:
            scores = _scored(suite, lm, texts)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise backend.failed(error) from None
        tell(f"{side}: documents", documents, documents, 0)
    gc.collect()
    return scores, notes + [f"{side}: lm-eval warns {n} times: {line}" for line, n in heard.most_common(WARNINGS)]


def _scored(suite: Suite, lm: Any, texts: Sequence[TextTask]) -> Scores:
    """Every task and these texts; a digest of weights there is not."""
    tasks, raw = answered(suite, lm, _tokenizer(lm), lambda: lm) if suite.names else ({}, {})
    named = [row for name in suite.names for row in suite.rows(name)]
    tasks, inside, notes = grouped(tasks, suite.groups(), named, suite.members)
    suite.notes += [note for note in notes if note not in suite.notes]
    tasks = {name: with_notes(one, suite.about().get(name, [])) for name, one in tasks.items()}
    for text in texts:
        tasks[text.name] = read_text(text, lm.tokenizer, lambda rows, _: token_nll(lm, rows))
    return Scores("", tasks, raw, inside)


def token_nll(lm: Any, rows: list[Row]) -> list[float]:
    """Mean NLL of each row's counted tokens, nats: log p of every span of them behind all that is before it, by token ids."""

    def score(parts: list[Row]) -> list[float]:
        spans = [list(_spans(labels_of(row))) for row in parts]
        asked = [
            (None, row["input_ids"][:a], row["input_ids"][a:b])
            for row, found in zip(parts, spans, strict=True)
            for a, b in found
        ]
        answers = iter(lm._loglikelihood_tokens(asked, disable_tqdm=True))
        return [-sum(next(answers)[0] for _ in found) / sum(b - a for a, b in found) for found in spans]

    return by_windows(rows, min(WINDOW, int(getattr(lm, "max_length", None) or WINDOW)), score)


def _spans(labels: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where tokens that count stand, [start, end); the first of a row has nothing before it."""
    start = None
    for i, label in enumerate([*labels, IGNORED]):
        counts = label != IGNORED and i > 0
        if counts and start is None:
            start = i
        if not counts and start is not None:
            yield start, i
            start = None


def _readable(texts: Sequence[TextTask], lm: Any, backend: Backend, why: str) -> tuple[list[TextTask], list[str]]:
    """The texts that can be measured, and a line for each one that cannot."""
    from transformers import PreTrainedTokenizerBase

    if not why and not hasattr(lm, "_loglikelihood_tokens"):
        why = "its class takes no tokens"
    if not why and not isinstance(_tokenizer(lm), PreTrainedTokenizerBase):
        why = "its tokeniser is not here: tokenizer_backend=huggingface,tokenizer=NAME"
    return (
        ([], [f"text {text.name}: left out: backend {backend.name} gives no NLL ({why})" for text in texts])
        if why
        else ([*texts], [])
    )


def _tokenizer(lm: Any) -> Any:
    """Where it is here; classes without one of their own may fetch it from a hub when it is looked at."""
    return getattr(lm, "tokenizer", None) if hasattr(lm, "_loglikelihood_tokens") else None


def _check_template(kind: str, backend: Backend) -> None:
    """Raises InputError for prompts that a backend cannot be asked with."""
    if kind in ("base", "tuned"):
        raise InputError(f"chat_template: {kind}: backend {backend.name} applies its own model's template; use own, or none")
    if backend.chats and kind == "none":
        raise InputError(f"backend {backend.name}: takes conversations, not texts; ask with a chat template (own)")


def _paired(pre: Scores, post: Scores, kind: str) -> tuple[tuple[Scores, Scores], list[str]]:
    """Both, as they are where prompts are the same; where each model's own template made others, by documents."""
    shared = pre.tasks.keys() & post.tasks.keys()
    if kind != "own" or all(pre.tasks[name].prompt_hash == post.tasks[name].prompt_hash for name in shared):
        return (pre, post), []
    return (by_documents(pre), by_documents(post)), [
        "chat template: the models have different ones: documents are paired, prompts not"
    ]


def _absent(backend: Backend, suite: Suite) -> list[str]:
    """What a comparison by this backend does not have."""
    kl = "; KL is left out: it gives the probability of a token, not of the vocabulary" if suite.texts else ""
    random = [f"backend {RANDOM}: its answers are random numbers, and so is every row"] if backend.name == RANDOM else []
    return [*random, f"backend {backend.name}: {ABSENT}{kl}"]


def _described(backend: Backend) -> dict[str, Any]:
    """What a result says of a side."""
    return {"name": str(backend.model), "backend": backend.name, **({"args": dict(backend.args)} if backend.args else {})}


@contextmanager
def overheard() -> Iterator[Counter[str]]:
    """The warnings of lm-eval's models inside (a prompt was cut, an answer is empty, a request was repeated), and how often."""
    found: Counter[str] = Counter()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.update([_kind(record.getMessage())])  # type: ignore[method-assign]
    logger = logging.getLogger("lm_eval.models")
    kept = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = kept[1] and logging.getLogger("cltk").isEnabledFor(logging.DEBUG)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(kept[0])
        logger.propagate = kept[1]


def _kind(text: str) -> str:
    """A warning without its numbers, in one line."""
    from cltk.secrets import hidden

    return hidden(re.sub(r"\d+", "N", " ".join(text.split()))[:200])
