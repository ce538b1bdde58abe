"""Per-document values of a task, from what lm-eval logged of each document."""

from __future__ import annotations

from typing import Any

import numpy as np

from cltk.measure.scores import TaskScores


def task_scores(name: str, samples: list[dict[str, Any]], raw: dict[str, Any], settings: dict[str, Any]) -> TaskScores:
    """The per-document numbers of one task from what lm-eval logged; `settings` are the suite's."""
    better = {metric: bool(flag) for metric, flag in raw["higher_is_better"][name].items() if flag is not None}
    kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    config = raw["configs"][name]
    values: dict[str, list[float]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            for label, score in _scalars(metric, sample[metric]).items():
                key = label if sample["filter"] in ("none", samples[0]["filter"]) else f"{label},{sample['filter']}"
                values.setdefault(key, []).append(score)
                better.setdefault(key, better.get(metric, label not in ("nll", "bits_per_byte", "perplexity")))
    choices = []
    if config.get("output_type") == "multiple_choice":
        extra = [_choice_scores(sample) for sample in kept]
        if all(extra):
            for key in ("logprob", "margin"):
                values[key] = [float(e[key]) for e in extra]
                better[key] = True
            choices = [int(e["choices"]) for e in extra]
    values = {metric: scores for metric, scores in values.items() if len(scores) == len(kept)}
    cluster = (config.get("metadata") or {}).get("cluster")
    return TaskScores(
        task=name, values=values, higher_is_better={metric: better[metric] for metric in values},
        doc_hash=[sample["doc_hash"] for sample in kept], prompt_hash=[sample["prompt_hash"] for sample in kept],
        choices=choices, cluster=[str(sample["doc"][cluster]) for sample in kept] if cluster else [],
        settings={"num_fewshot": raw["n-shot"][name], "version": raw["versions"][name], **settings},
    )  # fmt: skip


def _scalars(metric: str, value: Any) -> dict[str, float]:
    """The per-document numbers in lm-eval's metric; rolling log-likelihoods come as (sum of log-probabilities, weight)."""
    if isinstance(value, bool | int | float | np.floating | np.integer):
        return {metric: float(value)}
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(x, int | float) for x in value):
        total, weight = value
        if metric == "bits_per_byte" and weight:
            return {"bits_per_byte": -total / weight / float(np.log(2))}
    return {}


def _choice_scores(sample: dict[str, Any]) -> dict[str, float]:
    """Log-probability of the correct choice and its margin over the best wrong one, from the scored choices."""
    scores = [response[0] if isinstance(response, tuple | list) else response for response in sample["filtered_resps"]]
    target = sample["target"]
    if isinstance(target, str) and target.strip().lstrip("-").isdigit():
        target = int(target)
    if not isinstance(target, int) or not 0 <= target < len(scores) or len(scores) < 2:
        return {}
    wrong = [score for i, score in enumerate(scores) if i != target]
    return {"logprob": scores[target], "margin": scores[target] - max(wrong), "choices": len(scores)}
