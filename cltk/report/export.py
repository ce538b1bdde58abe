"""lm-eval's own files of every run, where its tools look for them: DIR/RUN/results_DATE.json and samples_TASK_DATE.jsonl."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from cltk.errors import InputError
from cltk.report.aggregate import Summary
from cltk.report.sources import Entry
from cltk.run.records import RECORD


def write(summaries: Sequence[Summary], folder: Path) -> None:
    """Copy the newest results and samples of every run, and of every start model, into a folder each.

    Raises:
        InputError: a run or its start model has no lm-eval files beside the record; nothing was written.
    """
    found: dict[str, list[Path]] = {}
    for summary in summaries:
        for seed, entry in zip(summary.seeds, summary.entries, strict=True):
            run, digests = _run_folder(entry), entry.record["digests"]
            if (entry.record.get("documents") or {}).get("chance"):
                raise InputError(
                    f"--lm-eval: {run} scored documents of unequal probability (evals.documents, draw: margin), and lm-eval's"
                    " files know no weights; leave the record out"
                )
            start = f"start-model-{digests['start_model'][:10]}"
            found[start] = found.get(start) or _start_files(run.parent, digests["start_model"])
            name = re.sub(r"[^\w.=-]+", "_", f"{summary.label}-seed={seed}").lstrip(".")
            found[name if name not in found else f"{name}-{digests['tuned_model'][:10]}"] = _files(run / "lm_eval")
    for name, files in found.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, folder / name / file.name)


def _run_folder(entry: Entry) -> Path:
    if entry.path is None or entry.path.name != RECORD:
        what = entry.path or "a record in memory"
        raise InputError(f"--lm-eval: {what} has no lm_eval folder beside it; name the output folder of `cltk run`")
    return entry.path.parent


def _files(folder: Path) -> list[Path]:
    """The newest results_DATE.json below a folder and the samples of the same date."""
    results = max(folder.rglob("results_*.json"), key=lambda file: file.name, default=None)
    if results is None:
        raise InputError(f"--lm-eval: {folder} holds no results_*.json; its cell measured no lm-eval task, or run it again")
    date = results.stem.removeprefix("results_")
    return [results, *sorted(results.parent.glob(f"samples_*_{date}.jsonl"))]


def _start_files(out: Path, digest: str) -> list[Path]:
    for folder in sorted(out.glob("base-*/lm_eval")):
        files = _files(folder)
        if _weights(files[0]) == digest:
            return files
    raise InputError(f"--lm-eval: {out} holds no base-*/lm_eval of the start model {digest[:10]}; run the experiment again")


def _weights(results: Path) -> str | None:
    """The digest of the weights that a results file is about."""
    try:
        return json.loads(results.read_text(encoding="utf-8"))["config"]["weights_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
