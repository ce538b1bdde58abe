"""KL in its three places, LwF, and the reference: a copy, or the model without its adapters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import cltk
from cltk.errors import InputError
from cltk.forward.loss import kl_divergence
from cltk.mitigate.distill import Reference
from cltk.mitigate.interface import Plan
from tests.mitigate.test_rehearsal import NEW, OLD, moved, shift

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
PLACES: dict[str, list[tuple[int, Any]]] = {"memory": [(0, range(4)), (1, [1])], "prompts": [(0, range(5)), (1, range(3))]}


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_against_numpy(direction: Any, temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits, start = rng.normal(size=(4, 6)) * 3, rng.normal(size=(4, 6)) * 3
    total = 0.0
    for z, z0 in zip(logits / temperature, start / temperature, strict=True):
        p, p0 = np.exp(z) / np.exp(z).sum(), np.exp(z0) / np.exp(z0).sum()
        total += (p0 * np.log(p0 / p)).sum() if direction == "forward" else (p * np.log(p / p0)).sum()
    found = kl_divergence(torch.tensor(logits), torch.tensor(start), direction=direction, temperature=temperature)
    assert found.item() == pytest.approx(temperature**2 * total / 4, rel=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("place", PLACES)
def test_kl_on_old_text_and_prompts_against_the_joint_loss(place: str, direction: Any, tiny: Any) -> None:
    grads = moved(tiny(), cltk.KL(0.8, direction=direction, temperature=1.5, **{place: OLD}))
    start, twin = tiny(), tiny()
    shift(twin)
    chosen = [
        [model(torch.tensor([OLD[row]["input_ids"]])).logits[0, t] for row, ts in PLACES[place] for t in ts]
        for model in (twin, start)
    ]
    logits, reference = (torch.stack(rows) for rows in chosen)
    term = kl_divergence(logits, reference.detach(), direction=direction, temperature=1.5)
    assert term > 1e-4
    (twin(**NEW).loss + 0.8 * term).backward()
    for ours, parameter in zip(grads, twin.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-6)


def test_lwf_is_kl_at_temperature_two(tiny: Any) -> None:
    def loss(method: Any) -> float:
        model = tiny()
        with cltk.session(model, torch.optim.SGD(model.parameters(), 0.1), [method]) as s:
            shift(model)
            return s.loss(NEW, model(**NEW).logits).item()

    assert loss(cltk.LwF()) == loss(cltk.KL(1.0, temperature=2.0)) != loss(cltk.KL(1.0))
    assert loss(cltk.LwF(0.0)) == 0


def adapted(tiny: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.5))


def test_new_adapters_need_no_copy(tiny: Any) -> None:
    model, plain = adapted(tiny).train(), tiny().eval()
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    reference = Reference(Plan(model, None, None))
    assert reference.shared
    shift(SimpleNamespace(parameters=lambda: (p for n, p in model.named_parameters() if "lora" in n)))
    frozen.requires_grad_(False)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    ids = torch.tensor([[3, 4, 5, 6]])
    where = torch.tensor([[True, False, True, True]])
    torch.testing.assert_close(reference.logits({"input_ids": ids}, where), plain(ids).logits[where])
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert all(module.training for module in model.modules())


def test_used_adapters_and_trained_base_weights_are_copied(tiny: Any) -> None:
    used = adapted(tiny)
    shift(SimpleNamespace(parameters=lambda: (p for n, p in used.named_parameters() if "lora" in n)))
    ids, where = torch.tensor([[3, 4, 5, 6]]), torch.ones(1, 4, dtype=torch.bool)
    reference = Reference(Plan(used, None, None))
    assert not reference.shared
    torch.testing.assert_close(reference.logits({"input_ids": ids}, where), used.eval()(input_ids=ids).logits[0])
    trained = adapted(tiny)
    next(trained.parameters()).requires_grad_(True)
    assert not Reference(Plan(trained, None, None)).shared


def test_lora_training_equals_a_copied_reference(tiny: Any, monkeypatch: Any) -> None:
    def grads() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = adapted(tiny).eval()
        with cltk.session(model, torch.optim.SGD(model.parameters(), 0.1), [cltk.KL(0.8), cltk.KL(0.5, memory=OLD)]) as s:
            trained = [p for n, p in model.named_parameters() if "lora" in n]
            shift(SimpleNamespace(parameters=lambda: iter(trained)))
            out = model(**NEW)
            (out.loss + s.loss(NEW, out.logits)).backward()
            s.before_step()
        return [p.grad for p in trained]

    shared = grads()
    monkeypatch.setattr("cltk.mitigate.distill._starts_without_adapters", lambda model: False)
    for one, other in zip(shared, grads(), strict=True):
        torch.testing.assert_close(one, other)


def test_refusals() -> None:
    for wrong in (lambda: cltk.KL(-1), lambda: cltk.KL(1, temperature=0), lambda: cltk.KL(1, direction="up"),
                  lambda: cltk.KL(1, memory=OLD, prompts=OLD), lambda: cltk.KL(1, memory=[]),
                  lambda: cltk.LwF(-0.1)):  # fmt: skip
        with pytest.raises(InputError):
            wrong()
