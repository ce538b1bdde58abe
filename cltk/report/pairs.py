"""Any two methods on the same seeds and documents, endpoint by endpoint; and the documents that were lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cltk.measure import stats
from cltk.report.aggregate import Summary
from cltk.report.effects import Effect
from cltk.report.sides import Side, difference
from cltk.report.sources import ScoreFiles, stack

ALPHA = 0.05


@dataclass(frozen=True)
class Endpoint:
    """A column of the main table: what of a summary it shows, and the tasks behind it."""

    name: str
    role: str  # "retain" or "learn"
    sign: int  # 1: forgetting, small is good; -1: shown as a gain, large is good
    effect: Callable[[Summary], Effect | None]
    tasks: Callable[[Summary], list[str]]


@dataclass(frozen=True)
class Mark:
    """What paired tests say of one method at one endpoint."""

    differs: bool  # from plain training, Holm over methods
    best: bool  # or tied with the best: Holm over comparisons with it finds no difference


@dataclass(frozen=True)
class Flip:
    """One document of one task, over the seeds of a method: scores before and after (mean over seeds)."""

    document: str  # its hash
    cluster: str
    before: float
    after: float
    lost: tuple[int, ...]  # the seeds in which it got worse


class Study:
    """Summaries, and every paired comparison that the per-document scores beside the records allow."""

    def __init__(self, summaries: Sequence[Summary]) -> None:
        self.summaries = list(summaries)
        self._files = ScoreFiles()
        self._sides: dict[int, Side] = {}

    def side(self, i: int) -> Side:
        """The runs of the i-th summary, document by document; read once."""
        if i not in self._sides:
            self._sides[i] = Side.read(self.summaries[i].entries, self._files)
        return self._sides[i]

    def marks(self, endpoint: Endpoint) -> list[Mark]:
        """A mark for each summary. Nothing is best unless a paired test compared it with another method."""
        differs = self._significant(self._tests(endpoint, {i: one.reference for i, one in enumerate(self.summaries)}))
        means = {i: effect.estimate.mean for i, one in enumerate(self.summaries) if (effect := endpoint.effect(one))}
        compared = [i for i in means if self._whole(i, endpoint)]
        tied: set[int] = set()
        if compared:
            best = min(compared, key=lambda i: means[i])
            if tested := self._tests(endpoint, {i: best for i in compared if i != best}):
                tied = {best, *tested} - self._significant(tested)
        return [Mark(i in differs, i in tied) for i in range(len(self.summaries))]

    def _whole(self, i: int, endpoint: Endpoint) -> bool:
        return all(stack(self.side(i).runs(task)) is not None for task in endpoint.tasks(self.summaries[i]))

    def _tests(self, endpoint: Endpoint, against: Mapping[int, int | None]) -> dict[int, float]:
        """p of each method against the other given for it; methods with other tasks or without scores are left out."""
        found = {}
        for i, j in against.items():
            tasks = endpoint.tasks(self.summaries[i])
            if j is not None and tasks and tasks == endpoint.tasks(self.summaries[j]):
                one = difference(self.side(i), self.side(j), tasks, endpoint.role)
                if one is not None:
                    found[i] = one.estimate.p
        return found

    def _significant(self, tests: Mapping[int, float]) -> set[int]:
        return {i for i, p in zip(tests, stats.holm(list(tests.values())), strict=True) if p < ALPHA}

    def flips(self, i: int, task: str) -> list[Flip] | None:
        """The documents of a task that got worse, worst first; None when there are no scores of all seeds."""
        side = self.side(i)
        whole = stack(side.runs(task))
        if whole is None:
            return None
        before, after, worse = whole.before.mean(axis=0), whole.after.mean(axis=0), whole.d > 0
        clusters, seeds = whole.cluster or [""] * len(whole.documents), np.asarray(side.seeds)
        order = np.lexsort((-whole.d.mean(axis=0), -worse.sum(axis=0)))
        return [
            Flip(whole.documents[k], clusters[k], float(before[k]), float(after[k]), tuple(seeds[worse[:, k]].tolist()))
            for k in order
            if worse[:, k].any()
        ]


def retained(summaries: Sequence[Summary]) -> list[str]:
    """All old tasks, in the order in which they appear."""
    return list(dict.fromkeys(effect.task for summary in summaries for effect in summary.retain))


def endpoints(summaries: Sequence[Summary]) -> list[Endpoint]:
    """New-task NLL, each old text's NLL, mean accuracy: those that any method has."""
    texts = dict.fromkeys(effect.task for summary in summaries for effect in summary.retain if effect.metric == "nll")
    found = [
        Endpoint("new-task NLL, fall (nats)", "learn", -1, lambda one: one.new_task, _one(lambda one: one.new_task)),
        *[Endpoint(f"{name} NLL, rise (nats)", "retain", 1, _on(name), _one(_on(name))) for name in texts],
        Endpoint("accuracy lost (pp)", "retain", 1, lambda one: one.macro, _accuracies),
    ]
    return [endpoint for endpoint in found if any(endpoint.effect(summary) is not None for summary in summaries)]


def _accuracies(summary: Summary) -> list[str]:
    return [effect.task for effect in summary.retain if effect.binary]


def _on(task: str) -> Callable[[Summary], Effect | None]:
    return lambda summary: summary.on(task)


def _one(effect: Callable[[Summary], Effect | None]) -> Callable[[Summary], list[str]]:
    return lambda summary: [found.task] if (found := effect(summary)) is not None else []
