"""Scoring speed and memory: lm-eval's HFLM(batch_size=8) against cltk's PrefixLM, same weights, same requests, same dtype
unless --stock-dtype says otherwise.

    python benchmarks/scoring.py --model asset:smollm2-135m-instruct
    python benchmarks/scoring.py --quick                                # a random model of 20 M parameters, a minute

Each side of each shape is a process of its own (peak memory includes the model), and the two take turns: stock, ours, stock,
ours ... Requests are random token ids: no tokeniser is in the times. Prints a Markdown table, writes results/scoring.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "scoring.json"


@dataclass(frozen=True)
class Shape:
    """Documents of `context` tokens (behind one common `header`) with `choices` continuations; lengths vary by a third."""

    name: str
    context: int
    choices: int
    continuation: int
    header: int = 0
    documents: int = 32


SHAPES = [
    Shape("4 choices, middle context", 160, 4, 9),
    Shape("long context, short choices", 500, 4, 3, documents=12),
    Shape("short context, long choices", 15, 4, 60, documents=24),
    Shape("like hellaswag", 80, 4, 30),
    Shape("single-token choices", 160, 4, 1),
    Shape("nothing shared", 120, 1, 20, documents=48),
    Shape("5-shot, fixed header", 80, 4, 5, header=700, documents=12),
]


def requests_of(shape: Shape, vocabulary: int) -> list[tuple[None, list[int], list[int]]]:
    """The shape's requests in lm-eval's form, the same in every process."""
    rng = random.Random(shape.name)

    def tokens(mean: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(max(1, round(mean * rng.uniform(0.67, 1.33))))]

    header, requests = tokens(shape.header) if shape.header else [], []
    for _ in range(shape.documents):
        context = header + tokens(shape.context)
        requests += [(None, context, tokens(shape.continuation)) for _ in range(shape.choices)]
    return requests


GENERATION = [Shape("generation of 32 tokens", 100, 1, 32), Shape("generation behind a header", 60, 1, 32, header=400)]


def load(name: str, dtype: str) -> tuple[Any, Any]:
    """The model and its tokeniser, both made up for one of the driver's shapes."""
    from driver import SHAPES as MODELS
    from driver import load as load_one
    from driver import made_up

    if name in MODELS:
        return load_one(name, dtype), made_up(name)
    from cltk.models import load_model

    return load_model(name, dtype=dtype)


def generation(shape: Shape, vocabulary: int) -> list[Any]:
    """The shape's contexts as requests for texts of up to `continuation` tokens, made-up words."""
    from lm_eval.api.instance import Instance

    settings = {"until": ["</s>"], "max_gen_toks": shape.continuation, "do_sample": False}
    texts = [" ".join(f"w{i}" for i in context) for _, context, _ in requests_of(shape, vocabulary)]
    return [Instance("generate_until", {}, (text, settings), i) for i, text in enumerate(texts)]


