"""A model that was scored on part of the documents, beside a start model and references that were scored on all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from cltk.measure import forgetting, stats
from cltk.measure.forgetting import Result, Row, _judge, _kind, compare, headline, span, with_unit
from cltk.measure.looks import Looks, next_look
from cltk.measure.pairing import pair
from cltk.measure.scores import Scores, TaskScores
from cltk.measure.subset import by_document, positions, restricted
from cltk.measure.twophase import TwoPhase, predictors, two_phase

if TYPE_CHECKING:
    from cltk.measure.evaluate import Suite

Positions = Mapping[str, Sequence[int]]  # task -> places of the scored documents, ascending; a task left out: all of them
Chances = Mapping[str, stats.Floats]  # task -> probability of every document [N]; a task left out: equal ones
FIRST = 64  # documents of the first look
DRAWN = "drawn"  # the setting that says how documents were drawn, where not all were as likely


def restrict(scores: Scores, places: Positions, chances: Chances | None = None) -> Scores:
    """The scores of these documents alone, as a model has them that was scored on no others."""
    tasks = {name: _part(task, places[name]) if name in places else task for name, task in scores.tasks.items()}
    return marked(replace(scores, tasks=tasks, lm_eval={}), places, scores, chances)


def _part(task: TaskScores, places: Sequence[int]) -> TaskScores:
    def of(listed: Sequence[Any]) -> list[Any]:
        return [listed[i] for i in places] if listed else []

    return replace(
        task, values={metric: of(values) for metric, values in task.values.items()},
        weights={metric: of(weights) for metric, weights in task.weights.items()},
        doc_hash=of(task.doc_hash), prompt_hash=of(task.prompt_hash), choices=of(task.choices), cluster=of(task.cluster),
    )  # fmt: skip


def mark(settings: dict[str, Any], scored: int, total: int) -> dict[str, Any]:
    """Settings that pair with no full sample: what was scored in part is never taken for the whole."""
    return {**settings, "scored": f"{scored} of {total}"}


def marked(scores: Scores, places: Positions, start: Scores, chances: Chances | None = None) -> Scores:
    """The scores of a model on these documents, with the mark of `restrict`; corpus metrics, which need all, are gone.

    Documents of unequal probability pi weigh 1 / pi in every metric, beside what they weigh in it anyway: a mean of them that
    knows no more is the task's (Hajek's), with its variance.
    """
    tasks = dict(scores.tasks)
    for name, at in places.items():
        own, total = tasks[name], len(start.tasks[name])
        settings, weights = mark(own.settings, len(own), total), own.weights
        if chances and name in chances:
            heavy = 1 / np.asarray(chances[name], np.float64)[list(at)]
            weights = {metric: (heavy * own.weights.get(metric, 1.0)).tolist() for metric in own.values}
            settings |= {DRAWN: "by margin"}
        tasks[name] = replace(own, corpus={}, settings=settings, weights=weights)
    return replace(scores, tasks=tasks)


def compare_part(
    pre: Scores,
    post: Scores,
    references: Sequence[Scores],
    places: Positions,
    *,
    chances: Chances | None = None,
    looks: Mapping[str, Looks] | None = None,
    margins: Mapping[str, float] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Result:
    """Forgetting as `compare` has it, of a `post` that was scored on the documents at `places` alone.

    Rows of tasks in `places` are two-phase estimates (`cltk.measure.twophase`): n is the documents that were scored, pre
    the mean over all, post what follows from both; `test` is "two-phase t", their p the estimate's. A metric with weights
    (a ratio of sums) and counts of flips are those of the scored documents. A note a task says what they are worth.

    Args:
        pre: of the start model, on all documents.
        post: on those at `places`, with the mark of `marked`.
        chances: of the tasks whose documents were drawn with unequal probabilities. Their other rows weigh by them, and
            no row of theirs counts flips.
        references: of other models, on all documents of `pre`.
        looks: task -> the looks that were taken at its headline: its interval and p hold over all of them.

    Raises:
        InputError: as `compare`; a reference was scored on other documents than the start model.
    """
    known = chances or {}
    result = compare(restrict(pre, places, known), post, margins=margins, draws=draws, seed=seed)
    used = {row.task: places[row.task] for row in result.rows if row.task in places}
    for one in references:
        if own := {task: at for task, at in used.items() if one.tasks[task].values}:
            pair(_same(pre, own), _same(one, own))
    found = {
        (row.task, row.metric): _estimate(row, pre, post, references, places[row.task], known.get(row.task))
        for row in result.rows
        if row.task in places and _whole(row, pre, post, row.task in known)
    }
    rows = [
        _row(row, found[row.task, row.metric], pre, post.tasks[row.task].settings) if (row.task, row.metric) in found else row
        for row in result.rows
    ]
    taken = {(task, result.headline[task]): one for task, one in (looks or {}).items()}
    rows = [over_looks(row, taken[row.task, row.metric]) if (row.task, row.metric) in taken else row for row in rows]
    heads = [row for row in rows if _in_macro(row, result, pre.members)]
    macro = result.macro
    if any((row.task, row.metric) in found for row in heads):
        macro = _macro(macro, heads, {key: one.estimate for key, one in found.items()}, pre, post)
    notes = [
        f"{task}: {found[task, metric].sentence()}" + (", drawn by margin" if task in known else "")
        for task, metric in result.headline.items() if (task, metric) in found
    ]  # fmt: skip
    return replace(result, rows=rows, macro=macro, notes=[*result.notes, *notes])


def _same(scores: Scores, places: Positions) -> Scores:
    """Without what two-phase estimates do not touch."""
    return replace(scores, tasks={name: task for name, task in scores.tasks.items() if name in places})


def _whole(row: Row, pre: Scores, post: Scores, unequal: bool) -> bool:
    """Whether the metric is a plain mean: every document has it with the same weight, but for that of an unequal draw."""
    weights = post.tasks[row.task].weights.get(row.metric, [])
    return row.metric not in pre.tasks[row.task].weights and (min(weights, default=0) > 0 if unequal else not weights)


def _estimate(
    row: Row, pre: Scores, post: Scores, references: Sequence[Scores], places: Sequence[int], chance: stats.Floats | None
) -> TwoPhase:
    d = _losses(pre, post, row.task, row.metric, places)
    return _two_phase(d, pre, references, row.task, row.metric, places, chance)


def _losses(pre: Scores, post: Scores, task: str, metric: str, places: Sequence[int] | None) -> stats.Floats:
    """d [n], positive is bad."""
    before, after = (np.asarray(side.tasks[task].values[metric], np.float64) for side in (pre, post))
    gone = (before if places is None else before[list(places)]) - after
    return gone if pre.tasks[task].higher_is_better[metric] else -gone


def _two_phase(
    d: stats.Floats, pre: Scores, references: Sequence[Scores], task: str, metric: str, places: Sequence[int] | None,
    chance: stats.Floats | None = None,
) -> TwoPhase:  # fmt: skip
    before = pre.tasks[task]
    bounds = span(metric, np.asarray(before.values[metric]))
    x = predictors(metric, before.values, [own for one in references if metric in (own := one.tasks[task].values)])
    return two_phase(d, list(range(len(before)) if places is None else places), x, before.cluster, chance, bounds)


def _judged(row: Row, estimate: stats.Estimate) -> dict[str, Any]:
    changed = None if row.lost is None or row.gained is None else (row.lost + row.gained) / row.n
    return {**_judge(stats.corrected(estimate), row.margin, row.metric, changed), "test": "two-phase t"}


def _row(row: Row, found: TwoPhase, pre: Scores, settings: Mapping[str, Any]) -> Row:
    before = float(np.mean(pre.tasks[row.task].values[row.metric]))
    after = before - found.estimate.mean if row.higher_is_better else before + found.estimate.mean
    documents = {"scored": found.scored, "total": found.total, "r2": found.r2, "n_eff": found.n_eff}
    if DRAWN in settings:
        size = found.estimate.parts[0].size if found.estimate.parts else float(found.scored)  # of one cluster
        documents |= {DRAWN: settings[DRAWN], "size": size}
    return replace(row, pre=before, post=after, documents=documents, **_judged(row, found.estimate))


def over_looks(row: Row, looks: Looks) -> Row:
    """With the interval and p that hold over all looks."""
    if not looks.information:
        return row
    ci = (min(row.ci[0], row.forgetting - looks.width), max(row.ci[1], row.forgetting + looks.width))
    p = max(row.p, looks.p(row.forgetting, row.se))
    unit = with_unit(row.margin, row.metric, row.lost is not None)
    estimate = row.estimate and _wider(row.estimate, looks.width)
    return replace(row, ci=ci, p=p, verdict=stats.verdict(ci, p, row.noninferiority_p, unit), estimate=estimate)


def _wider(estimate: stats.Estimate, half_width: float) -> stats.Estimate:
    """With the standard error whose 95 % t interval has this half width, where that is larger."""
    se = max(estimate.se, half_width / float(stdtrit(estimate.df, 0.975)))
    return replace(estimate, se=se, skew=estimate.skew * (estimate.se / se) ** 3 if se else estimate.skew)


def until(
    suite: Suite, pre: Scores, references: Sequence[Scores], half_width: float, evaluate: Callable[[Suite], Scores]
) -> tuple[Scores, dict[str, list[int]], dict[str, Looks]]:
    """Score documents, look by look, until the interval of every task's headline has this half width or less.

    Args:
        suite: of all documents; `pre` and `references` are its scores.
        evaluate: scores the model on a part of the suite; what was answered before should come from a journal.

    Returns:
        The scores of the documents that were needed, with the mark of `marked`; their places; the looks at every task. A task
        that needed all of its documents has no places.
    """
    sizes = dict.fromkeys(by_document(suite, pre), FIRST)
    looks = {name: Looks(half_width) for name in sizes}
    while True:
        places = positions(suite, sizes)
        post = marked(evaluate(restricted(suite, places)), places, pre)
        for task, one in list(looks.items()):
            if task not in post.tasks or not post.tasks[task].values:  # its own code failed
                del looks[task]
            if one.ended or task not in looks:
                continue
            metric = headline(list(post.tasks[task].values))
            d, total = _losses(pre, post, task, metric, places.get(task)), len(pre.tasks[task])
            found = _two_phase(d, pre, references, task, metric, places.get(task)).estimate
            careful = stats.corrected(found)  # what the row will say; not narrow enough, it is no look
            reach = max(careful.high - found.mean, found.mean - careful.low)
            if reach <= half_width or task not in places:
                one.look(found.se, found.df, last=task not in places)
            needed = min(one.fraction(found.se), (half_width / reach) ** 2 if reach else math.inf)
            sizes[task] = len(d) if one.ended else next_look(len(d), needed, total)
        if all(one.ended for one in looks.values()):
            return post, places, looks


def _in_macro(row: Row, result: Result, members: Sequence[str]) -> bool:
    """Whether the macro averages over this row, as `compare` says."""
    alike = _kind(row.metric) == _kind(result.macro.metric)
    return alike and result.headline[row.task] == row.metric and row.task not in members


def _macro(macro: Row, heads: list[Row], found: Mapping[tuple[str, str], stats.Estimate], pre: Scores, post: Scores) -> Row:
    """The mean over tasks, each by its own estimate; variances add up."""
    parts = [found.get((row.task, row.metric)) or _plain(row, pre, post) for row in heads]
    means: dict[str, Any] = {side: float(np.mean([getattr(row, side) for row in heads])) for side in ("pre", "post")}
    return replace(macro, **means, **_judged(macro, stats.combine(parts)))


def _plain(row: Row, pre: Scores, post: Scores) -> stats.Estimate:
    """Of a task that was scored whole."""
    one = pair(*(replace(side, tasks={row.task: side.tasks[row.task]}) for side in (pre, post)))[row.task]
    return forgetting._estimate(one, row.metric)
