"""What a watch costs: 4 tasks x 50 documents every 50 steps of a training, against the same training without it.

    python benchmarks/watch.py --model asset:smollm2-135m-instruct      # 2 rounds of 100 steps a side
    python benchmarks/watch.py --quick                                  # a random model of 20 M parameters, 10 steps

Rows as `training.py` has them: batches of 8, 12 to 256 tokens of which all count ("ragged"), Trainer with padding in float32;
a turn of a side is a training of its own, A B A B, each side in a process. `share` is the time of the moments over that of the
training without them, and `whole` adds what is measured once, the start model. The share does not depend on the number of
steps, `whole` falls with it. The weights must be the same on both sides, and are compared.
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
FOLDER = Path(__file__).parent.parent / "evals" / "tasks"


def work(arguments: argparse.Namespace) -> None:
    from transformers import Trainer, TrainingArguments, set_seed

    tokenizer = tokenizer_of(arguments.model)
    model = load(arguments.model, arguments.dtype)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    arguments.rows = 8 * arguments.steps
    rows = rows_of("ragged", arguments, tokenizer, model.config.vocab_size)
    moments: list[float] = []

    def run(steps: int) -> dict[str, Any]:
        model.load_state_dict(start)
        set_seed(0)
        moments.clear()
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-5, report_to="none", disable_tqdm=True,
                save_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False,
            )  # fmt: skip
            trainer = Trainer(
                model, args, Collator(pad_id(tokenizer)), train_dataset=rows, eval_dataset=rows[:8], processing_class=tokenizer
            )
            if arguments.worker == "watched":
                watch = cltk.Watch(TASKS, every=min(50, steps), sample=50, include_path=FOLDER)
                evaluate = watch.suite.evaluate

                def timed(*given: Any, **how: Any) -> Any:
                    begin = time.perf_counter()
                    try:
                        return evaluate(*given, **how)
                    finally:
                        moments.append(time.perf_counter() - begin)

                watch.suite.evaluate = timed  # type: ignore[method-assign]
                cltk.attach(trainer, [watch])
            begin = time.perf_counter()
            trainer.train()
            return {"train": time.perf_counter() - begin, "moments": list(moments), "digest": tensors.digest(model)}

    serve(lambda: run(arguments.steps), lambda: run(1))


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.set_defaults(rounds=2)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.rounds, arguments.steps = "random", 1, 10
    if arguments.worker:
        return work(arguments)
    own = [sys.executable, __file__, "--model", arguments.model, "--steps", str(arguments.steps), "--dtype", arguments.dtype]
    found = alternate({side: [*own, "--worker", side] for side in ("plain", "watched")}, arguments.rounds)
    answers = {side: [run["answer"] for run in runs] for side, runs in found.items()}
    assert len({one["digest"] for runs in answers.values() for one in runs}) == 1, "the watch changed the weights"
    plain = statistics.median(one["train"] for one in answers["plain"])
    watched = statistics.median(one["train"] for one in answers["watched"])
    later = statistics.median(second for one in answers["watched"] for second in one["moments"][1:])
    count = len(answers["watched"][0]["moments"]) - 1
    row = {
        "steps": arguments.steps, "plain": plain, "watched": watched, "start": answers["watched"][0]["moments"][0],
        "moment": later, "moments": count, "share": later * count / plain, "whole": (watched - plain) / plain,
    }  # fmt: skip
    write("watch", arguments, [row])
    print("| steps | plain s | watched s | moments | s a moment | share | whole |\n|---|---:|---:|---:|---:|---:|---:|")
    print(
        f"| {arguments.steps} | {plain:.1f} | {watched:.1f} | {count} | {later:.1f} | **{100 * row['share']:.1f} %** |"
        f" {100 * row['whole']:.1f} % |"
    )
    return None


if __name__ == "__main__":
    main()
