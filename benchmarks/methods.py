"""What each method costs on a real model: time of a step and peak memory relative to plain training, and its preparation.

    python benchmarks/methods.py                                  # every method; an hour with --rounds 2 --steps 1, on one core
    python benchmarks/methods.py --only ewc,kl --quick            # a random model of 20 M parameters

MedMCQA through a transformers Trainer, 8 rows of at most 64 tokens a step, all padded to 64 so that every step has the same
shape, as have old rows; AdamW (fused), float32. Plain training and the method are two processes that take turns, each with a
model of its own; a turn is --steps optimiser steps. "Preparation" is `attach`: a Fisher, a frozen copy, singular vectors,
generated text. Writes results/methods.json and the table of methods.md, after every method.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from driver import RESULTS, arguments_of, load, start, turn, write

OLD = "asset:brown/probe.jsonl"
LENGTH = 64
WARM = 2  # steps before the first turn
FISHER = {"memory": OLD, "samples": 16, "block": 256}
SETTINGS: dict[str, dict[str, Any]] = {
    "a_gem": {"memory": OLD, "length": LENGTH}, "dare": {"drop": 0.5},
    "der_pp": {"memory": OLD, "samples": 32, "length": LENGTH}, "early_stopping": {"every": 0}, "ema": {"decay": 0.99},
    "ewc": {"strength": 1.0, "importance": FISHER}, "freeze": {"layers": 0.5}, "gem": {"memories": [OLD], "length": LENGTH},
    "hft": {}, "kl": {"strength": 0.1}, "l2_sp": {"strength": 0.1}, "lm_cocktail": {}, "lora": {"r": 16},
    "low_lr": {"factor": 0.5}, "lwf": {"strength": 0.1}, "mas": {"strength": 1.0, "memory": OLD, "samples": 16},
    "mofo": {"fraction": 0.15}, "online_ewc": {"strength": 1.0, "importance": FISHER}, "osft": {"keep": 0.5},
    "replay": {"memory": OLD, "fraction": 0.05, "length": LENGTH},
    "replay_loss": {"memory": OLD, "strength": 0.5, "length": LENGTH}, "reservoir": {"size": 100, "fraction": 0.05},
    "rewarm": {}, "rwalk": {"strength": 1.0, "importance": FISHER}, "sam": {"rho": 0.05},
    "self_replay": {"fraction": 0.05, "samples": 8, "max_new_tokens": 32}, "si": {"strength": 0.1},
    "task_arithmetic": {"scale": 0.5}, "ties": {"density": 0.2}, "token_weights": {"setting": "stm"},
    "ulmfit": {}, "wise_ft": {"alpha": 0.5},
}  # fmt: skip


TABLE = Path(__file__).parent / "methods.md"


def rows_of(arguments: argparse.Namespace, tokenizer: Any) -> list[Any]:
    if tokenizer is None:
        rng = random.Random(0)
        return [{"input_ids": [rng.randrange(3, 16384) for _ in range(rng.randint(20, 50))]} for _ in range(400)]
    from cltk.data import read_rows, tokenize_pairs

    rows = read_rows("asset:medmcqa/train.jsonl")[:400]
    found = tokenize_pairs(rows, tokenizer, prompt="prompt", completion="completion", max_length=256)
    return [row for row in found if len(row["input_ids"]) <= LENGTH]


def work(arguments: argparse.Namespace) -> None:
    """Train without end; every line of the standard input lets `--steps` more steps pass."""
    import transformers
    from transformers import Trainer, TrainerCallback, TrainingArguments

    import cltk
    from cltk.data import Collator
    from cltk.models import load_tokenizer
    from cltk.run.train import peak_bytes

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    real = not arguments.model.startswith("random")
    tokenizer = load_tokenizer(arguments.model) if real else None
    rows = rows_of(arguments, tokenizer)
    trainer = Trainer(
        model=load(arguments.model, arguments.dtype),
        args=TrainingArguments(
            tempfile.mkdtemp(), max_steps=100_000, per_device_train_batch_size=8, learning_rate=1e-5, report_to="none",
            save_strategy="no", disable_tqdm=True, logging_steps=1_000_000, dataloader_pin_memory=False,
        ),
        train_dataset=rows[8:], eval_dataset=rows[:8], data_collator=Collator(0, LENGTH), processing_class=tokenizer,
    )  # fmt: skip
    begin = time.perf_counter()
    if arguments.worker != "plain":
        settings = dict(SETTINGS[arguments.worker])
        if tokenizer is None:
            settings = {k: _rows(v, rows) for k, v in settings.items()}
        cltk.attach(trainer, [cltk.MITIGATORS[arguments.worker](**settings)])
    prepared = time.perf_counter() - begin

    class Turns(TrainerCallback):
        """Gives control back after every `--steps` steps."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal began
            if state.global_step < WARM:
                return
            if state.global_step == WARM:
                print("ready", flush=True)
            elif (state.global_step - WARM) % arguments.steps == 0:
                seconds = (time.perf_counter() - began) / arguments.steps
                mib = peak_bytes() / 2**20
                print(f'{{"seconds": {seconds}, "mib": {mib}, "answer": {prepared}}}', flush=True)
            else:
                return
            if not sys.stdin.readline():
                control.should_training_stop = True
            began = time.perf_counter()

    began = 0.0
    trainer.add_callback(Turns())
    trainer.train()


