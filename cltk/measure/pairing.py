"""Joins the scores of two models document by document, and refuses what is not comparable."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cltk.errors import InputError
from cltk.measure.comparable import check_documents, check_pair, check_same
from cltk.measure.scores import Scores, TaskScores, documents
from cltk.measure.stats import Floats


@dataclass(frozen=True)
class Pair:
    """One task on two models: the same documents in the same order, as arrays [n]; [m] for a metric of m documents only.

    A metric with unequal weights w (bytes of a document; 0 where a model's answer has no score) is a ratio of sums,
    R = sum w v / sum w. Its arrays hold R + w_i / mean(w) (v_i - R): their mean is R, and the standard error of their mean
    is the ratio estimator's (Cochran 1977, Sampling Techniques, section 6.3), so that everything else takes them as scores.
    They are never 0 and 1: no flips are counted of them.
    """

    task: str
    pre: dict[str, Floats]  # metric -> scores
    post: dict[str, Floats]
    higher_is_better: dict[str, bool]
    doc_hash: list[str]
    prompt_hash: list[str]
    choices: list[float]
    cluster: list[str]
    only: dict[str, NDArray[np.intp]] = field(default_factory=dict)  # metric -> the documents that have it, if not all
    stretch: dict[str, float] = field(default_factory=dict)  # metric with unequal weights -> max(w) / mean(w)
    corpus: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)  # metric -> score, then draws, pre and post
    notes: list[str] = field(default_factory=list)  # what could not be compared, and what a reader must know
    left_out: dict[str, str] = field(default_factory=dict)  # metric -> why it could not be compared

    def loss(self, metric: str) -> Floats:
        """d [n]: pre - post when higher is better, else post - pre; positive is bad. Of a corpus metric: score, then draws."""
        pre, post = self.corpus[metric] if metric in self.corpus else (self.pre[metric], self.post[metric])
        return pre - post if self.higher_is_better[metric] else post - pre

    def binary(self, metric: str) -> bool:
        """Whether every score of both models is 0 or 1, and counts alike."""
        return metric not in self.stretch and all(bool(np.isin(side[metric], (0, 1)).all()) for side in (self.pre, self.post))

    def of(self, metric: str, labels: Sequence[Any]) -> list[Any]:
        """The entries of a list a document (clusters, choices) that belong to the metric's documents."""
        return [labels[i] for i in self.only[metric]] if labels and metric in self.only else list(labels)

    def labels(self, prefix: str = "", metric: str = "") -> list[str]:
        """A cluster label for every document; documents without one are clusters of their own."""
        return [prefix + label for label in self.of(metric, self.cluster or list(map(str, range(len(self.doc_hash)))))]

    def table(self) -> list[dict[str, Any]]:
        """A row a document: doc_hash, prompt_hash, cluster, {metric}_pre, _post and _d (None: it has none)."""
        columns: dict[str, Sequence[Any]] = {
            "doc_hash": self.doc_hash,
            "prompt_hash": self.prompt_hash,
            "cluster": self.labels(),
        }
        for metric in self.pre:
            for name, values in (("pre", self.pre[metric]), ("post", self.post[metric]), ("d", self.loss(metric))):
                column: list[Any] = [None] * len(self.doc_hash)
                for i, value in zip(self.only.get(metric, range(len(column))), values.tolist(), strict=True):
                    column[i] = value
                columns[f"{metric}_{name}"] = column
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def pair(pre: Scores, post: Scores) -> dict[str, Pair]:
    """Task -> Pair, in the order of `pre`; every task must be comparable. See `pair_all`, which leaves out what is not."""
    pairs, refused = pair_all(pre, post)
    for reason in refused.values():
        raise InputError(reason)
    return pairs


def pair_all(pre: Scores, post: Scores) -> tuple[dict[str, Pair], dict[str, str]]:
    """Task -> Pair, in the order of `pre`, and task -> one line for those that cannot be paired.

    Documents are joined on doc_hash; the i-th document with a hash meets the i-th one with it, so that duplicates stay.

    Raises:
        InputError: the two sides have no task in common, or none can be paired: metrics, settings, documents, prompts,
            choices or clusters differ; a score is not finite; a task has no documents or lists of unequal length.
    """
    odd = set(pre.tasks) ^ set(post.tasks)
    if odd and not (set(pre.tasks) & set(post.tasks)):
        raise InputError(
            f"the two models were measured on different tasks ({', '.join(sorted(odd))}); measure both on the same"
        )
    if not pre.tasks:
        raise InputError("no task was measured; name at least one")
    pairs, refused = {}, {}
    for task in [*pre.tasks, *post.tasks]:
        if task in odd:  # such as a group of which a member failed on one side: its members have rows there
            refused[task] = f"task {task}: only the model {'before' if task in pre.tasks else 'after'} training has it"
    for task in (task for task in pre.tasks if task in post.tasks):
        try:
            pairs[task] = _pair(pre.tasks[task], post.tasks[task])
        except InputError as error:
            refused[task] = str(error)
    if not pairs:
        raise InputError("; ".join(refused.values()))
    return pairs, refused


def _pair(pre: TaskScores, post: TaskScores) -> Pair:
    for side, scores in (("before", pre), ("after", post)):
        check_pair(side, scores)
    check_documents(pre, post)
    lost = {metric: reason for scores in (post, pre) for metric, reason in scores.left_out.items()}
    order = _join(pre, post)
    other = _other_tokens(pre, post, order)
    if other:
        lost["nll"] = "the two tokenisers cut the text differently, so that nats a token do not compare; bits per byte do"
    pre, post = _without(pre, lost), _without(post, lost)
    check_same(pre, post)
    for name in ["choices", "cluster"] if other else ["prompt_hash", "choices", "cluster"]:
        ours, theirs = getattr(pre, name), getattr(post, name)
        if bool(ours) != bool(theirs):
            raise InputError(f"task {pre.task}: {len(pre)} documents differ in {name} before and after; measure both again")
        count = sum(ours[i] != theirs[j] for i, j in enumerate(order)) if ours else 0
        if count:
            raise InputError(f"task {pre.task}: {count} documents differ in {name} before and after; measure both again")
    notes = [f"{pre.task}: {metric} is left out: {reason}" for metric, reason in lost.items()]
    found = Pair(
        pre.task, {}, {}, {}, pre.doc_hash, pre.prompt_hash, pre.choices, pre.cluster,
        notes=list(dict.fromkeys([*(f"{pre.task}: {note}" for note in [*pre.notes, *post.notes]), *notes])),
        left_out=lost,
    )  # fmt: skip
    for metric in pre.values:
        _add(found, pre, post, metric, order)
    for metric in pre.corpus:
        _add_corpus(found, pre, post, metric, order)
    if not found.higher_is_better:
        raise InputError("; ".join(found.notes))
    return found


def _other_tokens(pre: TaskScores, post: TaskScores, order: list[int]) -> bool:
    """Whether this is a text (it has no settings) that the two models' tokenisers cut into other tokens."""
    text = not pre.settings and not post.settings and all("bits_per_byte" in scores.values for scores in (pre, post))
    return text and any(pre.prompt_hash[i] != post.prompt_hash[j] for i, j in enumerate(order))


def _without(scores: TaskScores, lost: Container[str]) -> TaskScores:
    """The scores without these metrics."""
    values = {metric: found for metric, found in scores.values.items() if metric not in lost}
    corpus = {metric: found for metric, found in scores.corpus.items() if metric not in lost}
    return replace(scores, values=values, corpus=corpus)


def _add(pair: Pair, pre: TaskScores, post: TaskScores, metric: str, order: list[int]) -> None:
    """One per-document metric into `pair`: the scores, those of the documents that have one, or a ratio of sums by document."""
    n = len(order)
    before, after = np.asarray(pre.values[metric], np.float64), np.asarray(post.values[metric], np.float64)[order]
    one = np.asarray(pre.weights.get(metric, np.ones(n)), np.float64)
    other = np.asarray(post.weights.get(metric, np.ones(n)), np.float64)[order]
    if np.array_equal(one, other) and np.isin(one, (0, 1)).all():
        there = np.flatnonzero(one)
        if len(there) < n:
            before, after, pair.only[metric] = before[there], after[there], there
            pair.notes.append(f"{pair.task}: {metric} is that of {len(there)} of {n} documents, the others have none")
    else:
        before, after = documents(pre, metric), documents(post, metric)[order]
        pair.stretch[metric] = max(float(w.max() / w.mean()) for w in (one, other))
        if (one == 0).tolist() != (other == 0).tolist():
            counts = f"{np.count_nonzero(one)} before and {np.count_nonzero(other)} after, of {n}"
            pair.notes.append(
                f"{pair.task}: {metric} is not there for the same documents ({counts}): its means are of other ones"
            )
    pair.pre[metric], pair.post[metric], pair.higher_is_better[metric] = before, after, pre.higher_is_better[metric]


def _add_corpus(pair: Pair, pre: TaskScores, post: TaskScores, metric: str, order: list[int]) -> None:
    """One corpus metric into `pair`; draws are joined by number, so the documents must stand in one order."""
    if order != list(range(len(order))):
        pair.left_out[metric] = "the documents stand in another order after; measure both again"
        pair.notes.append(f"{pair.task}: {metric} is left out: {pair.left_out[metric]}")
        return
    drawn = [(a, b) for a, b in zip(pre.corpus[metric], post.corpus[metric], strict=False) if a is not None and b is not None]
    before, after = np.asarray(drawn, np.float64).T
    pair.corpus[metric], pair.higher_is_better[metric] = (before, after), pre.higher_is_better[metric]


def _join(pre: TaskScores, post: TaskScores) -> list[int]:
    """For each document of `pre`, its index in `post`: the i-th with a hash joins the i-th with it."""
    ours, theirs = Counter(pre.doc_hash), Counter(post.doc_hash)
    count = max((ours - theirs).total(), (theirs - ours).total())
    if count:
        raise InputError(
            f"task {pre.task}: {count} documents differ before and after ({len(pre)} and {len(post)}); "
            "use the same data, limit and sample"
        )
    places: defaultdict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(post.doc_hash):
        places[key].append(index)
    iterators = {key: iter(indices) for key, indices in places.items()}
    return [next(iterators[key]) for key in pre.doc_hash]
