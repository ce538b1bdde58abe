"""A metric of logged documents, held against lm-eval's own number for all of them."""

from __future__ import annotations

import math
from typing import Any

from cltk.measure.corpus import MISSING, SUMS, NoIntervalError, corpus_draws
from cltk.measure.documents import as_number, keep, weighted
from cltk.measure.scores import TaskScores

DEFAULTS = {  # lm-eval's own aggregation of its own metrics, where a task's file names none
    **dict.fromkeys(("acc", "acc_norm", "acc_mutual_info", "acc_bytes", "exact_match", "mc1", "mc2", "anls"), "mean"),
    "perplexity": "perplexity", "word_perplexity": "weighted_perplexity", "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte", "f1": "f1", "mcc": "matthews_corrcoef", "bleu": "bleu", "chrf": "chrf", "ter": "ter",
    "bypass": "bypass",
}  # fmt: skip


class MismatchError(Exception):
    """The documents do not give lm-eval's own number; the message says both."""


def add(
    scores: TaskScores, metric: str, suffix: str, items: list[Any], better: bool | None, named: str | None, own: Any
) -> None:
    """One metric into `scores`, by document where lm-eval averages it, of the corpus elsewhere; see `documents._add`.

    Args:
        suffix: ",FILTER" of a task's further filters.
        items: what was logged of each document, `MISSING` where nothing was.
        better: whether higher is better; None when nobody says.
        named: the aggregation that the task's file names, if it is one of lm-eval's; `DEFAULTS` else.
        own: lm-eval's number for all documents; None where it has none.

    Raises:
        MismatchError: the aggregation is known and gives another number than lm-eval's.
    """
    key, aggregation = metric + suffix, named or DEFAULTS.get(metric)
    if aggregation == "bypass":
        scores.left_out[key] = "it is no number"
        return
    if better is None and aggregation != "perplexity":
        scores.left_out[key] = (
            "whether higher is better is not declared; declare it with --higher-is-better or --lower-is-better"
        )
        return
    pairs = [weighted(item) for item in items]
    if aggregation == "bits_per_byte" and all(pair is not None and (pair[1] > 0 or pair == (0, 0)) for pair in pairs):
        sizes = [pair[1] for pair in pairs if pair]
        bits = [-pair[0] / pair[1] / math.log(2) if pair[1] else None for pair in pairs if pair]
        hold(key, -math.fsum(pair[0] for pair in pairs if pair) / math.fsum(sizes) / math.log(2), own)
        keep(scores, key, bool(better), bits, sizes)
        return
    if aggregation == "perplexity":
        nll = [None if (value := as_number(item)) is None else -value for item in items]
        keep(scores, ("nll" if metric == "perplexity" else f"{metric}_nll") + suffix, False, nll)
    if aggregation in SUMS:
        _add_corpus(scores, key, bool(better), items, aggregation, own)
    else:
        _add_mean(scores, key, bool(better), items, aggregation, own)


def _add_corpus(scores: TaskScores, key: str, better: bool, items: list[Any], aggregation: str, own: Any) -> None:
    plain = [tuple(item) if isinstance(item, list) else item for item in items]
    try:
        found = corpus_draws(scores.task, plain, aggregation, scores.cluster)
    except NoIntervalError as error:
        scores.left_out[key] = str(error)
        return
    hold(key, found[0], own)
    number = as_number(own)  # to the last bit, which sums in another order are not
    scores.corpus[key] = found if number is None else [number, *found[1:]]
    scores.higher_is_better[key] = better


def _add_mean(scores: TaskScores, key: str, better: bool, items: list[Any], aggregation: str | None, own: Any) -> None:
    """The numbers; without those that are nan where lm-eval's number leaves them out."""
    numbers = [as_number(item) for item in items]
    odd = next((i for i, item in enumerate(items) if numbers[i] is None and item is not MISSING), None)
    if odd is not None:
        scores.left_out[key] = f"that of document {odd} is {str(items[odd])[:40]}"
        return
    there = [value for value in numbers if value is not None]
    if any(map(math.isnan, there)) and _is(own, finite := [value for value in there if not math.isnan(value)]):
        numbers, there = [None if value is None or math.isnan(value) else value for value in numbers], finite
    if aggregation in ("mean", "nanmean"):
        hold(key, sum(there) / len(there) if there else math.nan, own)
    elif not _is(own, there):
        scores.left_out[key] = f"the log's own number, {own}, is no mean of the documents'"
        return
    keep(scores, key, better, numbers)


def hold(key: str, found: float | None, own: Any) -> None:
    """Raises MismatchError where the documents' number is not lm-eval's own."""
    number = as_number(own)
    if number is None or found is None or (math.isnan(number) and math.isnan(found)):
        return
    if not math.isclose(found, number, rel_tol=1e-9, abs_tol=1e-12):
        raise MismatchError(f"{key} of its documents is {found:.6g}, and {number:.6g} in the results")


def _is(own: Any, numbers: list[float]) -> bool:
    """Whether lm-eval's number is the mean of these."""
    number = as_number(own)
    return (
        bool(numbers) and number is not None and math.isclose(sum(numbers) / len(numbers), number, rel_tol=1e-9, abs_tol=1e-12)
    )
