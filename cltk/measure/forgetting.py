"""Scores before and after training -> forgetting, paired document by document."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cltk.errors import InputError
from cltk.measure import bootstrap, stats
from cltk.measure.pairing import Pair, pair_all
from cltk.measure.results import Result, Row
from cltk.measure.scores import Scores
from cltk.measure.stats import Estimate, Floats, Part

__all__ = [
    "ACCURACIES", "MARGINS", "POINTS", "UNITS", "Result", "Row", "averaged", "compare", "headline", "span",
]  # fmt: skip

ACCURACIES = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1")  # the first one present is a task's own
POINTS = ("bleu", "chrf", "chrf++", "ter")  # scores of 0 to 100, where 1 is what 1 pp is to an accuracy
MARGINS = {"logprob": 0.1, "margin": 0.1, "judge_rating": 0.1, **dict.fromkeys(POINTS, 1.0)}  # all others: 0.01
UNITS = {"nll": "nats", "bits_per_byte": "bits per byte", "logprob": "nats", "margin": "nats", "kl": "nats"} | {
    "margin_norm": "nats per byte", "judge_rating": "grades", **dict.fromkeys(POINTS, "points")
}  # fmt: skip


def compare(
    pre: Scores, post: Scores, *, margins: Mapping[str, float] | None = None, draws: int = 10_000, seed: int = 0
) -> Result:
    """Forgetting = performance before - performance after, on the same documents, positive is bad.

    Each row: paired mean with its clustered interval (`stats.corrected`); p from an exact McNemar test for 0/1 scores of
    independent documents, else the larger of a sign-flip test's (whole clusters) and of the interval's own, as neither skew
    nor likeness within clusters may make a claim; scores of the whole corpus, such as bleu, by the paired document bootstrap
    (`bootstrap.paired`). A task or metric that cannot be compared is named in `notes`, the others are compared.

    The macro row is the unweighted mean over tasks of one metric a task: acc_norm if present, else acc, else exact_match
    (`ACCURACIES`), over the tasks that have one (a group is one); when none has, over nll (of texts, where there are any:
    `averaged`); when there is none either, over the metric that the first task lists first. Its variance is the sum of the
    tasks' (`stats.combine`; tasks are fixed), its p the larger of its interval's and of the sign-flip test of the same mean.

    Args:
        margins: metric -> the loss that does not matter, in the metric's unit; `MARGINS` and 0.01 where not given.
        draws: bootstrap and permutation draws.

    Raises:
        InputError: no task was measured on the same documents, prompts and settings on both sides, with finite scores.
    """
    pairs, refused = pair_all(pre, post)
    known = {metric for pair in pairs.values() for metric in pair.higher_is_better}
    for metric, margin in (margins or {}).items():
        if metric not in known or not margin > 0:
            raise InputError(f"margin {metric}={margin}: name one of {', '.join(sorted(known))} and give a number above 0")
    margins = {metric: MARGINS.get(metric.split(",")[0], 0.01) for metric in known} | dict(margins or {})
    rows = [_row(pair, metric, margins[metric], draws, seed) for pair in pairs.values() for metric in pair.higher_is_better]
    chosen = {task: headline(list(pair.higher_is_better)) for task, pair in pairs.items()}
    macro = _macro([row for row in rows if row.task not in pre.members] or rows, pairs, chosen, draws, seed)
    samples = {task: pair.table() for task, pair in pairs.items()}
    notes = [
        *(f"{reason} (left out)" for reason in refused.values()),
        *(note for pair in pairs.values() for note in pair.notes),
    ]
    left_out = refused | {f"{task}/{metric}": why for task, pair in pairs.items() for metric, why in pair.left_out.items()}
    corpus = {
        task: {metric: {"pre": a.tolist(), "post": b.tolist()} for metric, (a, b) in pair.corpus.items()}
        for task, pair in pairs.items() if pair.corpus
    }  # fmt: skip
    return Result(
        rows, macro, samples, chosen, pre.digest, post.digest, notes=notes, left_out=left_out, corpus=corpus,
        members=[task for task in pre.members if task in pairs],
        choices={task: pair.choices for task, pair in pairs.items() if pair.choices},
    )  # fmt: skip


def headline(metrics: list[str]) -> str:
    """The metric that stands for a task: see `compare`."""
    order = [*ACCURACIES, "nll"]
    ranked = [metric for name in order for metric in metrics if metric.split(",")[0] == name]
    return (ranked or metrics)[0]


def averaged(metrics: Mapping[str, Collection[str]]) -> list[str]:
    """Of tasks with an NLL those whose mean has a unit: texts (nats a token; they have bits per byte, too) where there are any.

    lm-eval's tasks with a perplexity have nats a document instead, of whatever length the document has.

    Args:
        metrics: task -> all of its metrics.
    """
    return [task for task, found in metrics.items() if "bits_per_byte" in found] or list(metrics)


def span(metric: str, *scores: Floats) -> float | None:
    """What the metric's highest and lowest score differ by; None for those without bounds (nats, bits).

    1 for scores between 0 and 1, 100 for POINTS; a score of another kind is taken to reach as far as these scores do.
    """
    unit = UNITS.get(metric.split(",")[0])
    if unit is not None:
        return 100.0 if unit == "points" else None
    return max(1.0, float(max(one.max() for one in scores) - min(one.min() for one in scores)))


def _estimate(pair: Pair, metric: str) -> Estimate:
    """The mean loss of a metric, paired, with the metric's bounds: a document of the largest weight may lose that much more."""
    bounds = span(metric, pair.pre[metric], pair.post[metric])
    bounds = bounds and max(bounds, pair.stretch.get(metric, 1.0))
    return stats.paired_mean(pair.loss(metric), pair.of(metric, pair.cluster), span=bounds)


