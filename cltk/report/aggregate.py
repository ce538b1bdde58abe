"""Records -> one summary a method: seeds together, methods against plain training, p-values adjusted over what is claimed.

Seeds and documents are different noise (`cltk.report.noise`), never a pooled n. Confirmatory: the primary endpoint, alone and
against plain, Holm (1979) over methods. Exploratory: methods x other tasks, Benjamini and Hochberg (1995). "Forgets" and "does
not forget by more than M" are a family each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cltk.measure import stats
from cltk.measure.forgetting import averaged
from cltk.report import noise
from cltk.report.effects import Effect, Item, combined, kind
from cltk.report.groups import Group, group_entries, references
from cltk.report.sides import Side, common_seeds, difference
from cltk.report.sources import Entry, ScoreFiles, headline_rows, stack

PART = "part of the documents was scored, the others are predicted from the start model and references (two-phase)"


@dataclass
class Summary:
    """One method (with one setting of everything that is no seed)."""

    label: str
    family: str  # the same method with any setting
    plain: bool
    entries: list[Entry]  # one a seed, ascending
    retain: list[Effect]
    learn: list[Effect]
    macro: Effect | None
    primary: Effect | None  # old-text NLL where there is one, else the macro accuracy
    primary_tasks: list[str]
    per_document: bool  # whether seeds x documents could be drawn
    reference: int | None = None  # the summary, by number, of the plain training that this one is held against
    difference: Effect | None = None  # primary: forgetting - forgetting of plain
    learning: Effect | None = None  # new-task loss - that of plain: positive is learned less
    notes: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        return [entry.record.get("seed", 0) for entry in self.entries]

    @property
    def new_task(self) -> Effect | None:
        """NLL of the new task where there is one."""
        return next((effect for effect in self.learn if effect.metric == "nll"), None)

    def on(self, task: str) -> Effect | None:
        """Forgetting on one old task."""
        return next((effect for effect in self.retain if effect.task == task), None)

    def is_primary(self, effect: Effect) -> bool:
        """Whether the primary endpoint is this one task."""
        return self.primary_tasks == [effect.task]


def summarize(entries: Sequence[Entry]) -> list[Summary]:
    """A summary for every method and setting, in the order of their first records; linear in the number of records."""
    groups = group_entries(entries)
    plain, files = references(groups), ScoreFiles()
    kept = {i: Side.read(groups[i].entries, files) for i in set(plain) if i is not None}
    done = []
    for i, (group, reference) in enumerate(zip(groups, plain, strict=True)):
        read = len(group.entries) > 1 or reference is not None
        side = kept[i] if i in kept else Side.read(group.entries, files) if read else Side(group.entries, {})
        summary = _summary(group, side)
        if reference is not None:
            summary.reference = reference
            _compare(summary, side, kept[reference])
        done.append(summary)
    return _adjust(done)


def _summary(group: Group, side: Side) -> Summary:
    retain, learn = (_items(group, role, side) for role in ("retain", "learn"))
    texts = _texts(group, [item for item in retain if item.kind == "nll"])
    accuracies = [item for item in retain if item.kind == "accuracy"]
    macro = _mean(group, accuracies, "macro") if accuracies else None
    chosen = texts or accuracies or retain[:1]
    return Summary(
        group.label, group.family, group.plain, group.entries,
        retain=[combined([item], item.rows[0]["task"]) for item in retain],
        learn=[combined([item], item.rows[0]["task"]) for item in learn],
        macro=macro,
        primary=_mean(group, texts, "old text") if texts else macro or (combined(chosen, "macro") if chosen else None),
        primary_tasks=[item.rows[0]["task"] for item in chosen],
        per_document=all(item.whole is not None for item in [*retain, *learn]),
        notes=[*group.notes, *([PART] if any(entry.record.get("documents") for entry in group.entries) else [])],
    )  # fmt: skip


def _texts(group: Group, items: list[Item]) -> list[Item]:
    """Those whose NLLs have a mean (`averaged`)."""
    metrics: dict[str, list[str]] = {item.rows[0]["task"]: [] for item in items}
    for row in group.entries[0].record["retain"]["rows"] if items else ():
        metrics.get(row["task"], []).append(row["metric"])
    kept = averaged(metrics)
    return [item for item in items if item.rows[0]["task"] in kept]


def _items(group: Group, role: str, side: Side) -> list[Item]:
    """The tasks that every seed has, in the order of the first."""
    by_seed = [{row["task"]: row for row in headline_rows(entry.record, role)} for entry in group.entries]
    items = []
    for task in by_seed[0]:
        if all(task in rows for rows in by_seed):
            rows = [found[task] for found in by_seed]
            whole = stack(side.runs(task))
            right = whole.right if whole is not None and len(rows) > 1 else None
            items.append(Item(rows, whole, None if right is None else noise.churn(right)))
    return items


def _mean(group: Group, items: list[Item], name: str) -> Effect:
    """The mean over tasks; of one seed, what its record says."""
    if len(items) == 1:
        return combined(items, items[0].rows[0]["task"])
    row = group.entries[0].record["retain"]["macro"]
    same = kind(row["metric"]) == items[0].kind
    if same and row["metric"] == "nll":  # older records took tasks with a perplexity in
        same = row["n"] == sum(item.rows[0]["n"] for item in items)
    if len(group.entries) == 1 and same:
        return Effect.of(row, name)
    return combined(items, name)


def _compare(summary: Summary, side: Side, plain: Side) -> None:
    """Fill in the differences to plain training: the same seeds on the same documents."""
    if not common_seeds(side, plain):
        summary.notes.append("not compared with plain training: no seed in common")
        return
    summary.difference = difference(side, plain, summary.primary_tasks, "retain")
    if summary.difference is None:
        summary.notes.append("not compared with plain training: per-document scores are missing or of other documents")
    summary.learning = difference(side, plain, [effect.task for effect in summary.learn[:1]], "learn")


def _adjust(summaries: list[Summary]) -> list[Summary]:
    """Holm over methods for the primary endpoint, and for its difference to plain; BH over methods x the other tasks."""
    for name in ("primary", "difference"):
        found = [(summary, effect) for summary in summaries if (effect := getattr(summary, name)) is not None]
        for (summary, _), effect in zip(found, _family([effect for _, effect in found], stats.holm), strict=True):
            setattr(summary, name, effect)
    others = [(summary, i) for summary in summaries for i, one in enumerate(summary.retain) if not summary.is_primary(one)]
    adjusted = _family([summary.retain[i] for summary, i in others], stats.benjamini_hochberg)
    for (summary, i), effect in zip(others, adjusted, strict=True):
        summary.retain[i] = effect
    for summary in summaries:
        if summary.primary is not None and len(summary.primary_tasks) == 1:
            summary.retain = [summary.primary if summary.is_primary(one) else one for one in summary.retain]
    return summaries


def _family(effects: Sequence[Effect], adjust: Callable[[Sequence[float]], list[float]]) -> list[Effect]:
    """Both claims, each adjusted over all effects."""
    changes, margins = adjust([one.estimate.p for one in effects]), adjust([one.p_margin for one in effects])
    return [one.over_family(p, p_margin) for one, p, p_margin in zip(effects, changes, margins, strict=True)]
