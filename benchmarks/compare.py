"""What `cltk compare` takes for lm-eval logs of many tasks: seconds and memory of the whole command, imports included.

    python benchmarks/compare.py [--tasks 100] [--documents 1000] [--choices 4]

Writes two models' folders as lm-eval does (made-up questions of 60 words, answers of 8), runs the command in a process of its
own, and prints its wall-clock seconds, those of a processor, and its largest resident memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = "the a cat dog bird sat ran flew on under over mat tree house red blue green big small and then it was not".split()
DATE = "2026-01-01T00-00-00.000000"
RUN = (
    "import resource, sys; from cltk.cli import main; code = main(['compare', *sys.argv[1:]]);"
    "used = resource.getrusage(resource.RUSAGE_SELF);"
    "print(code, used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)"
)


def write(folder: Path, model: str, skill: float, tasks: int, documents: int, choices: int) -> int:
    """One model's folder; its size in bytes."""
    folder.mkdir()
    results: dict[str, dict[str, float]] = {}
    for number in range(tasks):
        name, right, total = f"task_{number:03d}", 0, 0
        asked, answers = random.Random(number), random.Random(f"{model} {number}")
        with (folder / f"samples_{name}_{DATE}.jsonl").open("w") as file:
            for i in range(documents):
                question, *texts = (" ".join(asked.choices(WORDS, k=n)) for n in (60, *[8] * choices))
                gold = asked.randrange(choices)
                scores = [answers.gauss(-30.0 + (skill if j == gold else 0), 4.0) for j in range(choices)]
                hit = float(scores[gold] == max(scores))
                norm = float(max(range(choices), key=lambda j: scores[j] / len(texts[j])) == gold)
                right, total = right + hit, total + norm
                hashes = [hashlib.sha256(part.encode()).hexdigest() for part in (f"{number} {i}", question, str(gold))]
                responses = [[str(score), "False"] for score in scores]
                sample = {
                    "doc_id": i, "doc": {"question": question, "choices": texts, "answer": gold}, "target": str(gold),
                    "arguments": {f"gen_args_{j}": {"arg_0": question, "arg_1": f" {text}"} for j, text in enumerate(texts)},
                    "resps": [[one] for one in responses], "filtered_resps": responses, "filter": "none",
                    "metrics": ["acc", "acc_norm"], "doc_hash": hashes[0], "prompt_hash": hashes[1], "target_hash": hashes[2],
                    "acc": hit, "acc_norm": norm,
                }  # fmt: skip
                file.write(json.dumps(sample) + "\n")
        results[name] = {"acc,none": right / documents, "acc_norm,none": total / documents}
    listed = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    data = {
        "results": results, "configs": {name: {"output_type": "multiple_choice", "metric_list": listed} for name in results},
        "versions": dict.fromkeys(results, 1.0), "n-shot": dict.fromkeys(results, 0), "model_name": model,
        "n-samples": {name: {"original": documents, "effective": documents} for name in results}, "config": {"model": "hf"},
    }  # fmt: skip
    (folder / f"results_{DATE}.json").write_text(json.dumps(data))
    return sum(file.stat().st_size for file in folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("tasks", 100), ("documents", 1000), ("choices", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / name for name in ("base", "tuned")]
        size = sum(write(log, log.name, 6 - i, **vars(asked)) for i, log in enumerate(logs))
        begin = time.perf_counter()
        command = [sys.executable, "-c", RUN, *map(str, logs)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
        seconds = time.perf_counter() - begin
    code, cpu, memory = done.stderr.split()[-3:]
    assert code == "0", done.stderr
    print(f"{asked.tasks} tasks x {asked.documents} documents, 2 models, {size / 1e6:.0f} MB of logs: ", end="")
    print(f"{seconds:.1f} s ({float(cpu):.1f} s of a processor), {int(memory) / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
