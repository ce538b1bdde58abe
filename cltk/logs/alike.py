"""Two models' scores on one task, made ready to be paired: asked alike, or compared anyway and said so."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from cltk.errors import InputError
from cltk.logs.side import Side
from cltk.measure.partial import DRAWN
from cltk.measure.scores import TaskScores

ANYWAY = "run both alike, or compare them as they are with --prompts differ"


def alike(base: Side, tuned: Side, task: str, prompts: str) -> tuple[TaskScores, TaskScores, list[str]]:
    """A task's scores on both sides, ready to be paired, and what is said of them.

    Raises:
        InputError: they were asked otherwise, and that is not allowed; their right answers differ; no document is shared.
    """
    pre, post = base.scores.tasks[task], tuned.scores.tasks[task]
    keys = dict.fromkeys([*pre.settings, *post.settings])
    if base.about.get("harness") != tuned.about.get("harness"):
        keys = {key: None for key in keys if key in pre.settings and key in post.settings}
    values = [(key, pre.settings.get(key), post.settings.get(key)) for key in keys]
    odd = [f"{key} {ours} and {theirs}" for key, ours, theirs in values if ours != theirs and (ours or theirs)]
    answers = [dict(zip(side.scores.tasks[task].doc_hash, side.targets.get(task, []), strict=False)) for side in (base, tuned)]
    both = answers[0].keys() & answers[1].keys()
    if wrong := sum(answers[0][doc] != answers[1][doc] for doc in both):
        raise InputError(
            f"task {task}: {wrong} of {len(both)} documents have other right answers in the two runs: two versions of it"
        )
    pre, post, said = _shared(pre, post)
    drawn = [one.settings.get(DRAWN) for one in (pre, post)]
    if any(drawn) and (drawn[0] != drawn[1] or Counter(pre.doc_hash) != Counter(post.doc_hash)):
        raise InputError(
            f"task {task}: documents were drawn with unequal probabilities (evals.documents, draw: margin), other ones in the"
            " other run, and the mean of those that both have is not the task's; read the record's own rows (cltk report)"
        )
    if prompts == "same":
        if odd:
            raise InputError(f"task {task}: base and tuned differ in {', '.join(odd)}; {ANYWAY}")
        _check_documents(pre, post)
        return pre, post, said
    changed = [*odd]
    kept = Counter(pre.doc_hash) & Counter(post.doc_hash)
    if not kept:
        raise InputError(f"task {task}: the two runs share no document; use the same data")
    if kept.total() < max(len(pre), len(post)):
        changed.append(f"documents: {kept.total()} are in both, of {len(pre)} and {len(post)}")
        pre, post = (_only(one, kept) for one in (pre, post))
    asked = [Counter(zip(one.doc_hash, one.prompt_hash, strict=True)) for one in (pre, post)]
    if other := (asked[0] - asked[1]).total():
        changed.append(f"prompts of {other} documents")
    first = dict(zip(pre.doc_hash, pre.prompt_hash, strict=True))
    post = replace(post, prompt_hash=[first[doc] for doc in post.doc_hash], settings=pre.settings)
    pre = replace(pre, prompt_hash=[first[doc] for doc in pre.doc_hash])
    return (
        pre,
        post,
        [*([f"base and tuned differ in {'; '.join(changed)}: the difference is theirs too"] if changed else []), *said],
    )


def _shared(pre: TaskScores, post: TaskScores) -> tuple[TaskScores, TaskScores, list[str]]:
    """Without the metrics that one side lacks, which are left out with a reason, and choices that one side does not know."""
    both = []
    for one, other, who in ((pre, post, "base"), (post, pre, "tuned")):
        theirs = {**other.values, **other.corpus, **other.left_out}
        own = {metric: f"only the {who} has it" for metric in [*one.values, *one.corpus] if metric not in theirs}
        both.append(replace(one, left_out={**one.left_out, **own}))
    if bool(pre.choices) == bool(post.choices):
        return both[0], both[1], []
    said = "choices are known on one side only: flips are not corrected for guessing"
    return replace(both[0], choices=[]), replace(both[1], choices=[]), [said]


def _check_documents(pre: TaskScores, post: TaskScores) -> None:
    ours, theirs = Counter(pre.doc_hash), Counter(post.doc_hash)
    if lost := max((ours - theirs).total(), (theirs - ours).total()):
        raise InputError(f"task {pre.task}: {lost} documents are not in both runs ({len(pre)} and {len(post)}); {ANYWAY}")
    asked = [Counter(zip(one.doc_hash, one.prompt_hash, strict=True)) for one in (pre, post)]
    if other := (asked[0] - asked[1]).total():
        raise InputError(f"task {pre.task}: the prompts of {other} of {len(pre)} documents differ; {ANYWAY}")


def _only(scores: TaskScores, kept: Counter[str]) -> TaskScores:
    """The documents that both sides have; scores of the whole corpus cannot be had of them."""
    left, chosen = Counter(kept), []
    for i, doc in enumerate(scores.doc_hash):
        if left[doc] > 0:
            left[doc] -= 1
            chosen.append(i)

    def part(values: list[Any]) -> list[Any]:
        return [values[i] for i in chosen] if values else []

    lost = dict.fromkeys(scores.corpus, "it is a score of all documents together, and some are in one run only")
    return replace(
        scores, values={metric: part(found) for metric, found in scores.values.items()}, corpus={},
        doc_hash=part(scores.doc_hash), prompt_hash=part(scores.prompt_hash), choices=part(scores.choices),
        cluster=part(scores.cluster), weights={metric: part(found) for metric, found in scores.weights.items()},
        left_out={**scores.left_out, **lost},
        higher_is_better={metric: better for metric, better in scores.higher_is_better.items() if metric not in lost},
    )  # fmt: skip
