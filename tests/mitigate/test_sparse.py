"""MoFO against a loop over coordinates, HFT's draw and what it freezes; all methods that edit updates, sharded."""

import copy
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cltk import tensors
from cltk.errors import InputError
from cltk.mitigate.interface import Plan, Run
from cltk.mitigate.sharpness import SAM
from cltk.mitigate.sparse import HFT, MoFO, draw_frozen, kind_of, top_mask
from cltk.mitigate.subspace import OSFT
from tests import forks

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def train(model, method, steps=3, make=lambda ps: torch.optim.AdamW(ps, 0.01, weight_decay=0.1)):
    method.setup(Plan(model, None, None))
    optimizer = make(model.parameters())
    run = Run(model, model, optimizer=optimizer, max_steps=steps)
    method.start(run)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        method.grad(run)
        optimizer.step()
        run.step += 1
        method.step(run)
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("fraction", [0.01, 0.15, 0.5])
def test_top_mask_is_the_sorted_head(fraction):
    moment = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    order = sorted(range(63), key=lambda i: -abs(moment.flatten()[i].item()))
    expected = torch.zeros(63, dtype=torch.bool)
    expected[order[: math.ceil(fraction * 63)]] = True
    assert torch.equal(top_mask(moment, fraction).flatten(), expected)
    assert not top_mask(torch.zeros(4), 0.5).any()


def test_mofo_equals_a_loop_over_coordinates(tiny):
    model, slow = tiny(), tiny()
    train(model, MoFO(0.1))
    optimizer = torch.optim.AdamW(slow.parameters(), 0.01, weight_decay=0.1)
    for _ in range(3):
        slow(input_ids=IDS, labels=IDS).loss.backward()
        before = copy.deepcopy(slow).state_dict()
        optimizer.step()
        with torch.no_grad():
            for name, parameter in slow.named_parameters():
                moment = optimizer.state[parameter]["exp_avg"].abs().flatten().tolist()
                chosen = set(sorted(range(len(moment)), key=lambda i: -moment[i])[: math.ceil(0.1 * len(moment))])
                flat, old = parameter.view(-1), before[name].view(-1)
                for i in range(len(moment)):
                    if i not in chosen or moment[i] == 0:
                        flat[i] = old[i]
        optimizer.zero_grad()
    for a, b in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.equal(a, b)


def test_mofo_needs_momentum(tiny):
    with pytest.raises(InputError, match="SGD keeps no exp_avg"):
        train(tiny(), MoFO(), make=lambda ps: torch.optim.SGD(ps, 0.1))
    for wrong in (0, 1.5):
        with pytest.raises(InputError, match=r"mofo\.fraction"):
            MoFO(wrong)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.self_attn.q_proj", "attention"), ("model.layers.0.self_attn.q_norm", "norm"),
        ("model.layers.1.post_attention_layernorm", "norm"), ("model.layers.1.mlp.up_proj", "ffn"),
        ("transformer.h.0.ln_1", "norm"), ("transformer.h.0.attn.c_attn", "attention"), ("transformer.h.0.mlp.c_fc", "ffn"),
        ("gpt_neox.layers.0.attention.query_key_value", "attention"), ("gpt_neox.layers.0.mlp.dense_h_to_4h", "ffn"),
    ],
)  # fmt: skip
def test_kinds(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_half_of_every_kind_trains(kind, tiny):
    names = [name for name, _ in tensors.trainable(tiny(kind))]
    draws = [draw_frozen(names, 0.5, seed) for seed in range(20)]
    assert len({frozenset(draw) for draw in draws}) > 1
    for frozen in draws:
        modules = {name.rpartition(".")[0] for name in names if ".0." in name or ".1." in name}
        held = {name.rpartition(".")[0] for name in frozen}
        for group in ("attention", "ffn", "norm"):
            of_kind = [m for m in modules if kind_of(m) == group]
            assert abs(len(of_kind) / 2 - sum(m in held for m in of_kind)) < 1  # a whole number over the model
        if kind == "llama":
            for layer in ("0", "1"):
                assert sum(f"layers.{layer}.self_attn." in name for name in frozen) == 2
            ffn = [sum(f"layers.{layer}.mlp." in name for name in frozen) for layer in ("0", "1")]
            assert sorted(ffn) == [1, 2]
        assert all(kind_of(name.rpartition(".")[0]) and any(f".{i}." in name for i in (0, 1)) for name in frozen)
        for name in frozen:  # weight and bias together
            assert {n for n in names if n.rpartition(".")[0] == name.rpartition(".")[0]} <= frozen
    assert draw_frozen(reversed(names), 0.5, 3) == draw_frozen(names, 0.5, 3)
    assert draw_frozen(names, 1.0) == set()


def test_hft_freezes_the_draw(tiny):
    model, start = tiny(), tiny().state_dict()
    optimizer = train(model, HFT(seed=4))
    frozen = draw_frozen([name for name, _ in tensors.trainable(model)], 0.5, 4)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name]) == (name in frozen)
        assert (parameter in optimizer.state) != (name in frozen)


