"""What makes two models' scores comparable: the same documents, prompts, versions and settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cltk.errors import InputError
from cltk.measure.scores import TaskScores


def check_pair(side: str, scores: TaskScores) -> None:
    """Refuse a task without documents or metrics, lists of unequal length, and scores that are not finite."""
    if not scores.values and not scores.corpus and scores.left_out:
        reasons = "; ".join(f"{metric}: {reason}" for metric, reason in scores.left_out.items())
        raise InputError(f"task {scores.task} ({side}) has no metric that can be compared ({reasons})")
    if len(scores) == 0:
        raise InputError(f"task {scores.task} ({side}) has no documents; raise the limit or leave the task out")
    if not scores.values and not scores.corpus:
        raise InputError(f"task {scores.task} ({side}) has no metric that can be compared (it gives none)")
    lists: dict[str, Sequence[Any]] = {"prompt_hash": scores.prompt_hash, **scores.values}
    lists |= {f"weights of {metric}": weights for metric, weights in scores.weights.items()}
    lists |= {name: values for name, values in (("choices", scores.choices), ("cluster", scores.cluster)) if values}
    for name, values in lists.items():
        if len(values) != len(scores):
            raise InputError(f"task {scores.task} ({side}): {len(values)} entries in {name} for {len(scores)} documents")
    if scores.choices and min(scores.choices) <= 1:
        raise InputError(
            f"task {scores.task} ({side}): a document has {min(scores.choices)} choices; give more than 1, or none at all"
        )
    for metric, values in scores.values.items():
        bad = np.flatnonzero(~np.isfinite(np.asarray(values, dtype=np.float64)))
        if len(bad):
            raise InputError(
                f"task {scores.task} ({side}): {metric} of document {bad[0]} is {values[bad[0]]}; "
                "the model may have diverged: check its loss, or leave the task out"
            )


def check_documents(pre: TaskScores, post: TaskScores) -> None:
    """Refuse two samples, or a sample and something else, by their names: their documents are other ones."""
    ours, theirs = _documents(pre), _documents(post)
    if ours != theirs and "sample" in {*pre.settings, *post.settings}:
        raise InputError(
            f"task {pre.task}: other documents were scored: {ours} before and {theirs} after; measure both on the same"
        )


def _documents(scores: TaskScores) -> str:
    """Which of a task's documents these are, by its settings."""
    limit, sample, seed = (scores.settings.get(key) for key in ("limit", "sample", "sample_seed"))
    if sample is not None:
        return f"sample {sample} (seed {seed})"
    return "all documents" if limit is None else f"the first {limit} documents"


def check_same(pre: TaskScores, post: TaskScores) -> None:
    """Raises InputError unless both sides have the same metrics, with the same directions, under the same settings."""
    ours, theirs = {*pre.values, *pre.corpus}, {*post.values, *post.corpus}
    if odd := ", ".join(sorted(ours ^ theirs) or sorted(pre.corpus.keys() ^ post.corpus.keys())):
        raise InputError(f"task {pre.task}: metric {odd} is on one side only; measure both with the same task file")
    for metric in ours:
        if pre.higher_is_better.get(metric) is None or pre.higher_is_better[metric] != post.higher_is_better.get(metric):
            raise InputError(f"task {pre.task}: higher_is_better of {metric} is missing or differs; say it in the task file")
    odd_keys = sorted(key for key in pre.settings | post.settings if pre.settings.get(key) != post.settings.get(key))
    if odd_keys:
        what = ", ".join(f"{key} {pre.settings.get(key)} and {post.settings.get(key)}" for key in odd_keys)
        raise InputError(f"task {pre.task}: all {len(pre)} documents differ in settings ({what}); measure both the same way")
