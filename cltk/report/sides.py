"""One method's runs document by document, and the difference of two methods on the same seeds and documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cltk.measure.forgetting import span
from cltk.report import noise
from cltk.report.effects import Effect, judged
from cltk.report.sources import Entry, Losses, ScoreFiles, headline_rows, stack


@dataclass(frozen=True)
class Side:
    """The runs of one method, one a seed; `documents` maps a task to its losses a seed, None where a run has none."""

    entries: Sequence[Entry]
    documents: dict[str, list[Losses | None]]  # empty when none was read

    @classmethod
    def read(cls, entries: Sequence[Entry], files: ScoreFiles) -> Side:
        found = [files.losses(entry) for entry in entries]
        tasks = dict.fromkeys(task for losses in found if losses for task in losses)
        return cls(entries, {task: [losses.get(task) if losses else None for losses in found] for task in tasks})

    @property
    def seeds(self) -> list[int]:
        return [entry.record.get("seed", 0) for entry in self.entries]

    def runs(self, task: str, seeds: Sequence[int] | None = None) -> list[Losses | None]:
        """The task's losses of these seeds, of all when not given."""
        found, own = self.documents.get(task, []), self.seeds
        return found if seeds is None or not found else [found[own.index(seed)] for seed in seeds]


def common_seeds(a: Side, b: Side) -> list[int]:
    """The seeds that both have, in the order of a's."""
    return [seed for seed in a.seeds if seed in b.seeds]


def difference(a: Side, b: Side, tasks: Sequence[str], role: str) -> Effect | None:
    """Forgetting of a minus that of b: the mean over tasks, on common seeds and the same documents; None without them."""
    common, evidence = common_seeds(a, b), []
    rows = [row for entry in a.entries for row in headline_rows(entry.record, role) if row["task"] in tasks]
    metrics = {row["task"]: row["metric"] for row in rows}
    for task in tasks:
        ours, theirs = stack(a.runs(task, common)), stack(b.runs(task, common))
        if ours is None or theirs is None or ours.documents != theirs.documents:
            return None
        bounds = span(metrics[task], ours.after, theirs.after)
        evidence.append(noise.from_documents(ours.d - theirs.d, ours.cluster, bounds))
    name = tasks[0] if len(tasks) == 1 else "mean"
    return replace(judged(name, rows, evidence), more=True) if evidence else None
