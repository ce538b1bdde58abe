"""A whole experiment: five methods on one start model, trained and measured before and after; cltk against a script.

    python benchmarks/experiment.py
    python benchmarks/experiment.py --quick                             # two steps, two documents a task; times start-up

The script is what a careful user writes without cltk: lm-eval's command line once on the start model and once on each tuned
one, and between them transformers' Trainer on padded batches: plain, a lower rate, old rows mixed in, EWC with a Fisher of
one sequence at a time and the penalty in the loss, LoRA through peft. The same model, data, steps, tasks and documents,
float32 on both sides. One process after the other, all threads; seconds are those of the whole, start-up included. Prints a
Markdown table; writes results/experiment.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from driver import arguments_of, write

TASKS = ["local_arc_easy", "local_piqa", "local_sciq", "local_hellaswag", "local_brown"]
LEARNED = ["medmcqa_heldout_nll"]
FOLDER = Path(__file__).parent.parent / "evals" / "tasks"
TRAIN, MEMORY = "asset:medmcqa/train.jsonl", "asset:brown/memory.jsonl"
RATE, LOW, FRACTION, STRENGTH, SAMPLES = 5e-4, 0.2, 0.05, 1.0, 16
METHODS: dict[str, list[Any]] = {
    "plain": [],
    "low_lr": [{"low_lr": {"factor": LOW}}],
    "replay": [{"replay": {"memory": MEMORY, "fraction": FRACTION, "extra_steps": False}}],
    "ewc": [{"ewc": {"strength": STRENGTH, "importance": {"memory": MEMORY, "samples": SAMPLES, "kind": "empirical"}}}],
    "lora": [{"lora": {"r": 16}}],
}


def ours(arguments: argparse.Namespace, folder: Path) -> None:
    """`cltk run` on one YAML."""
    experiment = {
        "model": {"pretrained": arguments.model},
        "data": {"train": {"path": TRAIN, "prompt": "prompt", "completion": "completion"}, "max_length": 256},
        "train": {"learning_rate": RATE, "max_steps": arguments.steps, "per_device_train_batch_size": 8, "save_strategy": "no"},
        "evals": {"retain": TASKS, "learn": LEARNED, "include_path": str(FOLDER), "limit": arguments.limit},
        "speed": {"autocast": False},
        "grid": {"mitigators": METHODS},
        "keep_model": True,
    }
    file = folder / "experiment.yaml"
    file.write_text(json.dumps(experiment))  # JSON is YAML
    call([sys.executable, "-m", "cltk", "run", str(file), "--out", str(folder / "runs")])


def script(arguments: argparse.Namespace, folder: Path) -> None:
    """lm_eval, then Trainer and lm_eval for each method."""
    from cltk import assets

    start = str(assets.resolve(arguments.model))
    call([sys.executable, __file__, *common(arguments), "--worker", f"unpack:{start}:{folder / 'start'}"])
    begin = time.perf_counter()
    lm_eval(folder / "start", arguments.limit, folder / "scores" / "start")
    for method in METHODS:
        tuned = folder / method
        call([sys.executable, __file__, *common(arguments), "--worker", f"train:{method}:{tuned}:{folder / 'start'}"])
        lm_eval(tuned, arguments.limit, folder / "scores" / method)
    (folder / "seconds").write_text(str(time.perf_counter() - begin))


def common(arguments: argparse.Namespace) -> list[str]:
    return ["--steps", str(arguments.steps), "--limit", str(arguments.limit)]


def lm_eval(model: Path, limit: int, out: Path) -> None:
    """lm-eval's own command line, batches of 8."""
    options = {
        "model": "hf", "model_args": f"pretrained={model},dtype=float32", "device": "cpu",
        "tasks": ",".join([*TASKS, *LEARNED]), "include_path": FOLDER, "limit": limit, "batch_size": 8, "output_path": out,
    }  # fmt: skip
    given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    call([sys.executable, "-m", "lm_eval", "run", *given])


