"""A model card of every run, for a model hub: written by huggingface_hub's own classes, and never uploaded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cltk.errors import InputError
from cltk.files import write_text
from cltk.report.aggregate import Summary
from cltk.report.measurement import measured
from cltk.report.provenance import provenance
from cltk.report.sources import Entry
from cltk.run.records import RECORD

HUB = re.compile(r"[\w.-]+/[\w.-]+")  # an id on a hub, and no path


def write(summaries: Sequence[Summary], folder: Path) -> list[Path]:
    """README.md, and .eval_results/*.yaml of the tasks whose data set has an id on a hub; of several runs in a folder each.

    Returns:
        The folders.

    Raises:
        InputError: a README that is none of these stands in the way; nothing was written.
    """
    runs = [(one, seed, entry) for one in summaries for seed, entry in zip(one.seeds, one.entries, strict=True)]
    done: dict[Path, tuple[str, Entry]] = {}
    for summary, seed, entry in runs:
        name = re.sub(r"[^\w.=-]+", "_", f"{summary.label}-seed={seed}").lstrip(".")
        out = folder if len(runs) == 1 else folder / name
        if out in done:
            out = folder / f"{name}-{entry.record['digests']['tuned_model'][:10]}"
        done[out] = (summary.label, entry)
    for out in done:
        old = out / "README.md"
        if old.is_file() and "- cltk" not in old.read_text(encoding="utf-8", errors="replace").splitlines():
            raise InputError(f"--model-card: {old} is no card of cltk; name another folder, or move it away")
    for out, (label, entry) in done.items():
        write_text(out / "README.md", card(label, entry))
        for task, entries in _entries(entry).items():
            file = re.sub(r"[^\w.-]+", "_", task)
            write_text(out / ".eval_results" / f"{file}.yaml", yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))
    return list(done)


def card(label: str, entry: Entry) -> str:
    """The README of one run: metadata, what it was trained from and how, what it forgot, and how to make it again."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    record = entry.record
    config = record.get("config", {})
    base = str(config.get("model", {}).get("pretrained"))
    rows = _rows(record)
    results = [
        EvalResult(
            task_type="text-generation", dataset_type=_datasets(entry).get(row["task"], row["task"]), dataset_name=row["task"],
            metric_type=row["metric"], metric_value=row["post"],
        )
        for row in rows
    ]  # fmt: skip
    name = re.sub(r"[^\w.-]+", "-", f"{Path(base).name}-{label}").strip("-")
    data = ModelCardData(
        base_model=base if _on_hub(base) else None, library_name="transformers", tags=["continual-learning", "cltk"],
        model_name=name, eval_results=results or None,
    )  # fmt: skip
    facts = provenance([record])
    commands = "\n".join(facts["commands"]) or "cltk reproduce record.json"
    settings = "".join(f"- {key}: `{_inline(value)}`\n" for key, value in facts["settings"].items())
    text = (
        f"# {name}\n\nFine-tuned from `{_inline(base)}` with the method **{_inline(label)}** (seed {record.get('seed', 0)}), "
        f"and measured before and after on the same documents.\n\n## Data\n\n{_data(config)}\n\n## What it forgot\n\n"
        f"{_table(record)}\n## To make it again\n\n```\n{commands}\n```\n\nor `cltk reproduce` with its record.\n\n"
        f"## Settings\n\n{settings}"
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The headline of every old task."""
    retain = record.get("retain") or {"rows": [], "headline": {}}
    return [row for row in retain["rows"] if row["metric"] == retain["headline"].get(row["task"])]


def _table(record: dict[str, Any]) -> str:
    """The forgetting table, as `cltk measure` has it."""
    return measured(record["retain"]).markdown() if record.get("retain") else "No old task was measured.\n"


def _data(config: dict[str, Any]) -> str:
    train = config.get("data", {}).get("train") or {}
    stages = config.get("stages") or []
    named = [train, *((stage.get("data") or {}).get("train") or {} for stage in stages)]
    return "\n".join(f"- `{_inline(one.get('path'))}`" for one in named if one.get("path")) or "Not named in the record."


def _entries(entry: Entry) -> dict[str, list[dict[str, Any]]]:
    """Task -> entries of the `.eval_results` format, of tasks with a data set on a hub."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    known = _datasets(entry)
    found = {}
    for row in _rows(entry.record):
        if row["task"] in known:
            notes = f"cltk, {row['n']} documents, {row['metric']}; before training {row['pre']:.4f}"
            one = EvalResultEntry(dataset_id=known[row["task"]], task_id=row["task"], value=row["post"], notes=notes)
            found[row["task"]] = eval_result_entries_to_yaml([one])
    return found


def _datasets(entry: Entry) -> dict[str, str]:
    """Task -> the id of its data set on a hub, from lm-eval's own files beside the record."""
    found: dict[str, str] = {}
    if entry.path is None or entry.path.name != RECORD:
        return found
    for file in sorted((entry.path.parent / "lm_eval").rglob("results_*.json")):
        try:
            configs = json.loads(file.read_text(encoding="utf-8"))["configs"]
            found |= {task: str(one["dataset_path"]) for task, one in configs.items() if _on_hub(str(one.get("dataset_path")))}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return found


def _on_hub(name: str) -> bool:
    return HUB.fullmatch(name) is not None and not name.startswith(".") and not Path(name).exists()


def _inline(value: object) -> str:
    """A text within backticks, on one line."""
    return " ".join(str(value).replace("`", "'").split())
