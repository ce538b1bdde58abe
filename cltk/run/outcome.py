"""What a cell left -> its record, and lm-eval's own files."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cltk.errors import DiskError
from cltk.measure.forgetting import Result, headline
from cltk.measure.scores import Scores, documents
from cltk.measure.stream import summarise
from cltk.run import records
from cltk.run.inputs import Inputs
from cltk.run.leakage import leaks
from cltk.run.parts import Part, compared
from cltk.run.plans import Cell
from cltk.run.train import Trained


@dataclass
class Leg:
    """What one training left: its scores, what the record says of it, and the weights while they are in memory."""

    scores: Scores
    train: dict[str, Any]
    model: Any = None
    part: Part | None = None  # where not all documents were scored


def record(inputs: Inputs, cell: Cell, order: int, pre: Scores, legs: list[Leg]) -> dict[str, Any]:
    """All that is known of a cell: its configuration, digests, environment, training, and what it forgot and learned."""
    learn, post, part = inputs.learned(cell), legs[-1].scores, legs[-1].part
    retain = [name for name in pre.tasks if name not in learn]
    results = {
        role: compared(pre, post, part, partial(_only, names=names), margins_of(cell.config.evals.margins, _only(pre, names)))
        for role, names in (("retain", retain), ("learn", learn))
        if names
    }
    return {
        "format": records.FORMAT, "experiment": inputs.plan.file.stem, "order": order, "cell": cell.name,
        "method": cell.method, "labels": cell.labels, "seed": cell.config.seed,
        "config": cell.config.model_dump(), "folder": str(inputs.plan.file),
        "digests": {
            "cell": inputs.digest(cell), "start_model": pre.digest, "tuned_model": post.digest,
            "measurement": inputs.measured(cell), "config": records.digest_of(cell.config.model_dump()),
            "model_files": inputs.model_digest(cell.config.model.spec),
            "tasks": inputs.documents(cell), "rules": inputs.rules(cell), "files": inputs.files(cell),
        },
        "environment": records.environment(), "leakage": [asdict(leak) for leak in leaks(inputs, [cell])],
        "train": _training(cell, legs),
        **{role: without_samples(result) for role, result in results.items()},
        **({"documents": part.to_json(pre)} if part else {}), **({"search": cell.search} if cell.search else {}),
        **({"stream": stream(cell, inputs.streamed(cell), [pre, *(leg.scores for leg in legs)])} if cell.config.stages else {}),
    }  # fmt: skip


def margins_of(margins: dict[str, float], scores: Scores) -> dict[str, float]:
    """The margins of metrics that are among these scores: old tasks and the new one need not share any."""
    metrics = {metric for task in scores.tasks.values() for metric in (*task.values, *task.corpus)}
    return {metric: margin for metric, margin in margins.items() if metric in metrics}


def stream(cell: Cell, chosen: list[str], scores: list[Scores]) -> dict[str, Any]:
    """R[t][i] of every task after 0 to T trainings, and ACC, BWT, FWT and forgetting over `chosen`, the tasks of the stages.

    Of tasks with a score for every document; where one of `chosen` has none (its own code failed, it has a score of the whole
    corpus only), there is the matrix alone, and `missing` names it.
    """
    heads = {name: headline(list(metrics)) for name in scores[0].tasks if (metrics := _everywhere(name, scores))}
    signs = {name: 1 if scores[0].tasks[name].higher_is_better[metric] else -1 for name, metric in heads.items()}
    signed = {name: np.array([documents(one.tasks[name], heads[name]) for one in scores]) * signs[name] for name in heads}
    missing = [name for name in chosen if name not in heads]
    labels = [scores[0].tasks[name].cluster or None for name in chosen]
    found = {} if missing else summarise([signed[name] for name in chosen], labels)
    return {
        "stages": [stage.name for stage in cell.config.stages], "tasks": chosen,
        "matrix": {
            name: {"metric": heads[name], "performance": rows.mean(axis=1).tolist()} for name, rows in signed.items()
        },
        **({"missing": missing} if missing else {}),
        **{name: {**asdict(m), "ci": list(m.ci)} for name, m in found.items()},
    }  # fmt: skip


def _everywhere(name: str, scores: list[Scores]) -> list[str]:
    """The metrics of a task that every model has for each document."""
    return [metric for metric in scores[0].tasks[name].values if all(metric in one.tasks[name].values for one in scores)]


def training_of(trained: Trained) -> dict[str, Any]:
    """A training's section of the record."""
    return {
        "steps": trained.steps, "seconds": round(trained.seconds, 2), "tokens": trained.tokens,
        "parameters": trained.parameters, "peak_bytes": trained.peak_bytes,
        "history": trained.history, "notes": trained.notes,
    }  # fmt: skip


