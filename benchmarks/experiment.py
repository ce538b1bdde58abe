"""A whole experiment: `cltk run` against the shell script that one writes without it (by_hand/), in turns, and their scores.

    python benchmarks/experiment.py                          # the quickstart, five cells: 35 minutes on two cores of a Zen 5
    python benchmarks/experiment.py --cells 2                # the start model and two cells: 16 minutes there
    python benchmarks/experiment.py --dtype bfloat16         # both sides train in autocast (and score in it: evals.dtype)
    python benchmarks/experiment.py --quick                  # a random model of 0.1 M parameters, a minute

by_hand/experiment.sh runs lm_eval's command on the start model, transformers' Trainer with padded batches for every method, and
lm_eval's command on each result; texts are scored by a padded loop over rows of like lengths. Same model, rows, order of
batches, documents (all of them in every cell: evals.documents=null), precision and measures (evals.kl_rows=0: no KL).
lm_eval's batch size is the one of --batches that is fastest here. Trainer's group_by_length is left off: of a job of N steps
it takes the longest rows, other ones and more tokens. Times are whole processes, imports and loading included; by part:
training (of the script with loading and saving), tasks, texts, and the rest (cltk's start and its report).

Scores: the start model's answers must agree within 1e-4 + 1e-5 |logprob| and its accuracies wholly. Trainings of the same
batches (plain, low_lr, early_stopping) part by rounding, which Adam enlarges: their mean NLLs must agree within 0.01 nats (two
processors differ by 0.009 in experiments/quickstart). Replay and EWC draw other rows and labels: reported. Exit code 1 where
they do not agree.
Prints a Markdown table; writes results/experiment.json (experiment-bfloat16.json; with --quick only to --out).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from driver import RESULTS, write
from experiment_sides import HERE, PARTS, Job, by_hand, fastest_batch, ours

SAME_BATCHES = ("plain", "low_lr", "early_stopping")
Scores = dict[str, Any]


def scores(answers: Path, nll: dict[str, list[float]]) -> Scores:
    """lm-eval's own files and the NLL of rows: {answers: {document: logprobs}, right: {task metric: values}, nll}."""
    found: Scores = {"answers": {}, "right": {}, "nll": nll}
    for file in sorted(answers.rglob("samples_*.jsonl")):
        task = file.name.removeprefix("samples_").rsplit("_", 1)[0]
        for row in map(json.loads, file.read_text().splitlines()):
            found["answers"][f"{task} {row['doc_id']}"] = [float(one[0][0]) for one in row["resps"]]
            for metric in ("acc", "acc_norm"):
                if metric in row:
                    found["right"].setdefault(f"{task} {metric}", []).append(float(row[metric]))
    return found


def theirs_of(folder: Path, name: str) -> Scores:
    return scores(folder / name / "lm_eval", json.loads((folder / name / "nll.json").read_text()))


def ours_of(job: Job, folder: Path, name: str) -> Scores:
    run = job.run(folder / "out")
    cell = next((one for one in run.cells if one.method == name), run.cells[0])
    place = run.work().base_folder(cell) if name == "base" else run.folder(cell)
    tasks = json.loads((place / "scores.json").read_text())["tasks"]
    nll = {text.name: tasks[text.name]["values"]["nll"] for text in run.inputs.suite(cell).texts}
    return scores(place / "lm_eval", nll)


def compared(name: str, a: Scores, b: Scores, dtype: str) -> dict[str, Any]:
    """How far two sides' scores of one model are apart, and whether that is what it may be."""
    assert a["answers"].keys() == b["answers"].keys()
    assert a["right"].keys() == b["right"].keys()
    pairs = [(x, y) for key, found in a["answers"].items() for x, y in zip(found, b["answers"][key], strict=True)]
    rows = [(x, y) for key, found in a["nll"].items() for x, y in zip(found, b["nll"][key], strict=True)]
    means = {key: (statistics.mean(found), statistics.mean(b["nll"][key])) for key, found in a["nll"].items()}
    right = {key: (statistics.mean(found), statistics.mean(b["right"][key])) for key, found in a["right"].items()}
    flips = sum(x != y for key, found in a["right"].items() for x, y in zip(found, b["right"][key], strict=True))
    exact = all(abs(x - y) <= 1e-4 + 1e-5 * abs(x) for x, y in pairs) and all(abs(x - y) <= 1e-4 for x, y in rows) and not flips
    near = all(abs(x - y) <= 0.01 for x, y in means.values())
    judged = dtype == "float32" and (name == "base" or name in SAME_BATCHES)
    return {
        "model": name, "documents": len(a["answers"]), "answers": len(pairs), "flips": flips, "accuracy": right, "nll": means,
        "answers_apart": max((abs(x - y) for x, y in pairs), default=0.0), "rows_apart": max(abs(x - y) for x, y in rows),
        "means_apart": max(abs(x - y) for x, y in means.values()),
        "equal": (exact if name == "base" else near) if judged else None,
    }  # fmt: skip


