"""lighteval's logs (--save-details): results/MODEL/results_DATE.json with details/MODEL/DATE/details_TASK_DATE.parquet.

Columns of 0.9 and later (doc, metric, model_response), and of 0.8 (__doc__, __metric__, __model_response__).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.logs import aggregates
from cltk.logs.folders import DATE
from cltk.logs.side import Side
from cltk.measure.choices import Choice
from cltk.measure.documents import add_choices
from cltk.measure.scores import Scores, TaskScores

RESULTS = re.compile(rf"results_(?P<date>{DATE})\.json")
DETAILS = re.compile(rf"details_(?P<task>.+)_(?P<date>{DATE})\.parquet")


@dataclass(frozen=True)
class Run:
    """One call of lighteval."""

    file: Path
    date: str
    data: dict[str, Any]

    @property
    def model(self) -> str:
        config = self.data["config_general"]
        given = config.get("model_config") or {}
        name = str(config.get("model_name") or given.get("model_name"))
        revision = str(given.get("revision") or "main")
        return name if revision == "main" else f"{name}@{revision}"


def runs(path: Path) -> list[Run]:
    """The runs at a path, newest first; none where there is no result of lighteval."""
    files = [path] if path.is_file() else sorted(path.rglob("results_*.json"))
    found = []
    for file in files:
        if match := RESULTS.fullmatch(file.name):
            data = _json(file)
            if isinstance(data, dict) and "config_general" in data and "results" in data:
                found.append(Run(file, match["date"], data))
    return sorted(found, key=lambda run: run.date, reverse=True)


def names(path: Path) -> list[str]:
    """The models of the runs at a path."""
    return sorted({run.model for run in runs(path)})


def side(path: Path, model: str, directions: Mapping[str, bool]) -> Side:
    """One model's scores: of each task the newest run.

    Raises:
        InputError: no details of any task are there; a file is damaged, or not of the run of its results.
    """
    tasks: dict[str, TaskScores] = {}
    targets, files, notes, lost = {}, {}, list[str](), list[str]()
    for run in (one for one in runs(path) if one.model == model):
        for name in run.data["results"]:
            if name == "all" or ":_average|" in name:
                continue
            if name in tasks:
                notes.append(f"{name}: the newest run is read, and not {run.file.name}")
                continue
            if (file := _details(run, name)) is None:
                lost.append(f"task {name}: {run.file} has no details_*.parquet of it; run lighteval again with --save-details")
                continue
            tasks[name], targets[name] = _task(run, name, file, directions)
            files[name] = file
    if not tasks:
        raise InputError("; ".join(lost) or f"{path}: holds no task of lighteval")
    return Side(
        model, Scores("", tasks), path, targets, files, {"harness": "lighteval"}, [*notes, *(f"{x} (left out)" for x in lost)]
    )


def _details(run: Run, task: str) -> Path | None:
    """The file of a task's documents: in details/ beside results/, or anywhere below what holds both."""
    top = next((parent.parent for parent in run.file.parents if parent.name == "results"), run.file.parent)
    for file in sorted(top.rglob(f"details_*_{run.date}.parquet")):
        match = DETAILS.fullmatch(file.name)
        if match and match["task"] == task:
            return file
    return None


def _task(run: Run, name: str, file: Path, directions: Mapping[str, bool]) -> tuple[TaskScores, list[str]]:
    rows = _rows(file)
    docs, said, metrics = ([row[key] for row in rows] for key in ("doc", "model_response", "metric"))
    targets = [_hash(_list(doc.get("gold_index"))) for doc in docs]
    config = _config(run, name)
    limit = (config.get("original_num_docs"), config.get("effective_num_docs"))
    scores = TaskScores(
        task=name, values={}, higher_is_better={}, doc_hash=[_hash([doc.get("query"), doc.get("choices")]) for doc in docs],
        prompt_hash=[_hash(one.get("input") or doc.get("query")) for one, doc in zip(said, docs, strict=True)],
        settings={
            "num_fewshot": name.rpartition("|")[2], "version": (run.data.get("versions") or {}).get(name),
            "limit": None if limit[0] == limit[1] else (run.data["config_general"].get("max_samples")),
        },
    )  # fmt: skip
    better = _directions(config) | dict(directions)
    try:
        for metric in dict.fromkeys(key for one in metrics for key, value in one.items() if value is not None):
            own = run.data["results"][name].get(metric)
            aggregates.add(
                scores, metric, "", [one.get(metric) for one in metrics], better.get(metric), _aggregation(config, metric), own
            )
    except aggregates.MismatchError as error:
        raise InputError(f"task {name}: {file} is not of the run of {run.file.name}: {error}") from None
    add_choices(scores, _choices(docs, said))
    return scores, targets


def _rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file, with the columns of today."""
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(file)
    except Exception as error:
        raise InputError(f"{file}: cannot be read ({type(error).__name__}: {str(error)[:200]})") from None
    names = {name: name.strip("_") for name in table.column_names}
    rows = [{names[key]: value for key, value in row.items()} for row in table.to_pylist()]
    if not rows or not {"doc", "metric", "model_response"} <= rows[0].keys():
        raise InputError(f"{file}: no details of lighteval that can be read (columns {', '.join(table.column_names)})")
    return rows


def _config(run: Run, name: str) -> Mapping[str, Any]:
    """A task's configuration, which is keyed with or without the number of examples."""
    configs = run.data.get("config_tasks") or {}
    found = configs.get(name) or configs.get(name.rpartition("|")[0]) or {}
    return found if isinstance(found, Mapping) else {}


def _aggregation(config: Mapping[str, Any], metric: str) -> str:
    """ "mean" where the task says so; else what its own number shows."""
    for one in config.get("metrics") or []:
        if isinstance(one, Mapping) and one.get("metric_name") == metric and one.get("corpus_level_fn") == "mean":
            return "mean"
    return "own"


def _directions(config: Mapping[str, Any]) -> dict[str, bool]:
    """Metric -> whether higher is better, as the task's metrics declare it."""
    found: dict[str, bool] = {}
    for one in config.get("metrics") or []:
        if not isinstance(one, Mapping):
            continue
        names, better = _list(one.get("metric_name")), one.get("higher_is_better")
        found |= {name: better for name in names if isinstance(better, bool)}
        found |= (
            {name: value for name, value in better.items() if isinstance(value, bool)} if isinstance(better, Mapping) else {}
        )
    return found


def _choices(docs: list[dict[str, Any]], said: list[dict[str, Any]]) -> list[Choice]:
    """Of tasks that ask for the log-probabilities of choices."""
    found = []
    for doc, one in zip(docs, said, strict=True):
        texts, scores = doc.get("choices") or [], one.get("logprobs") or []
        if len(texts) < 2 or len(texts) != len(scores) or "LOGPROBS" not in str(doc.get("sampling_methods")):
            return []
        right = frozenset(int(i) for i in _list(doc.get("gold_index")))
        found.append(Choice([float(score) for score in scores], right, [len(text.encode()) for text in texts]))
    return found


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({error}); copy it again, or name another file") from None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str, ensure_ascii=False).encode()).hexdigest()
