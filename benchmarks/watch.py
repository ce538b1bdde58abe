"""What a watch costs: 4 tasks x 50 documents every 50 steps of a training, against the same training without it.

    python benchmarks/watch.py --model asset:smollm2-135m-instruct      # 2 rounds of 8 steps a side; 10 minutes on 2 cores
    python benchmarks/watch.py --quick                                  # a random model of 20 M parameters, 4 steps

Rows as `training.py` has them: batches of 8, 12 to 256 tokens of which all count ("ragged"), Trainer with padding in float32;
a turn of a side is a training of its own, A B A B, each side in a process. A watched turn has two moments, the start model and
the last step: `start` and `moment` are the seconds of each, all of it with reading weights, statistics and logs, and `longer`
is how much longer its training took than the plain one of that round, which is their sum. A training of any length has a moment
every 50 steps, so

    share = moment / (50 x plain step)

The weights must be the same on both sides, and are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from driver import alternate, arguments_of, load, serve, write
from training import rows_of, tokenizer_of

import cltk
from cltk import tensors
from cltk.data import Collator, pad_id

TASKS = ["local_arc_easy", "local_piqa", "local_sciq", "local_hellaswag"]
EVERY = 50  # steps between moments
FOLDER = Path(__file__).parent.parent / "evals" / "tasks"


def work(arguments: argparse.Namespace) -> None:
    from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

    tokenizer = tokenizer_of(arguments.model)
    model = load(arguments.model, arguments.dtype)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    arguments.rows = 8 * arguments.steps
    rows = rows_of("ragged", arguments, tokenizer, model.config.vocab_size)

    def run(steps: int, sample: int = 50) -> dict[str, Any]:
        model.load_state_dict(start)
        set_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-5, report_to="none", disable_tqdm=True,
                save_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False,
            )  # fmt: skip
            trainer = Trainer(
                model, args, Collator(pad_id(tokenizer)), train_dataset=rows, eval_dataset=rows[:8], processing_class=tokenizer
            )
            trainer.remove_callback(PrinterCallback)  # the standard output is for answers
            watch = Timed(TASKS, every=steps, sample=sample, include_path=FOLDER) if arguments.worker == "watched" else None
            if watch is not None:
                cltk.attach(trainer, [watch])
            begin = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - begin
        return {"train": seconds, "moments": watch.seconds if watch else [], "digest": tensors.digest(model)}

    serve(lambda: run(arguments.steps), lambda: run(1, 2))


class Timed(cltk.Watch):
    """A watch that notes how long each moment took, all of it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seconds: list[float] = []

    def look(self, run: Any) -> None:
        begin, before = time.perf_counter(), len(self.trace)
        super().look(run)
        if len(self.trace) > before:
            self.seconds.append(time.perf_counter() - begin)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--steps", type=int, default=8, help="of a turn")
    parser.set_defaults(rounds=2)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.rounds, arguments.steps = "random", 1, 4
    if arguments.worker:
        return work(arguments)
    own = [sys.executable, __file__, "--model", arguments.model, "--steps", str(arguments.steps), "--dtype", arguments.dtype]
    found = alternate({side: [*own, "--worker", side] for side in ("plain", "watched")}, arguments.rounds)
    answers = {side: [run["answer"] for run in runs] for side, runs in found.items()}
    assert len({one["digest"] for runs in answers.values() for one in runs}) == 1, "the watch changed the weights"
    step = statistics.median(one["train"] for one in answers["plain"]) / arguments.steps
    start, moment = (statistics.median(one["moments"][i] for one in answers["watched"]) for i in (0, 1))
    longer = [w["train"] - p["train"] for w, p in zip(answers["watched"], answers["plain"], strict=True)]
    row = {
        "steps": arguments.steps, "step": step, "start": start, "moment": moment, "longer": statistics.median(longer),
        "share": moment / (EVERY * step), "shares": [one["moments"][1] / (EVERY * step) for one in answers["watched"]],
    }  # fmt: skip
    write("watch", arguments, [row])
    print("| s a step | start s | s a moment | longer s | share |\n|---:|---:|---:|---:|---:|")
    print(f"| {step:.2f} | {start:.1f} | {moment:.1f} | {row['longer']:.1f} | **{100 * row['share']:.1f} %** |")
    return None


if __name__ == "__main__":
    main()
