"""The two sides of `experiment.py`: the script in by_hand/, and `cltk run`; each once, as whole processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PARTS = ("training", "tasks", "texts", "rest")


@dataclass(frozen=True)
class Job:
    """An experiment's YAML, what is changed in it, and how many cells are run."""

    yaml: Path
    cells: int
    dtype: str

    @property
    def overrides(self) -> list[str]:
        from cltk.run.spec import EvalSpec

        found = ["evals.kl_rows=0", f"speed.autocast={str(self.dtype != 'float32').lower()}"]
        part = yaml.safe_load(self.yaml.read_text())["evals"].get("documents")
        if part:  # the script scores all of them in every cell
            found += ["evals.documents=null", f"evals.sample={part['total']}"]
        if self.dtype != "float32" and "dtype" in EvalSpec.model_fields:
            found.append(f"evals.dtype={self.dtype}")
        return found

    @property
    def scored_in(self) -> str:
        """The precision of evaluations, on both sides."""
        return self.dtype if any(one.startswith("evals.dtype") for one in self.overrides) else "float32"

    def run(self, out: Path) -> Any:
        import cltk

        return cltk.load(self.yaml, out, overrides=self.overrides)


def hand_over(job: Job, folder: Path, batch: int) -> list[str]:
    """Everything that the script reads: rows, documents, settings, from the YAML; the methods that it is to run."""
    from cltk.data import assets, read_rows
    from cltk.measure.sampling import spread
    from cltk.measure.tasks import prepare
    from cltk.run.spec import TextSpec

    run = job.run(folder / "unused")
    cell, plan = run.cells[0], run.plan
    data, evals = cell.config.data, cell.config.evals

    def rows(source: str, limit: int | None = None, evenly: bool = False) -> list[dict[str, Any]]:
        place = source if source.startswith("asset:") else str(plan.folder / source)
        found = read_rows(place)
        return spread(found, limit) if evenly else list(found)[:limit]

    def put(name: str, found: list[dict[str, Any]]) -> str:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        return f"{name}.jsonl"

    def pairs(source: Any) -> list[dict[str, Any]]:
        names = {key: getattr(source, key) or getattr(data.train, key) for key in ("prompt", "completion")}
        return [{key: row[column] for key, column in names.items()} for row in rows(source.path, source.limit)]

    methods = {one.method: {name: given for entry in one.config.mitigators for name, given in entry.items()}
               for one in run.cells[: job.cells]}  # fmt: skip
    for name in ("train", "validation", "heldout"):
        put(name, pairs(data.train if name == "train" else getattr(data, name)))
    for given in methods.values():
        for arguments in given.values():
            memory = arguments.get("memory") or (arguments.get("importance") or {}).get("memory")
            if memory:
                put("probe" if "budget" in arguments else "memory", rows(memory))
    texts = {"heldout": "heldout.jsonl"}
    for entry in evals.retain:
        if isinstance(entry, TextSpec):
            texts[entry.label] = put(f"text-{entry.label}", rows(entry.text, entry.limit, evenly=True))
    tasks = [entry for entry in evals.retain if isinstance(entry, str)]
    if evals.sample is not None:
        suite = run.inputs.suite(cell)
        suite.load()
        (folder / "samples.json").write_text(json.dumps({task: list(suite.chosen[task].indices) for task in tasks}))
    source = plan.folder / evals.include_path if evals.include_path else HERE.parent / "evals" / "tasks"
    include = prepare(source, folder / "tasks", tasks)
    name = cell.config.model.pretrained
    model = assets.resolve(name) if name.startswith("asset:") else plan.folder / name
    settings = {
        "model": str(model), "tasks": ",".join(tasks), "include": str(include), "limit": evals.limit, "batch": batch,
        "dtype": job.scored_in, "bf16": job.dtype != "float32", "max_length": data.max_length, "texts": texts, "text_batch": 8,
        "train": {key: value for key, value in cell.config.train.items() if key != "output_dir"}, "methods": methods,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings, indent=1))
    return list(methods)


