"""What a live logger sees: forgetting, probes, penalties and KL come through Trainer's own log lines, and into TensorBoard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainerCallback, TrainingArguments

import cltk
from cltk.data import Collator, tokenize_pairs
from tests.conftest import sentences

WANTED = {"validation_nll", "old_nll_rise", "ewc_penalty", "ewc_ratio", "kl"}


class Recorder(TrainerCallback):
    """Stands where TensorBoard's, W&B's and MLflow's callbacks stand: they take what `on_log` gets."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, Any]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.lines.append((state.global_step, dict(logs or {})))


def test_loggers_get_forgetting_penalty_and_kl(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = tokenize_pairs(
        [{"q": f"{s} why", "a": f" {s.split()[0]}"} for s in sentences(40, seed=5)], tokenizer, prompt="q", completion="a"
    )
    args = TrainingArguments(
        str(tmp_path), max_steps=20, per_device_train_batch_size=4, learning_rate=3e-3, report_to="tensorboard", use_cpu=True,
        save_strategy="no", disable_tqdm=True, logging_steps=10, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    recorder, old = Recorder(), sentences(20, seed=1)
    trainer = Trainer(
        model=tiny(), args=args, train_dataset=rows[:32], eval_dataset=rows[32:], data_collator=Collator(1),
        processing_class=tokenizer, callbacks=[recorder],
    )  # fmt: skip
    stopping = cltk.EarlyStopping(patience=9, every=10, budget=9.0, memory=old, restore=False)
    ewc = cltk.EWC(1.0, {"memory": old, "samples": 4, "block": 16, "normalize": "mean"}, log_every=2)
    cltk.attach(trainer, [ewc, cltk.KL(0.1), stopping])
    trainer.train()
    seen = {step: logs for step, logs in recorder.lines if "loss" in logs}
    assert sorted(seen) == [10, 20]
    for step, logs in seen.items():
        assert set(logs) >= WANTED, step
        assert all(isinstance(logs[name], float) and math.isfinite(logs[name]) for name in WANTED)
    probes = {probe["step"]: probe for probe in stopping.trace}
    assert {step: logs["old_nll_rise"] for step, logs in seen.items()} == {s: p["old_nll_rise"] for s, p in probes.items()}
    assert seen[20]["ewc_ratio"] > 0
    assert seen[20]["kl"] > 0
    events = EventAccumulator(str(logs_of(tmp_path)))  # what TensorBoard itself would show
    events.Reload()
    for name in WANTED:
        shown = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert shown == {step: pytest.approx(logs[name], rel=1e-6) for step, logs in seen.items()}, name


def logs_of(folder: Path) -> Path:
    (file,) = folder.rglob("events.out.tfevents.*")
    return file.parent
