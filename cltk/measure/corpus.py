"""Metrics of all documents together (bleu, f1, a perplexity): the score, and that of resampled documents.

Two models that were scored on the same documents are resampled together, because the draws follow from the task's name,
its number of documents and its clusters alone: the paired document bootstrap (Koehn 2004; Efron and Tibshirani 1993).
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from cltk.errors import reason
from cltk.measure.bootstrap import f1, mcc
from cltk.measure.stats import CHUNK, Floats

DRAWS = 1000
WORK = 2_000_000  # documents that an aggregation without sums is given, all draws together; never fewer than 200 draws
SECONDS = 300.0  # what the draws of one metric may take
ERRORS = frozenset({"ter"})  # lower is better; lm-eval before 0.4.13 declares the opposite
Aggregation = Callable[[list[Any]], Any]
Sums = tuple[Floats, Callable[[Floats], Floats]]  # columns [n, k], and the score [...] of their sums [..., k]


class NoIntervalError(Exception):
    """A metric whose draws cannot be had; the message says why."""


def corpus_scores(
    task: str, items: Sequence[Any], aggregation: Aggregation, clusters: Sequence[str] = ()
) -> list[float | None]:
    """[score, draw 1, ..., draw B]: the metric of all documents and of B resamples of them, whole clusters together.

    `items` has what lm-eval keeps of each document, `MISSING` where it kept nothing. A draw for which the task's own
    aggregation has no finite number is None.

    Raises:
        NoIntervalError: no finite score, one cluster, an aggregation too slow to repeat, or too few draws with a number.
    """
    there = [i for i, item in enumerate(items) if item is not MISSING]
    begin = time.perf_counter()
    score = _number(aggregation, [items[i] for i in there])
    taken = time.perf_counter() - begin
    if score is None:
        raise NoIntervalError(f"the task's own aggregation {_instead(aggregation, [items[i] for i in there])}")
    index = np.unique(np.asarray(clusters), return_inverse=True)[1].ravel() if len(clusters) else np.arange(len(items))
    sums = _sums(aggregation, [items[i] for i in there], score)
    if sums is not None:
        drawn = _by_sums(task, sums, index[there], int(index.max()) + 1)
    else:
        count = min(DRAWS, max(200, WORK // len(items)))
        if taken * count > SECONDS:
            raise NoIntervalError(f"its aggregation takes {taken:.0f} s, and an interval needs {count} of them")
        members: list[list[int]] = [[] for _ in range(int(index.max()) + 1)]
        for i in there:
            members[index[i]].append(i)
        rows = (row for block in _counts(task, len(members), count) for row in block)
        drawn = [
            _number(aggregation, [items[i] for g in np.repeat(np.arange(len(row)), row) for i in members[g]]) for row in rows
        ]
    return [score, *_enough(drawn)]


def _enough(drawn: list[float | None]) -> list[float | None]:
    if (none := sum(draw is None for draw in drawn)) > 0.1 * len(drawn):
        share = f"{100 * none / len(drawn):.0f} % of the resamples"
        raise NoIntervalError(f"the task's own aggregation gives no finite number on {share} of so few documents")
    return drawn


MISSING: Any = object()


def _counts(task: str, groups: int, draws: int) -> Iterator[np.ndarray]:
    """How often each of the groups is drawn, [some draws, groups] at a time; the same for every model."""
    seed = int.from_bytes(hashlib.sha256(f"{task} {groups}".encode()).digest()[:8], "big")
    rng, size = np.random.default_rng(seed), max(1, CHUNK // groups)
    for start in range(0, draws, size):
        yield rng.multinomial(groups, np.full(groups, 1 / groups), size=min(size, draws - start))


def _number(aggregation: Aggregation, items: list[Any]) -> float | None:
    """The aggregation's finite number, or None."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            value = float(aggregation(items))
    except Exception:
        return None
    return value if math.isfinite(value) else None


def _instead(aggregation: Aggregation, items: list[Any]) -> str:
    """What an aggregation does that gives no finite number."""
    try:
        return f"gives no finite number: {aggregation(items)!r:.60}"
    except Exception as error:
        return f"raises {reason(error)}"