def _rows(value: Any, rows: list[Any]) -> Any:
    """Memories as rows, for the random model, which has no tokeniser."""
    if isinstance(value, dict):
        return {key: _rows(one, rows) for key, one in value.items()}
    if value == [OLD]:
        return [rows[-64:]]
    return rows[-64:] if value == OLD else value


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--only", default="", help="methods, separated by commas; the rows of others are kept")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    if arguments.quick:
        arguments.model, arguments.rounds = "random", 2
    own = [sys.executable, __file__, "--model", arguments.model, "--steps", str(arguments.steps), "--worker"]
    kept = known(arguments)
    plain = start("plain", [*own, "plain"])
    assert plain is not None
    for name in arguments.only.split(",") if arguments.only else SETTINGS:
        worker = start(name, [*own, name])
        if worker is None:
            continue
        pairs = [(turn(plain), turn(worker)) for _ in range(arguments.rounds)]
        worker.communicate()
        kept[name] = {
            "method": name, "settings": SETTINGS[name], "seconds": statistics.median(b["seconds"] for _, b in pairs),
            "time": statistics.median(b["seconds"] / a["seconds"] for a, b in pairs), "mib": pairs[-1][1]["mib"],
            "memory": pairs[-1][1]["mib"] / pairs[-1][0]["mib"], "preparation": pairs[-1][1]["answer"],
        }  # fmt: skip
        print(line(kept[name]), flush=True)
        rows = [kept[one] for one in SETTINGS if one in kept]
        write("methods", arguments, rows)
        if not arguments.quick and not arguments.out:
            head = "| method | settings | time of a step | peak memory | preparation, s |\n| --- | --- | ---: | ---: | ---: |\n"
            text = TABLE.read_text().split("| method |")[0]
            TABLE.write_text(text + head + "\n".join(map(line, rows)) + "\n")
    plain.communicate()


def known(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """With --only: the rows of the other methods, from the last run."""
    file = arguments.out or RESULTS / "methods.json"
    if not arguments.only or arguments.quick or not file.exists():
        return {}
    return {row["method"]: row for row in json.loads(file.read_text())["results"]}


def line(row: dict[str, Any]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items()).replace("'", "")
    return f"| {row['method']} | {settings} | {row['time']:.2f} | {row['memory']:.2f} | {row['preparation']:.1f} |"


if __name__ == "__main__":
    main()
