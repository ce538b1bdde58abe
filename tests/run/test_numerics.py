"""What a training and a measurement yield, held against the numbers that NUMERICS stands for.

When this fails although the change was meant: raise `cltk.run.identity.NUMERICS`, so that no finished cell is taken for one of
the new numbers, and write them with CLTK_WRITE_NUMERICS=1 in the environment.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments, set_seed

import cltk
from cltk.data import Collator, tokenize_pairs
from cltk.measure.evaluate import Suite, TextTask
from cltk.run.identity import NUMERICS
from tests.conftest import sentences
from tests.mitigator_cases import CASES

FILE = Path(__file__).with_suffix(".json")
OLD = sentences(60, seed=1)
# Everything is computed in float64, where ten thousand roundings of numbers below 1 make 1e-12 and Adam's division by
# |g| + 1e-8 makes a millionfold of it at worst; a changed formula moves the third digit.
CLOSE = 1e-6


def weights(model: Any) -> float:
    """A number that hangs on every weight and on its place."""
    flat = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    return float(flat @ torch.linspace(-1, 1, len(flat), dtype=torch.float64))


def trained(name: str, tiny: Any, tokenizer: Any, folder: Path) -> float:
    pairs = [{"q": f"{s} why", "a": f" {s.split()[0]}"} for s in sentences(40, seed=5)]
    rows = tokenize_pairs(pairs, tokenizer, prompt="q", completion="a")
    set_seed(7)
    args = TrainingArguments(
        str(folder), max_steps=3, per_device_train_batch_size=4, learning_rate=3e-3, lr_scheduler_type="constant",
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, seed=7, remove_unused_columns=False,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        model=tiny().double(), args=args, train_dataset=rows[:32], eval_dataset=rows[32:], data_collator=Collator(1),
        processing_class=tokenizer,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*learning rate")
        warnings.filterwarnings("ignore", message="si: ")
        if name != "plain":
            cltk.attach(trainer, [CASES[name].active(OLD)])
        trainer.train()
    return weights(trainer.model)


def measured(tiny: Any, tokenizer: Any) -> float:
    text = TextTask("old", [{"text": sentence} for sentence in OLD[:8]])
    scores = Suite([], texts=[text]).evaluate(tiny().double(), tokenizer)
    return float(sum(scores.tasks["old"].values["nll"]))


@pytest.mark.parametrize("name", ["measured", "plain", *CASES])
def test_numbers_are_those_that_finished_cells_have(name: str, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    found = measured(tiny, tokenizer) if name == "measured" else trained(name, tiny, tokenizer, tmp_path)
    known = json.loads(FILE.read_text())
    if os.environ.get("CLTK_WRITE_NUMERICS"):
        values = {**(known["values"] if known["numerics"] == NUMERICS else {}), name: found}
        FILE.write_text(json.dumps({"numerics": NUMERICS, "values": dict(sorted(values.items()))}, indent=1) + "\n")
        return
    assert known["numerics"] == NUMERICS, "NUMERICS was raised: write its numbers"
    assert math.isclose(found, known["values"][name], rel_tol=CLOSE, abs_tol=CLOSE), f"{found} was {known['values'][name]}"