def _row(pair: Pair, metric: str, margin: float, draws: int, seed: int) -> Row:
    if metric in pair.corpus:
        return _corpus_row(pair, metric, margin)
    d, higher, cluster = pair.loss(metric), pair.higher_is_better[metric], pair.of(metric, pair.cluster)
    estimate = stats.corrected(_estimate(pair, metric))
    flips = None
    if pair.binary(metric):
        right, still = (side[metric] if higher else 1 - side[metric] for side in (pair.pre, pair.post))
        flips = stats.flips(right, still, pair.of(metric, pair.choices))
    if flips and estimate.clusters == len(d):
        p, test = stats.mcnemar(flips.lost, flips.gained), "mcnemar exact"
    else:
        p, test = max(stats.sign_flip(d, cluster, draws, seed), estimate.p), "sign-flip"
    return Row(
        task=pair.task,
        metric=metric,
        n=len(d),
        pre=float(pair.pre[metric].mean()),
        post=float(pair.post[metric].mean()),
        test=test,
        lost=flips.lost if flips else None,
        gained=flips.gained if flips else None,
        flips=flips,
        higher_is_better=higher,
        **_judge(replace(estimate, p=p), margin, metric, flips.lost_rate + flips.gained_rate if flips else None),
    )


def _corpus_row(pair: Pair, metric: str, margin: float) -> Row:
    """A score of all documents together: no flips, the interval from their resamples."""
    before, after = pair.corpus[metric]
    return Row(
        task=pair.task, metric=metric, n=len(pair.doc_hash), pre=float(before[0]), post=float(after[0]), test="bootstrap",
        lost=None, gained=None, flips=None, higher_is_better=pair.higher_is_better[metric],
        **_judge(_corpus_estimate([pair], metric), margin, metric, None),
    )  # fmt: skip


def _corpus_estimate(pairs: Sequence[Pair], metric: str) -> Estimate:
    """The mean over tasks of a score that each has for its whole corpus only; tasks are drawn independently."""
    losses = [pair.loss(metric) for pair in pairs]
    shortest, parts = min(map(len, losses)), []
    for pair, loss in zip(pairs, losses, strict=True):
        n, groups = len(pair.doc_hash), len(set(pair.labels()))
        known = (len(loss) > 2) and groups > 1
        variance = float(loss[1:].var(ddof=1)) * groups / (groups - 1) if known else math.nan
        scores = np.array([side[0] for side in pair.corpus[metric]])
        bounds = span(metric, scores) if UNITS.get(metric) or ((scores >= 0) & (scores <= 1)).all() else None
        parts.append(Part(variance, groups - 1, groups, n, groups, groups, bounds, 1 / len(pairs)))
    size = len(pairs) ** 2 / sum(1 / part.n for part in parts)
    mean = np.mean([loss[:shortest] for loss in losses], axis=0)
    return replace(bootstrap.paired(mean, size, sum(part.clusters for part in parts)), parts=tuple(parts))


