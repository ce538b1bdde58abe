"""inspect-ai's logs (.eval, .json), through inspect-ai's own reader, which is an extra: pip install 'cltk-forgetting[inspect]'.

A scorer with an accuracy is acc, a second one acc,NAME; values are inspect-ai's own reductions, so that several epochs of a
sample are one document. What else a scorer gives has no declared direction there: name it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.logs import aggregates
from cltk.logs.side import Side
from cltk.measure.corpus import MISSING
from cltk.measure.scores import Scores, TaskScores

LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # inspect-ai's correct, partial, incorrect, no answer


def files(path: Path) -> list[Path]:
    """The logs at a path: what ends in .eval, and JSON that begins as inspect-ai's does."""
    listed = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in (".eval", ".json"))
    return [file for file in listed if file.suffix == ".eval" or (file.suffix == ".json" and _begins(file))]


def names(path: Path) -> list[str]:
    """The models in the logs at a path; none where there is no log."""
    found = files(path)
    return sorted({_read(file, True).eval.model for file in found}) if found else []


def side(path: Path, model: str, directions: Mapping[str, bool]) -> Side:
    """One model's scores: of each task the newest log.

    Raises:
        InputError: inspect-ai is not there; a log cannot be read, was not finished, or has no samples.
    """
    newest: dict[str, tuple[str, Path]] = {}
    notes = []
    for file in files(path):
        head = _read(file, True)
        if head.eval.model == model:
            one = (str(head.eval.created), file)
            if head.eval.task in newest:
                passed = min(one, newest[head.eval.task])[1]
                notes.append(f"{head.eval.task}: the newest log is read, and not {passed.name}")
            newest[head.eval.task] = max(one, newest.get(head.eval.task, one))
    tasks, targets, about = {}, {}, dict[str, Any]()
    for name, (_, file) in newest.items():
        log = _read(file, False)
        tasks[name], targets[name] = _task(log, name, file, directions)
        about = {"harness": "inspect-ai", "backend": model.split("/")[0], "packages": dict(log.eval.packages or {})}
    return Side(model, Scores("", tasks), path, targets, {name: file for name, (_, file) in newest.items()}, about, notes)


def _begins(file: Path) -> bool:
    with file.open("rb") as start:
        head = start.read(400)
    return b'"version"' in head and b'"status"' in head


def _read(file: Path, header: bool) -> Any:
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise InputError(f"{file}: inspect-ai reads its own logs; pip install 'cltk-forgetting[inspect]'") from None
    try:
        return read_eval_log(str(file), header_only=header)
    except Exception as error:
        raise InputError(f"{file}: inspect-ai cannot read it ({type(error).__name__}: {str(error)[:200]})") from None


def _task(log: Any, name: str, file: Path, directions: Mapping[str, bool]) -> tuple[TaskScores, list[str]]:
    if log.status != "success" or not log.results:
        raise InputError(f"{file}: its status is {log.status}; finish it first (inspect eval-retry)")
    first = {sample.id: sample for sample in reversed(log.samples or [])}
    if not first:
        raise InputError(f"{file}: holds no samples; run it again with --log-samples")
    kept = list(reversed(first.values()))
    targets = [_hash(sample.target) for sample in kept]
    config = log.eval.config
    scores = TaskScores(
        task=name, values={}, higher_is_better={},
        doc_hash=[_hash([str(sample.id), _plain(sample.input), sample.choices]) for sample in kept],
        prompt_hash=[_hash(_asked(sample)) for sample in kept],
        settings={
            "version": log.eval.task_version, "limit": config.limit, "epochs": config.epochs, "task_args": log.eval.task_args,
            "solver": [step.solver for step in log.plan.steps], "generate_config": _plain(log.eval.model_generate_config),
        },
    )  # fmt: skip
    values = _values(log, [sample.id for sample in kept])
    for score in log.results.scores:
        metric = next((m for m in score.metrics if m in ("accuracy", "mean")), None)
        if metric is None or score.name not in values:
            scores.left_out[score.name] = "inspect-ai gives neither its accuracy nor its mean"
            continue
        again = "acc" in {**scores.values, **scores.left_out}
        key = score.name if metric == "mean" else f"acc,{score.name}" if again else "acc"
        better = True if metric == "accuracy" else directions.get(key)
        try:
            aggregates.add(scores, key, "", values[score.name], better, "mean", score.metrics[metric].value)
        except aggregates.MismatchError as error:
            raise InputError(f"task {name}: {file}: {error}; its samples are not those of its results") from None
    return scores, targets


def _values(log: Any, ids: list[Any]) -> dict[str, list[Any]]:
    """Scorer -> value of each sample: the reduction over epochs, else that of the only one."""
    found: dict[str, dict[Any, Any]] = {}
    for one in log.reductions or []:
        found[one.scorer] = {sample.sample_id: sample.value for sample in one.samples}
    for sample in log.samples if not found else ():
        for scorer, score in (sample.scores or {}).items():
            found.setdefault(scorer, {})[sample.id] = score.value
    return {
        scorer: [LETTERS.get(value, value) if isinstance(value, str) else value for value in (by.get(i, MISSING) for i in ids)]
        for scorer, by in found.items()
    }


def _asked(sample: Any) -> list[Any]:
    """The conversation up to the model's first answer."""
    asked = []
    for message in sample.messages:
        if message.role == "assistant":
            break
        asked.append([message.role, _plain(message.content)])
    return asked


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if hasattr(value, "model_dump"):
        return {k: v for k, v in value.model_dump(exclude_none=True).items() if k not in ("id", "max_connections")}
    return value


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str, ensure_ascii=False).encode()).hexdigest()
