"""The loss without float32 copies of logits, against torch's and transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from cltk import loss
from cltk.loss import causal_lm_loss, cross_entropy
from cltk.packing import label_head


def sample(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    logits = (20 * torch.randn(50, 300)).to(dtype).requires_grad_()
    targets = torch.randint(0, 300, (50,))
    targets[[0, 7, 49]] = -100
    return logits, targets, torch.rand(50)


@pytest.mark.parametrize("block", [1, 7 * 300, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_losses_and_gradients_are_torchs(dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss.BLOCK, "cpu", block)
    logits, targets, weights = sample(dtype)
    wide = logits if dtype == torch.float64 else logits.float()
    expected, found = F.cross_entropy(wide, targets, reduction="none"), cross_entropy(logits, targets)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    a, b = (torch.autograd.grad((x * weights).sum(), logits)[0] for x in (found, expected))
    assert a.dtype == dtype
    torch.testing.assert_close(a, b, rtol=torch.finfo(dtype).eps, atol=1e-6 if dtype != torch.float64 else 1e-12)
    assert not a[[0, 7, 49]].any()


@pytest.mark.parametrize("items", [None, 40, torch.tensor(40)])
def test_the_models_loss_is_transformers(items: Any) -> None:
    logits, targets, _ = sample(torch.float32)
    five = {"labels": targets.where(targets != -100, 5)[None], "ignore_index": 5}
    for given in ({"labels": None, "shift_labels": targets[None]}, {"labels": targets[None]}, five):
        expected = ForCausalLMLoss(logits[None], vocab_size=300, num_items_in_batch=items, **given)
        found = causal_lm_loss(logits[None], vocab_size=300, num_items_in_batch=items, **given)
        torch.testing.assert_close(found, expected)


def test_label_head_lends_it_to_the_model(tiny: Any) -> None:
    model = tiny().train()
    kept = {name: value for name, value in vars(model).items() if name == "_loss_function"}
    with label_head(model):
        assert model.loss_function is causal_lm_loss
    assert model.loss_function is ForCausalLMLoss
    assert {name: value for name, value in vars(model).items() if name == "_loss_function"} == kept
    model.loss_function = own = lambda *a, **k: torch.zeros(())
    with label_head(model):
        assert model.loss_function is own
