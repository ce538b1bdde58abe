"""Per-document values of a task, from what lm-eval logged of each document and from the task's own rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cltk.errors import InputError
from cltk.measure.choices import choices_of, together
from cltk.measure.corpus import ERRORS, MISSING, NoIntervalError, corpus_scores
from cltk.measure.scores import TaskScores

UNDECLARED = "whether higher is better is not declared; say higher_is_better in the task's metric_list"


def task_scores(
    task: Any, name: str, samples: list[dict[str, Any]], raw: dict[str, Any], settings: dict[str, Any]
) -> TaskScores:
    """The numbers of one task from what lm-eval logged; `settings` are the suite's.

    A metric keeps its own name under the task's first filter and is NAME,FILTER under every other. What is made of its
    values follows from the task's aggregation alone (`_add`), so that it is the same for every model.
    """
    first = samples[0]["filter"]
    kept = [sample for sample in samples if sample["filter"] == first]
    place = {sample["doc_id"]: i for i, sample in enumerate(kept)}
    config = raw["configs"][name]
    scores = TaskScores(
        task=name, values={}, higher_is_better={},
        doc_hash=[sample["doc_hash"] for sample in kept], prompt_hash=[sample["prompt_hash"] for sample in kept],
        cluster=clusters(name, config, [sample["doc"] for sample in kept]),
        settings={"num_fewshot": raw["n-shot"][name], "version": raw["versions"][name], **settings},
    )  # fmt: skip
    items: dict[tuple[str, str], list[Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            items.setdefault((metric, sample["filter"]), [MISSING] * len(kept))[place[sample["doc_id"]]] = sample[metric]
    for (metric, chosen), found in items.items():
        _add(scores, task, metric, "" if chosen == first else f",{chosen}", found)
    add_choices(scores, choices_of(task, kept))
    return scores


def clusters(name: str, config: dict[str, Any], documents: Sequence[Any]) -> list[str]:
    """Labels of dependent documents, from the column that the task's `metadata: {cluster: COLUMN}` names."""
    column = (config.get("metadata") or {}).get("cluster")
    if column and (odd := next((doc for doc in documents if column not in doc), None)) is not None:
        raise InputError(f"task {name}: metadata.cluster names {column!r}, which is no column; they are {', '.join(odd)}")
    return [str(doc[column]) for doc in documents] if column else []


def direction(task: Any, metric: str) -> bool | None:
    """Whether higher is better: as the task declares it, else as lm-eval does for its own metrics; None when nobody says."""
    from lm_eval.api.registry import is_higher_better

    if metric in ERRORS:
        return False
    declared = (task.higher_is_better() or {}).get(metric)
    return is_higher_better(metric) if declared is None else bool(declared)


def unmeasurable(task: Any) -> str:
    """Why no metric of this task can be compared, known from made-up answers to its first document; "" when one can."""
    metrics = list(getattr(task, "_metric_fn_list", None) or task.aggregation())
    if not getattr(task, "UNSAFE_CODE", False):
        metrics = _tried(task) or metrics
    reasons = {metric: reason for metric in metrics if (reason := _no_use(task, metric))}
    if metrics and len(reasons) == len(set(metrics)):
        return "; ".join(f"metric {metric}: {reason}" for metric, reason in reasons.items())
    return ""


def fails_on_made_up(task: Any) -> bool:
    """Whether the task's own code raises on made-up answers to its first document; it may understand the model's."""
    return not getattr(task, "UNSAFE_CODE", False) and _tried(task) is None


def _tried(task: Any) -> list[str] | None:
    """The metrics that made-up answers to the first document have; None where the task's own code does not take them."""
    doc = task.eval_docs[0]
    try:
        return list(task.process_results(doc, _made_up(task, doc)))
    except Exception:
        return None


def _no_use(task: Any, metric: str) -> str:
    """Why nothing can be said of the metric whatever its values are; "" when something can."""
    if _is(task, metric, "bypass_agg"):
        return "it is no number"
    return UNDECLARED if direction(task, metric) is None else ""


def _made_up(task: Any, doc: Any) -> list[Any]:
    """Answers of the form that the task's output type asks for."""
    if task.OUTPUT_TYPE == "multiple_choice":
        count = len(task.doc_to_choice(doc)) * (2 if "acc_mutual_info" in task.aggregation() else 1)
        return [(-1.0 - i, False) for i in range(count)]
    answers: dict[str, list[Any]] = {"loglikelihood": [(-1.0, False)], "loglikelihood_rolling": [-1.0]}
    return answers.get(task.OUTPUT_TYPE, [""])


def _is(task: Any, metric: str, *names: str) -> bool:
    """Whether the task aggregates the metric by one of these functions of lm-eval; `mean` where it names none, as lm-eval."""
    from lm_eval.api import metrics

    return task.aggregation().get(metric, metrics.mean) in [getattr(metrics, name) for name in names]


