"""`cltk report` of many cells: from an output folder to tables, Markdown, LaTeX and the page, each output by itself.

    python benchmarks/report.py                      # 10,000 cells: a minute of making them, then some seconds an output
    python benchmarks/report.py --cells 500 --quick  # writes nothing

Records are made, not trained: one plain training and settings of two methods, two old texts and three tasks, a learned
task, in three kinds of study. `settings`: every cell has another setting, one seed. `seeds`: five seeds a setting, with
per-document scores of 20 documents. `edited`: all cells have one name and differ in a key that an edited YAML left behind.
Times are of one process, reading included, of the wall and of the processor. Writes a table and results/report.json.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import pstats
import tempfile
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from cltk.measure.forgetting import compare
from cltk.measure.scores import Scores, TaskScores
from cltk.run.records import write_json

RESULTS = Path(__file__).parent / "results" / "report.json"
KINDS = ("settings", "seeds", "edited")
OUTPUTS = ("tables", "markdown", "html", "latex")
TASKS = {"old_text": "nll", "wiki": "nll", "arc": "acc", "piqa": "acc", "sciq": "acc", "heldout": "nll"}
DOCUMENTS = 20


def scores(name: str, shift: float, rng: np.random.Generator) -> Scores:
    """Of all tasks: losses that rise by `shift`, and documents that are lost in its proportion."""
    tasks = {}
    for task, metric in TASKS.items():
        fixed = np.random.default_rng(len(task))  # the start model's, the same in every cell
        if metric == "nll":
            found = fixed.normal(3, 0.5, DOCUMENTS) + (-shift if task == "heldout" else shift) + rng.normal(0, 0.1, DOCUMENTS)
        else:
            found = (fixed.random(DOCUMENTS) < 0.7 - shift / 4).astype(float)
        hashes = [f"{task}-{i}" for i in range(DOCUMENTS)]
        tasks[task] = TaskScores(task, {metric: found.tolist()}, {metric: metric == "acc"}, hashes, hashes)
    return Scores(name, tasks)


def results(base: Scores, post: Scores) -> dict[str, Any]:
    """What a record says of the tasks."""

    def part(scores: Scores, learned: bool) -> Scores:
        return Scores(scores.digest, {name: one for name, one in scores.tasks.items() if (name == "heldout") == learned})

    found = {role: compare(part(base, new), part(post, new)).to_json() for role, new in (("retain", False), ("learn", True))}
    return {role: {key: value for key, value in one.items() if key != "samples"} for role, one in found.items()}


def record(i: int, kind: str, start: str, tuned: str, found: dict[str, Any]) -> dict[str, Any]:
    """Cell i of a study, as `cltk run` writes it."""
    setting, seed = (i // 5, i % 5) if kind == "seeds" else (i, 0)
    method = "plain" if setting == 0 else ("ewc", "l2_sp")[setting % 2]
    mitigators = [] if setting == 0 else [{method: {"strength": setting, "form": "gradient"}}]
    train = {"learning_rate": 5e-4, "max_steps": 12, "per_device_train_batch_size": 8, "lr_scheduler_type": "cosine"}
    labels = {"seed": seed, "mitigators": f"{method} {setting}"}
    if kind == "edited":
        method, mitigators, labels = "ewc", [{"ewc": {"strength": 1.0}}], {"seed": seed}
        train["max_steps"] = 12 + i
    data = {
        "train": {"path": "asset:medmcqa/train.jsonl", "prompt": "prompt"},
        "heldout": {"path": "heldout.jsonl", "limit": 80},
    }
    config = {"model": {"pretrained": "tiny"}, "data": data, "train": train, "mitigators": mitigators, "seed": seed}
    packages = {"torch": "2.13.0", "transformers": "5.23.0"}
    return {
        "format": 2, "experiment": "many", "order": i, "cell": f"{method}-{i}", "method": method, "labels": labels,
        "seed": seed, "config": config, "seconds": 50.0,
        "digests": {"start_model": start, "tuned_model": tuned, "files": {"heldout.jsonl": "0" * 64}},
        "environment": {"cltk": "0.1.0", "git_commit": "0" * 40, "packages": packages, "command": "cltk run x.yaml"},
        "train": {
            "steps": train["max_steps"], "tokens": 9000, "seconds": 20.0, "parameters": 10**8, "peak_bytes": 10**9,
            "history": [{"step": step, "loss": 3.0 - step / 9} for step in range(1, 12)],
        },
        **found,
    }  # fmt: skip


def write(folder: Path, count: int, kind: str) -> None:
    """An output folder of so many cells; their numbers are those of a hundred that were computed."""
    rng, base = np.random.default_rng(0), scores("base", 0.0, np.random.default_rng(1))
    known = [scores("", 0.1 + 0.2 * float(rng.random()), rng) for _ in range(min(100, count))]
    found = [results(base, post) for post in known]
    if kind == "seeds":
        write_json(folder / "base-0" / "scores.json", base.to_json())
    for i in range(count):
        write_json(folder / f"cell-{i}" / "record.json", record(i, kind, "base", f"tuned {i}", found[i % 100]))
        if kind == "seeds":
            write_json(folder / f"cell-{i}" / "scores.json", Scores(f"tuned {i}", known[i % 100].tasks).to_json())


def timed(folder: Path, output: str) -> tuple[float, float]:
    """Seconds from the folder to the output, the terminal's tables included: of the wall, of the processor."""
    from cltk.report.api import report

    target = folder.parent / f"out-{output}"
    begin = time.perf_counter(), time.process_time()
    with redirect_stdout(io.StringIO()):
        report(folder, **{} if output == "tables" else {output: target})
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--outputs", nargs="+", choices=OUTPUTS, default=list(OUTPUTS))
    parser.add_argument("--quick", action="store_true", help="500 cells; writes nothing")
    parser.add_argument("--profile", action="store_true", help="say where the time goes; times are then too long")
    arguments = parser.parse_args()
    cells = 500 if arguments.quick else arguments.cells
    print("| study | cells | output | s | processor s |\n|---|---:|---|---:|---:|")
    rows = []
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as place:
            write(Path(place) / "runs", cells, kind)
            for output in arguments.outputs:
                with cProfile.Profile() if arguments.profile else nullcontext() as profile:
                    seconds, processor = timed(Path(place) / "runs", output)
                rows.append({"study": kind, "cells": cells, "output": output, "seconds": seconds, "processor": processor})
                print(f"| {kind} | {cells} | {output} | {seconds:.1f} | {processor:.1f} |", flush=True)
                if profile is not None:
                    pstats.Stats(profile).sort_stats("cumulative").print_stats(25)
    if not arguments.quick and not arguments.profile:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
