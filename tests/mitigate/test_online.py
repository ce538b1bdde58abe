"""Online EWC over two trainings, and MAS, against slow references."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cltk import tensors
from cltk.errors import InputError
from cltk.importance.fisher import Importance, fisher
from cltk.mitigate.interface import Plan, Run
from cltk.mitigate.online import MAS, OnlineEWC, sample
from cltk.mitigate.quadratic import EWC
from tests.mitigate.test_quadratic import ROWS, llama, train, weights_of

NEW = [{"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, 5]}, {"input_ids": [6, 7, 8], "labels": [6, 7, 8]}]
NEXT = [{"input_ids": [11, 12, 1, 2]}]
OLD = {"memory": ROWS, "kind": "empirical", "normalize": None}


def plan_of(model: Any, data: Any = NEW) -> Plan:
    return Plan(model, data, None)


def squared_gradients(model: Any, rows: list[dict[str, Any]]) -> tensors.Named:
    """The empirical Fisher by autograd, a row at a time: mean of squared gradients of the summed log-likelihood."""
    model, found = copy.deepcopy(model), {}
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row.get("labels") or row["input_ids"])
        logits = model(input_ids=ids).logits[0, :-1]
        loss = F.cross_entropy(logits, labels[1:], reduction="sum", ignore_index=-100)
        named = dict(tensors.trainable(model))
        for name, grad in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            found[name] = found.get(name, 0) + grad.square() / len(rows)
    return found


def test_the_first_training_is_ewc_bit_for_bit() -> None:
    a, b = llama(), llama()
    train(a, [EWC(20.0, OLD)], plan=plan_of(a))
    train(b, [OnlineEWC(20.0, OLD)], plan=plan_of(b))
    assert tensors.digest(a) == tensors.digest(b) != tensors.digest(llama())


def test_the_second_decays_the_old_importance_adds_the_new_and_anchors_anew() -> None:
    model, method = llama(), OnlineEWC(20.0, OLD, decay=0.5)
    first = squared_gradients(model, ROWS)
    train(model, [method], plan=plan_of(model))
    between = weights_of(model)
    second = squared_gradients(model, NEW)
    plan = plan_of(model, NEXT)
    train(model, [method], plan=plan)
    for name, found in method.importance.items():
        torch.testing.assert_close(found, 0.5 * first[name] + second[name], rtol=1e-3, atol=1e-6)
        assert torch.equal(method.anchors[name], between[name])
    assert plan.notes["online_ewc"]["training"] == 2
    reference = llama()
    reference.load_state_dict(between, strict=False)
    train(reference, [EWC(20.0, Importance(method.importance))], plan=plan_of(reference))
    assert tensors.digest(reference) == tensors.digest(model)


def test_decay_zero_keeps_the_last_training_alone() -> None:
    model, method = llama(), OnlineEWC(1.0, OLD, decay=0.0)
    method.setup(plan_of(model))
    method.setup(plan_of(model, NEXT))
    for name, value in squared_gradients(model, NEW).items():
        torch.testing.assert_close(method.importance[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("source", [lambda m: fisher(m, ROWS, "empirical"), lambda m: {**fisher(m, ROWS)}])
def test_a_given_importance_is_carried_on_in_its_kind(source: Callable[[Any], Any]) -> None:
    model = llama()
    method = OnlineEWC(1.0, source(model))
    method.setup(plan_of(model))
    method.setup(plan_of(model, NEXT))
    assert method.carried is not None
    assert method.carried.info["kind"] in ("empirical", "mc")
    assert method.carried.info["normalize"] is None


def test_a_state_carries_importance_and_rows_to_another_process() -> None:
    model, method = llama(), OnlineEWC(20.0, OLD, decay=0.5)
    train(model, [method], plan=plan_of(model))
    again, start = OnlineEWC(20.0, OLD, decay=0.5), copy.deepcopy(model)
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    train(model, [method], plan=plan_of(model, NEXT))
    train(start, [again], plan=plan_of(start, NEXT))
    assert tensors.digest(model) == tensors.digest(start)


def test_a_resumed_second_training_takes_its_importance_from_the_state() -> None:
    model, method = llama(), OnlineEWC(20.0, OLD, decay=0.5)
    method.setup(plan_of(model))
    method.setup(plan_of(model, NEXT))
    again, run = OnlineEWC(20.0, OLD, decay=0.5), Run(model, model)
    again.setup(plan_of(model, NEXT))
    again.start(run)
    again.load_state_dict(method.state_dict())
    weights = again.columns[2]
    assert weights is not None
    for name, value in zip(again.names, weights, strict=True):
        assert torch.equal(value, method.importance[name])
    assert again.trainings == 2
    assert again.rows[0]["input_ids"] == NEXT[0]["input_ids"]


def test_strength_zero_holds_nothing() -> None:
    model, method = llama(), OnlineEWC(0.0)
    method.setup(Plan(model, None, None))
    assert (method.anchors, method.rows, method.state_dict()) == ({}, [], {})


def test_a_sample_is_spread_evenly() -> None:
    rows = [{"input_ids": [i, i]} for i in range(10)]
    assert [row["input_ids"][0] for row in sample(rows, 4)] == [0, 2, 5, 7]
    assert len(sample(rows, 99)) == 10
    masked = [{"input_ids": [1, 2, 3], "completion_mask": [0, 1, 1]}]
    assert sample(masked, 1)[0]["labels"] == [-100, 2, 3]


def test_mas_is_the_mean_absolute_gradient_of_the_squared_outputs() -> None:
    model = llama()
    method, plan = MAS(2.0, ROWS), Plan(model, None, None)
    method.setup(plan)
    expected: dict[str, torch.Tensor] = {}
    named = dict(tensors.trainable(model))
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        for name, grad in zip(named, torch.autograd.grad(logits.square().sum(), list(named.values())), strict=True):
            expected[name] = expected.get(name, torch.zeros(())) + grad.abs() / len(ROWS)
    mean = torch.cat([value.flatten() for value in expected.values()]).mean()
    for name, value in method.importance.items():
        torch.testing.assert_close(value, expected[name] / mean, rtol=1e-3, atol=1e-5)
    assert plan.notes["mas"]["kind"] == "mas"


def test_mas_pulls_as_ewc_does() -> None:
    a, b = llama(), llama()
    train(a, [MAS(5.0, ROWS)])
    train(b, [EWC(5.0, fisher(b, ROWS, "mas", normalize="mean"))])
    assert tensors.digest(a) == tensors.digest(b) != tensors.digest(llama())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OnlineEWC(1.0), "no importance"),
        (lambda: OnlineEWC("auto", OLD), "strength is 'auto'"),
        (lambda: OnlineEWC(1.0, OLD, decay=1.5), "decay must be from 0 to 1"),
        (lambda: OnlineEWC(1.0, OLD, samples=0), "samples at least 1"),
        (lambda: OnlineEWC(math.nan, OLD), "strength is nan"),
        (lambda: OnlineEWC(1.0, OLD).setup(Plan(llama(), None, None)), "must have a length"),
        (lambda: MAS(1.0), "mas: no memory"),
        (lambda: MAS(-1.0, ROWS), "mas: strength is -1"),
        (lambda: MAS("auto", ROWS), "strength is 'auto'"),
    ],
)
def test_wrong_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
