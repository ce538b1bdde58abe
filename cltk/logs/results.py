"""The JSON of `cltk measure --json` and `cltk compare --json`, read back: the scores of its models, document by document."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.logs.side import Side
from cltk.measure.results import FORMAT
from cltk.measure.scores import Scores, TaskScores
from cltk.run.records import read_json

NEEDED = ("rows", "macro", "samples", "headline", "pre_digest", "post_digest")


def is_result(path: Path) -> bool:
    """Whether a file is the JSON of a result, or of several, of whatever version."""
    if path.suffix != ".json":
        return False
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and (_is(data) or _several(data))


def _is(data: Any) -> bool:
    return isinstance(data, dict) and all(key in data for key in NEEDED)


def _several(data: dict[str, Any]) -> bool:
    found = data.get("results")
    return isinstance(found, dict) and bool(found) and all(map(_is, found.values()))


def sides(path: Path) -> tuple[list[Side], str]:
    """The models of a result's JSON, and the name of the one before training.

    Raises:
        InputError: the file was edited, is of a later version, or not as `cltk measure` writes it.
    """
    data = read_json(path)
    found: dict[str, Side] = {}
    first = ""
    for called, one in (data["results"] if _several(data) else {"": data}).items():
        if one.get("format", 0) > FORMAT:
            raise InputError(f"{path}: has format {one['format']}, and this cltk reads up to {FORMAT}; update cltk to read it")
        settings = one.get("settings") or {}
        first = str(settings.get("base", "base"))
        tuned = called or str(settings.get("tuned", "tuned"))
        names = (first, tuned if tuned != first else f"{tuned} (tuned)")
        try:
            for name, end in zip(names, ("pre", "post"), strict=True):
                side = _side(path, name, one, end)
                found[name] = _with(found[name], side) if name in found else side
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"{path}: not as `cltk measure --json` writes it ({type(error).__name__}: {error})") from None
    return list(found.values()), first


def _side(path: Path, name: str, data: dict[str, Any], end: str) -> Side:
    settings = data.get("settings") or {}
    tasks = {task: _task(data, task, rows, end) for task, rows in data["samples"].items()}
    _leave_out(tasks, data.get("left_out") or {})
    about = {key: settings[key] for key in ("cltk_version", "dtype", "scorer") if key in settings}
    logged = (settings.get("logs") or {}).get("base" if end == "pre" else "tuned") or {}
    scores = Scores(data[f"{end}_digest"], tasks, members=list(data.get("members") or []))
    looks = settings.get("until")
    notes = [f"{path}: was scored in looks (until {looks}); intervals here are those of one look"] if looks else []
    return Side(name, scores, path, about={"harness": "cltk", **about, **logged}, notes=notes)


def _with(one: Side, other: Side) -> Side:
    """The base of several results: what one of them could not compare, another may have."""
    tasks = dict(one.scores.tasks)
    for name, theirs in other.scores.tasks.items():
        ours = tasks.get(name, theirs)
        if not len(ours):
            tasks[name] = theirs
        elif (ours.doc_hash, ours.prompt_hash) == (theirs.doc_hash, theirs.prompt_hash):
            both = replace(
                ours, values=theirs.values | ours.values, weights=theirs.weights | ours.weights,
                corpus=theirs.corpus | ours.corpus, higher_is_better=theirs.higher_is_better | ours.higher_is_better,
            )  # fmt: skip
            lost = {metric: why for metric, why in ours.left_out.items() if metric not in {**both.values, **both.corpus}}
            tasks[name] = replace(both, left_out=lost)
    return replace(one, scores=replace(one.scores, tasks=tasks))


def _leave_out(tasks: dict[str, TaskScores], left_out: dict[str, str]) -> None:
    """What could not be compared is not gone without a word: tasks without numbers, and metrics with the reason."""
    paired = list(tasks)
    for name, why in left_out.items():
        task = next((one for one in paired if name.startswith(f"{one}/")), "")
        if task:
            tasks[task].left_out[name.removeprefix(f"{task}/")] = why
        else:
            tasks[name] = TaskScores(name, {}, {}, [], [], left_out={"every metric": why})


def _task(data: dict[str, Any], task: str, rows: list[dict[str, Any]], end: str) -> TaskScores:
    """A task's scores: a metric that a document lacks has the weight 0 there."""
    higher = {row["metric"]: row["higher_is_better"] for row in data["rows"] if row["task"] == task}
    labels = [row["cluster"] for row in rows]
    scores = TaskScores(
        task=task, values={}, higher_is_better=higher, doc_hash=[row["doc_hash"] for row in rows],
        prompt_hash=[row["prompt_hash"] for row in rows],
        choices=list((data.get("choices") or {}).get(task) or []),
        cluster=[] if labels == [str(i) for i in range(len(rows))] else labels,
        settings=((data.get("settings") or {}).get("tasks") or {}).get(task) or {},
    )  # fmt: skip
    drawn = (data.get("corpus") or {}).get(task) or {}
    for metric in higher:
        if metric in drawn:
            scores.corpus[metric] = drawn[metric][end]
            continue
        found = [row[f"{metric}_{end}"] for row in rows]
        scores.values[metric] = [0.0 if value is None else value for value in found]
        if None in found:
            scores.weights[metric] = [float(value is not None) for value in found]
    return scores
