"""What the benchmarks share: models, worker processes that take turns, peak memory, the JSON file."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
SHAPES = {  # layers, hidden, intermediate, heads, key-value heads, vocabulary
    "small": (1, 32, 48, 2, 1, 512),  # shows that a benchmark runs
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


def made_up(name: str) -> Any:
    """A tokeniser of "w3 w4 w5 ...", as many words as the random model has ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "?", *(f"w{i}" for i in range(3, SHAPES[name][-1]))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="?")


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
    from cltk.run.train import peak_bytes

    return peak_bytes() / 2**20


Worker = subprocess.Popen[str]


def start(side: str, command: list[str]) -> Worker | None:
    """A worker that is loaded and waits for its turn. One that cannot run is None, and said."""
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert worker.stdout is not None
    if worker.stdout.readline() == "ready\n":
        return worker
    print(f"{side} cannot run here; alone it says why: {' '.join(map(repr, command))}", file=sys.stderr)
    return None


def turn(worker: Worker) -> dict[str, Any]:
    """Let it work once: what it answers."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        sys.exit(f"a side ended while it worked (out of memory?): {' '.join(map(repr, worker.args))}")
    return dict(json.loads(answer))


def alternate(commands: dict[str, list[str]], rounds: int, together: bool = True) -> dict[str, list[dict[str, Any]]]:
    """A process for each side, one working at a time. All are loaded, or with `together=False` started for their turn, as sides
    must that fill the memory. A side that cannot run is left out, and said."""
    if not together:
        return _one_by_one(commands, rounds)
    workers = {side: worker for side, command in commands.items() if (worker := start(side, command)) is not None}
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in workers}
    for _ in range(rounds):
        for side, worker in workers.items():
            answers[side].append(turn(worker))
    for worker in workers.values():
        worker.communicate()
    return answers


def _one_by_one(commands: dict[str, list[str]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in commands}
    for _ in range(rounds):
        for side in list(answers):
            worker = start(side, commands[side])
            if worker is None:
                del answers[side]
                continue
            answers[side].append(turn(worker))
            worker.communicate()
    return answers


def write(name: str, arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """What was run, on what, and what came out: to --out, else to results/NAME.json, and nowhere with --quick."""
    kept = {
        key: value
        for key, value in vars(arguments).items()
        if key in ("model", "dtype", "stock_dtype", "rows", "rounds", "quick", "onednn", "tokens")
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
