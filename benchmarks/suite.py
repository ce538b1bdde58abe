"""arc_easy, piqa, sciq and hellaswag together, documents and all: cltk's scorer against lm-eval's HFLM(batch_size=8).

    python benchmarks/suite.py --model asset:smollm2-135m-instruct

Both sides run lm-eval's own evaluation over the same documents of the offline tasks, in float32; the times are whole: building
requests, scoring, our first batch checked against the stock path, metrics. Each side is a process of its own, and they take
turns. Writes a Markdown table and results/suite.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from driver import alternate, arguments_of, serve, write

TASKS = ["local_arc_easy", "local_piqa", "local_sciq", "local_hellaswag"]
FOLDER = Path(__file__).parent.parent / "evals" / "tasks"


def work(arguments: argparse.Namespace) -> None:
    from cltk.measure.evaluate import Suite
    from cltk.models import load_model

    model, tokenizer = load_model(arguments.model)

    def run(limit: int) -> float:
        scores = Suite(TASKS, include_path=FOLDER, limit=limit).evaluate(model, tokenizer, scorer=arguments.worker)
        return statistics.mean(statistics.mean(scores.tasks[task].values["acc"]) for task in TASKS)

    serve(lambda: run(arguments.limit), lambda: run(2))


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--limit", type=int, default=40, help="documents a task")
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    own = [sys.executable, __file__, "--model", arguments.model, "--limit", str(arguments.limit), "--worker"]
    found = alternate({side: [*own, side] for side in ("stock", "prefix")}, arguments.rounds)
    rows = [
        {
            "side": side, "limit": arguments.limit, "seconds": statistics.median(r["seconds"] for r in runs),
            "speed": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(found["stock"], runs, strict=True)),
            "mib": runs[-1]["mib"], "memory": runs[-1]["mib"] / found["stock"][-1]["mib"], "accuracy": runs[-1]["answer"],
        }
        for side, runs in found.items()
    ]  # fmt: skip
    write("suite", arguments, rows)
    print("| side | s | times faster | MiB | memory | mean accuracy |\n|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['side']} | {row['seconds']:.1f} | **{row['speed']:.2f}** | {row['mib']:.0f} | {row['memory']:.2f} |"
            f" {row['accuracy']:.4f} |"
        )
    return None


if __name__ == "__main__":
    main()
