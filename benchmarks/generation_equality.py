"""Greedy texts decoded together against lm-eval's, one prompt at a time, in float32: how many differ, and by how little.

    python benchmarks/generation_equality.py [--documents 500] [--kind "gsm8k, the same examples"] [--tokens 64]

A text that differs is followed to its first token that does: there the model's plain forward of what both have in common says
how far apart the two tokens' logits are. Writes results/generation-equality.json.
"""

from __future__ import annotations

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


def main() -> None:
    parser = driver.arguments_of(__doc__)
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--kind", default=made.KINDS[1], choices=made.KINDS)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens at most")
    asked = parser.parse_args()
    from lm_eval.models.huggingface import HFLM

    from cltk.measure.scoring import PrefixLM

    model, tokenizer = made.load(asked, "float32")
    some = made.requests(asked.kind, asked, tokenizer)
    for one in some:
        one.args[1]["max_gen_toks"] = asked.tokens
    ours = PrefixLM(model, tokenizer)
    texts = ours.generate_until(some, disable_tqdm=True)
    plain = HFLM(model, tokenizer=tokenizer, batch_size=1).generate_until(some, disable_tqdm=True)
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
