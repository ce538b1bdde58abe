"""lm-eval's logs: results_DATE.json with samples_TASK_DATE.jsonl -> the scores of each model in them.

Every metric of every task is held against lm-eval's own number for it. Nothing is guessed: directions, aggregations and
groups are the results' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.logs import aggregates, samples
from cltk.logs.choices import choices_of
from cltk.logs.folders import Run, find, models, newest
from cltk.logs.groups import groups_of
from cltk.logs.side import Side
from cltk.measure.corpus import ERRORS, MISSING
from cltk.measure.documents import add_choices, as_number
from cltk.measure.groups import grouped
from cltk.measure.scores import Scores, TaskScores

Directions = Mapping[str, bool]  # metric -> whether higher is better, where the log does not say


def sides(path: Path, members: bool = False, directions: Directions | None = None) -> list[Side]:
    """Every model of a folder or file, by name. None are read where there are no results of lm-eval.

    Raises:
        InputError: see `folders.find` and `folders.newest`; a model none of whose tasks can be read.
    """
    return [_side(name, runs, path, members, directions or {}) for name, runs in sorted(models(find(path)).items())]


def names(path: Path) -> list[str]:
    """The models of a folder or file."""
    return sorted(models(find(path)))


def side(path: Path, model: str, members: bool = False, directions: Directions | None = None) -> Side:
    """One of a folder's models, by the name that `names` gives it."""
    return _side(model, models(find(path))[model], path, members, directions or {})


def _side(name: str, runs: list[Run], path: Path, members: bool, directions: Directions) -> Side:
    chosen, notes = newest(runs)
    tasks: dict[str, TaskScores] = {}
    targets: dict[str, list[str]] = {}
    files: dict[str, Path] = {}
    lost: dict[str, str] = {}
    for task, run in chosen.items():
        try:
            tasks[task], targets[task] = _task(run, task, directions)
            files[task] = run.samples[task]
        except InputError as error:
            lost[task] = str(error)
    if not tasks:
        raise InputError("; ".join(lost.values()) or f"{runs[0].file}: holds no task")
    found, inside, more = tasks, list[str](), list[str]()
    for run in {run.file: run for run in chosen.values()}.values():
        own = [task for task in run.tasks if chosen[task] is run]
        groups, missing = groups_of(run.data, {task: tasks[task] for task in own if task in tasks})
        here = {task: one for task, one in found.items() if task in own}
        pooled, _, odd = grouped(here, groups, [*[group.name for group in groups], *own], members)
        outer = {group.name for group in groups if group.name in pooled}
        within = {task for group in groups if group.name in outer for task in group.members}
        kept = {task: one for task, one in pooled.items() if members or task not in within}
        found = {task: one for task, one in found.items() if task not in own} | kept
        inside += [task for task in kept if task in within]
        more += [*missing, *odd]
        for group in groups:
            if group.name in outer:
                targets[group.name] = [target for task in group.members for target in targets[task]]
    found |= {task: TaskScores(task, {}, {}, [], [], left_out={"every metric": why}) for task, why in lost.items()}
    newest_run = max(chosen.values(), key=lambda run: run.date)
    return Side(
        name, Scores(_digest(newest_run), found, members=inside), path, targets, files, _about(newest_run),
        [*notes, *more],
    )  # fmt: skip


def _task(run: Run, name: str, directions: Directions) -> tuple[TaskScores, list[str]]:
    """One task's scores, and the hash of each document's right answer."""
    file, config = run.samples.get(name), run.data["configs"][name]
    if file is None:
        raise InputError(f"task {name}: {run.file} has no samples of it; run lm_eval again with --log_samples")
    own = run.data["results"].get(name) or {}
    many = config.get("output_type") == "multiple_choice"
    column = (config.get("metadata") or {}).get("cluster")
    found = samples.read(file, _metrics(own), column, many)
    first = next(iter(found.metrics), "none")
    count = _count(run, name)
    if count is not None and count != len(found):
        raise InputError(_other_run(run, name, file, f"{len(found)} of {count} documents are there"))
    scores = TaskScores(
        task=name, values={}, higher_is_better={}, doc_hash=found.doc_hash, prompt_hash=found.prompt_hash,
        cluster=found.cluster, settings=_settings(run, name, config),
    )  # fmt: skip
    try:
        for chosen, metrics in found.metrics.items():
            for metric, values in metrics.items():
                items = [values.get(number, MISSING) for number in found.doc_id]
                suffix = "" if chosen == first else f",{chosen}"
                better, named = _direction(run.data, name, metric, directions), _aggregation(config, metric)
                aggregates.add(scores, metric, suffix, items, better, named, own.get(f"{metric},{chosen}", own.get(metric)))
    except aggregates.MismatchError as error:
        raise InputError(_other_run(run, name, file, str(error))) from None
    if many:
        logged = found.metrics.get(first, {})
        acc = [as_number(logged["acc"].get(number, MISSING)) for number in found.doc_id] if "acc" in logged else None
        doubled = any("acc_mutual_info" in metrics for metrics in found.metrics.values())
        add_choices(scores, choices_of(found, config.get("target_delimiter", " "), acc, doubled))
    sealed = (run.data.get("task_hashes") or {}).get(name)
    if sealed and sealed != found.sealed:
        scores.notes.append(f"the hashes of documents in {file.name} are not those that {run.file.name} sealed: it was edited")
    return scores, found.target_hash


