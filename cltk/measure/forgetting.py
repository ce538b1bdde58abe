"""Scores before and after training -> forgetting, paired document by document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from cltk.errors import InputError
from cltk.measure import bootstrap, stats
from cltk.measure.pairing import Pair, pair_all
from cltk.measure.scores import Scores
from cltk.measure.stats import Estimate

ACCURACIES = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1")  # the first one present is a task's own
POINTS = ("bleu", "chrf", "chrf++", "ter")  # scores of 0 to 100, where 1 is what 1 pp is to an accuracy
MARGINS = {"logprob": 0.1, "margin": 0.1, **dict.fromkeys(POINTS, 1.0)}  # nats an answer; every other metric: 0.01
UNITS = {"nll": "nats", "bits_per_byte": "bits per byte", "logprob": "nats", "margin": "nats", "kl": "nats"} | {
    "margin_norm": "nats per byte", **dict.fromkeys(POINTS, "points")
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Forgetting of one metric on one task. `forgetting` is positive when the model got worse, whatever the metric.

    pre, post, forgetting, se, ci, margin and mde are in the metric's unit (accuracies are shares: 0.01 is 1 pp).
    """

    task: str
    metric: str
    n: int  # documents
    pre: float
    post: float
    forgetting: float  # pre - post when higher is better, else post - pre
    se: float  # paired, by cluster
    ci: tuple[float, float]  # 95 %
    p: float  # two-sided, of no change
    test: str  # what made p: "mcnemar exact", "sign-flip" or, for a score of the whole corpus, "bootstrap"
    lost: int | None  # documents 1 -> 0; None for continuous metrics
    gained: int | None  # documents 0 -> 1
    flips: stats.Flips | None  # the same, corrected for guessing
    clusters: int
    margin: float
    tost_p: float  # of "differs by the margin or more, either way"
    noninferiority_p: float  # of "forgets the margin or more"
    verdict: str
    mde: float  # smallest forgetting that n documents show with 80 % power
    higher_is_better: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what is not finite (one cluster has no standard error) becomes null."""
        return _finite(asdict(self))


@dataclass(frozen=True)
class Result:
    """The forgetting between two models: rows a (task, metric), the macro average, and the documents behind them."""

    rows: list[Row]
    macro: Row
    samples: dict[
        str, list[dict[str, Any]]
    ]  # task -> a row a document: doc_hash, prompt_hash, cluster, {metric}_pre, _post, _d
    headline: dict[str, str]  # task -> the metric that stands for it
    pre_digest: str
    post_digest: str
    divergence: dict[str, dict[str, Any]] = field(default_factory=dict)  # text -> forward KL(start || tuned), nats a token
    notes: list[str] = field(default_factory=list)  # what was asked for and is not so, what could not be compared, a line each
    settings: dict[str, Any] = field(default_factory=dict)  # what was measured, and how: see `cltk.measure.compare.measure`

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what is not finite becomes null."""
        return _finite({
            "rows": [row.to_json() for row in self.rows],
            "macro": self.macro.to_json(),
            "samples": self.samples,
            "headline": self.headline,
            "pre_digest": self.pre_digest,
            "post_digest": self.post_digest,
            "divergence": self.divergence,
            "notes": self.notes,
            "settings": self.settings,
        })  # fmt: skip


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compare(
    pre: Scores, post: Scores, *, margins: Mapping[str, float] | None = None, draws: int = 10_000, seed: int = 0
) -> Result:
    """Forgetting = performance before - performance after, on the same documents, positive is bad.

    Each row: paired mean with clustered t interval; p from an exact McNemar test for 0/1 scores of independent documents,
    else from a sign-flip test (whole clusters); scores of the whole corpus, such as bleu, by the paired document bootstrap
    (`bootstrap.paired`). A task or metric that cannot be compared is named in `notes`, the others are compared.

    The macro row is the unweighted mean over tasks of one metric a task: acc_norm if present, else acc, else exact_match
    (`ACCURACIES`), over the tasks that have one (a group is one); when none has, over nll; when there is none either, over
    the metric that the first task lists first. Its se and ci come from the
    paired cluster bootstrap (documents within tasks; tasks are fixed), its p from the sign-flip test of the same mean.

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
    margins = {metric: MARGINS.get(metric, 0.01) for metric in known} | dict(margins or {})
    rows = [_row(pair, metric, margins[metric], draws, seed) for pair in pairs.values() for metric in pair.higher_is_better]
    chosen = {task: headline(list(pair.higher_is_better)) for task, pair in pairs.items()}
    macro = _macro([row for row in rows if row.task not in pre.members] or rows, pairs, chosen, draws, seed)
    samples = {task: pair.table() for task, pair in pairs.items()}
    notes = [
        *(f"{reason} (left out)" for reason in refused.values()),
        *(note for pair in pairs.values() for note in pair.notes),
    ]
    return Result(rows, macro, samples, chosen, pre.digest, post.digest, notes=notes)


def headline(metrics: list[str]) -> str:
    """The metric that stands for a task: see `compare`."""
    order = [*ACCURACIES, "nll"]
    ranked = [metric for name in order for metric in metrics if metric.split(",")[0] == name]
    return (ranked or metrics)[0]


def _row(pair: Pair, metric: str, margin: float, draws: int, seed: int) -> Row:
    if metric in pair.corpus:
        return _corpus_row(pair, metric, margin)
    d, higher, cluster = pair.loss(metric), pair.higher_is_better[metric], pair.of(metric, pair.cluster)
    estimate = stats.paired_mean(d, cluster)
    flips = None
    if pair.binary(metric):
        right, still = (side[metric] if higher else 1 - side[metric] for side in (pair.pre, pair.post))
        flips = stats.flips(right, still, pair.of(metric, pair.choices))
    if flips and estimate.clusters == len(d):
        p, test = stats.mcnemar(flips.lost, flips.gained), "mcnemar exact"
    else:
        p, test = stats.sign_flip(d, cluster, draws, seed), "sign-flip"
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
        **_judge(replace(estimate, p=p), margin, metric, flips is not None),
    )


def _corpus_row(pair: Pair, metric: str, margin: float) -> Row:
    """A score of all documents together: no flips, the interval from their resamples."""
    before, after = pair.corpus[metric]
    estimate = bootstrap.paired(pair.loss(metric), len(pair.doc_hash), len(set(pair.labels())))
    return Row(
        task=pair.task, metric=metric, n=len(pair.doc_hash), pre=float(before[0]), post=float(after[0]), test="bootstrap",
        lost=None, gained=None, flips=None, higher_is_better=pair.higher_is_better[metric],
        **_judge(estimate, margin, metric, False),
    )  # fmt: skip


def _judge(estimate: Estimate, margin: float, metric: str, binary: bool) -> dict[str, Any]:
    """The fields of a row that follow from its estimate and margin."""
    p_margin = stats.noninferiority(estimate, margin, binary)
    variance = estimate.se**2 * estimate.n
    return {
        "forgetting": estimate.mean,
        "se": estimate.se,
        "ci": estimate.ci,
        "p": estimate.p,
        "clusters": estimate.clusters,
        "margin": margin,
        "tost_p": stats.tost(estimate, margin, binary),
        "noninferiority_p": p_margin,
        "verdict": stats.verdict(estimate.ci, estimate.p, p_margin, _with_unit(margin, metric, binary)),
        "mde": math.inf if math.isnan(variance) else stats.mde(variance, estimate.n, binary=binary),
    }


def _with_unit(margin: float, metric: str, binary: bool) -> str:
    return f"{100 * margin:g} pp" if binary else f"{margin:g} {UNITS.get(metric, '')}".strip()


def _macro(rows: list[Row], pairs: dict[str, Pair], headline: dict[str, str], draws: int, seed: int) -> Row:
    heads = [row for row in rows if headline[row.task] == row.metric]
    wanted = next((name for name in ("accuracy", "nll") if any(_kind(row.metric) == name for row in heads)), None)
    chosen = [row for row in heads if _kind(row.metric) == (wanted or heads[0].metric)]
    size = len(chosen) ** 2 / sum(1 / row.n for row in chosen)  # documents of a single task with the same standard error
    groups = sum(row.clusters for row in chosen)
    if chosen[0].metric in pairs[chosen[0].task].corpus:
        estimate = _macro_of_corpora(chosen, pairs, size, groups)
    else:
        picked = [(row.metric, pairs[row.task]) for row in chosen]
        losses = {one.task: (one.loss(metric), one.of(metric, one.cluster)) for metric, one in picked}
        drawn = bootstrap.macro(losses, draws, seed)
        weighted = np.concatenate([d / (len(d) * len(losses)) for d, _ in losses.values()])
        labels = [label for metric, one in picked for label in one.labels(f"{one.task}/", metric)]
        p = stats.sign_flip(weighted, labels, draws, seed)
        estimate = Estimate(drawn.mean, drawn.se, *drawn.ci, p, size, groups)
    binary = all(row.flips for row in chosen)
    metrics = {row.metric for row in chosen}
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
        **_judge(estimate, min(row.margin for row in chosen), chosen[0].metric, binary),
    )


def _macro_of_corpora(chosen: list[Row], pairs: dict[str, Pair], size: float, groups: int) -> Estimate:
    """The mean over tasks of a score that each task has for its whole corpus only; tasks are drawn independently."""
    losses = [pairs[row.task].loss(row.metric) for row in chosen]
    shortest = min(map(len, losses))
    return bootstrap.paired(np.mean([loss[:shortest] for loss in losses], axis=0), size, groups)


def _kind(metric: str) -> str:
    return "accuracy" if metric.split(",")[0] in ACCURACIES else metric


def difference(
    post_a: Scores, post_b: Scores, *, margins: Mapping[str, float] | None = None, draws: int = 10_000, seed: int = 0
) -> Result:
    """How much more method a forgets than method b: forgetting_a - forgetting_b, paired on the same documents.

    (pre - a) - (pre - b) = b - a: the scores before cancel document by document, so the rows are those of `compare` with
    b in the place of `pre` and a in that of `post`. Raises as `compare` does.
    """
    result = compare(post_b, post_a, margins=margins, draws=draws, seed=seed)

    def reword(row: Row) -> Row:
        unit = _with_unit(row.margin, row.metric, row.lost is not None)
        return replace(row, verdict=stats.verdict(row.ci, row.p, row.noninferiority_p, unit, more=True))

    return replace(result, rows=[reword(row) for row in result.rows], macro=reword(result.macro))


def confirm(results: Mapping[str, Result]) -> dict[str, float]:
    """Method -> Holm-adjusted p of its macro forgetting: the confirmatory family, one claim a method."""
    return dict(zip(results, stats.holm([result.macro.p for result in results.values()]), strict=True))


def explore(results: Mapping[str, Result]) -> dict[str, dict[str, float]]:
    """Method -> task -> Benjamini-Hochberg-adjusted p of the task's headline metric, over all methods and tasks at once."""
    heads = [(m, row) for m, result in results.items() for row in result.rows if result.headline[row.task] == row.metric]
    adjusted = stats.benjamini_hochberg([row.p for _, row in heads])
    out: dict[str, dict[str, float]] = {method: {} for method in results}
    for (method, row), p in zip(heads, adjusted, strict=True):
        out[method][row.task] = p
    return out
