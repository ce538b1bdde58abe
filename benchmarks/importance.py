"""Fisher speed and memory: the empirical Fisher against a loop of one sequence at a time (Avalanche and Mammoth at batch 1) and
against vmap(grad), and where bfloat16 is faster in that; the mc Fisher against a plain forward and backward pass.

    python benchmarks/importance.py --model asset:smollm2-135m-instruct
    python benchmarks/importance.py --quick                             # a random model of 20 M parameters, a minute

Each side is a process of its own (peak memory includes the model), and they take turns: A B C A B C ... Rows are random
token ids. `hooks` and `mc` are whole calls of cltk.fisher, digests and self-check included. With --onednn, float32 products
go through oneDNN on every side, if one product is found to agree with float64 to 1e-5. Writes a Markdown table and
results/importance.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from driver import alternate, arguments_of, load, serve, write

from cltk.run import machine

RESULTS = Path(__file__).parent / "results"
STUDIES = {  # the first of each is the yardstick
    "empirical": ["loop", "hooks", "vmap"],
    "bfloat16": ["loop", "loop, bf16", "hooks, bf16"],  # where it is faster
    "mc": ["plain", "mc"],
}


def faster_products() -> None:
    """float32 products through oneDNN; left off where they would not be float32."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    a, b = torch.randn(256, 512), torch.randn(512, 256)
    if float((a @ b - (a.double() @ b.double()).float()).abs().max()) > 1e-5 * 512**0.5:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"  # type: ignore[attr-defined]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def loop(model: Any, rows: list[torch.Tensor], autocast: bool = False) -> float:
    """Mean over sequences of the squared gradient of the summed log-likelihood, one sequence at a time."""
    parameters = list(model.parameters())
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    for ids in rows:
        with torch.autocast(device(), torch.bfloat16, enabled=autocast):
            out = model(input_ids=ids[None], labels=ids[None], use_cache=False)
        (out.loss * (len(ids) - 1)).backward()
        for total, p in zip(sums, parameters, strict=True):
            total.addcmul_(p.grad.float(), p.grad.float())
            p.grad = None
    return sum(float(total.sum()) for total in sums) / len(rows)


def vmap(model: Any, rows: list[torch.Tensor]) -> float:
    """The same by torch.func: per-sample gradients of four sequences at a time."""
    model.set_attn_implementation("eager")
    values = {name: p.detach() for name, p in model.named_parameters()}
    sums = {name: torch.zeros_like(v, dtype=torch.float32) for name, v in values.items()}

    def loss(v: Any, ids: torch.Tensor) -> torch.Tensor:
        position = torch.arange(len(ids), device=ids.device)
        mask = torch.where(position[:, None] >= position, 0.0, torch.finfo(torch.float32).min)[None, None]
        settings = {"attention_mask": mask.to(next(iter(v.values())).dtype), "position_ids": position[None], "use_cache": False}
        logits = torch.func.functional_call(model, v, (), {"input_ids": ids[None], **settings}).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits.float(), ids[1:], reduction="sum")

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))
    for start in range(0, len(rows), 4):
        for name, g in per_sample(values, torch.stack(rows[start : start + 4])).items():
            sums[name].add_(g.float().square_().sum(0))
    return sum(float(total.sum()) for total in sums.values()) / len(rows)


def plain(model: Any, rows: list[torch.Tensor]) -> float:
    """Forward and backward as training does, batches of 8."""
    total = 0.0
    for start in range(0, len(rows), 8):
        ids = torch.stack(rows[start : start + 8])
        out = model(input_ids=ids, labels=ids, use_cache=False)
        out.loss.backward()
        total += float(out.loss.detach())
        model.zero_grad()
    return total


def cltk(model: Any, rows: list[torch.Tensor], kind: str, autocast: bool = False) -> float:
    from cltk.importance.fisher import fisher

    return fisher(model, [{"input_ids": ids} for ids in rows], kind, batch_size=8, autocast=autocast).trace


def hooks(model: Any, rows: list[torch.Tensor]) -> float:
    return cltk(model, rows, "empirical")


def hooks_bf16(model: Any, rows: list[torch.Tensor]) -> float:
    return cltk(model, rows, "empirical", autocast=True)


def loop_bf16(model: Any, rows: list[torch.Tensor]) -> float:
    return loop(model, rows, autocast=True)


def mc(model: Any, rows: list[torch.Tensor]) -> float:
    return cltk(model, rows, "mc")


SIDES: dict[str, Any] = {"loop": loop, "hooks": hooks, "vmap": vmap, "loop, bf16": loop_bf16, "hooks, bf16": hooks_bf16}
SIDES |= {"plain": plain, "mc": mc}


def work(arguments: argparse.Namespace) -> None:
    """One process: load, then answer every line of the standard input with one timed pass."""
    import transformers

    transformers.logging.set_verbosity_error()
    if arguments.onednn:
        faster_products()
    model = load(arguments.model, arguments.dtype).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (arguments.rows, arguments.length), generator=generator)
    rows = list(ids.to(next(model.parameters()).device))
    serve(lambda: SIDES[arguments.worker](model, rows), lambda: SIDES[arguments.worker](model, rows[:8]))


def compare(study: str, length: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every side of one study at one length."""
    settings = ["--model", arguments.model, "--dtype", arguments.dtype, "--length", str(length), "--rows", str(arguments.rows)]
    settings += ["--onednn"] if arguments.onednn else []
    commands = {side: [sys.executable, __file__, "--worker", side, *settings] for side in STUDIES[study]}
    answers = alternate(commands, arguments.rounds)
    first = answers[STUDIES[study][0]]
    return [
        {
            "study": study, "length": length, "side": side,
            "seconds": statistics.median(r["seconds"] for r in found),
            "speed": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(first, found, strict=True)),
            "mib": found[-1]["mib"], "memory": found[-1]["mib"] / first[-1]["mib"], "answer": found[-1]["answer"],
        }
        for side, found in answers.items()
    ]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| study | tokens a row | side | s | times faster | MiB | memory | trace or loss |", "|---" * 8 + "|"]
    for row in rows:
        lines.append(
            f"| {row['study']} | {row['length']} | {row['side']} | {row['seconds']:.2f} | **{row['speed']:.2f}** |"
            f" {row['mib']:.0f} | {row['memory']:.2f} | {row['answer']:.6g} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--onednn", action="store_true", help="float32 products through oneDNN, on every side")
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    if arguments.quick:
        arguments.model, arguments.rows, arguments.rounds = "random", 16, 2
    studies = [study for study in arguments.studies if study != "bfloat16" or machine.faster_in_bfloat16(device())]
    rows = [row for study in studies for length in arguments.lengths for row in compare(study, length, arguments)]
    write("importance", arguments, rows)
    print(table(rows))
    return None


if __name__ == "__main__":
    main()
