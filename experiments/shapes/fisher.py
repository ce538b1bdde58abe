"""Three estimators of the mean diagonal Fisher of SmolLM2-135M-Instruct on Brown text (check S12).

    python experiments/shapes/fisher.py          # some minutes; writes experiments/shapes/results/fisher.json

per_sequence: labels drawn from the model, one backward pass a sequence, squares of the summed gradient, per token. Written
here as the definition says, without cltk's estimators. batched_gradient: `cltk.fisher(kind="mc")`, one backward pass a batch,
with labels of its own. mean_gradient: the squared gradient of a batch's mean loss on the data's labels, as several published
implementations of EWC take it, for batches of 2, 8 and 16 sequences. All are means over all parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import cltk
from cltk.data import memory_rows
from cltk.models import load_model

SEQUENCES, LENGTH, SEEDS, SIZES = 16, 64, 20, (2, 8, 16)
OUT = Path(__file__).parent / "results" / "fisher.json"


def mean_square(model: Any, loss: torch.Tensor) -> float:
    """Mean over all parameters of the squared gradient."""
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss, parameters)
    return float(sum(g.double().square().sum() for g in grads)) / sum(p.numel() for p in parameters)


def per_sequence(model: Any, ids: torch.Tensor, seed: int) -> float:
    """sum over sequences of (gradient of the summed NLL of drawn labels)², per token."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    total = 0.0
    for row in ids:
        logits = model(input_ids=row[None]).logits[0, :-1]
        with torch.no_grad():
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
        total += mean_square(model, F.cross_entropy(logits, drawn, reduction="sum"))
    return total / (len(ids) * (ids.shape[1] - 1))


def mean_gradient(model: Any, ids: torch.Tensor, size: int) -> float:
    """Mean over batches of the squared gradient of the batch's mean loss, data's labels."""
    squares = []
    for batch in ids.split(size):
        logits = model(input_ids=batch).logits[:, :-1]
        squares.append(mean_square(model, F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())))
    return sum(squares) / len(squares)


def main() -> None:
    model, tokenizer = load_model("asset:smollm2-135m-instruct", dtype="float32")
    model.eval()
    rows = memory_rows("asset:brown/probe.jsonl", tokenizer, LENGTH)
    rows = rows[:: len(rows) // SEQUENCES][:SEQUENCES]
    ids = torch.tensor([row["input_ids"] for row in rows])
    count = sum(p.numel() for p in model.parameters())
    found: dict[str, Any] = {
        "model": "asset:smollm2-135m-instruct", "sequences": SEQUENCES, "length": LENGTH,
        "mean_gradient": {str(size): [mean_gradient(model, ids, size)] for size in SIZES},
        "per_sequence": [], "batched_gradient": [],
    }  # fmt: skip
    for seed in range(SEEDS):
        found["per_sequence"].append(per_sequence(model, ids, seed))
        fisher = cltk.fisher(model, rows, kind="mc", batch_size=8, seed=seed)
        found["batched_gradient"].append(float(sum(f.double().sum() for f in fisher.values())) / count)
        print(seed, found["per_sequence"][-1], found["batched_gradient"][-1], flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
