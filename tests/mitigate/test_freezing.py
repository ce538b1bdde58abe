"""Freezing from below and ULMFiT's rules, against their formulas and a plain loop."""

import pytest
import torch

import cltk
from cltk.errors import InputError
from cltk.mitigate.freezing import Freeze, ULMFiT, layer_count, layer_of, slanted_triangle
from cltk.mitigate.interface import Plan, Run

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def test_layers_are_read_from_names(tiny):
    assert layer_of("model.layers.11.mlp.experts.3.up_proj.weight") == 11
    assert layer_of("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight") == 0
    assert layer_of("model.norm.weight") is None
    assert [layer_count(tiny(kind)) for kind in ("llama", "gpt2", "neox")] == [2, 2, 2]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize(("layers", "bottom"), [(0.5, 1), (1, 1), (2, 2), (1.0, 2), (0, 0)])
@pytest.mark.parametrize("embeddings", [True, False])
def test_what_is_frozen(kind, layers, bottom, embeddings, tiny):
    model, plan = tiny(kind), None
    plan = Plan(model, None, None)
    Freeze(layers, embeddings).setup(plan)
    for name, parameter in model.named_parameters():
        embedding = "embed_tokens" in name or "wte" in name or "wpe" in name or "embed_in" in name
        layer = layer_of(name)
        assert parameter.requires_grad == (not ((embedding and embeddings) or (layer is not None and layer < bottom)))
    note = plan.notes["freeze"]
    assert note["layers"] == bottom
    assert note["frozen"] == sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert note["head_frozen"] == (embeddings and kind != "neox")


def test_frozen_weights_stay_in_a_loop_whose_optimiser_was_made_before(tiny):
    model, start = tiny(), tiny().state_dict()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    with cltk.session(model, optimizer, [Freeze(1)]) as s:
        for _ in range(2):
            model(input_ids=IDS, labels=IDS).loss.backward()
            s.before_step()
            optimizer.step()
            s.after_step()
            optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name]) == ("embed" in name or "layers.0" in name)


def test_the_triangle_is_the_papers():
    """Howard & Ruder 2018, equation 3, with its names."""
    total, cut_frac, ratio = 200, 0.1, 32
    cut = int(total * cut_frac)
    for t in range(total):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        assert slanted_triangle(t, total) == pytest.approx((1 + p * (ratio - 1)) / ratio)
    assert slanted_triangle(cut, total) == 1
    assert slanted_triangle(total + 5, total) == pytest.approx(1 / 32)
    assert 0 < slanted_triangle(0, 1) <= 1


def test_rates_fall_with_depth(tiny):
    for tied in (True, False):
        model = tiny(tie_word_embeddings=tied)
        plan = Plan(model, None, None)
        ULMFiT(2.0).setup(plan)
        factor = {name: plan.lr_scales[0](name) for name, _ in model.named_parameters()}
        assert factor["model.layers.1.mlp.up_proj.weight"] == factor["model.norm.weight"] == 1
        assert factor["model.layers.0.mlp.up_proj.weight"] == 0.5
        assert factor["model.embed_tokens.weight"] == 0.25
        assert tied or factor["lm_head.weight"] == 1


@pytest.mark.parametrize(("unfreeze", "begins"), [(True, (0, 4, 8)), (3, (0, 3, 6)), (False, (0, 0, 0))])
def test_layers_begin_from_the_top(unfreeze, begins, tiny):
    model = tiny()
    method = ULMFiT(1.0, cut_frac=0.0, unfreeze=unfreeze)
    method.setup(Plan(model, None, None))
    run = Run(model, model, max_steps=12)
    begin = {}
    for step in range(12):
        run.step = step
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        method.grad(run)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                begin.setdefault(name, step)
    for name, step in begin.items():
        assert step == begins[2 if "embed" in name else 1 if "layers.0" in name else 0]
    assert len(begin) == len(list(model.named_parameters()))


def test_untrained_layers_have_no_decay_and_no_state(tiny):
    model, start = tiny(), tiny().state_dict()
    made = []

    def make(groups):
        made.append(torch.optim.AdamW(groups, weight_decay=0.5))
        return made[0]

    with cltk.session(model, make, [ULMFiT(2.0, unfreeze=5)], learning_rate=0.01, max_steps=10) as s:
        rates = sorted(group["lr"] for group in s.optimizer.param_groups)
        assert rates == pytest.approx([0.01 / 32 / 4, 0.01 / 32 / 2, 0.01 / 32])
        for _ in range(2):
            model(input_ids=IDS, labels=IDS).loss.backward()
            s.before_step()
            made[0].step()
            s.after_step()
            made[0].zero_grad()
    for name, parameter in model.named_parameters():
        below = "embed" in name or "layers.0" in name
        assert torch.equal(parameter, start[name]) == below
        assert (parameter in made[0].state) != below


def test_refusals(tiny):
    for wrong in (-1, 1.5, True):
        with pytest.raises(InputError, match=r"freeze\.layers"):
            Freeze(wrong)
    with pytest.raises(InputError, match="the model has 2 layers"):
        Freeze(3).setup(Plan(tiny(), None, None))
    model = tiny()
    model.model.norm.requires_grad_(False)
    with pytest.raises(InputError, match="nothing is left"):
        Freeze(2).setup(Plan(model, None, None))
    for wrong in ({"decay": 0.5}, {"cut_frac": 1.0}, {"ratio": 0.1}, {"unfreeze": -1}):
        with pytest.raises(InputError, match="ulmfit"):
            ULMFiT(**wrong)
    model, method = tiny(), ULMFiT(cut_frac=0.0)
    method.setup(Plan(model, None, None))
    with pytest.raises(InputError, match="max_steps"):
        method.grad(Run(model, model))
    with pytest.raises(InputError, match="behind the method that adds"):
        method._depth("model.new.weight")
