"""What scoring n of N documents loses and saves, on real fine-tunes of which all documents were scored.

    python benchmarks/documents.py make [--cells 1] [--documents 1000]    # minutes a cell; goes on where it was interrupted
    OMP_NUM_THREADS=1 python benchmarks/documents.py redraw [--draws 1000]    # of the cells that are there; says how many

`make` trains every cell of experiments/documents/*.yaml, scores start model and cells in bfloat16 on the same random documents
of every task, and keeps the scores alone: results/documents/NEWTASK-CELL.npz with "task|metric" -> float32 [N]. A cell is done
when its file is there. `redraw` draws n of the N documents again and again from those files, and from the committed scores of
experiments/ewc-path and methods-study, and compares with the mean of all N: the tables of documents.md.

coverage   of the 95 % interval for the N documents (`TwoPhase.here`), skewed and rare losses as in rows (`corrected`)
bias       the largest |mean error / its standard error| of a cell: in 24 cells some 3 is noise
gain       squared error of the plain mean of n random documents / that of the estimate; quartiles over cells
n_eff      documents it says it is worth / n: for documents like these, the N being a sample too; bounded by N/n
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cltk.measure.forgetting import span
from cltk.measure.inclusion import draw, flip_sizes
from cltk.measure.stats import corrected
from cltk.measure.twophase import MARGIN_OF, predictors, two_phase

ROOT = Path(__file__).resolve().parent.parent
SCORES = Path(__file__).parent / "results" / "documents"
STUDIES = ("medmcqa", "gsm8k")
TASKS = ["arc_easy_test", "arc_challenge_test", "piqa", "social_iqa", "commonsense_qa", "winogrande"]  # short texts
REFERENCES = ("plain_seed=0", "plain-x0.2_seed=0")  # in this order
COMMITTED = {"ewc-path": ("plain_seed=0",), "methods-study": ("plain-lr-1e-4_seed=0", "plain-lr-2e-4_seed=0")}
METRICS = ("acc_norm", "acc", "nll", "logprob", "margin")  # of the first two the one that stands for the task
Scores = dict[str, dict[str, Any]]  # task -> metric -> [N]; "documents" and "cluster" too


def suite(documents: int) -> Any:
    from cltk.measure.evaluate import Suite, TextTask

    text = TextTask.read("old_text", "asset:brown/heldout.jsonl", limit=documents, cluster="document")
    text = TextTask(text.name, text.rows, max_length=64, cluster=text.cluster)
    names = [f"local_{task}" for task in TASKS]
    return Suite(names, texts=[text], include_path=ROOT / "evals" / "tasks", sample=dict.fromkeys(names, documents))


def score(measured: Any, model: str, dtype: str, file: Path) -> None:
    """Score a stored model and keep the numbers, whole or not at all."""
    from cltk.models import load_model

    scores = measured.evaluate(
        *load_model(model, dtype=dtype), progress=lambda what, i, n, _: say(f"{file.stem}: {what} {i}/{n}")
    )
    arrays: dict[str, Any] = {}
    for task in scores.tasks.values():
        arrays |= {f"{task.task}|{metric}": np.asarray(values, np.float32) for metric, values in task.values.items()}
        arrays[f"{task.task}|documents"] = np.array(hashlib.sha256("".join(task.doc_hash).encode()).hexdigest())
        if task.cluster and file.stem == "start":
            arrays[f"{task.task}|cluster"] = np.unique(task.cluster, return_inverse=True)[1].astype(np.int32)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    os.replace(part, file)


def say(line: str) -> None:
    print(f"\r{line[:110]:<110}", end="", flush=True)


def make(arguments: argparse.Namespace) -> None:
    """The start model, then a cell at a time: train, score, keep the scores, remove the weights."""
    import cltk
    from cltk.files import locked

    measured, left = suite(arguments.documents), arguments.cells
    runs = {name: cltk.load(ROOT / "experiments" / "documents" / f"{name}.yaml", arguments.out / name) for name in STUDIES}
    for run in runs.values():
        run.check()  # both, before hours of work
    if not (arguments.scores / "start.npz").exists():
        score(measured, "asset:smollm2-135m-instruct", arguments.dtype, arguments.scores / "start.npz")
    for study, run in runs.items():
        run.out.mkdir(parents=True, exist_ok=True)
        for order, cell in enumerate(run.cells):
            file, folder = arguments.scores / f"{study}-{cell.name}.npz", run.folder(cell)
            if file.exists() or left == 0:
                continue
            begin = time.time()
            if not (folder / "record.json").exists():
                with locked(run.out):
                    if error := run.attempt(order, lambda what, i, n, detail: say(f"{what} {i}/{n} {detail}")):
                        raise SystemExit(f"\n{error}")
            trained = time.time()
            score(measured, str(folder / "model"), arguments.dtype, file)
            shutil.rmtree(folder / "model")
            left -= 1
            print(f"\n{file.stem}: trained in {trained - begin:.0f} s, scored in {time.time() - trained:.0f} s")


@dataclass(frozen=True)
class Study:
    """Cells that share a start model, documents and references."""

    name: str
    start: Scores
    references: list[Scores]
    cells: dict[str, Scores]


def stored(file: Path) -> Scores:
    found: Scores = {}
    with np.load(file) as arrays:
        for key in arrays.files:
            task, metric = key.split("|")
            found.setdefault(task, {})[metric] = arrays[key]
    return found


def committed(file: Path) -> Scores:
    tasks = json.loads(file.read_text())["tasks"]
    return {
        name: {**task["values"], "documents": hashlib.sha256("".join(task["doc_hash"]).encode()).hexdigest()}
        for name, task in tasks.items()
    }


def studies(folder: Path) -> Iterator[Study]:
    """Those of `make` that are there, and the committed ones as one study."""
    if (folder / "start.npz").exists():
        start = stored(folder / "start.npz")
        for name in STUDIES:
            cells = {file.stem.removeprefix(f"{name}-"): stored(file) for file in sorted(folder.glob(f"{name}-*.npz"))}
            references = [cells.pop(one) for one in REFERENCES if one in cells]
            if cells:
                yield Study(name, start, references, cells)
    cells, references = {}, []
    for name, wanted in COMMITTED.items():
        place = ROOT / "experiments" / name / "results"
        found = {file.name.removesuffix(".scores.json"): committed(file) for file in sorted(place.glob("*.scores.json"))}
        start = next(found.pop(key) for key in list(found) if key.startswith("base-"))
        references += [found.pop(one) for one in wanted]
        cells |= {key: one for key, one in found.items() if not key.startswith("base-")}
    yield Study("committed", start, references, cells)


def measures(study: Study) -> Iterator[tuple[str, str, int]]:
    """(task, metric, references) with 40 documents and more; without a reference too."""
    for task, metrics in study.start.items():
        for metric in METRICS:
            if metric in metrics and len(metrics[metric]) >= 40 and not (metric == "acc" and "acc_norm" in metrics):
                yield from ((task, metric, count) for count in range(len(study.references) + 1))


def redraw(study: Study, task: str, metric: str, count: int, share: float, draws: int, unequal: bool) -> dict[str, Any] | None:
    """One row: every cell of the study, drawn `draws` times; None where no cell's documents moved."""
    start, references = study.start[task], [one[task] for one in study.references[:count]]
    x = predictors(metric, start, references)
    unit = np.asarray(start.get("cluster", np.arange(len(x))))
    labels = [str(one) for one in unit] if "cluster" in start else None
    units, n, rows, bounds = len(np.unique(unit)), round(share * len(x)), [], span(metric, start[metric])
    sizes = flip_sizes(start[MARGIN_OF[metric]], np.sqrt(np.square(x[:, -count:]).mean(axis=1))) if unequal else None
    for name, cell in study.cells.items():
        if str(cell[task]["documents"]) != str(start["documents"]):
            raise SystemExit(f"{study.name}: {name} was scored on other documents of {task}; delete its file")
        d = np.asarray(start[metric], np.float64) - np.asarray(cell[task][metric], np.float64)
        if not d.any():
            continue
        rng, errors, plain, covered, r2, worth = np.random.default_rng(0), [], [], 0, [], []
        for _ in range(draws):
            chosen = np.flatnonzero(np.isin(unit, rng.permutation(units)[: round(share * units)]))
            scored, pi = (chosen, None) if sizes is None else draw(sizes, n, labels or (), str(rng.integers(1 << 31)))
            found = two_phase(d[scored], scored, x, labels, pi, bounds)
            low, high = corrected(found.here).ci  # as rows have it
            errors.append(found.here.mean - d.mean())
            plain.append(d[chosen].mean() - d.mean())
            covered += bool(low <= d.mean() <= high)
            r2.append(found.r2)
            worth.append(found.n_eff / found.scored)
        gain = np.square(plain).mean() / np.square(errors).mean()
        rows.append(
            (covered / draws, abs(np.mean(errors)) / np.std(errors) * draws**0.5, gain, np.nanmedian(r2), np.median(worth))
        )
    if not rows:
        return None
    coverage, bias, gains, r2s, worths = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "study": study.name, "task": task, "metric": metric, "references": count,
        "drawn": "by margin" if unequal else "equally", "N": len(x), "n": n, "cells": len(rows),
        "coverage": coverage.mean(), "lowest": coverage.min(), "bias": bias.max(),
        "R^2": np.median(r2s), "gain": np.median(gains), "quartiles": [float(q) for q in np.quantile(gains, [0.25, 0.75])],
        "n_eff": np.median(worths),
    }  # fmt: skip


