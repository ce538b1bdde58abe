"""Time and memory of preparing and training on 10 k, 100 k and 1 M rows, and of reading the beginning of a large memory.

    python benchmarks/data.py                # writes results/data.json; 3 GB of scratch space in --scratch

Each line is a process of its own. `lists` is the plain way: json.loads, the tokeniser a thousand rows at a time, lists of
Python integers, transformers' Trainer. `run` is the whole of `cltk run` (checks, leakage, scoring, a plain cell of 20 steps and
one with replay), first without and then with tables in the cache; `memory` reads 64 sequences of 256 tokens of text. The model
is a random Llama of 0.5 M parameters with a tokeniser of 2,000 entries, so that the rows are all that grows. Peak: the most
that was resident, and without pages of mapped files, which the system takes back when it needs them (anonymous; sampled 20
times a second). `start` is what was resident when everything was imported.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from driver import RESULTS

WORDS = [
    a + b for a in ("ba", "co", "di", "fu", "ge", "hy", "lo", "mi", "pra", "stu") for b in ("n", "ter", "ly", "rix", "mo", "ss")
]
STEPS = 20
YAML = """\
model: {pretrained: tiny}
data:
  train: {path: %s, prompt: question, completion: answer}
  validation: {path: other.jsonl, limit: 50}
  heldout: {path: other.jsonl, sample: 50}
  max_length: 128
train: {max_steps: 20, per_device_train_batch_size: 8, save_strategy: "no"}
evals: {kl_rows: 4}
grid: {mitigators: {plain: [], replay: [replay: {memory: %s, fraction: %.9f}]}}
keep_model: false
"""


def status(name: str) -> float:
    """MiB of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    return float("nan")


class Peak:
    """Anonymous memory, sampled."""

    def __init__(self) -> None:
        self.start, self.most = status("VmRSS"), 0.0
        self.begin = time.perf_counter()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, status("RssAnon"))
            time.sleep(0.05)

    def say(self, **more: Any) -> None:
        seconds = time.perf_counter() - self.begin
        print(json.dumps({"seconds": seconds, "start": self.start, "peak": status("VmHWM"), "anonymous": self.most, **more}))


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def make_rows(file: Path, rows: int) -> None:
    rng = random.Random(rows)
    with file.open("w") as out:
        for i in range(rows):
            row = {"question": f"{sentence(rng, rng.randint(5, 40))} {i}?", "answer": f" {sentence(rng, rng.randint(3, 30))}"}
            out.write(json.dumps(row) + "\n")


def make_text(file: Path, size: int) -> None:
    rng = random.Random(0)
    some = ["\n".join(sentence(rng, 14) for _ in range(6)) + "\n\n" for _ in range(2_000)]
    written = 0
    with file.open("w") as out:
        while written < size:
            written += out.write(rng.choice(some))


def make_model(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    core.train_from_iterator(
        (sentence(rng, 20) for _ in range(2_000)),
        trainers.BpeTrainer(
            vocab_size=2000, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def lists(file: Path) -> None:
    """The plain way."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    from cltk.data import Collator

    tokenizer, model = AutoTokenizer.from_pretrained("tiny"), AutoModelForCausalLM.from_pretrained("tiny")
    peak = Peak()
    rows = [json.loads(line) for line in file.open()]
    data = []
    for at in range(0, len(rows), 1000):
        some = rows[at : at + 1000]
        asked, said = (tokenizer([row[name] for row in some])["input_ids"] for name in ("question", "answer"))
        for q, a in zip(asked, said, strict=True):
            ids = (q + a + [tokenizer.eos_token_id])[:128]
            data.append({"input_ids": ids, "labels": ([-100] * len(q) + ids[len(q) :])[: len(ids)]})
    ready = time.perf_counter() - peak.begin
    args = TrainingArguments(
        "lists", max_steps=STEPS, per_device_train_batch_size=8, save_strategy="no", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, use_cpu=True,
    )  # fmt: skip
    Trainer(model, args, data_collator=Collator(0), train_dataset=data).train()
    peak.say(ready=ready)


def run(file: Path, memory: Path, rows: int) -> None:
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import cltk
    from cltk.run import cells  # noqa: F401

    yaml = Path(f"{file.stem}.yaml")
    yaml.write_text(YAML % (file.name, memory.name, 64 / (64 + rows)))
    peak = Peak()
    experiment = cltk.load(yaml, f"out-{file.stem}-{time.time_ns()}")
    experiment.check()
    ready = time.perf_counter() - peak.begin
    experiment.run()
    peak.say(ready=ready)


def read(memory: Path) -> None:
    from transformers import AutoTokenizer

    from cltk.data.memories import memory_view

    tokenizer = AutoTokenizer.from_pretrained("tiny")
    peak = Peak()
    rows = memory_view(str(memory), tokenizer, 256, 64)
    assert len(rows) == 64
    peak.say()


def worker(side: str, name: str) -> None:
    file, memory = Path(f"{name}.jsonl"), Path("memory.txt")
    if side == "memory":
        read(memory)
    elif side == "lists":
        lists(file)
    else:
        run(file, memory, int(name.removeprefix("rows")))


def measured(arguments: argparse.Namespace, sizes: list[int]) -> Iterator[dict[str, Any]]:
    """A process a line, one after the other."""
    environment = {
        **os.environ,
        "CLTK_CACHE": "cache",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path]),
    }
    sides = [("lists", n) for n in sizes] + [(side, n) for n in sizes for side in ("run", "run again")] + [("memory", 0)]
    for side, n in sides:
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", side, "--name", f"rows{n}"]
        done = subprocess.run(command, cwd=arguments.scratch, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{side} {n}: {done.stderr[-2000:]}")
        yield {"side": side, "rows": n, **json.loads(done.stdout.strip().splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--memory", type=int, default=10**9, help="bytes of the text that 64 sequences are read from")
    parser.add_argument("--scratch", type=Path, help="where rows and tables go; removed when not given")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--quick", action="store_true", help="1 k and 10 k rows, 20 MB; nothing is written")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.worker.removesuffix(" again"), arguments.name)
    sizes, size = ([1_000, 10_000], 20 * 10**6) if arguments.quick else (arguments.rows, arguments.memory)
    with tempfile.TemporaryDirectory() as temporary:
        arguments.scratch = arguments.scratch or Path(temporary)
        arguments.scratch.mkdir(parents=True, exist_ok=True)
        make_model(arguments.scratch / "tiny")
        make_rows(arguments.scratch / "other.jsonl", 500)
        make_text(arguments.scratch / "memory.txt", size)
        for n in sizes:
            make_rows(arguments.scratch / f"rows{n}.jsonl", n)
        rows = []
        print(
            "| side | rows | s | s to prepare | MiB at start | peak MiB | anonymous MiB |\n|---|---:|---:|---:|---:|---:|---:|"
        )
        for row in measured(arguments, sizes):
            rows.append(row)
            ready = f"{row['ready']:.1f}" if "ready" in row else ""
            print(
                f"| {row['side']} | {row['rows']} | {row['seconds']:.1f} | {ready} | {row['start']:.0f} | {row['peak']:.0f} |"
                f" {row['anonymous']:.0f} |", flush=True,
            )  # fmt: skip
    if arguments.out or not arguments.quick:
        out = arguments.out or RESULTS / "data.json"
        out.write_text(json.dumps({"memory_bytes": size, "steps": STEPS, "results": rows}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
