"""How a task turns answers into scores: what its requests do not show, as one digest a task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from cltk.data.messages import row_key
from cltk.data.rows import unpadded
from cltk.files import shipped
from cltk.measure.texts import TextTask

RULES = (
    "output_type", "metric_list", "filter_list", "repeats", "generation_kwargs", "process_results", "doc_to_target",
    "doc_to_choice", "doc_to_text", "should_decontaminate",
)  # fmt: skip  # fields of lm-eval's TaskConfig that decide what an answer is worth


def rules_digest(task: Any, documents: Iterable[Any], include_path: str | Path | None, named: Iterable[str] = ()) -> str:
    """sha256 (hex) of `documents` with their right answers, and of the metrics and filters of an lm-eval task.

    Two tasks may ask the same of a model and score it otherwise: another label, another metric. Where a field is Python, the
    files of `include_path`, those beside tasks that are `named` as files, those beside the functions of
    cltk's own tasks, and the version of lm-eval stand for it. So they do of a task that is a class of its own, and of a metric
    that is a script.
    """
    fields = {name: getattr(task.config, name, None) for name in RULES}
    sha = hashlib.sha256(json.dumps(fields, sort_keys=True, default=_named).encode())
    own = type(task).__module__.partition(".")[0] not in ("lm_eval", "cltk")
    if own or any(callable(value) or str(value).endswith(".py") for value in _leaves(fields)):
        sha.update(metadata.version("lm-eval").encode())
        for file in sorted(Path(include_path).rglob("*.py")) if include_path else ():
            sha.update(file.read_bytes())
        folders = {Path(name).parent for name in named if name.endswith((".yaml", ".yml"))}
        for file in sorted(file for folder in folders for file in folder.glob("*.py")):
            sha.update(file.read_bytes())
        for name in sorted({_file(value) for value in _leaves(fields) if callable(value)} & _shipped()):
            sha.update((shipped("evals") / "tasks" / name).read_bytes())
    for doc in documents:
        sha.update(json.dumps(doc, sort_keys=True, ensure_ascii=False, default=_named).encode(errors="surrogatepass"))
    return sha.hexdigest()


def _file(function: Any) -> str:
    return Path(getattr(getattr(function, "__code__", None), "co_filename", "")).name


def _shipped() -> set[str]:
    return {file.name for file in (shipped("evals") / "tasks").glob("*.py")}


def _named(value: Any) -> Any:
    """What JSON lacks: numbers and texts of other kinds as they print, the rest by type, which is the same in every process."""
    if hasattr(value, "isoformat") or hasattr(value, "item"):
        return str(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value


def given(text: TextTask) -> list[Any]:
    """What a text's digest is made of: ids and labels, or the rows' text, where these are cut and what of them counts."""

    def tokens(row: Any) -> list[Any]:
        found = unpadded(row)
        return [found["input_ids"], found.get("labels", [])]

    rows = [tokens(row) if "input_ids" in row else row_key(row, f"{text.name}, row {i}") for i, row in enumerate(text.rows)]
    return rows + [{key: value} for key in ("max_length", "mask") if (value := getattr(text, key)) is not None]
