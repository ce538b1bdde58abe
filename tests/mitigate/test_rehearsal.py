"""One optimiser step of the rehearsal losses against autograd on the joint loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import cltk
from cltk.errors import InputError
from cltk.mitigate.rehearsal import logit_distance, start_logits

OLD = [{"input_ids": [9, 8, 7, 6, 5]}, {"input_ids": [20, 21, 22], "labels": [-100, -100, 22]}]
NEW = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[5, 6, 7, 8]])}


def moved(model: Any, method: Any) -> list[torch.Tensor]:
    """The gradients that one step of a loop with `method` takes; the weights are first moved off the start."""
    with cltk.session(model, torch.optim.SGD(model.parameters(), 0.1), [method], batch_size=2) as s:
        shift(model)
        model(**NEW).loss.backward()
        s.before_step()
    return [parameter.grad for parameter in model.parameters()]


def shift(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def positions(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels at the counted positions of OLD, a row at a time."""
    first, second = (model(torch.tensor([row["input_ids"]])).logits[0] for row in OLD)
    return torch.cat([first[:4], second[1:2]]), torch.tensor([8, 7, 6, 5, 22])


def test_replay_loss_against_the_joint_loss(tiny: Any) -> None:
    grads = moved(tiny(), cltk.ReplayLoss(OLD, 0.7))
    twin = tiny()
    shift(twin)
    logits, labels = positions(twin)
    (twin(**NEW).loss + 0.7 * F.cross_entropy(logits, labels)).backward()
    for ours, parameter in zip(grads, twin.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("top_k", [4, None])
def test_der_pp_against_the_joint_loss(top_k: int | None, tiny: Any) -> None:
    grads = moved(tiny(), cltk.DERPP(OLD, 0.3, 0.6, top_k=top_k))
    twin = tiny()
    start = positions(twin)[0].detach()
    shift(twin)
    logits, labels = positions(twin)
    kept = start.topk(top_k or start.shape[-1]).indices
    squares = [(logits[n, v] - start[n, v]) ** 2 for n in range(5) for v in kept[n]]
    distance = torch.stack(squares).mean()
    (twin(**NEW).loss + 0.3 * distance + 0.6 * F.cross_entropy(logits, labels)).backward()
    tolerance = 1e-6 if top_k is None else 1e-4  # stored in half precision
    assert 0.3 * distance > 1e-3
    for ours, parameter in zip(grads, twin.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=tolerance)


def test_start_logits_are_the_largest_and_leave_the_model_alone(tiny: Any) -> None:
    model = tiny().train()
    model.lm_head.weight.requires_grad_(False)
    stored = start_logits(model, OLD, 5, batch_size=2)
    assert model.training
    assert not model.lm_head.weight.requires_grad
    assert [(v.shape, v.dtype, i.dtype) for v, i in stored] == [
        ((4, 5), torch.float16, torch.int32), ((1, 5), torch.float16, torch.int32),
    ]  # fmt: skip
    expected = positions(model.eval())[0].topk(5)
    assert torch.equal(torch.cat([i for _, i in stored]).long(), expected.indices)
    torch.testing.assert_close(torch.cat([v for v, _ in stored]).float(), expected.values, rtol=1e-3, atol=1e-3)


def test_distance_is_zero_at_the_start() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    assert logit_distance(logits, logits) == 0
    assert logit_distance(logits + 2, logits.topk(2).values, logits.topk(2).indices) == pytest.approx(4.0)


def test_samples_bound_the_memory(tiny: Any) -> None:
    from types import SimpleNamespace

    from cltk.mitigate.interface import Plan

    method = cltk.DERPP([{"input_ids": [i, i + 1, i]} for i in range(30)], samples=5, top_k=2)
    plan = Plan(tiny(), [], SimpleNamespace(per_device_train_batch_size=2))
    method.setup(plan)
    assert plan.notes["der_pp"]["old_rows"] == len(method.stored) == 5
    assert plan.notes["der_pp"]["stored_bytes"] == 5 * 2 * 2 * 6


def test_refusals() -> None:
    for wrong in (lambda: cltk.ReplayLoss(OLD, -1.0), lambda: cltk.ReplayLoss([]), lambda: cltk.ReplayLoss(None),
                  lambda: cltk.ReplayLoss(OLD, float("nan")), lambda: cltk.DERPP([]), lambda: cltk.DERPP(OLD, -0.1),
                  lambda: cltk.DERPP(OLD, beta=-0.1), lambda: cltk.DERPP(OLD, top_k=0),
                  lambda: cltk.DERPP(OLD, samples=0)):  # fmt: skip
        with pytest.raises(InputError):
            wrong()
