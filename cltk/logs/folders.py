"""lm-eval's output folders: which files belong together, which are one model's, and which of several runs counts.

OUT/MODEL/results_DATE.json, samples_TASK_DATE.jsonl      --output_path OUT, from 0.4.3 on
OUT_DATE.json, samples_TASK_DATE.jsonl                    --output_path OUT.json
OUT/results.json, OUT/NAME_TASK.jsonl                     0.4.2 and before, which has no hashes
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cltk.errors import InputError

DATE = r"\d{4}-\d\d-\d\dT[\d.+-]*\d"
RESULTS = re.compile(rf"(?P<stem>.+)_(?P<date>{DATE})\.json")
SAMPLES = re.compile(rf"samples_(?P<task>.+)_(?P<date>{DATE})\.jsonl?")
PROMPTS = ("n-shot", "chat_template_sha", "system_instruction_sha")  # runs that differ in these measure other things


@dataclass(frozen=True)
class Run:
    """One call of lm-eval: its results file, and the file of samples of each task that has one."""

    file: Path
    date: str
    data: dict[str, Any]
    samples: dict[str, Path]

    @property
    def model(self) -> str:
        """The model's name, with what tells checkpoints of one name apart: revision, subfolder."""
        config = self.data.get("config") or {}
        given = _arguments(config.get("model_args"))
        name = self.data.get("model_name") or next(
            (given[key] for key in ("peft", "delta", "pretrained", "model", "path", "engine") if key in given), None
        )
        name = str(name or self.file.parent.name)
        revision, folder = given.get("revision", "main"), given.get("subfolder", "")
        return name + (f"/{folder}" if folder else "") + (f"@{revision}" if revision != "main" else "")

    @property
    def tasks(self) -> list[str]:
        """Names of tasks, in the order of the results; no groups."""
        configs = self.data.get("configs") or {}
        return [
            *(name for name in self.data["results"] if name in configs),
            *(n for n in configs if n not in self.data["results"]),
        ]

    def prompts(self, task: str) -> dict[str, Any]:
        """What decides the prompts of a task."""
        return {key: (self.data.get(key) or {}).get(task) if key == "n-shot" else self.data.get(key) for key in PROMPTS}


def find(path: Path) -> list[Run]:
    """The runs in a folder and the folders below it, or that of one file, oldest first.

    Raises:
        InputError: samples without the results of their run; a results file that cannot be read.
    """
    if path.is_file():
        return [_of_file(path)]
    files = sorted(file for file in path.rglob("*.json") if _may_be_results(file))
    found = [run for file in files if (run := _read(file)) is not None]
    known = {file for run in found for file in run.samples.values()}
    lost = sorted(file for file in path.rglob("samples_*.json*") if SAMPLES.fullmatch(file.name) and file not in known)
    if lost and not found:
        raise InputError(_without_results(lost[0]))
    return sorted(found, key=lambda run: (run.date, run.file))


def newest(runs: Iterable[Run]) -> tuple[dict[str, Run], list[str]]:
    """Task -> the newest run that has it, in the order of the newest runs' results; a line for each task that was run twice.

    Raises:
        InputError: two runs of a task have other examples, another chat template or system instruction, or the same date.
    """
    chosen: dict[str, Run] = {}
    passed: dict[tuple[Path, Path], list[str]] = {}
    for run in sorted(runs, key=lambda one: one.date, reverse=True):
        for task in run.tasks:
            first = chosen.setdefault(task, run)
            if first is run:
                continue
            odd = [key for key in PROMPTS if first.prompts(task)[key] != run.prompts(task)[key]]
            if odd or first.date == run.date:
                what = ", ".join(f"{key} {first.prompts(task)[key]} and {run.prompts(task)[key]}" for key in odd)
                raise InputError(
                    f"{first.model} has {task} twice ({what or 'of one date'}): {first.file} and {run.file}; name one file"
                )
            passed.setdefault((first.file, run.file), []).append(task)
    notes = [
        f"{', '.join(tasks[:3])}{f' and {len(tasks) - 3} more' if len(tasks) > 3 else ''}: the newest run is read,"
        f" {taken.name}, and not {left.name}"
        for (taken, left), tasks in passed.items()
    ]
    return chosen, notes


def models(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Model -> its runs."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.model, []).append(run)
    return found


def _of_file(path: Path) -> Run:
    if (match := SAMPLES.fullmatch(path.name)) is None:
        run = _read(path)
        if run is None:
            raise InputError(f"{path}: no results of lm-eval")
        return run
    for file in sorted(path.parent.glob(f"*_{match['date']}.json")):
        run = _read(file) if _may_be_results(file) else None
        if run is not None:
            config = {name: one for name, one in run.data["configs"].items() if name == match["task"]}
            return Run(run.file, run.date, {**run.data, "configs": config}, {match["task"]: path})
    raise InputError(_without_results(path))


def _without_results(file: Path) -> str:
    return (
        f"{file}: the results of its run are not beside it, which say what each metric is; copy results_DATE.json there,"
        " or run lm_eval again with --output_path and --log_samples"
    )


def _may_be_results(file: Path) -> bool:
    return file.name == "results.json" or bool(RESULTS.fullmatch(file.name) and not file.name.startswith("samples_"))


def _read(file: Path) -> Run | None:
    """None for JSON of another kind."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({error}); copy it again, or name another file") from None
    if not isinstance(data, dict) or not all(isinstance(data.get(key), dict) for key in ("results", "configs")):
        return None
    match = RESULTS.fullmatch(file.name)
    date = match["date"] if match else ""
    samples: dict[str, Path] = {}
    for task in data["configs"]:
        found = sorted(file.parent.glob(f"*_{glob.escape(task)}.jsonl")) if match is None else []
        if found:
            samples[task] = found[0]
    for one in sorted(file.parent.glob(f"samples_*_{date}.json*")) if match else ():
        if named := SAMPLES.fullmatch(one.name):
            samples[named["task"]] = one
    return Run(file, date, data, {task: one for task, one in samples.items() if task in data["configs"]})


def _arguments(given: Any) -> dict[str, str]:
    """lm-eval's model_args, a mapping or name=value,name=value."""
    if isinstance(given, dict):
        return {str(key): str(value) for key, value in given.items()}
    pairs = (part.partition("=") for part in str(given or "").split(","))
    return {key.strip(): value for key, sign, value in pairs if sign}
