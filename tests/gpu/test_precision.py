"""What only a GPU can show: half precision and TF32 reached from the YAML's `train`, the Fisher and EWC on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import cltk
from cltk import tensors
from cltk.data import Collator
from cltk.run.arguments import training_arguments

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
ROWS = [{"input_ids": [(7 * i + j) % 290 + 2 for j in range(12)]} for i in range(32)]


def trained(tiny: Any, folder: Path, mitigators: list[Any], **train: Any) -> Any:
    from transformers import Trainer

    args = training_arguments({"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "no", **train}, 0, folder)
    trainer = Trainer(model=tiny().cuda(), args=args, train_dataset=ROWS, data_collator=Collator(1))
    cltk.attach(trainer, mitigators).train()
    return trainer


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_half_precision_takes_effect_beside_ewc(name: str, tiny: Any, tmp_path: Path) -> None:
    ewc = cltk.EWC(1.0, {"memory": ROWS[:8], "samples": 8})
    trainer = trained(tiny, tmp_path, [ewc], **{name: True})
    assert trainer.accelerator.mixed_precision == name
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_tf32_takes_effect(tiny: Any, tmp_path: Path) -> None:
    trained(tiny, tmp_path, [], tf32=True)
    assert torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False


def test_fisher_on_the_device_equals_the_cpu(tiny: Any) -> None:
    model = tiny()
    cpu = cltk.fisher(model, ROWS[:8], "empirical")
    gpu = cltk.fisher(model.cuda(), ROWS[:8], "empirical")
    for name, value in cpu.items():
        torch.testing.assert_close(gpu[name].cpu(), value, rtol=1e-3, atol=1e-8)


def test_strength_zero_changes_no_bit(tiny: Any, tmp_path: Path) -> None:
    plain = trained(tiny, tmp_path, [])
    assert tensors.digest(trained(tiny, tmp_path, [cltk.EWC(0.0), cltk.KL(0.0)]).model) == tensors.digest(plain.model)
