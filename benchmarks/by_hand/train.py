"""One training by transformers' Trainer on padded batches: `train.py FOLDER METHOD MODEL_OUT`.

FOLDER/settings.json: {"model", "max_length", "train": TrainingArguments, "bf16", "methods": {METHOD: {name: arguments}}}; the
rows lie in train.jsonl and validation.jsonl (prompt, completion), memory.jsonl and probe.jsonl (text). Five methods, each as
its users write it: plain, low_lr, early_stopping, replay, ewc.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from nll import pad, read, row_nll, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

BLOCK = 256  # tokens of a piece of old text


def blocks(file: Path, tokenizer: Any, count: int) -> list[dict[str, list[int]]]:
    """The first pieces of the texts, joined by the end token."""
    ids: list[int] = []
    for row in read(file):
        ids += [*tokenizer(row["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= count * BLOCK:
            break
    pieces = [ids[i * BLOCK : (i + 1) * BLOCK] for i in range(min(count, len(ids) // BLOCK))]
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


class Stopping(TrainerCallback):
    """Stop where validation NLL has not improved, or old text rose by more than the budget; end with the best weights."""

    def __init__(self, model: Any, rows: Any, old: Any, pad_id: int, asked: dict[str, Any]) -> None:
        self.model, self.rows, self.old, self.pad_id, self.asked = model, rows, old, pad_id, asked
        self.start = self.mean(old)
        self.best, self.bad, self.weights = self.mean(rows), 0, self.copy()

    def mean(self, rows: Any) -> float:
        found = row_nll(self.model, rows, self.pad_id, 8)
        self.model.train()
        return sum(found) / len(found)

    def copy(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.asked["every"] and state.global_step != state.max_steps:
            return
        nll, rise = self.mean(self.rows), self.mean(self.old) - self.start
        if rise > self.asked["budget"]:
            control.should_training_stop = True
        elif nll < self.best:
            self.best, self.bad, self.weights = nll, 0, self.copy()
        else:
            self.bad += 1
            control.should_training_stop = self.bad >= self.asked["patience"]

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.model.load_state_dict(self.weights, strict=False)


def fisher(model: Any, rows: Any) -> dict[str, torch.Tensor]:
    """Squared gradients sequence by sequence, labels drawn from the model, over their mean."""
    found = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in rows:
        model.zero_grad()
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
        for name, p in model.named_parameters():
            found[name] += p.grad**2
    model.zero_grad()
    mean = sum(float(f.sum()) for f in found.values()) / sum(f.numel() for f in found.values())
    return {name: f / mean for name, f in found.items()}


class EWCTrainer(Trainer):
    """The penalty in the loss."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        found = super().compute_loss(model, inputs, return_outputs=return_outputs, **more)
        loss = found[0] if return_outputs else found
        penalty = sum((self.importance[n] * (p - self.anchors[n]) ** 2).sum() for n, p in model.named_parameters())
        loss = loss + self.strength / 2 * penalty
        return (loss, found[1]) if return_outputs else loss


def main(folder: Path, method: str, out: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    given, train = settings["methods"][method], dict(settings["train"])
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    sets = {name: [tokens(row, tokenizer, settings["max_length"]) for row in read(folder / f"{name}.jsonl")]
            for name in ("train", "validation")}  # fmt: skip
    rows = sets["train"]
    if "low_lr" in given:
        train["learning_rate"] *= given["low_lr"]["factor"]
    if "replay" in given:
        share = given["replay"]["fraction"]
        rows = rows + blocks(folder / "memory.jsonl", tokenizer, round(len(rows) * share / (1 - share)))
        train["max_steps"] = math.ceil(train["max_steps"] / (1 - share) - 1e-9)  # the new rows are seen as often
    args = TrainingArguments(output_dir=str(out.parent / "trainer"), report_to="none", bf16=settings["bf16"], seed=0,
                             disable_tqdm=True, use_cpu=True, **train)  # fmt: skip
    kind = EWCTrainer if "ewc" in given else Trainer
    trainer = kind(model=model, args=args, train_dataset=rows, data_collator=lambda some: pad(some, tokenizer.eos_token_id))
    if "ewc" in given:
        wanted = given["ewc"]
        trainer.strength = wanted["strength"]
        trainer.anchors = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer.importance = fisher(model, blocks(folder / "memory.jsonl", tokenizer, wanted["importance"]["samples"]))
    if "early_stopping" in given:
        asked = given["early_stopping"]
        old = blocks(folder / "probe.jsonl", tokenizer, asked["limit"])
        trainer.add_callback(Stopping(model, sets["validation"][: asked["limit"]], old, tokenizer.eos_token_id, asked))
    trainer.train()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
