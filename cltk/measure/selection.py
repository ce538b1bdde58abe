"""Which documents of every measure are scored: the first ones, random ones, or all; and what a reader must know of that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cltk.errors import InputError
from cltk.measure.documents import clusters
from cltk.measure.groups import Group
from cltk.measure.sampling import Sample, check_sample, choose, described, documents_in, unlike_the_whole
from cltk.measure.texts import TextTask

NAMED, FOUND = 1e-3, 1e-6  # p of first documents that are like the whole: of a field that the task names, and of any other
MANY = 20_000  # documents that are looked at, and up to twice as many
FEW = 10  # documents of a label on average, in a field that the task does not name


@dataclass(frozen=True)
class Chosen:
    """The documents of one task that are scored."""

    total: int  # documents of the task
    limit: int | None = None
    indices: list[int] | None = None  # of a sample, ascending; None: the first `limit`, or all
    settings: dict[str, Any] = field(default_factory=dict)  # what must be equal before and after
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return min(self.total, self.limit or self.total) if self.indices is None else len(self.indices)

    def part(self, places: Sequence[int] | None) -> Chosen:
        """Those of them at these places; all when None."""
        if places is None:
            return self
        own = self.indices if self.indices is not None else range(self.count)
        return replace(self, limit=None, indices=[own[i] for i in places])

    def of(self, documents: Any) -> list[Any]:
        """Those of the task's documents."""
        return [documents[i] for i in (range(self.count) if self.indices is None else self.indices)]


@dataclass(frozen=True)
class Selection:
    """The first `limit` documents of every lm-eval task, as lm-eval's own, or a random `sample` of tasks and texts.

    Args:
        limit: documents, or below 1 the fraction of them.
        sample: documents or a fraction of them; by the names that were given (task, group, tag, pattern, text) where it
            is a mapping, in which what is not named has all its documents. Of a group or tag it is that of each task.
        seed: of all samples; every task and text has its own draw by its name, whatever stands beside it.

    Raises:
        InputError: both; a limit below 1; a sample that is no number of documents; a seed that is no whole number.
    """

    limit: float | None = None
    sample: Sample | Mapping[str, Sample] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", whole_limit(self.limit))
        given = self.sample if isinstance(self.sample, Mapping) else {"": self.sample}
        for name, one in given.items():
            if one is not None or name:
                check_sample(one, f"sample of {name}" if name else "sample")
        if self.limit is not None and self.sample is not None:
            raise InputError("limit, sample: limit takes the first documents and sample random ones; give one of the two")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise InputError(f"sample_seed: expected a whole number, got {self.seed!r}")

    def check_names(self, known: Iterable[str]) -> None:
        """Raises InputError for a sample of something that is not measured."""
        names = list(dict.fromkeys(known))
        for name in self.sample if isinstance(self.sample, Mapping) else ():
            if name not in names:
                raise InputError(f"sample: {name!r} is not measured; what is: {', '.join(names)}")

    def text(self, text: TextTask) -> TextTask:
        """The text with the rows that are scored."""
        asked = self.sample.get(text.name) if isinstance(self.sample, Mapping) else self.sample
        return text if asked is None else text.sampled(asked, self.seed)

    def tasks(self, loaded: Mapping[str, Mapping[str, Any]]) -> dict[str, Chosen]:
        """Of every task of `cltk.measure.loading.load_tasks`."""
        asked: dict[str, Any] = {}
        for given, rows in loaded["named"].items():
            one = self.sample.get(given) if isinstance(self.sample, Mapping) else self.sample
            for row in rows:
                leaves = [t.task_name for t in loaded["groups"][row].get_all_tasks()] if row in loaded["groups"] else [row]
                asked |= dict.fromkeys(leaves, one)
        if isinstance(self.sample, Mapping):
            asked |= {name: self.sample[name] for name in loaded["tasks"] if name in self.sample}
        return {name: self._task(name, task, asked.get(name)) for name, task in loaded["tasks"].items()}

    def _task(self, name: str, task: Any, sample: Sample | None) -> Chosen:
        documents = task.eval_docs
        total = len(documents)
        if sample is None:
            limit = None if self.limit is None else documents_in(total, self.limit)
            return Chosen(total, limit, notes=_order(name, task, documents, limit))
        asked = documents_in(total, sample)
        if asked == total:
            return Chosen(total, notes=[described(sample, self.seed, range(total), total)])
        config = task.dump_config()
        listed = list(documents) if {"cluster", "stratum"} & set(config.get("metadata") or {}) else []
        labels, strata = clusters(name, config, listed), strata_of(name, config, listed)
        indices = choose(total, sample, f"{self.seed} {name}", labels, strata)
        note = described(sample, self.seed, indices, total, labels, strata)
        return Chosen(total, None, indices, {"sample": asked, "sample_seed": self.seed}, [note])


