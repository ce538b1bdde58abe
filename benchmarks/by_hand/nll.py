"""Mean token NLL of every row of a text or of answers, in padded batches of like lengths: `nll.py FOLDER MODEL OUT.json`.

FOLDER/settings.json: {"texts": {name: file of rows in FOLDER}, "text_batch": rows a batch, "dtype": ...}. Rows with a prompt
and a completion count their completion.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Row = dict[str, list[int]]


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def tokens(row: dict[str, Any], tokenizer: Any, max_length: int) -> Row:
    """A pair, its prompt's labels -100 and closed by the end token; or a text, of which every token counts."""
    if "completion" not in row:
        ids = tokenizer(row["text"])["input_ids"]
        return {"input_ids": ids, "labels": ids}
    before = tokenizer(row["prompt"])["input_ids"]
    after = [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids = (before + after)[:max_length]
    return {"input_ids": ids, "labels": ([-100] * len(before) + after)[:max_length]}


def pad(rows: list[Row], pad_id: int) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(key: str, value: int) -> torch.Tensor:
        return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])

    ids, labels = filled("input_ids", pad_id), filled("labels", -100)
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def row_nll(model: Any, rows: list[Row], pad_id: int, batch: int) -> list[float]:
    """Nats a counted token, row by row; the longest batch first, so that a batch hardly pads."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    found = [0.0] * len(rows)
    for begin in range(0, len(order), batch):
        some = order[begin : begin + batch]
        inputs = pad([rows[i] for i in some], pad_id)
        labels = inputs.pop("labels")[:, 1:]
        logits = model(**inputs).logits[:, :-1].float()
        flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = flat.view_as(labels)  # [n, V, T] would be summed in the order of V, and be off by 1e-4
        for i, total, count in zip(some, losses.sum(1).tolist(), (labels != -100).sum(1).tolist(), strict=True):
            found[i] = total / count
    return found


def main(folder: Path, name: str, out: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, settings["dtype"]))
    found = {}
    for text, file in settings["texts"].items():
        rows = [tokens(row, tokenizer, settings["max_length"]) for row in read(folder / file)]
        found[text] = row_nll(model, rows, tokenizer.eos_token_id, settings["text_batch"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
