"""Training speed: transformers' Trainer on padded batches against the same rows through cltk, one choice after the other.

    python benchmarks/training.py --model asset:smollm2-135m-instruct
    python benchmarks/training.py --quick                               # a random model of 20 M parameters, 16 rows, 2 minutes

Three data sets, batches of 8, one epoch: 12 to 256 random tokens, of which all count ("ragged") or an answer of 3 to 16
("prompts"), and MedMCQA (with `random`: its lengths), of which the answers count. Each turn of a side is a process of its
own: A B C A B C ... Seconds are those of `trainer.train()`; what is proven at start-up is not in them. Where bfloat16 is
faster, both also run in it. Prints a Markdown table; writes results/training.json (with --quick only to --out).
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from driver import SHAPES, alternate, arguments_of, load, made_up, serve, write

from cltk.data import Collator, pad_id, read_rows, tokenize_pairs
from cltk.run import machine
from cltk.run.plans import Cell
from cltk.run.spec import Experiment
from cltk.run.speed import tune_allocator
from cltk.run.train import Prepared, train_cell, training_arguments

OFF = dict.fromkeys(("packing", "grouping", "label_head", "autocast", "fused", "onednn", "allocator"), False)
SIDES: dict[str, dict[str, Any] | None] = {  # the first is the yardstick; None: no cltk
    "Trainer, padded": None,
    "packed": OFF | {"packing": True, "fused": "auto"},
    "packed, head on labels": OFF | {"packing": True, "label_head": True, "fused": "auto"},
    "cltk, float32": {"autocast": False},
}
NARROW: dict[str, dict[str, Any] | None] = {"Trainer, padded, bf16": None, "cltk": {"autocast": True}}
DATA = ("ragged", "prompts", "medmcqa")


def tokenizer_of(name: str) -> Any:
    """The model's tokeniser; a made-up one for a random model."""
    if name not in SHAPES:
        from cltk.models import load_tokenizer

        return load_tokenizer(name)
    return made_up(name)


def rows_of(data: str, arguments: argparse.Namespace, tokenizer: Any, vocabulary: int) -> list[dict[str, Any]]:
    """The rows, the same in every process."""
    rng = random.Random(0)
    if data == "medmcqa" and arguments.model not in SHAPES:
        rows = read_rows("asset:medmcqa/train.jsonl")[: arguments.rows]
        return tokenize_pairs(rows, tokenizer, prompt="prompt", completion="completion", max_length=256)
    done = []
    for _ in range(arguments.rows):
        counted = rng.randint(3, 16)  # tokens of an answer
        whole = rng.randint(20, 128) if data == "medmcqa" else rng.randint(12, 256)
        prompt, answer = (0, whole) if data == "ragged" else (max(whole - counted, 1), counted)
        ids = [rng.randrange(3, vocabulary) for _ in range(prompt + answer)]
        done.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return done


def work(arguments: argparse.Namespace) -> None:
    """One process: load, then train one epoch for every line of the standard input."""
    import transformers

    transformers.logging.set_verbosity_error()
    side, data = arguments.worker.split(":")
    switches = (SIDES | NARROW)[side]
    if switches is not None:
        tune_allocator(switches.get("allocator", "auto"))
    model, tokenizer = load(arguments.model, arguments.dtype), tokenizer_of(arguments.model)
    rows = rows_of(data, arguments, tokenizer, model.config.vocab_size)
    train: dict[str, Any] = {"per_device_train_batch_size": 8, "num_train_epochs": 1, "save_strategy": "no", "logging_steps": 1}
    train |= {"learning_rate": 1e-5, "bf16": True} if side == "Trainer, padded, bf16" else {"learning_rate": 1e-5}
    with tempfile.TemporaryDirectory() as folder:

        def epoch(some: list[dict[str, Any]]) -> dict[str, Any]:
            if switches is None:
                return stock(model, tokenizer, some, train, Path(folder))
            return ours(model, tokenizer, some, train, switches, Path(folder))

        serve(lambda: epoch(rows), lambda: epoch(rows[:8]))


def stock(model: Any, tokenizer: Any, rows: list[dict[str, Any]], train: dict[str, Any], folder: Path) -> dict[str, Any]:
    from transformers import PrinterCallback, Trainer, set_seed

    args = training_arguments(train, 0, folder)
    set_seed(args.seed)
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=Collator(pad_id(tokenizer)))
    trainer.remove_callback(PrinterCallback)
    begin = time.perf_counter()
    trainer.train()
    return {"seconds": time.perf_counter() - begin, "loss": first_loss(trainer.state.log_history), "on": []}


def ours(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], train: dict[str, Any], switches: dict[str, Any], folder: Path
) -> dict[str, Any]:
    config = Experiment.model_validate(
        {"model": {"pretrained": "-"}, "data": {"train": {"path": "-"}}, "train": train, "speed": switches}
    )
    trained = train_cell(Cell("plain", {}, config), model, tokenizer, Prepared(rows, rows[:1], rows[:1]), [], folder)
    on = [choice["what"] for choice in trained.notes["speed"] if choice["on"]]
    return {"seconds": trained.seconds, "loss": first_loss(trained.history), "on": on}


def first_loss(history: list[dict[str, float]]) -> float:
    return next(line["loss"] for line in history if "loss" in line)


def compare(data: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every side on one data set."""
    model, tokenizer = load(arguments.model, arguments.dtype), tokenizer_of(arguments.model)
    tokens = sum(len(row["input_ids"]) for row in rows_of(data, arguments, tokenizer, model.config.vocab_size))
    device = next(model.parameters()).device.type
    del model
    sides = list(SIDES) + (list(NARROW) if machine.faster_in_bfloat16(device) else [])
    sides = [side for i, side in enumerate(sides) if i == 0 or not arguments.sides or side in arguments.sides]
    settings = ["--model", arguments.model, "--dtype", arguments.dtype, "--rows", str(arguments.rows)]
    commands = {side: [sys.executable, __file__, *settings, "--worker", f"{side}:{data}"] for side in sides}
    turns = alternate(commands, arguments.rounds, together=False)
    answers = {side: [a | a["answer"] for a in found] for side, found in turns.items()}
    first = answers[sides[0]]
    return [
        {
            "data": data, "side": side, "tokens": tokens,
            "seconds": statistics.median(a["seconds"] for a in found),
            "tokens_per_second": tokens / statistics.median(a["seconds"] for a in found),
            "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(first, found, strict=True)),
            "ratios": [a["seconds"] / b["seconds"] for a, b in zip(first, found, strict=True)],
            "mib": found[-1]["mib"], "loss": found[0]["loss"], "on": found[-1]["on"],
        }
        for side, found in answers.items()
    ]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| data | side | real tokens/s | times faster | MiB | loss of the first step | on |", "|---" * 7 + "|"]
    for row in rows:
        lines.append(
            f"| {row['data']} | {row['side']} | {row['tokens_per_second']:.0f} | **{row['ratio']:.2f}** | {row['mib']:.0f} |"
            f" {row['loss']:.6f} | {', '.join(row['on'])} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--sides", nargs="+", help="these and the yardstick alone")
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    if arguments.quick:
        arguments.model, arguments.rounds, arguments.rows = "random", 2, 16
    rows = [row for data in arguments.data for row in compare(data, arguments)]
    write("training", arguments, rows)
    print(table(rows))
    return None


if __name__ == "__main__":
    main()
