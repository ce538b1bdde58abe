"""Fisher speed and memory: the empirical Fisher against a loop of one sequence at a time (Avalanche and Mammoth at batch 1) and
against vmap(grad); the mc Fisher against a plain forward and backward pass over the same tokens.

    python benchmarks/importance.py --model asset:smollm2-135m-instruct
    python benchmarks/importance.py --quick                             # a random model of 20 M parameters, a minute

Each side is a process of its own (peak memory includes the model), and they take turns: A B C A B C ... Rows are random
token ids. `hooks` and `mc` are whole calls of cltk.fisher, digests and self-check included. With --onednn, float32 products
go through oneDNN on every side, if one product is found to agree with float64 to 1e-5. Writes a Markdown table and
results/importance.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
STUDIES = {"empirical": ("loop", "hooks", "vmap"), "mc": ("plain", "mc")}  # the first of each is the yardstick


SHAPES = {  # layers, hidden, intermediate, heads, key-value heads, vocabulary
    "random": (8, 384, 1024, 6, 2, 16384),  # 20 M parameters
    "random-135m": (30, 576, 1536, 9, 3, 49152),  # SmolLM2-135M
    "random-1b": (16, 2048, 8192, 32, 8, 128256),  # the shape of Llama 3.2 1B
}


def load(name: str, dtype: str) -> Any:
    """A stored model, or a randomly initialised Llama of one of `SHAPES`."""
    if name not in SHAPES:
        from cltk.models import load_model

        return load_model(name, dtype=dtype)[0]
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    layers, hidden, intermediate, heads, shared, vocabulary = SHAPES[name]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=shared, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to("cuda" if torch.cuda.is_available() else "cpu", getattr(torch, dtype))


def faster_products() -> None:
    """float32 products through oneDNN; left off where they would not be float32."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    a, b = torch.randn(256, 512), torch.randn(512, 256)
    if float((a @ b - (a.double() @ b.double()).float()).abs().max()) > 1e-5 * 512**0.5:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"  # type: ignore[attr-defined]


def loop(model: Any, rows: list[torch.Tensor]) -> float:
    """Mean over sequences of the squared gradient of the summed log-likelihood, one sequence at a time."""
    parameters = list(model.parameters())
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    for ids in rows:
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


def cltk(model: Any, rows: list[torch.Tensor], kind: str) -> float:
    from cltk.mitigate.importance import fisher

    return fisher(model, [{"input_ids": ids} for ids in rows], kind, batch_size=8).trace


def hooks(model: Any, rows: list[torch.Tensor]) -> float:
    return cltk(model, rows, "empirical")


def mc(model: Any, rows: list[torch.Tensor]) -> float:
    return cltk(model, rows, "mc")


SIDES: dict[str, Any] = {"loop": loop, "hooks": hooks, "vmap": vmap, "plain": plain, "mc": mc}


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


def serve(run: Any, warm_up: Any) -> None:
    """The worker's end of `alternate`."""
    warm_up()
    before = peak()
    print("ready", flush=True)
    for _ in sys.stdin:
        wait()
        begin = time.perf_counter()
        answer = run()
        wait()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "mib": peak(), "before": before, "answer": answer}), flush=True)


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak() -> float:
    """MiB: of the process, or of the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def alternate(commands: dict[str, list[str]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """A process for each side, all loaded, one working at a time. A side that cannot run is left out, and said."""
    workers = {}
    for side, command in commands.items():
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert worker.stdout is not None
        if worker.stdout.readline() == "ready\n":
            workers[side] = worker
        else:
            print(f"{side} cannot run here; alone it says why: {' '.join(map(repr, command))}", file=sys.stderr)
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in workers}
    for _ in range(rounds):
        for side, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
            answers[side].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    return answers


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


def write(name: str, arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """What was run, on what, and what came out: to --out, else to results/NAME.json, and nowhere with --quick."""
    kept = {
        key: value for key, value in vars(arguments).items() if key in ("model", "dtype", "rows", "rounds", "quick", "onednn")
    }
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.cuda.is_available()}
    file = arguments.out or (None if arguments.quick else RESULTS / f"{name}.json")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**kept, **machine, "results": rows}, indent=1) + "\n")


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="asset:smollm2-135m-instruct", help="folder, hub id, asset:NAME, random, random-135m or random-1b"
    )
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the random model, few rows, two rounds")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--onednn", action="store_true", help="float32 products through oneDNN, on every side")
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    if arguments.quick:
        arguments.model, arguments.rows, arguments.rounds = "random", 16, 2
    rows = [row for study in STUDIES for length in arguments.lengths for row in compare(study, length, arguments)]
    write("importance", arguments, rows)
    print(table(rows))
    return None


if __name__ == "__main__":
    main()