def row_sizes(tasks: Iterable[str], chosen: Mapping[str, Chosen], groups: Sequence[Group], members: bool) -> dict[str, int]:
    """Documents that will be scored, by row: a group has one in the place of its tasks, or beside them with `members`."""
    counts = {name: chosen[name].count for name in tasks}
    inside = {name for group in groups for name in group.members}
    kept = {name: n for name, n in counts.items() if members or name not in inside}
    return kept | {group.name: sum(counts[name] for name in group.members) for group in groups}


def whole_limit(limit: object) -> int | float | None:
    """A limit as lm-eval reads it: below 1 a fraction of the documents, else a number of them, cut to a whole one (1.0 is 1).

    Raises:
        InputError: no number above 0.
    """
    if limit is None:
        return None
    if not isinstance(limit, int | float) or isinstance(limit, bool) or not 0 < limit < math.inf:
        raise InputError(
            f"limit: expected a whole number of documents from 1, got {limit!r}; a fraction of them is between 0 and 1"
        )
    return limit if limit < 1 else int(limit)


def cluster_sizes(loaded: Mapping[str, Any], chosen: Mapping[str, Chosen], groups: Iterable[Group]) -> dict[str, list[int]]:
    """Task or group -> documents in each cluster that is scored, where the task names its clusters; a document alone is one."""
    sizes = {}
    for name, task in loaded.items():
        labels = clusters(name, task.dump_config(), chosen[name].of(task.eval_docs))
        sizes[name] = list(Counter(labels).values()) if labels else [1] * chosen[name].count
    sizes |= {group.name: [size for name in group.members for size in sizes[name]] for group in groups}
    return {name: found for name, found in sizes.items() if max(found, default=1) > 1}


def strata_of(name: str, config: dict[str, Any], documents: Sequence[Any]) -> list[str]:
    """What samples are spread over: the column, or template, that the task's `metadata: {stratum: ...}` names."""
    from lm_eval.utils import apply_template

    column = (config.get("metadata") or {}).get("stratum")
    if not column:
        return []
    if "{{" in str(column):
        return [apply_template(column, document) for document in documents]
    if (odd := next((document for document in documents if column not in document), None)) is not None:
        raise InputError(f"task {name}: metadata.stratum names {column!r}, which is no column; they are {', '.join(odd)}")
    return [str(document[column]) for document in documents]


def _order(name: str, task: Any, documents: Any, limit: int | None) -> list[str]:
    """A note where the first documents are not like the whole: a field that the task names, or any with few labels.

    Of a task with many documents every so-manieth of the rest stands for it.
    """
    if limit is None or limit >= len(documents):
        return []
    rest = range(limit, len(documents), max(1, len(documents) // MANY))
    config, listed = task.dump_config(), [documents[i] for i in (*range(limit), *rest)]
    named = {"stratum": strata_of(name, config, listed), "cluster": clusters(name, config, listed)}
    found = [(NAMED, (config.get("metadata") or {}).get(kind), labels) for kind, labels in named.items() if labels]
    for column in listed[0] if isinstance(listed[0], Mapping) else ():
        labels = [document.get(column) for document in listed]
        if all(isinstance(label, str | int) for label in labels) and 2 <= len(set(labels)) <= len(listed) / FEW:
            found.append((FOUND, column, labels))
    for bound, column, labels in found:
        odd = unlike_the_whole(labels, limit)
        if odd is not None and odd[3] < bound:
            label, first, whole, _ = odd
            return [
                f"its first {limit} documents are not like all {len(documents)}: {first} of them have {column}"
                f" {str(label)[:40]!r}, {100 * whole / len(listed):.1f} % of all; `sample` instead of `limit` draws at random"
            ]
    return []


def row_notes(groups: Sequence[Group], chosen: Mapping[str, Chosen], seed: int) -> dict[str, list[str]]:
    """Task or group -> what a reader must know of its documents; of a group in one line."""
    found = {name: one.notes for name, one in chosen.items() if one.notes}
    for group in groups:
        members = [chosen[name] for name in group.members]
        noted = [f"{name}: {note}" for name, one in zip(group.members, members, strict=True) for note in one.notes]
        if any(one.indices is not None for one in members):
            n, total = sum(one.count for one in members), sum(one.total for one in members)
            note = f"a sample is of each of its {len(members)} tasks: {n} of {total} documents (seed {seed})"
            uneven = any(abs(one.count - one.total * n / total) > 1 for one in members)
            if uneven and (not group.metrics or any(group.metrics.values())):
                note += "; they weigh by the documents that were drawn, as in lm-eval: a fraction keeps each task's own weight"
            found[group.name] = [note]
        elif noted:
            found[group.name] = [noted[0] + (f" (and so {len(noted) - 1} more of its tasks)" if noted[1:] else "")]
    return found


def with_notes(task: Any, notes: Sequence[str]) -> Any:
    """Scores with these notes too."""
    return replace(task, notes=[*task.notes, *(note for note in notes if note not in task.notes)])