def test_hft_redraws_each_round(tiny):
    model = tiny()
    method = HFT(every=2)
    method.setup(Plan(model, None, None))
    run, names, held = Run(model, model), [name for name, _ in tensors.trainable(model)], []
    for step in range(6):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        run.step = step
        method.grad(run)
        held.append({name for name, p in model.named_parameters() if p.grad is None})
    assert held == [draw_frozen(names, 0.5, 0, turn) for turn in (0, 0, 1, 1, 2, 2)]
    assert held[0] != held[2] or held[2] != held[4]
    with pytest.raises(InputError, match="hft"):
        HFT(every=-1)


def test_hft_notes_the_trained_share(tiny):
    model, plan = tiny(), Plan(tiny(), None, None)
    HFT().setup(plan)
    frozen = plan.notes["hft"]["first_frozen"]
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert plan.notes["hft"]["trained"] == pytest.approx(1 - sum(sizes[n] for n in frozen) / sum(sizes.values()))


METHODS = {"mofo": lambda: MoFO(0.2), "hft": lambda: HFT(every=2), "osft": lambda: OSFT(0.5), "sam": lambda: SAM(0.3)}


def _llama():
    torch.manual_seed(0)
    sizes = {"vocab_size": 13, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True))


def _steps(model, method, optimizer):
    run = Run(model, model, optimizer=optimizer, max_steps=3)
    method.start(run)
    for step in range(3):

        def backward(step=step):
            with torch.enable_grad():
                model(input_ids=IDS + step, labels=IDS + step).loss.backward()

        backward()
        run.repeat = backward
        method.grad(run)
        optimizer.step()
        run.step += 1
        method.step(run)
        optimizer.zero_grad()


def _sharded(rank, folder, name):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/sync", rank=rank, world_size=2)
    model, method = _llama(), METHODS[name]()
    method.setup(Plan(model, None, None))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    _steps(model, method, torch.optim.AdamW(model.parameters(), 0.01, eps=1e-4))
    whole = {name: p.detach().full_tensor() for name, p in tensors.trainable(model)}
    if rank == 0:
        torch.save(whole, f"{folder}/whole.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_shards_give_the_same_weights(name, tmp_path):
    forks.ranks(_sharded, str(tmp_path), name)
    found, model, method = torch.load(tmp_path / "whole.pt"), _llama(), METHODS[name]()
    method.setup(Plan(model, None, None))
    _steps(model, method, torch.optim.AdamW(model.parameters(), 0.01, eps=1e-4))
    for key, parameter in tensors.trainable(model):
        torch.testing.assert_close(found[key], parameter.detach(), atol=1e-5, rtol=1e-4)


def test_another_model_gets_a_draw_of_its_own(tiny):
    """The first model's was kept: a deeper one had layers that were never frozen, a shallower one none of the names."""
    method = HFT()
    for layers in (2, 4, 1):
        model = tiny(num_hidden_layers=layers)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        train(model, method, steps=1)
        frozen = draw_frozen({name: p.numel() for name, p in tensors.trainable(model)}, 0.5, 0)
        assert frozen == {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