def _add(scores: TaskScores, task: Any, metric: str, suffix: str, items: list[Any]) -> None:
    """One metric into `scores`: per document where its aggregation is a mean, of the corpus elsewhere.

    mean, nanmean and functions of the task that average numbers: the numbers, weight 0 where the aggregation leaves a
    document out. perplexity = exp(-mean): lm-eval's values are log-probabilities; nll = -value per document, and the
    perplexity of the corpus. bits_per_byte: -log2 p / bytes, weighted by bytes, which is lm-eval's ratio of sums.
    """
    from lm_eval.api import metrics

    better, key = bool(direction(task, metric)), metric + suffix
    if reason := _no_use(task, metric):
        scores.left_out[key] = reason
        return
    pairs = [weighted(item) for item in items]
    if _is(task, metric, "perplexity"):
        nll = [None if (number := as_number(item)) is None else -number for item in items]
        keep(scores, ("nll" if metric == "perplexity" else f"{metric}_nll") + suffix, False, nll)
    elif _is(task, metric, "bits_per_byte") and all(pair is not None and (pair[1] > 0 or pair == (0, 0)) for pair in pairs):
        sizes = [pair[1] for pair in pairs if pair]
        bits = [-pair[0] / pair[1] / math.log(2) if pair[1] else None for pair in pairs if pair]
        keep(scores, key, better, bits, sizes)
        return
    aggregation = task.aggregation().get(metric, metrics.mean)
    found = None if _is(task, metric, "perplexity") else _averaged(aggregation, items)
    if found is not None:
        keep(scores, key, better, found)
        return
    try:
        scores.corpus[key] = corpus_scores(scores.task, items, aggregation, scores.cluster)
        scores.higher_is_better[key] = better
    except NoIntervalError as error:
        scores.left_out[key] = str(error)


def _averaged(aggregation: Any, items: list[Any]) -> list[float | None] | None:
    """The numbers that the aggregation averages, None for documents it leaves out; None when it is no such mean.

    Whether a function averages, and which values it leaves out, is seen from two numbers that it is given beside each.
    """
    from lm_eval.api import metrics

    numbers = [as_number(item) for item in items]
    if any(number is None and item is not MISSING for number, item in zip(numbers, items, strict=True)):
        return None
    if aggregation is metrics.mean:
        return numbers
    if aggregation is metrics.nanmean:
        return [None if number is None or math.isnan(number) else number for number in numbers]
    seen: dict[Any, float | None] = {}
    for item, number in zip(items, numbers, strict=True):
        if number is not None and number not in seen:
            try:
                beside = float(aggregation([0.25, item, 0.75]))
                pair = float(aggregation([0.25, 0.75]))
            except Exception:
                return None
            if not math.isclose(pair, 0.5) or not (math.isclose(beside, 0.5) or math.isclose(3 * beside, 1 + number)):
                return None
            seen[number] = number if math.isclose(3 * beside, 1 + number) else None
    kept = [None if number is None else seen[number] for number in numbers]
    there = [number for number in kept if number is not None]
    try:
        whole = float(aggregation([item for item in items if item is not MISSING]))
    except Exception:
        return None
    return kept if there and math.isclose(whole, math.fsum(there) / len(there), rel_tol=1e-9, abs_tol=1e-12) else None


def keep(scores: TaskScores, key: str, better: bool, values: list[float | None], weights: list[float] | None = None) -> None:
    """Values by document; a document without one has the value 0 and the weight 0."""
    odd = [i for i, value in enumerate(values) if value is not None and not math.isfinite(value)]
    if odd or all(value is None for value in values):
        scores.left_out[key] = f"that of document {odd[0]} is {values[odd[0]]}" if odd else "no document has a number"
        return
    scores.values[key] = [0.0 if value is None else value for value in values]
    scores.higher_is_better[key] = better
    if weights is not None or None in values:
        scores.weights[key] = weights if weights is not None else [float(value is not None) for value in values]


def as_number(value: Any) -> float | None:
    """Python's and numpy's numbers and booleans, and arrays of one element."""
    if value is MISSING or isinstance(value, str | bytes | list | tuple | dict) or value is None:
        return None
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        return None


def weighted(value: Any) -> tuple[float, float] | None:
    """(sum of log-probabilities, weight) as lm-eval gives it for a whole text."""
    if isinstance(value, tuple | list) and len(value) == 2:
        total, weight = map(as_number, value)
        return None if total is None or weight is None else (total, weight)
    return None


def add_choices(scores: TaskScores, choices: list[Any]) -> None:
    """Log-probability of the right choice, margins over the best wrong one, and choices to guess from."""
    if not choices:
        return
    margins = together(choices) or {
        "logprob": [choice.logprob() for choice in choices],
        "margin": [choice.margin() for choice in choices],
        "margin_norm": [choice.margin(per_byte=True) for choice in choices],
    }
    for metric, found in margins.items():
        if metric not in scores.values and any(not np.isnan(value) for value in found):
            keep(scores, metric, True, [None if math.isnan(value) else value for value in found])
    ways = [choice.ways for choice in choices]
    if not any(math.isnan(way) for way in ways):
        scores.choices.extend(int(way) if way == int(way) else way for way in ways)
