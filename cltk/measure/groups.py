"""A group's own row: its members' documents together, weighted as the group says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cltk.measure.scores import TaskScores

OWN = ("logprob", "margin", "margin_norm")  # metrics of ours that a group's file cannot name


@dataclass(frozen=True)
class Group:
    """A named set of tasks. `metrics`: (metric, filters or None for all) -> whether members weigh by their documents.

    A group that lists no metrics has all that its members share, weighted by documents, which is lm-eval's default weight.
    """

    name: str
    members: tuple[str, ...]
    metrics: Mapping[tuple[str, tuple[str, ...] | None], bool] = field(default_factory=dict)

    @classmethod
    def of(cls, group: Any) -> Group:
        """From lm-eval's own."""
        listed = {
            (one.metric, None if one.filter_list is None else tuple(one.filter_list)): bool(one.weight_by_size)
            for one in group.aggregate_metric_list or []
        }
        return cls(group.name, tuple(task.task_name for task in group.get_all_tasks()), listed)

    def by_size(self, metric: str) -> bool | None:
        """Whether members weigh by their documents in `metric`; None when the group has no such metric."""
        if not self.metrics or metric in OWN:
            return next(iter(self.metrics.values()), True)
        name, _, chosen = metric.partition(",")
        for (listed, filters), by_size in self.metrics.items():
            if listed == name and (filters is None or not chosen or chosen in filters):
                return by_size
        return None


def grouped(
    tasks: Mapping[str, TaskScores], groups: Sequence[Group], named: Sequence[str], members: bool
) -> tuple[dict[str, TaskScores], list[str], list[str]]:
    """Groups in the place of their members, in the order named; then, with `members`, what is inside of groups.

    Returns:
        The tasks and groups; the names among them that are inside of a group; what has no row, a line each.
    """
    found, inside, notes = {}, [], []
    for group in groups:
        one, missing = pool(group, tasks) if all(name in tasks for name in group.members) else (None, [])
        if one is None:
            notes.append(f"group {group.name}: its members have no metric in common; they have a row each")
            continue
        if missing:
            notes.append(f"group {group.name}: its members do not share {', '.join(missing)}, so it has no such row")
        found[group.name] = one
        inside += [name for name in group.members if name not in inside]
    outer = {name: found.get(name) or tasks[name] for name in named if name in found or name in tasks}
    rest = {name: one for name, one in ({**found, **tasks}).items() if name not in outer and (members or name not in inside)}
    return {**outer, **rest}, [name for name in rest if name in inside or name in found], notes


def pool(group: Group, tasks: Mapping[str, TaskScores]) -> tuple[TaskScores | None, list[str]]:
    """The group as one task, and the metrics that its members do not share; None when they share none.

    The group's score is sum_t a_t s_t / sum_t a_t over its members' scores s_t: a_t is the number of documents n_t, or 1 where
    the group weighs all alike. So a document of weight w_i has the weight w_i a_t / sum_t w in the group. Scores of a whole
    corpus, and their resamples, are averaged with the same a_t. Clusters stay within their member.
    """
    members = [tasks[name] for name in group.members]
    seen = list(dict.fromkeys(metric for member in members for metric in member.higher_is_better))
    asked = [metric for metric in seen if group.by_size(metric) is not None]
    values: dict[str, list[float]] = {}
    weights: dict[str, list[float]] = {}
    corpus: dict[str, list[float | None]] = {}
    for metric in asked:
        shares = [float(len(member)) if group.by_size(metric) else 1.0 for member in members]
        if len({member.higher_is_better.get(metric) for member in members}) > 1:
            continue
        if all(metric in member.values for member in members):
            values[metric] = [x for member in members for x in member.values[metric]]
            weights[metric] = _weights(members, metric, shares)
        elif all(metric in member.corpus for member in members):
            corpus[metric] = _averages([member.corpus[metric] for member in members], shares)
    shared = [metric for metric in asked if metric in values or metric in corpus]
    if not shared:
        return None, asked
    pooled = TaskScores(
        task=group.name,
        values=values,
        higher_is_better={metric: members[0].higher_is_better[metric] for metric in shared},
        doc_hash=_joined(members, "doc_hash"),
        prompt_hash=_joined(members, "prompt_hash"),
        choices=_joined(members, "choices") if all(member.choices for member in members) else [],
        cluster=_clusters(members),
        settings=_settings(members),
        weights={metric: found for metric, found in weights.items() if set(found) != {1.0}},
        corpus=corpus,
        left_out={f"{m.task}: {metric}": why for m in members for metric, why in m.left_out.items()},
        notes=[f"{member.task}: {note}" for member in members for note in member.notes],
    )
    return pooled, [metric for metric in asked if metric not in shared]


def _weights(members: Sequence[TaskScores], metric: str, shares: Sequence[float]) -> list[float]:
    """Weights of all documents, 1 on average."""
    total, found = sum(map(len, members)), []
    for member, share in zip(members, shares, strict=True):
        own = member.weights.get(metric) or [1.0] * len(member)
        found += [w * share * total / (sum(own) * sum(shares)) for w in own]
    return [1.0 if math.isclose(w, 1.0) else w for w in found]


def _averages(corpora: Sequence[list[float | None]], shares: Sequence[float]) -> list[float | None]:
    found: list[float | None] = []
    for scores in zip(*corpora, strict=False):
        there = [score for score in scores if score is not None]
        whole = sum(share * score for share, score in zip(shares, there, strict=True)) if len(there) == len(scores) else None
        found.append(None if whole is None else whole / sum(shares))
    return found


def _joined(members: Sequence[TaskScores], name: str) -> list[Any]:
    return [one for member in members for one in getattr(member, name)]


def _clusters(members: Sequence[TaskScores]) -> list[str]:
    if not any(member.cluster for member in members):
        return []
    return [f"{m.task}/{label}" for m in members for label in (m.cluster or map(str, range(len(m))))]


def _settings(members: Sequence[TaskScores]) -> dict[str, Any]:
    """What all members have in common as it is; what they have not, by member."""
    keys = dict.fromkeys(key for member in members for key in member.settings)
    found: dict[str, Any] = {}
    for key in keys:
        given = {member.task: member.settings.get(key) for member in members}
        first = next(iter(given.values()))
        found[key] = first if all(value == first for value in given.values()) else given
    return {**found, "members": [member.task for member in members]}
