"""Joins the scores of two models document by document, and refuses what is not comparable."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cltk.errors import InputError
from cltk.measure.scores import Scores, TaskScores
from cltk.measure.stats import Floats


@dataclass(frozen=True)
class Pair:
    """One task on two models: the same documents in the same order, as arrays [n]."""

    task: str
    pre: dict[str, Floats]  # metric -> scores
    post: dict[str, Floats]
    higher_is_better: dict[str, bool]
    doc_hash: list[str]
    prompt_hash: list[str]
    choices: list[int]
    cluster: list[str]

    def loss(self, metric: str) -> Floats:
        """d [n]: pre - post when higher is better, else post - pre; positive is bad."""
        d = self.pre[metric] - self.post[metric]
        return d if self.higher_is_better[metric] else -d

    def binary(self, metric: str) -> bool:
        """Whether every score of both models is 0 or 1."""
        return all(bool(np.isin(side[metric], (0, 1)).all()) for side in (self.pre, self.post))

    def labels(self, prefix: str = "") -> list[str]:
        """A cluster label for every document; documents without one are clusters of their own."""
        return [prefix + label for label in (self.cluster or map(str, range(len(self.doc_hash))))]

    def table(self) -> list[dict[str, Any]]:
        """A row a document: doc_hash, prompt_hash, cluster, and {metric}_pre, {metric}_post, {metric}_d."""
        columns: dict[str, Sequence[Any]] = {
            "doc_hash": self.doc_hash,
            "prompt_hash": self.prompt_hash,
            "cluster": self.labels(),
        }
        for metric in self.pre:
            for name, values in (("pre", self.pre[metric]), ("post", self.post[metric]), ("d", self.loss(metric))):
                columns[f"{metric}_{name}"] = values.tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def pair(pre: Scores, post: Scores) -> dict[str, Pair]:
    """Task -> Pair, in the order of `pre`.

    Documents are joined on doc_hash; the i-th document with a hash meets the i-th one with it, so that duplicates stay.

    Raises:
        InputError: tasks, metrics, settings, documents, prompts, choices or clusters differ; a score is not finite; a task
            has no documents or lists of unequal length.
    """
    if set(pre.tasks) != set(post.tasks):
        odd = ", ".join(sorted(set(pre.tasks) ^ set(post.tasks)))
        raise InputError(f"the two models were measured on different tasks ({odd}); measure both on the same")
    if not pre.tasks:
        raise InputError("no task was measured; name at least one")
    return {task: _pair(pre.tasks[task], post.tasks[task]) for task in pre.tasks}


def _pair(pre: TaskScores, post: TaskScores) -> Pair:
    for side, scores in (("before", pre), ("after", post)):
        _check(side, scores)
    _check_same(pre, post)
    order = _join(pre, post)
    for name in ("prompt_hash", "choices", "cluster"):
        ours, theirs = getattr(pre, name), getattr(post, name)
        if bool(ours) != bool(theirs):
            raise InputError(f"task {pre.task}: {len(pre)} documents differ in {name} before and after; measure both again")
        count = sum(ours[i] != theirs[j] for i, j in enumerate(order)) if ours else 0
        if count:
            raise InputError(f"task {pre.task}: {count} documents differ in {name} before and after; measure both again")
    before = {metric: np.asarray(values, dtype=np.float64) for metric, values in pre.values.items()}
    after = {metric: np.asarray(post.values[metric], dtype=np.float64)[order] for metric in before}
    higher = {metric: pre.higher_is_better[metric] for metric in before}
    return Pair(pre.task, before, after, higher, pre.doc_hash, pre.prompt_hash, pre.choices, pre.cluster)


def _check(side: str, scores: TaskScores) -> None:
    """Refuse a task without documents or metrics, lists of unequal length, and scores that are not finite."""
    if len(scores) == 0 or not scores.values:
        raise InputError(f"task {scores.task} ({side}) has no documents; raise the limit or leave the task out")
    lists: dict[str, Sequence[Any]] = {"prompt_hash": scores.prompt_hash, **scores.values}
    lists |= {name: values for name, values in (("choices", scores.choices), ("cluster", scores.cluster)) if values}
    for name, values in lists.items():
        if len(values) != len(scores):
            raise InputError(f"task {scores.task} ({side}): {len(values)} entries in {name} for {len(scores)} documents")
    if scores.choices and min(scores.choices) < 2:
        raise InputError(
            f"task {scores.task} ({side}): a document has {min(scores.choices)} choices; give 2 or more, or none at all"
        )
    for metric, values in scores.values.items():
        bad = np.flatnonzero(~np.isfinite(np.asarray(values, dtype=np.float64)))
        if len(bad):
            raise InputError(
                f"task {scores.task} ({side}): {metric} of document {bad[0]} is {values[bad[0]]}; "
                "the model may have diverged: check its loss, or leave the task out"
            )


def _check_same(pre: TaskScores, post: TaskScores) -> None:
    if set(pre.values) != set(post.values):
        odd = ", ".join(sorted(set(pre.values) ^ set(post.values)))
        raise InputError(f"task {pre.task}: metric {odd} is on one side only; measure both with the same task file")
    for metric in pre.values:
        if pre.higher_is_better.get(metric) is None or pre.higher_is_better[metric] != post.higher_is_better.get(metric):
            raise InputError(f"task {pre.task}: higher_is_better of {metric} is missing or differs; say it in the task file")
    odd_keys = sorted(key for key in pre.settings | post.settings if pre.settings.get(key) != post.settings.get(key))
    if odd_keys:
        what = ", ".join(f"{key} {pre.settings.get(key)} and {post.settings.get(key)}" for key in odd_keys)
        raise InputError(f"task {pre.task}: all {len(pre)} documents differ in settings ({what}); measure both the same way")


def _join(pre: TaskScores, post: TaskScores) -> list[int]:
    """For each document of `pre`, its index in `post`: the i-th with a hash joins the i-th with it."""
    ours, theirs = Counter(pre.doc_hash), Counter(post.doc_hash)
    count = max((ours - theirs).total(), (theirs - ours).total())
    if count:
        raise InputError(
            f"task {pre.task}: {count} documents differ before and after ({len(pre)} and {len(post)}); "
            "use the same data and limit"
        )
    places: defaultdict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(post.doc_hash):
        places[key].append(index)
    iterators = {key: iter(indices) for key, indices in places.items()}
    return [next(iterators[key]) for key in pre.doc_hash]
