"""Hand-made output folders: records and per-document scores as `cltk run` writes them, from seeded numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cltk.measure.forgetting import compare
from cltk.measure.scores import Scores, TaskScores
from cltk.run.records import write_json

N = 60  # documents of each task
LABELS = [f"c{i // 2}" for i in range(N)]
SHIFT = {"plain": 0.3, "ewc": 0.12, "replay": 0.3}


def task(name: str, metric: str, values: Any) -> TaskScores:
    hashes = [f"{name}-{i}" for i in range(N)]
    accuracy = metric.startswith("acc")
    return TaskScores(
        name, {metric: [float(v) for v in values]}, {metric: accuracy}, hashes, hashes, [4] * N if accuracy else [],
        [] if accuracy else LABELS,
    )  # fmt: skip


def base_scores() -> Scores:
    rng = np.random.default_rng(1)
    tasks = [
        task("arc", "acc_norm", rng.random(N) < 0.6), task("piqa", "acc", rng.random(N) < 0.7),
        task("brown", "nll", rng.normal(3, 0.5, N)), task("heldout", "nll", rng.normal(4, 0.5, N)),
    ]  # fmt: skip
    return Scores("base", {one.task: one for one in tasks})


def tuned_scores(method: str, seed: int, base: Scores) -> Scores:
    """Losses with a shift of the method, noise of the seed (the same for all methods) and noise of each document."""
    common, own = np.random.default_rng(100 + seed), np.random.default_rng([ord(c) for c in method] + [seed])
    shift, noise = SHIFT[method], common.normal(0, 0.05)
    done = {}
    for name, one in base.tasks.items():
        ((metric, before),) = one.values.items()
        if metric == "nll":
            moved = np.asarray(before) + (shift + noise if name == "brown" else -0.5 + noise) + own.normal(0, 0.1, N)
        else:
            flip = own.random(N) < 0.5 * shift
            moved = np.where(flip, 1 - np.asarray(before), before)
        done[name] = task(name, metric, moved)
    return Scores(f"{method}-{seed}", done)


def record(method: str, seed: int, order: int, post: Scores, base: Scores, **changes: Any) -> dict[str, Any]:
    labels = {"seed": seed, "mitigators": method, **changes}

    def only(scores: Scores, learn: bool) -> Scores:
        return Scores(scores.digest, {name: one for name, one in scores.tasks.items() if (name == "heldout") == learn})

    results = {role: compare(only(base, learn), only(post, learn)) for role, learn in (("retain", False), ("learn", True))}
    rows = {
        role: {key: value for key, value in result.to_json().items() if key != "samples"} for role, result in results.items()
    }
    mitigators = [] if method == "plain" else [{method: {}}]
    train = {key.removeprefix("train."): value for key, value in changes.items()}
    return {
        "format": 1, "experiment": "study", "order": order, "cell": f"{method}-{seed}", "method": method, "labels": labels,
        "seed": seed, "config": {"model": {"pretrained": "tiny"}, "train": train, "mitigators": mitigators, "seed": seed},
        "digests": {"start_model": base.digest, "tuned_model": post.digest}, "environment": {"cltk": "0.1.0"},
        "train": {"steps": 6}, **rows,
    }  # fmt: skip


def write_study(
    folder: Path, methods: tuple[str, ...] = ("plain", "ewc", "replay"), seeds: int = 3, scores: bool = True, flat: bool = False
) -> Path:
    """An output folder, or a flat one as results are committed; with `scores` the per-document scores too."""
    base = base_scores()
    folder.mkdir(parents=True, exist_ok=True)
    if scores:
        write_json(folder / ("base.scores.json" if flat else "base-0/scores.json"), base.to_json())
    for seed in range(seeds):
        for i, method in enumerate(methods):
            post = tuned_scores(method, seed, base)
            name = f"{method}-{seed}"
            one = record(method, seed, seed * len(methods) + i, post, base)
            write_json(folder / (f"{name}.json" if flat else f"{name}/record.json"), one)
            if scores:
                write_json(folder / (f"{name}.scores.json" if flat else f"{name}/scores.json"), post.to_json())
    return folder