def work(side: str, arguments: argparse.Namespace, shape: Shape) -> None:
    """One process: load, then answer every line of the standard input with one timed pass."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    from cltk.measure.scoring import PrefixLM
    from cltk.run.train import peak_bytes

    transformers.logging.set_verbosity_error()
    model, tokenizer = load(arguments.model, arguments.dtype)
    size: Any = int(arguments.stock_batch) if arguments.stock_batch.isdigit() else arguments.stock_batch
    stock = side == "stock"
    lm: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size) if stock else PrefixLM(model, tokenizer)
    requests: Any = (generation if arguments.generate else requests_of)(shape, model.config.vocab_size)
    ask = lm.generate_until if arguments.generate else lm._loglikelihood_tokens
    ask(requests[:8], disable_tqdm=True)  # warm up
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        answers = ask(requests, disable_tqdm=True)
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "bytes": peak_bytes(), "answers": answers}), flush=True)


def start(side: str, arguments: argparse.Namespace, shape: Shape) -> subprocess.Popen:
    dtype = arguments.stock_dtype or arguments.dtype if side == "stock" else arguments.dtype
    command = [sys.executable, __file__, "--model", arguments.model, "--dtype", dtype, "--stock-batch", arguments.stock_batch]
    command += ["--generate"] if arguments.generate else []
    worker = [*command, "--worker", side, "--shape", json.dumps(asdict(shape))]
    process = subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"the {side} process ended; run it alone: {' '.join(map(repr, worker))}")
    return process


def ask(process: subprocess.Popen) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def compare(arguments: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    """Alternate the two sides; medians, their ratio, and the largest relative difference of the scores."""
    sides = {side: start(side, arguments, shape) for side in ("stock", "ours")}
    rounds = [{side: ask(process) for side, process in sides.items()} for _ in range(arguments.rounds)]
    for process in sides.values():
        process.communicate()
    last, ratios = rounds[-1], [r["stock"]["seconds"] / r["ours"]["seconds"] for r in rounds]
    pairs = list(zip(last["stock"]["answers"], last["ours"]["answers"], strict=True))
    scored = [] if arguments.generate else pairs  # of texts those are counted that are not the same
    return {
        "shape": asdict(shape),
        "stock_seconds": statistics.median(r["stock"]["seconds"] for r in rounds),
        "ours_seconds": statistics.median(r["ours"]["seconds"] for r in rounds),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "stock_mib": last["stock"]["bytes"] / 2**20,
        "ours_mib": last["ours"]["bytes"] / 2**20,
        "difference": max((abs(a[0] - b[0]) / abs(a[0]) for a, b in scored), default=0.0),
        "greedy_flags_differing": sum(a[1] != b[1] for a, b in scored),
        "texts_differing": sum(a != b for a, b in pairs) if arguments.generate else 0,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = [
        "| shape | stock s | ours s | times faster | stock MiB | ours MiB | memory | largest difference / logprob |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['shape']['name']} | {row['stock_seconds']:.2f} | {row['ours_seconds']:.2f} | **{row['ratio']:.2f}** |"
            f" {row['stock_mib']:.0f} | {row['ours_mib']:.0f} | {row['ours_mib'] / row['stock_mib']:.2f} |"
            f" {row['difference']:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="asset:smollm2-135m-instruct", help="folder, hub id, asset:NAME, random or random-135m"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--stock-dtype", help="of HFLM's weights (default: --dtype)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the random model, a quarter of the documents, two rounds")
    parser.add_argument("--out", type=Path, help="default: results/scoring.json, and nothing with --quick")
    parser.add_argument("--stock-batch", default="8", help="HFLM's batch size, or auto (default: 8)")
    parser.add_argument("--generate", action="store_true", help="texts of 32 tokens instead of scores, of made-up words")
    parser.add_argument("--documents", type=int, help="of each shape, instead of its own number")
    parser.add_argument("--only", default="", help="shapes whose name holds this")
    parser.add_argument("--worker", choices=["stock", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments.worker, arguments, Shape(**json.loads(arguments.shape)))
    shapes = [shape for shape in (GENERATION if arguments.generate else SHAPES) if arguments.only in shape.name]
    if arguments.documents:
        shapes = [Shape(**(asdict(shape) | {"documents": arguments.documents})) for shape in shapes]
    if arguments.quick:
        arguments.model, arguments.rounds = "random", 2
        shapes = [Shape(**(asdict(shape) | {"documents": shape.documents // 4})) for shape in shapes]
    rows = [compare(arguments, shape) for shape in shapes]
    import torch

    versions = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.cuda.is_available()}
    dtypes = {"dtype": arguments.dtype, "stock_dtype": arguments.stock_dtype or arguments.dtype}
    record = {"model": arguments.model, **dtypes, "quick": arguments.quick, **versions, "rows": rows}
    out = arguments.out or (None if arguments.quick else RESULTS)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(rows))
    return None


if __name__ == "__main__":
    main()