def _count(run: Run, name: str) -> int | None:
    """How many documents lm-eval says it scored; None where it does not say."""
    own, counts = run.data["results"].get(name) or {}, (run.data.get("n-samples") or {}).get(name) or {}
    said = (own.get("sample_len"), own.get("samples"), counts.get("effective"))
    return next((number for number in said if isinstance(number, int)), None)


def _other_run(run: Run, name: str, file: Path, why: str) -> str:
    return f"task {name}: {file} is not of the run of {run.file.name}, cut, or edited: {why}; run lm_eval again"


def _metrics(own: Mapping[str, Any]) -> dict[str, set[str]]:
    """Filter -> metrics, from the keys of a task's results."""
    found: dict[str, set[str]] = {}
    for key in own:
        metric, _, chosen = key.partition(",")
        if not metric.endswith("_stderr"):
            found.setdefault(chosen or "none", set()).add(metric)
    return found


def _direction(data: Mapping[str, Any], task: str, metric: str, directions: Directions) -> bool | None:
    if metric in ERRORS:
        return False
    declared = ((data.get("higher_is_better") or {}).get(task) or {}).get(metric)
    if declared is None:
        declared = _listed(data["configs"][task], metric).get("higher_is_better")
    return bool(declared) if isinstance(declared, bool) else directions.get(metric)


def _aggregation(config: Mapping[str, Any], metric: str) -> str | None:
    """The name of the aggregation that the task's file gives; None for none, and for a function of the task's own."""
    named = _listed(config, metric).get("aggregation")
    if named is None:
        return None
    known = {*aggregates.DEFAULTS.values(), *aggregates.SUMS, "mean", "nanmean"}
    return named if named in known else "own"


def _listed(config: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    """A metric's entry in the task's file."""
    for one in config.get("metric_list") or []:
        if isinstance(one, dict) and one.get("metric") == metric:
            return one
    return {}


def _settings(run: Run, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal on both sides, named as users set it."""
    data, counts = run.data, (run.data.get("n-samples") or {}).get(name) or {}
    whole = counts.get("original") is not None and counts.get("original") == counts.get("effective")
    template = data.get("chat_template_sha")
    shots = (data.get("n-shot") or {}).get(name)
    return {
        "num_fewshot": shots,
        "version": (data.get("versions") or {}).get(name),
        "limit": None if whole else (data.get("config") or {}).get("limit"),
        "chat_template": template and f"sha256 {template[:12]}",
        "system_instruction": data.get("system_instruction"),
        "fewshot_as_multiturn": data.get("fewshot_as_multiturn") if template and shots else None,
        "generation_kwargs": config.get("generation_kwargs") if config.get("output_type") == "generate_until" else None,
    }


def _digest(run: Run) -> str:
    """sha256 of the weights where the log has one: cltk's own, or the hub's commit."""
    config = run.data.get("config") or {}
    return str(config.get("weights_sha256") or config.get("model_sha") or "")


def _about(run: Run) -> dict[str, Any]:
    config = run.data.get("config") or {}
    return {
        "harness": "lm-eval", "lm_eval_version": run.data.get("lm_eval_version"), "backend": config.get("model"),
        "dtype": config.get("model_dtype"), "transformers_version": run.data.get("transformers_version"),
        "model_args": config.get("model_args"), "results": run.file.name,
    }  # fmt: skip
