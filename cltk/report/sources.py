"""Where reports come from: records, and the per-document scores that lie beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cltk.errors import InputError
from cltk.measure.pairing import pair
from cltk.measure.scores import Scores
from cltk.measure.stats import Floats
from cltk.run.records import RECORD, base_files, find_records, is_record, read_json, read_record, scores_file

Record = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A record, and its file where it was read from one."""

    record: Record
    path: Path | None = None


@dataclass(frozen=True)
class Losses:
    """One run on one task, document by document: loss = pre - post when higher is better, else post - pre."""

    d: Floats  # [n], in the metric's unit
    cluster: list[str]  # a label a document; empty: all are independent
    right: Floats | None  # [n] of 0 and 1 after training; None for continuous metrics
    documents: list[str]  # their hashes, in the order of d
    before: Floats  # [n], the start model's scores
    after: Floats


def read_entries(runs: str | Path | Sequence[Record | str | Path]) -> list[Entry]:
    """The records of a folder, of one file, or of a list of records and files, in the order their cells were planned.

    Raises:
        InputError: there are none, or one is damaged.
    """
    listed = [runs] if isinstance(runs, str | Path) else list(runs)
    entries = []
    for item in listed:
        if isinstance(item, dict):
            entries.append(Entry(item))
        else:
            entries += [Entry(read_record(path), path) for path in find_records(item)]
    if not entries:
        raise InputError("report: there are no records")
    for entry in entries:
        if not is_record(entry.record):
            raise InputError("report: not a record of `cltk run`; name its output folder")
    return sorted(entries, key=lambda entry: entry.record.get("order", 0))


def headline_rows(record: Record, role: str) -> list[Record]:
    """The rows of "retain" or "learn" that stand for each task: one metric a task."""
    result = record.get(role)
    return [row for row in result["rows"] if row["metric"] == result["headline"].get(row["task"])] if result else []


@dataclass
class ScoreFiles:
    """Reads scores.json beside record.json, with base-*/scores.json of the same output folder for the start model.

    In a flat folder, NAME.scores.json beside NAME.json and base*.scores.json. Start models are read once.
    """

    _bases: dict[Path, list[Scores]] = field(default_factory=dict)

    def losses(self, entry: Entry) -> dict[str, Losses] | None:
        """Task -> losses of its headline metric, or None when the scores of the run or of its start model are missing.

        Raises:
            InputError: the scores are damaged, or are those of another run.
        """
        file = scores_file(entry.path) if entry.path else None
        if entry.path is None or file is None or not file.is_file():
            return None
        post = Scores.from_json(read_json(file))
        if post.digest != entry.record["digests"]["tuned_model"]:
            raise InputError(f"{file}: scores of other weights than the record's; move the file away or copy the right one")
        rows = [
            row for role in ("retain", "learn") for row in headline_rows(entry.record, role)
            if not row.get("documents") and not _of_corpus(post, row)
        ]  # fmt: skip
        headline = {row["task"]: row["metric"] for row in rows}
        for base in self._bases_beside(entry.path):
            if base.digest == entry.record["digests"]["start_model"]:
                found = _pairs(base, post, headline)
                # two machines score the same model a little differently: a record goes with its own
                if found is not None and all(math.isclose(found[row["task"]].before.mean(), row["pre"]) for row in rows):
                    return found
        return None

    def _bases_beside(self, path: Path) -> list[Scores]:
        folder = path.parent.parent if path.name == RECORD else path.parent
        if folder not in self._bases:
            self._bases[folder] = [Scores.from_json(read_json(file)) for file in base_files(path)]
        return self._bases[folder]


def _pairs(base: Scores, post: Scores, headline: dict[str, str]) -> dict[str, Losses] | None:
    """None when this is not the base that the record was measured against: other tasks, documents or settings."""
    try:
        pairs = pair(_only(base, headline), _only(post, headline))
    except (InputError, KeyError):
        return None
    done = {}
    for task, metric in headline.items():
        one = pairs[task]
        right = one.post[metric] if one.binary(metric) else None
        cluster, documents = one.of(metric, one.cluster), one.of(metric, one.doc_hash)
        done[task] = Losses(one.loss(metric), cluster, right, documents, one.pre[metric], one.post[metric])
    return done


def _of_corpus(scores: Scores, row: Record) -> bool:
    """Whether a row's metric exists for all documents together only (bleu, f1): there is nothing to pair."""
    return row["task"] in scores.tasks and row["metric"] in scores.tasks[row["task"]].corpus


def _only(scores: Scores, headline: dict[str, str]) -> Scores:
    """The tasks of the record, and of each the metric that stands for it."""
    kept = {}
    for name, metric in headline.items():
        task = scores.tasks[name]
        kept[name] = replace(task, values={metric: task.values[metric]}, corpus={})
    return Scores(scores.digest, kept)


def stack(runs: Sequence[Losses | None]) -> Losses | None:
    """Runs on the same documents as one, with arrays [seeds, n]; None when one is missing or has other documents."""
    first = runs[0] if runs else None
    if first is None or any(run is None or run.documents != first.documents for run in runs):
        return None
    whole = [run for run in runs if run is not None]
    right = [run.right for run in whole if run.right is not None]
    rights = np.stack(right) if len(right) == len(whole) else None
    d, before, after = (np.stack([getattr(run, name) for run in whole]) for name in ("d", "before", "after"))
    return Losses(d, first.cluster, rights, first.documents, before, after)
