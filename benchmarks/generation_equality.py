"""Greedy texts decoded together against lm-eval's, one prompt at a time, in float32: how many differ, and by how little.

    python benchmarks/generation_equality.py [--documents 500] [--tokens 32] [--minutes 16]

A fifth of the documents is gsm8k behind 5 worked examples, half of them drawn anew for every question and half the same; the
others are prompts like IFEval's. A text that differs is followed to its first token that does: there the model's plain forward
of what both have in common says how far apart the two tokens' logits are. lm-eval's texts are kept one by one (--keep), so that
the same command goes on after --minutes, or after being killed; when all are there it writes results/generation-equality.json.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import driver
import generation as made
import torch


def first_difference(lm: Any, prompt: str, ours: str, theirs: str) -> float:
    """|logit - logit| of the tokens that follow what both texts have in common, by a plain forward.

    Texts are encoded behind their prompt again; an end is the end token.
    """
    before = lm.tok_encode(prompt)
    found = [[*lm.tokenizer.encode(text, add_special_tokens=False), lm.eot_token_id] for text in (ours, theirs)]
    same = next(i for i, (a, b) in enumerate(zip(*found, strict=False)) if a != b)
    with torch.inference_mode():
        logits = lm.model(torch.tensor([before + found[0][:same]], device=lm.device)).logits[0, -1].float()
    return float((logits[found[0][same]] - logits[found[1][same]]).abs())


def documents(asked: Any, tokenizer: Any) -> list[Any]:
    """Requests of every kind, of `asked.tokens` new tokens at most."""
    total, tenth, found = asked.documents, asked.documents // 10, []
    for kind, asked.documents in (("drawn", tenth), ("same", tenth), ("ifeval", total - 2 * tenth)):
        found += made.requests(kind, asked, tokenizer)
    for one in found:
        one.args[1]["max_gen_toks"] = asked.tokens
    return found


def alone(asked: Any, lm: Any, some: list[Any]) -> list[str]:
    """lm-eval's texts, those that are kept already among them; as many as there is time for."""
    keys = [hashlib.sha256(json.dumps([asked.model, *one.args]).encode()).hexdigest() for one in some]
    kept: dict[str, str] = {}
    if asked.keep.exists():
        kept = dict(json.loads(line) for line in asked.keep.read_text(encoding="utf-8").splitlines())
    end = time.monotonic() + 60 * asked.minutes
    with asked.keep.open("a", encoding="utf-8") as file:
        for key, one in zip(keys, some, strict=True):
            if key not in kept and time.monotonic() < end:
                (kept[key],) = lm.generate_until([one], disable_tqdm=True)
                file.write(json.dumps([key, kept[key]]) + "\n")
                file.flush()
    return [kept[key] for key in keys if key in kept]


def main() -> None:
    parser = driver.arguments_of(__doc__)
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens at most")
    parser.add_argument("--minutes", type=float, default=16, help="time for lm-eval's texts; the rest is for another call")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "generation-equality.jsonl")
    asked = parser.parse_args()
    from lm_eval.models.huggingface import HFLM

    from cltk.measure.scoring import PrefixLM

    model, tokenizer = made.load(asked, "float32")
    some = documents(asked, tokenizer)
    plain = alone(asked, HFLM(model, tokenizer=tokenizer, batch_size=1), some)
    if len(plain) < len(some):
        print(f"{len(plain)} of {len(some)} of lm-eval's texts are in {asked.keep}; the same command goes on")
        return
    ours = PrefixLM(model, tokenizer)
    texts = ours.generate_until(some, disable_tqdm=True)
    apart = {
        i: first_difference(ours, one.args[0], a, b)
        for i, (one, a, b) in enumerate(zip(some, texts, plain, strict=True)) if a != b
    }  # fmt: skip
    print(f"{len(some) - len(apart)} of {len(some)} texts are equal; the others' logits are {list(apart.values())} apart")
    driver.write("generation-equality", asked, [{"documents": len(some), "equal": len(some) - len(apart), "apart": apart}])
    assert len(apart) <= len(some) / 100
    assert all(distance <= 1e-4 for distance in apart.values())


if __name__ == "__main__":
    main()
