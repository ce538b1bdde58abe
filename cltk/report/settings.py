"""Settings of a study: all records by method and what the grid varies, each with the same seeds and documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.report.groups import differing
from cltk.report.sources import Entry, Losses, ScoreFiles, stack


def settings(entries: Sequence[Entry], new: str, old: str | None) -> dict[str, tuple[Losses, Losses]]:
    """Setting -> its losses [seeds, n] on the new and the old task, seeds in the same order for all.

    Raises:
        InputError: a task or scores.json is missing, a setting has a seed twice, or documents or seeds differ.
    """
    files = ScoreFiles()
    groups: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        name, seed = name_of(entry.record), entry.record["seed"]
        if (other := groups.setdefault(name, {}).setdefault(seed, entry)) is not entry:
            raise InputError(_twice(name, seed, other, entry))
    seeds = sorted(next(iter(groups.values())))
    done: dict[str, tuple[Losses, Losses]] = {}
    for name, by_seed in groups.items():
        if sorted(by_seed) != seeds:
            raise InputError(
                f"{name}: has the seeds {sorted(by_seed)}, others have {seeds}; a paired comparison needs the same"
            )
        losses = [files.losses(by_seed[seed]) for seed in seeds]
        sides: list[Losses] = []
        for task in (new, old or first_retained(by_seed[seeds[0]].record)):
            if any(by_seed[seed].record.get("documents") for seed in seeds):
                raise InputError(
                    f"{name}: part of its documents was scored (evals.documents), and gains are matched document by document;"
                    " run it without `documents`, or read its rows in the report"
                )
            if any(one is None or task not in one for one in losses):
                raise InputError(f"{name}: no scores of {task!r} beside its records; name the folders that `cltk run` wrote")
            whole = stack([one[task] for one in losses if one is not None])
            first = next(iter(done.values()))[len(sides)] if done else whole
            if whole is None or first is None or whole.documents != first.documents:
                apart = [_scored(by_seed[seeds[0]].record), _scored(next(iter(groups.values()))[seeds[0]].record)]
                raise InputError(f"{name}: its documents of {task!r} ({apart[0]}) are not those of the other runs ({apart[1]})")
            sides.append(whole)
        done[name] = (sides[0], sides[1])
    return done


def _scored(record: Mapping[str, Any]) -> str:
    """Which documents a record says that it is about."""
    evals = record.get("config", {}).get("evals") or {}
    said = [f"{key} {evals[key]}" for key in ("limit", "sample", "sample_seed", "split") if evals.get(key) is not None]
    return ", ".join(said) or "all documents"


def _twice(name: str, seed: int, one: Entry, other: Entry) -> str:
    """Two records of one setting: an edited YAML leaves the older one in the folder."""
    apart = ["; ".join(differing(a.record, [b.record])) or "nothing that is known" for a, b in ((one, other), (other, one))]
    return (
        f"{name}: two records have seed {seed}: {one.path} ({apart[0]}) and {other.path} ({apart[1]}); move away the one that"
        " is not meant, or give settings names of their own in the YAML's grid"
    )


def name_of(record: Mapping[str, Any]) -> str:
    """The method, and what else the grid varies: "plain learning_rate=0.0001"."""
    labels = {key: value for key, value in record.get("labels", {}).items() if key not in ("mitigators", "seed")}
    return " ".join([record["method"], *(f"{key.split('.')[-1]}={value}" for key, value in labels.items())])


def first_retained(record: Mapping[str, Any]) -> str:
    """The first of `evals.retain`, as its YAML has it: in a record lm-eval's tasks come before texts.

    Of a group or pattern, and in a record that does not say, the first that was measured.

    Raises:
        InputError: nothing was measured on both sides of the training.
    """
    if "retain" not in record:
        raise InputError(f"{record.get('cell', 'a record')}: evals.retain is empty, so there is no forgetting to compare")
    tasks = [str(row["task"]) for row in record["retain"]["rows"]]
    first = next(iter(record.get("config", {}).get("evals", {}).get("retain") or []), "")
    named = [first.get(key) for key in ("name", "task", "text")] if isinstance(first, dict) else [first]
    names = [name for one in named if one for name in (str(one), Path(str(one)).stem)]
    return next((name for name in names if name in tasks), tasks[0])
