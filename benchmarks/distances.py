"""KL between two models' logits, and its gradient: whole float32 matrices by torch against blocks of rows.

    python benchmarks/distances.py

Logits [--rows, --vocabulary] of two models are given (1485 tokens of SmolLM2's 49152 by default), in float32 and in bfloat16.
Each side works in a process of its own; memory is the peak above the two matrices, in matrices of the logits' dtype. Writes
a Markdown table and results/distances.json.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import torch
import torch.nn.functional as F
from driver import alternate, arguments_of, serve, write
from torch import Tensor

from cltk.forward.loss import kl_divergence
from cltk.run.speed import tune_allocator

KINDS: dict[str, dict[str, Any]] = {
    "forward": {},
    "reverse, T = 2": {"direction": "reverse", "temperature": 2.0},
}


def whole(logits: Tensor, start: Tensor, direction: str = "forward", temperature: float = 1.0) -> Tensor:
    log_p, log_start = (F.log_softmax(z.float() / temperature, -1) for z in (logits, start))
    target, other = (log_start, log_p) if direction == "forward" else (log_p, log_start)
    return temperature**2 * F.kl_div(other, target, log_target=True, reduction="none").sum(-1).mean()


def work(side: str, kind: str, dtype: str, rows: int, vocabulary: int) -> None:
    tune_allocator()
    torch.manual_seed(0)
    made = (torch.randn(rows, vocabulary, dtype=getattr(torch, dtype)) for _ in range(2))
    logits, start = made
    logits.requires_grad_()
    loss: Any = kl_divergence if side == "blocks" else whole

    def once() -> float:
        logits.grad = None
        value = loss(logits, start, **KINDS[kind])
        value.backward()
        return float(value)

    small = torch.randn(8, vocabulary, dtype=logits.dtype)
    serve(once, lambda: loss(small.clone().requires_grad_(), small, **KINDS[kind]).backward())


def main() -> None:
    parser = arguments_of(__doc__)
    parser.set_defaults(rows=1485)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--vocabulary", type=int, default=49152)
    arguments = parser.parse_args()
    if arguments.worker:
        side, kind, dtype = arguments.worker.split("|")
        return work(side, kind, dtype, arguments.rows, arguments.vocabulary)
    if arguments.quick:
        arguments.rows, arguments.vocabulary, arguments.rounds = 256, 8192, 2
    results = []
    print("| logits | KL | whole s | blocks s | times faster | whole | blocks | memory |\n|---|---|---|---|---|---|---|---|")
    for dtype in ("float32", "bfloat16"):
        matrix = arguments.rows * arguments.vocabulary * getattr(torch, dtype).itemsize / 2**20
        for kind in KINDS:
            commands = {
                side: [
                    sys.executable, __file__, "--worker", f"{side}|{kind}|{dtype}",
                    "--rows", str(arguments.rows), "--vocabulary", str(arguments.vocabulary),
                ]
                for side in ("whole", "blocks")
            }  # fmt: skip
            answers = alternate(commands, arguments.rounds, together=False)
            row: dict[str, Any] = {"dtype": dtype, "kind": kind, "matrix_mib": matrix}
            for side, turns in answers.items():
                row[f"{side}_seconds"] = statistics.median(turn["seconds"] for turn in turns)
                row[f"{side}_matrices"] = max(turn["mib"] - turn["before"] for turn in turns) / matrix
                row[f"{side}_value"] = turns[0]["answer"]
            row["speed"] = statistics.median(
                a["seconds"] / b["seconds"] for a, b in zip(answers["whole"], answers["blocks"], strict=True)
            )
            results.append(row)
            print(
                f"| {dtype} | {kind} | {row['whole_seconds']:.2f} | {row['blocks_seconds']:.2f} | **{row['speed']:.1f}** |"
                f" {row['whole_matrices']:.1f} | {row['blocks_matrices']:.1f} |"
                f" {row['blocks_matrices'] / row['whole_matrices']:.2f} |"
            )
    write("distances", arguments, results)


if __name__ == "__main__":
    main()
