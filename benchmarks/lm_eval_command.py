"""lm-eval's command line with `--model hf` and with `--model cltk`, times side by side, and how far the answers are apart.

    python benchmarks/lm_eval_command.py                       # asset:smollm2-135m-instruct, 100 documents of three tasks
    python benchmarks/lm_eval_command.py --limit 8 --rounds 1  # a minute

Every run is a process of its own, `python -m cltk.lm_eval --model MODEL ...`, and the two take turns. The seconds are those of
the whole command, imports, reading lm-eval's list of tasks, tasks and loading included, and those of lm-eval's own clock, which
begins when the model is loaded. Prints a Markdown table, writes results/lm_eval_command.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "lm_eval_command.json"
TASKS = "local_arc_easy,local_piqa,local_hellaswag"


def command(model: str, options: argparse.Namespace, tasks: Path, out: Path) -> dict[str, Any]:
    """One run: its seconds, lm-eval's results, and every answer of every document."""
    from cltk.data import assets

    words = [
        "--model", model, "--model_args", f"pretrained={assets.resolve(options.model)},dtype={options.dtype}",
        "--tasks", options.tasks, "--include_path", str(tasks), "--limit", str(options.limit), "--device", options.device,
        "--batch_size", str(options.batch_size), "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "cltk.lm_eval", *words], capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    results = json.loads(next(out.rglob("results_*.json")).read_text())
    answers = {}
    for file in sorted(out.rglob("samples_*.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            task = file.name.removeprefix("samples_").rsplit("_", 1)[0]
            answers[f"{task} {row['doc_id']}"] = [float(one[0][0]) for one in row["resps"]]
    inside = float(results["total_evaluation_time_seconds"])
    return {"seconds": seconds, "evaluation": inside, "results": results["results"], "answers": answers}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """The two in turns: medians of their seconds, the largest differences of answers and metrics."""
    from cltk.files import shipped
    from cltk.measure.tasks import prepare

    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        tasks = prepare(shipped("evals") / "tasks", Path(folder) / "tasks", options.tasks.split(","))
        for number in range(options.rounds):
            out = Path(folder) / str(number)
            rounds.append({model: command(model, options, tasks, out / model) for model in ("hf", "cltk")})
    hf, ours = rounds[-1]["hf"], rounds[-1]["cltk"]
    assert hf["answers"].keys() == ours["answers"].keys()
    pairs = [(a, b) for key, found in hf["answers"].items() for a, b in zip(found, ours["answers"][key], strict=True)]
    metrics = {
        f"{task} {name}": [value, ours["results"][task][name]]
        for task, found in hf["results"].items() for name, value in found.items()
        if isinstance(value, float) and "stderr" not in name
    }  # fmt: skip
    seconds = {
        kind: {model: [one[model][kind] for one in rounds] for model in ("hf", "cltk")} for kind in ("seconds", "evaluation")
    }
    return {
        **seconds,
        "documents": len(hf["answers"]),
        "answers": len(pairs),
        "difference": max(abs(a - b) / abs(a) for a, b in pairs),
        "metrics": metrics,
    }


def table(found: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = ["| seconds of | `--model hf` | `--model cltk` | times faster |", "|---|---|---|---|"]
    for kind, name in (("seconds", "the whole command"), ("evaluation", "lm-eval's own clock")):
        hf, ours = (statistics.median(found[kind][model]) for model in ("hf", "cltk"))
        lines.append(f"| {name} | {hf:.1f} | {ours:.1f} | **{hf / ours:.2f}** |")
    moved = {name: pair for name, pair in found["metrics"].items() if pair[0] != pair[1]}
    lines.append(f"\n{found['documents']} documents, {found['answers']} answers; largest difference / logprob:")
    lines.append(f"{found['difference']:.1e}; metrics that differ: {moved or 'none'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="asset:smollm2-135m-instruct", help="folder, hub id or asset:NAME")
    parser.add_argument("--tasks", default=TASKS, help="tasks that come with cltk, separated by commas")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = compare(options)
    import torch

    versions = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processors": os.cpu_count()}
    settings = {name: getattr(options, name) for name in ("model", "tasks", "limit", "batch_size", "dtype", "device")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**settings, **versions, **found}, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