def _training(cell: Cell, legs: list[Leg]) -> dict[str, Any]:
    """The one training's section; of a stream sums, the largest peak, and histories and notes by stage."""
    if not cell.config.stages:
        return legs[0].train
    parts = [(stage.name, leg.train) for stage, leg in zip(cell.config.stages, legs, strict=True)]
    return {
        **{key: sum(part[key] for _, part in parts) for key in ("steps", "seconds", "tokens")},
        **{key: max(part[key] for _, part in parts) for key in ("parameters", "peak_bytes")},
        "history": [{"stage": name, **line} for name, part in parts for line in part["history"]],
        "notes": {name: part["notes"] for name, part in parts},
    }


def without_samples(result: Result) -> dict[str, Any]:
    """A result for a record; the documents stand in scores.json beside it."""
    return {
        key: value
        for key, value in result.to_json().items()
        if key not in ("samples", "format", "choices", "corpus", "members")
    }


def _only(scores: Scores, names: list[str]) -> Scores:
    tasks = {name: scores.tasks[name] for name in names if name in scores.tasks}
    return Scores(scores.digest, tasks, members=[name for name in scores.members if name in tasks])


def write_lm_eval(scores: Scores, folder: Path, model: str, *, afresh: bool = True, with_samples: bool = True) -> None:
    """lm-eval's own result and sample files, by lm-eval's own writer.

    Args:
        afresh: whether what is in the folder goes: names carry the time, an interrupted run's files would stay beside.
        with_samples: whether every document's answers are written too.
    """
    if not scores.lm_eval:
        return
    from lm_eval.loggers import EvaluationTracker

    if afresh:
        shutil.rmtree(folder, ignore_errors=True)
    tracker = EvaluationTracker(output_path=str(folder))
    asked = dict(scores.lm_eval.get("config") or {})
    tracker.general_config_tracker.log_experiment_args(
        model_source="hf", model_args=f"pretrained={model}", system_instruction=asked.get("system_instruction"),
        chat_template=asked.get("chat_template"), fewshot_as_multiturn=bool(asked.get("fewshot_as_multiturn")),
    )  # fmt: skip
    results = {key: value for key, value in scores.lm_eval.items() if key != "samples"}
    results |= {key: value for key, value in asked.items() if key.endswith("_version")}  # where lm-eval has them
    results["config"] = {**asked, "model": "hf", "model_args": f"pretrained={model}", "weights_sha256": scores.digest}
    samples = scores.lm_eval["samples"] if with_samples else {}
    tracker.save_results_aggregated(results=results, samples=samples or None)
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)
    check_json(folder)  # lm-eval's writer keeps a full disk to itself


def check_json(folder: Path) -> None:
    """Whether every .json and .jsonl file below `folder` is whole: for writers that keep a full disk to themselves.

    Raises:
        DiskError: one is not, or there is none.
    """
    found = [file for file in sorted(folder.rglob("*")) if file.suffix in (".json", ".jsonl")]
    if not found:
        raise DiskError(f"{folder}: nothing was written; is the disk full? Free some space and run the same command again")
    for file in found:
        try:
            text = file.read_text(encoding="utf-8")
            parts = text.split("\n") if file.suffix == ".jsonl" else [text]
            for part in filter(None, parts):
                json.loads(part)
        except (OSError, ValueError):
            raise DiskError(f"{file}: not whole; is the disk full? Free some space and run the same command again") from None