def experiment(job: Job, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both sides in turns; one row of results."""
    with tempfile.TemporaryDirectory(prefix="experiment-") as place:
        folder = Path(place)
        batch, tried = fastest_batch(job, options.batches, folder / "tried")
        rounds = []
        for number in range(options.rounds):
            turn = {"script": by_hand(job, folder / f"script-{number}", batch), "cltk": ours(job, folder / f"cltk-{number}")}
            rounds.append(turn)
            print(f"round {number + 1}: {turn}", file=sys.stderr)
        last = options.rounds - 1
        names = ["base", *json.loads((folder / f"script-{last}" / "settings.json").read_text())["methods"]]
        found = [
            compared(name, theirs_of(folder / f"script-{last}", name), ours_of(job, folder / f"cltk-{last}", name), job.dtype)
            for name in names
        ]
        if options.keep:
            shutil.copytree(folder, options.keep, dirs_exist_ok=True)
    ratios = [one["script"]["seconds"] / one["cltk"]["seconds"] for one in rounds]
    return [{
        "dtype": job.dtype, "scored_in": job.scored_in, "cells": len(names) - 1, "batch": batch, "batches": tried,
        "rounds": rounds, "ratio": statistics.median(ratios), "ratios": ratios, "scores": found,
    }]  # fmt: skip


def table(row: dict[str, Any]) -> str:
    """The results in Markdown."""

    def seconds(side: str, part: str) -> float:
        return statistics.median(one[side]["parts"].get(part, one[side]["seconds"]) for one in row["rounds"])

    lines = [f"{row['cells']} cells, trained in {row['dtype']}, scored in {row['scored_in']}, lm_eval batch {row['batch']}", ""]
    lines += ["| part | script s | cltk s | times faster |", "|---|---|---|---|"]
    for part in (*PARTS, "whole"):
        a, b = seconds("script", part), seconds("cltk", part)
        times = f"**{row['ratio']:.2f}**" if part == "whole" else "" if part == "rest" else f"{a / b:.2f}"
        lines.append(f"| {part} | {a:.1f} | {b:.1f} | {times} |")
    lines += ["", "| model | equal | answers apart | rows' NLL apart | mean NLL apart | decisions flipped |", "|---" * 6 + "|"]
    for one in row["scores"]:
        equal = {True: "yes", False: "NO", None: ""}[one["equal"]]
        lines.append(
            f"| {one['model']} | {equal} | {one['answers_apart']:.1e} | {one['rows_apart']:.1e} | {one['means_apart']:.1e} |"
            f" {one['flips']} of {len(one['accuracy'])} x {one['documents']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yaml", type=Path, default=HERE.parent / "experiments" / "quickstart" / "quickstart.yaml")
    parser.add_argument("--cells", type=int, default=99, help="the first so many cells of the grid")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16, 32], help="lm_eval's; the fastest is taken")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for what both sides wrote")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--quick", action="store_true", help="a random model, tiny rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quick-") as place:
        if options.quick:
            from by_hand.quick import study

            options.yaml, options.batches = study(Path(place)), [8]
        rows = experiment(Job(options.yaml.absolute(), options.cells, options.dtype), options)
    options.model = options.yaml.stem
    if options.out is None and options.dtype != "float32":
        options.out = RESULTS / f"experiment-{options.dtype}.json"
    write("experiment", options, rows)
    print(table(rows[0]))
    raise SystemExit(any(one["equal"] is False for one in rows[0]["scores"]))


if __name__ == "__main__":
    main()