def analyse(arguments: argparse.Namespace) -> None:
    """Every redraw of every study, in as many processes as there are processors."""
    rows = []
    with ProcessPoolExecutor() as pool:
        for study in studies(arguments.scores):
            print(f"\n{study.name}: {len(study.cells)} cells and {len(study.references)} references")
            asked = [
                (task, metric, count, arguments.share, arguments.draws, one)
                for task, metric, count in measures(study)
                for one in ([False, True] if metric in MARGIN_OF and count else [False])
            ]
            for number, found in enumerate(pool.map(partial(redraw, study), *zip(*asked, strict=True)), 1):
                say(f"{number} of {len(asked)}")
                rows += [found] if found else []
    SCORES.parent.mkdir(exist_ok=True)
    plain = [{key: float(v) if isinstance(v, np.floating) else v for key, v in row.items()} for row in rows]
    (SCORES.parent / "documents.json").write_text(json.dumps({"draws": arguments.draws, "results": plain}, indent=1) + "\n")
    tables(plain)


def tables(rows: list[dict[str, Any]]) -> None:
    """A table a study: gains by the number of references, documents drawn equally; the rest with all references."""
    for study in dict.fromkeys(row["study"] for row in rows):
        found: dict[tuple[str, str], dict[Any, dict[str, Any]]] = {}
        for row in rows:
            if row["study"] == study:
                found.setdefault((row["task"], row["metric"]), {})[row["references"], row["drawn"]] = row
        most = max(row["references"] for row in rows if row["study"] == study)
        heads = ["task", "metric", "n of N", "cells", *(f"gain, {count} references" for count in range(most + 1))]
        heads += ["by margin", "R^2", "n_eff / n", "coverage (lowest)", "by margin", "bias"]
        print(f"\n{study}\n| {' | '.join(heads)} |\n| --- | --- |" + " ---: |" * (len(heads) - 2))
        for (task, metric), ways in found.items():
            best, margin = ways[most, "equally"], ways.get((most, "by margin"))
            gains = [f"{ways[count, 'equally']['gain']:.1f}" for count in range(most + 1)]
            gains[-1] = "**{}** ({:.1f}, {:.1f})".format(gains[-1], *best["quartiles"])
            cells = [
                task,
                metric,
                f"{best['n']} of {best['N']}",
                best["cells"],
                *gains,
                f"{margin['gain']:.1f}" if margin else "",
            ]
            cells += [f"{best['R^2']:.2f}", f"{best['n_eff']:.1f}", covered(best), covered(margin) if margin else ""]
            print("| " + " | ".join(map(str, [*cells, f"{best['bias']:.1f}"])) + " |")


def covered(row: dict[str, Any]) -> str:
    return f"{100 * row['coverage']:.1f} ({100 * row['lowest']:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "redraw"))
    parser.add_argument("--scores", type=Path, default=SCORES, help="where scores are kept and read")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "documents", help="records of the trainings")
    parser.add_argument("--documents", type=int, default=1000, help="of each task")
    parser.add_argument("--cells", type=int, default=-1, help="how many to do now; all when not given")
    parser.add_argument("--dtype", default="bfloat16", help="of scoring")
    parser.add_argument("--share", type=float, default=0.25, help="n / N of the redraws")
    parser.add_argument("--draws", type=int, default=1000)
    arguments = parser.parse_args()
    (make if arguments.what == "make" else analyse)(arguments)


if __name__ == "__main__":
    main()
