"""What needs no DeepSpeed and one process: who is refused, and that a hook's pull is the penalty's gradient."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import cltk
from cltk.errors import InputError
from cltk.hosts import deepspeed
from cltk.importance.fisher import Importance
from cltk.mitigate import Mitigator, Plan, Run
from tests.conftest import sentences
from tests.mitigator_cases import CASES

OLD = sentences(60, seed=1)
BY_HOOK = {"ewc", "mas", "online_ewc"}  # l2_sp: in its other form


@pytest.mark.parametrize("name", CASES)
def test_methods_that_edit_gradients_or_updates_are_refused(name: str) -> None:
    method = CASES[name].active(OLD)
    edits = any(getattr(type(method), hook) is not getattr(Mitigator, hook) for hook in ("grad", "step"))
    if not edits or name in BY_HOOK:
        deepspeed.check(method)
        return
    with pytest.raises(InputError, match=rf"^{type(method).__name__}: DeepSpeed .* use .*DDP or FSDP2"):
        deepspeed.check(method)


def test_the_form_that_works_is_named() -> None:
    deepspeed.check(cltk.L2SP(1.0, form="gradient"))
    with pytest.raises(InputError, match="form='gradient'"):
        deepspeed.check(cltk.L2SP(1.0))
    with pytest.raises(InputError, match="form='gradient'"):
        deepspeed.check(cltk.EWC(1.0, {"memory": OLD}, form="proximal"))


def test_attach_refuses_before_anything_is_touched() -> None:
    trainer: Any = SimpleNamespace(
        is_deepspeed_enabled=True,
        callback_handler=SimpleNamespace(callbacks=[]),
        args=SimpleNamespace(n_gpu=1),
        model_init=None,
    )
    with pytest.raises(InputError, match="SAM: DeepSpeed"):
        cltk.attach(trainer, [cltk.SAM(0.05)])


@pytest.mark.parametrize("offload", [False, True])
def test_hooks_add_the_gradient_of_the_penalty(offload: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    method = cltk.EWC(3.0, Importance(weights), offload=offload)
    method.setup(Plan(model, None, None))
    method.start(Run(model, model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    x, accumulation, scale = torch.randn(5, 3), 4, 128.0
    penalty = 3.0 / 2 * sum((weights[n] * (p - start[n]) ** 2).sum() for n, p in model.named_parameters())
    loss = (model(x).square().mean() + penalty) / accumulation * scale
    expected = torch.autograd.grad(loss, list(model.parameters()))
    handles = deepspeed.pull(method, lambda: scale / accumulation)
    (model(x).square().mean() / accumulation * scale).backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    for handle in handles:
        handle.remove()
    model.zero_grad()
    model(x).square().mean().backward()
    assert not any(p._backward_hooks for p in model.parameters())


def test_weights_that_the_engine_rounds_after_attach_are_not_pulled_at_the_start() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    method = cltk.L2SP(1e6, form="gradient")
    method.setup(Plan(model, None, None))
    model.bfloat16()
    method.start(Run(model, model))
    handles = deepspeed.pull(method, lambda: 1.0)
    model(torch.randn(5, 3).bfloat16()).float().square().mean().backward()
    pulled = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for handle in handles:
        handle.remove()
    torch.manual_seed(0)
    same = nn.Linear(3, 2).bfloat16()
    same(torch.randn(5, 3).bfloat16()).float().square().mean().backward()
    for grad, parameter in zip(pulled, same.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=0, atol=0)


def test_strength_zero_hooks_nothing() -> None:
    method = cltk.L2SP(0.0, form="gradient")
    method.start(Run(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert deepspeed.pull(method, lambda: 1.0) == []