def call(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def train(method: str, out: Path, start: Path, steps: int) -> None:
    """One method without cltk's methods; cltk reads the files and masks prompts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

    from cltk.data import Collator, memory_rows, pad_id, read_rows, tokenize_pairs

    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(start)
    rows = tokenize_pairs(read_rows(TRAIN), tokenizer, prompt="prompt", completion="completion", max_length=256)
    old = memory_rows(MEMORY, tokenizer, 256) if method in ("replay", "ewc") else []
    if method == "replay":
        rows += [{**row, "labels": row["input_ids"]} for row in old[: round(len(rows) * FRACTION / (1 - FRACTION))]]
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    anchors = [p.detach().clone() for p in model.parameters()] if method == "ewc" else []
    importance = fisher(model, [torch.tensor(row["input_ids"]) for row in old[:SAMPLES]]) if method == "ewc" else []

    class Penalised(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None) -> Any:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            parts = zip(model.parameters(), anchors, importance, strict=True)
            return loss + STRENGTH / 2 * sum((f * (p - a) ** 2).sum() for p, a, f in parts)

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, learning_rate=RATE * (LOW if method == "low_lr" else 1), max_steps=steps, per_device_train_batch_size=8,
            save_strategy="no", use_cpu=not torch.cuda.is_available(), report_to="none", seed=0,
        )  # fmt: skip
        set_seed(0)
        cls = Penalised if method == "ewc" else Trainer
        cls(model=model, args=args, train_dataset=rows, data_collator=Collator(pad_id(tokenizer))).train()
    (model.merge_and_unload() if method == "lora" else model).save_pretrained(out)
    tokenizer.save_pretrained(out)


def fisher(model: Any, rows: list[Any]) -> list[Any]:
    """As Avalanche and Mammoth at batch 1: squares of one sequence's gradient after the other; here with mean 1."""
    import torch

    parameters = list(model.parameters())
    sums = [torch.zeros_like(p) for p in parameters]
    for ids in rows:
        (model(input_ids=ids[None], labels=ids[None], use_cache=False).loss * (len(ids) - 1)).backward()
        for total, p in zip(sums, parameters, strict=True):
            total.addcmul_(p.grad, p.grad)
            p.grad = None
    mean = sum(float(total.sum()) for total in sums) / sum(p.numel() for p in parameters)
    return [total / mean for total in sums]


def unpack(start: str, out: Path) -> None:
    """The start model as an ordinary folder, which lm-eval can read; not timed."""
    from cltk.models import load_model

    model, tokenizer = load_model(start)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def scores(folder: Path) -> dict[str, float]:
    """Accuracy on arc_easy of every model, from the files that lm-eval and cltk wrote."""
    found = {}
    for file in sorted(folder.rglob("results*.json")):
        name = file.relative_to(folder).parts[1].split("-")[0]  # scores/METHOD/..., runs/METHOD-DIGEST/...
        found["start" if name == "base" else name] = json.loads(file.read_text())["results"]["local_arc_easy"]["acc,none"]
    return found


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=int, default=25, help="documents a task")
    parser.set_defaults(rounds=1)
    arguments = parser.parse_args()
    if arguments.worker:
        kind, *rest = arguments.worker.split(":")
        if kind == "unpack":
            return unpack(":".join(rest[:-1]), Path(rest[-1]))
        return train(rest[0], Path(rest[1]), Path(rest[2]), arguments.steps)
    if arguments.quick:
        arguments.steps = arguments.limit = 2
    seconds: dict[str, list[float]] = {"script": [], "cltk": []}
    accuracy = {}
    for _ in range(arguments.rounds):
        for side, run in (("script", script), ("cltk", ours)):
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                run(arguments, Path(folder))
                whole = time.perf_counter() - begin
                timed = Path(folder) / "seconds"
                seconds[side].append(float(timed.read_text()) if timed.exists() else whole)
                accuracy[side] = scores(Path(folder))
    ratio = statistics.median(a / b for a, b in zip(seconds["script"], seconds["cltk"], strict=True))
    rows = [
        {
            "side": side, "steps": arguments.steps, "limit": arguments.limit, "seconds": statistics.median(values),
            "speed": ratio if side == "cltk" else 1.0, "arc_easy": accuracy[side],
        }
        for side, values in seconds.items()
    ]  # fmt: skip
    write("experiment", arguments, rows)
    print("| side | s | times faster |\n|---|---|---|")
    for row in rows:
        print(f"| {row['side']} | {row['seconds']:.0f} | **{row['speed']:.2f}** |")
    print(accuracy)
    return None


if __name__ == "__main__":
    main()
