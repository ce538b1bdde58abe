"""What `cltk estimate` says against the peak of real training steps: plain, EWC, LoRA, gradient checkpointing.

    python benchmarks/estimate.py --model asset:smollm2-135m-instruct
    python benchmarks/estimate.py --quick                               # a random model of 20 M parameters, half a minute

Each side is a process of its own, one after the other: the model is loaded and transformers' Trainer takes three steps of
4 x 128 random tokens, all counted, with fused AdamW. Measured: the process's peak memory less what it held with everything
imported and a model of 20,000 parameters trained once; on a GPU the allocator's peak. "Held" is measured with glibc giving
freed blocks back at once (MALLOC_MMAP_THRESHOLD_), and is what the estimate means; "as is" with glibc keeping some of them, as
it does by default. Prints a Markdown table; writes results/estimate.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from driver import SHAPES, alternate, arguments_of, load, peak, serve, write

BATCH, LENGTH, STEPS = 4, 128, 3
SIDES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "plain": ([], {}),
    "ewc": ([{"ewc": {"strength": 1.0, "importance": {"samples": 2}}}], {}),
    "lora r=16": ([{"lora": {"r": 16}}], {}),
    "checkpointing": ([], {"activation_checkpointing": True}),
}


def resident() -> float:
    """MiB that this process holds now."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def rows_of(count: int, vocabulary: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    rows = [[rng.randrange(3, vocabulary) for _ in range(LENGTH)] for _ in range(count)]
    return [{"input_ids": row, "labels": row} for row in rows]


def work(arguments: argparse.Namespace) -> None:
    """One process, one side: MiB held before the model was loaded."""
    import transformers

    import cltk
    from cltk.run.methods import build_mitigators
    from cltk.run.train import training_arguments

    transformers.logging.set_verbosity_error()
    entries, changes = SIDES[arguments.worker]
    if entries and "lora" in entries[0]:
        import peft  # noqa: F401
    from transformers import PrinterCallback, Trainer

    def train(model: Any, folder: str, mitigators: list[Any]) -> float:
        rows = rows_of(BATCH * STEPS, model.config.vocab_size)
        if entries and "ewc" in entries[0]:
            entries[0]["ewc"]["importance"]["memory"] = rows[:2]
        args: dict[str, Any] = {"per_device_train_batch_size": BATCH, "max_steps": STEPS, "save_strategy": "no", **changes}
        args = training_arguments({**args, "learning_rate": 1e-5, "optim": "adamw_torch_fused"}, 0, Path(folder))
        trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collate)
        trainer.remove_callback(PrinterCallback)  # it writes to the standard output
        cltk.attach(trainer, build_mitigators(mitigators, Path()))
        taken = Peak(trainer)
        trainer.add_callback(taken)
        trainer.train()
        return taken.mib

    def measured() -> float:
        with tempfile.TemporaryDirectory() as folder:
            train(load("small", arguments.dtype), folder, [])  # code that is loaded late is not the training's
            gc.collect()
            before = resident()
            return train(load(arguments.model, arguments.dtype), folder, entries) - before

    serve(measured, lambda: None)


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}


def Peak(trainer: Any) -> Any:  # noqa: N802 - a class made late, so that transformers is imported in workers only
    """The peak at the end of the last step: what a method does behind the training is not the training's."""
    from transformers import TrainerCallback

    class Taken(TrainerCallback):
        mib = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.mib = peak()

    return Taken()


def expected(side: str, arguments: argparse.Namespace) -> Any:
    from cltk.run.estimate import Setup, estimate
    from cltk.run.shape import meta_model, shape_of

    entries, changes = SIDES[side]
    if arguments.model in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            load(arguments.model, "float32").config.save_pretrained(folder)
            model = meta_model(folder)
    else:
        model = meta_model(arguments.model)
    setup = Setup(
        dtype=arguments.dtype, batch=BATCH, length=LENGTH, checkpointing=bool(changes.get("activation_checkpointing"))
    )
    return estimate(shape_of(model, entries), setup, entries)


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| training | estimated MiB | held MiB | estimated / held | as is MiB | at |", "|---" * 6 + "|"]
    for row in rows:
        lines.append(
            f"| {row['training']} | {row['estimated_mib']:.0f} | {row['held_mib']:.0f} | **{row['ratio']:.3f}** |"
            f" {row['as_is_mib']:.0f} | {row['moment']} |"
        )
    return "\n".join(lines)


def measure(side: str, arguments: argparse.Namespace, environment: list[str]) -> float:
    """MiB; alone, as four sides at once may not fit."""
    worker = [sys.executable, __file__, "--model", arguments.model, "--dtype", arguments.dtype, "--worker", side]
    return float(alternate({side: ["env", *environment, *worker]}, 1)[side][0]["answer"])


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--held-only", action="store_true", help="not as glibc leaves it: a GPU has one allocator")
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    if arguments.quick:
        arguments.model = "random"
    back = ["MALLOC_MMAP_THRESHOLD_=65536", "MALLOC_TOP_PAD_=0"]
    held = {side: measure(side, arguments, back) for side in arguments.sides}
    rows = []
    for side in arguments.sides:
        found = expected(side, arguments)
        mib = found.training / 2**20
        as_is = held[side] if arguments.held_only else measure(side, arguments, [])
        rows.append({
            "training": side, "estimated_mib": mib, "held_mib": held[side], "ratio": mib / held[side],
            "as_is_mib": as_is, "moment": found.moment, "parts": found.to_json(),
        })  # fmt: skip
        print(json.dumps(rows[-1]), file=sys.stderr)
    write("estimate", arguments, rows)
    print(table(rows))
    return None


if __name__ == "__main__":
    main()