def fastest_batch(job: Job, sizes: list[int], folder: Path) -> tuple[int, dict[int, float]]:
    """lm_eval's batch size with the shortest evaluation by its own clock, on a few documents; all that were tried."""
    if len(sizes) == 1:
        return sizes[0], {}
    folder.mkdir()
    hand_over(job, folder, 1)
    given, tried = json.loads((folder / "settings.json").read_text()), {}
    for size in sizes:
        model = f"pretrained={given['model']},dtype={given['dtype']}"
        command = [
            sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model, "--tasks", given["tasks"],
            "--include_path", given["include"], "--limit", "4", "--batch_size", str(size), "--device", "cpu",
            "--output_path", str(folder / str(size)),
        ]  # fmt: skip
        called(command, {"HF_HUB_OFFLINE": "1"})
        results = json.loads(next((folder / str(size)).rglob("results_*.json")).read_text())
        tried[size] = float(results["total_evaluation_time_seconds"])
    return min(tried, key=lambda size: tried[size]), tried


def called(command: list[str], changes: dict[str, str] | None = None) -> float:
    """Seconds of a process; ends the benchmark with its last words where it fails."""
    begin = time.time()
    changes = {"CUDA_VISIBLE_DEVICES": "", **(changes or {})}  # both sides on the processor
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **changes})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{(done.stdout + done.stderr)[-3000:]}")
    return time.time() - begin


def by_hand(job: Job, folder: Path, batch: int) -> dict[str, Any]:
    """The script, once: seconds whole and by part."""
    folder.mkdir()
    methods = hand_over(job, folder, batch)
    seconds = called(["bash", str(HERE / "by_hand" / "experiment.sh"), str(folder), *methods], {"PYTHON": sys.executable})
    parts, before = dict.fromkeys(PARTS, 0.0), 0.0
    for line in (folder / "clock").read_text().splitlines():
        part, _, at = line.split()
        if part != "begin":
            parts[part] += float(at) - before
        before = float(at)
    return {"seconds": seconds, "parts": parts | {"rest": seconds - sum(parts.values())}}


def ours(job: Job, folder: Path) -> dict[str, Any]:
    """`cltk run`, once: seconds whole and by part, from what its progress line is told."""
    folder.mkdir()
    methods = [cell.method for cell in job.run(folder).cells[: job.cells]]
    words = [str(job.yaml), *job.overrides, "--out", str(folder / "out")]
    words += [word for method in methods for word in ("--only", f"method={method}")]
    begin = time.time()
    seconds = called([sys.executable, __file__, str(folder / "clock"), *words])
    run = job.run(folder / "out")
    texts = {text.name for text in run.inputs.suite(run.cells[0]).texts}
    parts, before = dict.fromkeys(PARTS, 0.0), begin
    for line in (folder / "clock").read_text().splitlines():
        at, what, kind = line.split("\t")
        name = what.rpartition(": ")[2]
        part = (
            "rest" if kind in ("cell", "failed") else "training" if name == "train" else "texts" if name in texts else "tasks"
        )
        parts[part] += float(at) - before
        before = float(at)
    return {"seconds": seconds, "parts": parts | {"rest": parts["rest"] + begin + seconds - before}}


def work(words: list[str]) -> None:
    """`cltk run` in this process; what the progress line is told goes to a file with the time."""
    from cltk import cli
    from cltk.progress import Bar

    clock, *arguments = words
    tell = Bar.__call__
    with Path(clock).open("w") as file:

        def noted(self: Bar, what: str, done: int, total: int, detail: Any = "") -> None:
            file.write(f"{time.time()}\t{what}\t{detail if detail in ('cell', 'failed') else ''}\n")
            tell(self, what, done, total, detail)

        Bar.__call__ = noted  # type: ignore[method-assign]
        code = cli.main(["run", *arguments])
    raise SystemExit(code)


if __name__ == "__main__":
    work(sys.argv[1:])