def _judge(estimate: Estimate, margin: float, metric: str, changed: float | None) -> dict[str, Any]:
    """The fields of a row that follow from its estimate and margin; `changed`: the share of flips of a 0/1 score."""
    p_margin = stats.noninferiority(estimate, margin)
    return {
        "forgetting": estimate.mean,
        "se": estimate.se,
        "ci": estimate.ci,
        "p": estimate.p,
        "clusters": estimate.clusters,
        "margin": margin,
        "tost_p": stats.tost(estimate, margin),
        "noninferiority_p": p_margin,
        "verdict": stats.verdict(estimate.ci, estimate.p, p_margin, with_unit(margin, metric, changed is not None)),
        "mde": _mde(estimate, changed),
        "estimate": estimate,
    }


def _mde(estimate: Estimate, changed: float | None) -> float:
    """The smallest loss that these documents show; of a 0/1 score by the independent documents that clusters are worth."""
    if math.isnan(estimate.se):
        return math.inf
    if changed is None:
        return stats.mde(estimate.se**2 * estimate.n, estimate.n, df=estimate.df)
    return stats.mde(changed, 1 / sum(part.weight**2 / min(part.size, part.gains) for part in estimate.parts), binary=True)


def with_unit(margin: float, metric: str, binary: bool) -> str:
    """A margin as tables print it: pp of a score of 0 and 1, else in the metric's own unit."""
    return f"{100 * margin:g} pp" if binary else f"{margin:g} {UNITS.get(metric.split(',')[0], '')}".strip()


def _macro(rows: list[Row], pairs: dict[str, Pair], headline: dict[str, str], draws: int, seed: int) -> Row:
    heads = [row for row in rows if headline[row.task] == row.metric]
    wanted = next((name for name in ("accuracy", "nll") if any(_kind(row.metric) == name for row in heads)), None)
    chosen = [row for row in heads if _kind(row.metric) == (wanted or heads[0].metric)]
    if wanted == "nll":
        texts = averaged({row.task: pairs[row.task].higher_is_better for row in chosen})
        chosen = [row for row in chosen if row.task in texts]
    if len(chosen) == 1:
        return replace(chosen[0], task="macro", flips=None)
    picked = [(row.metric, pairs[row.task]) for row in chosen]
    whole = [metric in pair.corpus for metric, pair in picked]
    if all(whole) and len({metric for metric, _ in picked}) == 1:
        estimate = _corpus_estimate([pair for _, pair in picked], chosen[0].metric)
    elif any(whole):  # some scores are of documents, others of all of them: no sign flips
        each = [
            _corpus_estimate([pair], metric) if metric in pair.corpus else _estimate(pair, metric) for metric, pair in picked
        ]
        estimate = stats.corrected(stats.combine(each))
    else:
        estimate = stats.corrected(stats.combine([_estimate(pair, metric) for metric, pair in picked]))
        weighted = np.concatenate(
            [pair.loss(metric) / (row.n * len(chosen)) for row, (metric, pair) in zip(chosen, picked, strict=True)]
        )
        labels = [label for metric, one in picked for label in one.labels(f"{one.task}/", metric)]
        estimate = replace(estimate, p=max(stats.sign_flip(weighted, labels, draws, seed), estimate.p))
    binary = all(row.flips for row in chosen)
    metrics = {row.metric for row in chosen}
    changed = sum((row.lost or 0) / row.n + (row.gained or 0) / row.n for row in chosen) / len(chosen) if binary else None
    return Row(
        task="macro",
        metric=metrics.pop() if len(metrics) == 1 else "accuracy",
        n=sum(row.n for row in chosen),
        pre=float(np.mean([row.pre for row in chosen])),
        post=float(np.mean([row.post for row in chosen])),
        test=chosen[0].test if chosen[0].test == "bootstrap" else "sign-flip",
        lost=sum(row.lost or 0 for row in chosen) if binary else None,
        gained=sum(row.gained or 0 for row in chosen) if binary else None,
        flips=None,
        higher_is_better=chosen[0].higher_is_better,
        **_judge(estimate, min(row.margin for row in chosen), chosen[0].metric, changed),
    )


def _kind(metric: str) -> str:
    return "accuracy" if metric.split(",")[0] in ACCURACIES else metric