def _by_sums(task: str, sums: Sums, index: np.ndarray, groups: int) -> list[float | None]:
    """The draws of a score that is a function of sums over documents."""
    columns, score = sums
    totals = np.stack([np.bincount(index, column, minlength=groups) for column in columns.T], axis=1)
    with np.errstate(all="ignore"):
        drawn = np.concatenate([score(counts @ totals) for counts in _counts(task, groups, DRAWS)])
    return [float(draw) if np.isfinite(draw) else None for draw in drawn]


def corpus_draws(task: str, items: Sequence[Any], aggregation: str, clusters: Sequence[str] = ()) -> list[float | None]:
    """As `corpus_scores`, of an aggregation of lm-eval that is known by its name, without lm-eval.

    Raises:
        NoIntervalError: it is no function of sums over documents, gives no finite score, or there is one cluster.
    """
    there = [i for i, item in enumerate(items) if item is not MISSING]
    index = np.unique(np.asarray(clusters), return_inverse=True)[1].ravel() if len(clusters) else np.arange(len(items))
    try:
        sums = SUMS[aggregation]([items[i] for i in there])
        score = float(sums[1](sums[0].sum(0)))
    except Exception as error:
        raise NoIntervalError(f"its aggregation, {aggregation}, cannot be made of the documents ({reason(error)})") from None
    if not math.isfinite(score):
        raise NoIntervalError(f"its aggregation, {aggregation}, gives no finite number: {score}")
    return [score, *_enough(_by_sums(task, sums, index[there], int(index.max()) + 1))]


def _sums(aggregation: Aggregation, items: list[Any], score: float) -> Sums | None:
    """lm-eval's own aggregations as functions of sums, which makes draws cheap; None where they do not give its score."""
    from lm_eval.api import metrics

    name = {getattr(metrics, function, None): name for name, function in FUNCTIONS.items()}.get(aggregation)
    if name is None:
        return None
    try:
        columns, function = SUMS[name](items)
        same = math.isclose(float(function(columns.sum(0))), score, rel_tol=1e-9, abs_tol=1e-9)
    except Exception:
        return None
    return (columns, function) if same else None


def _perplexity(items: Sequence[tuple[float, float]]) -> Sums:
    """exp(-sum of log-probabilities / sum of weights)."""
    return np.asarray(items, dtype=np.float64), lambda s: np.exp(-s[..., 0] / s[..., 1])


def _cells(items: Sequence[tuple[Any, Any]]) -> Floats:
    """Confusion cells [n, 4] of (gold, predicted) labels that are 0 or 1."""
    if not {int(label) for pair in items for label in pair} <= {0, 1}:
        raise ValueError("labels other than 0 and 1")
    gold, guess = np.asarray([[bool(one) for one in pair] for pair in items]).T
    return np.stack([gold & guess, ~gold & guess, gold & ~guess, ~gold & ~guess], axis=1).astype(np.float64)


def _translation(name: str, items: list[Any]) -> Sums:
    """sacrebleu's n-gram counts or edits of every sentence, of which its corpus scores are made."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    metric: Any = {"bleu": BLEU(), "chrf": CHRF(), "chrf++": CHRF(word_order=2), "ter": TER()}[name]
    refs = [[ref] if isinstance(ref, str) else list(ref) for ref, _ in items]
    preds = [pred if isinstance(pred, str) else pred[0] for _, pred in items]
    columns = np.asarray(metric._extract_corpus_statistics(preds, [list(s) for s in zip(*refs, strict=True)]), dtype=np.float64)

    def score(sums: Floats) -> Floats:
        rows = np.atleast_2d(sums)
        found = np.asarray([metric._compute_score_from_stats(row.tolist()).score for row in rows])
        return found if sums.ndim > 1 else found[0]

    return columns, score


SUMS: dict[str, Callable[[list[Any]], Sums]] = {
    "perplexity": lambda values: _perplexity([(value, 1.0) for value in values]),
    "weighted_perplexity": _perplexity,
    "f1": lambda pairs: (_cells(pairs), f1),
    "matthews_corrcoef": lambda pairs: (_cells(pairs), mcc),
    **{name: partial(_translation, name) for name in ("bleu", "chrf", "chrf++", "ter")},
}  # lm-eval's name of an aggregation -> its sums
FUNCTIONS = {name: name for name in SUMS} | {"f1": "f1_score", "chrf++": "chrfpp"}  # what lm-eval calls the functions
