"""The JSON of `cltk measure --json`, read back: the scores of both of its models, document by document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.logs.side import Side
from cltk.measure.scores import Scores, TaskScores
from cltk.run.records import read_json

NEEDED = ("rows", "macro", "samples", "headline", "pre_digest", "post_digest")


def is_result(path: Path) -> bool:
    """Whether a file is the JSON of a result, of whatever version."""
    if path.suffix != ".json":
        return False
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and all(key in data for key in NEEDED)


def names(path: Path) -> dict[str, str]:
    """ "pre" and "post" -> what the two models are called."""
    settings = read_json(path).get("settings") or {}
    base, tuned = str(settings.get("base", "base")), str(settings.get("tuned", "tuned"))
    return {"pre": base, "post": tuned if tuned != base else f"{tuned} (tuned)"}


def side(path: Path, name: str) -> Side:
    """One of the two models.

    Raises:
        InputError: the file was edited, or is of a version that did not keep what is needed.
    """
    data, called = read_json(path), names(path)
    end = "pre" if name == called["pre"] else "post"
    try:
        tasks = {task: _task(data, task, rows, end) for task, rows in data["samples"].items()}
        settings = data.get("settings") or {}
        scores = Scores(data[f"{end}_digest"], tasks, members=list(data.get("members") or []))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not as `cltk measure --json` writes it ({type(error).__name__}: {error})") from None
    about = {key: settings.get(key) for key in ("cltk_version", "dtype", "scorer") if key in settings}
    return Side(name, scores, path, about={"harness": "cltk", **about})


def _task(data: dict[str, Any], task: str, rows: list[dict[str, Any]], end: str) -> TaskScores:
    """A task's scores: a metric that a document lacks has the weight 0 there."""
    higher = {row["metric"]: row["higher_is_better"] for row in data["rows"] if row["task"] == task}
    labels = [row["cluster"] for row in rows]
    scores = TaskScores(
        task=task, values={}, higher_is_better=higher, doc_hash=[row["doc_hash"] for row in rows],
        prompt_hash=[row["prompt_hash"] for row in rows],
        choices=[row["choices"] for row in rows] if "choices" in rows[0] else [],
        cluster=[] if labels == [str(i) for i in range(len(rows))] else labels,
        settings=((data.get("settings") or {}).get("tasks") or {}).get(task) or {},
    )  # fmt: skip
    drawn = ((data.get("corpus") or {}).get(task)) or {}
    for metric in higher:
        if metric in drawn:
            scores.corpus[metric] = drawn[metric][end]
            continue
        found = [row[f"{metric}_{end}"] for row in rows]
        scores.values[metric] = [0.0 if value is None else value for value in found]
        if None in found:
            scores.weights[metric] = [float(value is not None) for value in found]
    return scores
