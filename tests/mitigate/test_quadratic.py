"""The quadratic penalties against autograd and closed forms, and the two classes in a plain training loop."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from cltk import tensors
from cltk.errors import InputError, RunError
from cltk.importance.fisher import Importance, fisher
from cltk.mitigate import source
from cltk.mitigate.interface import Plan, Run
from cltk.mitigate.quadratic import EWC, L2SP, decay_, proximal_, pull_, value
from tests import forks

ROWS = [{"input_ids": [3, 1, 4, 1, 5]}, {"input_ids": [9, 2, 6]}, {"input_ids": [5, 3, 5, 8, 9, 7]}]
SHAPES = [(7, 5), (11,), (3, 2, 4), (), (1, 1)]


def llama(seed=0):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 13, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True))


def drawn(seed=0, dtype=torch.float32):
    """Gradients, parameters, anchors, importance."""
    generator = torch.Generator().manual_seed(seed)
    grads, params, anchors, weights = ([torch.randn(s, generator=generator).to(dtype) for s in SHAPES] for _ in range(4))
    return grads, params, anchors, [w.float().abs() for w in weights]


def step(model, optimizer, mitigators, run, ids):
    """One step of a plain loop, as interface.py draws it."""
    F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    with torch.no_grad():
        for mitigator in mitigators:
            mitigator.grad(run)
    optimizer.step()
    run.step += 1
    with torch.no_grad():
        for mitigator in mitigators:
            mitigator.step(run)
    optimizer.zero_grad()


def train(model, mitigators, steps=4, rate=0.05, cls=torch.optim.SGD, plan=None):
    plan = plan or Plan(model, None, None)
    for mitigator in mitigators:
        mitigator.setup(plan)
    optimizer = cls(model.parameters(), rate)
    run = Run(model, model, optimizer=optimizer)
    for mitigator in mitigators:
        mitigator.start(run)
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        step(model, optimizer, mitigators, run, torch.randint(0, 13, (2, 6), generator=generator))
    return run


def weights_of(model):
    return {name: p.detach().clone() for name, p in tensors.trainable(model)}


# --- the pure functions


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("block", [None, 1, 4, 1000])
def test_the_pull_is_the_gradient_of_the_penalty(weighted, block):
    grads, params, anchors, weights = drawn()
    weights = weights if weighted else None
    leaves = [p.clone().requires_grad_() for p in params]
    penalty = sum(
        (0.37 / 2 * (w if weighted else 1) * (p - a) ** 2).sum()
        for p, a, w in zip(leaves, anchors, weights or anchors, strict=True)
    )
    expected = [g + d for g, d in zip(grads, torch.autograd.grad(penalty, leaves), strict=True)]
    assert value(params, anchors, 0.37, weights, block=block) == pytest.approx(penalty.item(), rel=1e-5)
    pull_(grads, params, anchors, 0.37, weights, block=block)
    for found, reference in zip(grads, expected, strict=True):
        torch.testing.assert_close(found, reference)


def test_strength_zero_changes_no_bit_whatever_the_importance():
    grads, params, anchors, weights = drawn()
    weights[0].fill_(math.inf)
    grads[0][0, 0] = -0.0
    before = copy.deepcopy((grads, params))
    pull_(grads, params, anchors, 0.0, weights)
    proximal_(params, anchors, 0.0, weights)
    decay_(params, anchors, [0.0] * len(params))
    for found, old in zip((*grads, *params), (*before[0], *before[1]), strict=True):
        assert torch.equal(found.view(-1).view(torch.int32), old.view(-1).view(torch.int32))


def test_the_norms_are_those_of_the_whole_vectors():
    grads, params, anchors, weights = drawn()
    d = torch.cat([(p - a).flatten() for p, a in zip(params, anchors, strict=True)])
    f, g = (torch.cat([t.flatten() for t in column]) for column in (weights, grads))
    norms = torch.zeros(3, dtype=torch.float64)
    pull_(grads, params, anchors, 2.0, weights, block=4, norms=norms)
    expected = [(f * d * d).sum().item(), (f * d).square().sum().item(), g.square().sum().item()]
    assert norms.tolist() == pytest.approx(expected, rel=1e-5)


def test_tensors_that_cannot_be_flattened_in_place():
    base = torch.randn(6, 4)
    param, grad, anchor = base.T, torch.zeros(4, 6), torch.zeros(4, 6)
    pull_([grad], [param], [anchor], 1.0, block=5)
    torch.testing.assert_close(grad, base.T)
    proximal_([param], [anchor], 1.0)
    torch.testing.assert_close(base, grad.T / 2)
    strided, long = torch.zeros(9), torch.arange(18.0)
    pull_([strided], [long[::2]], [torch.ones(9)], 1.0, block=4)
    torch.testing.assert_close(strided, long[::2] - 1)


def test_bfloat16_parameters_are_compared_in_float32():
    grads, params, anchors, weights = drawn(dtype=torch.bfloat16)
    expected = [
        (g.float() + 3 * w * (p.float() - a.float())).bfloat16()
        for g, p, a, w in zip(grads, params, anchors, weights, strict=True)
    ]
    pull_(grads, params, anchors, 3.0, weights)
    for found, reference in zip(grads, expected, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, reference)


@given(
    theta=st.floats(-10, 10, width=32),
    anchor=st.floats(-10, 10, width=32),
    c=st.floats(0, 1e12),
    weight=st.one_of(st.just(0.0), st.floats(1e-12, 1e12)),
)
def test_the_proximal_step_is_its_closed_form(theta, anchor, c, weight):
    param = torch.tensor([theta])
    proximal_([param], [torch.tensor([anchor])], c, [torch.tensor([weight])])
    w = float(torch.tensor(weight))
    expected = (theta + c * w * anchor) / (1 + c * w)
    assert param.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert min(theta, anchor) - 1e-5 <= param.item() <= max(theta, anchor) + 1e-5


def test_a_small_proximal_pull_is_not_lost_to_rounding():
    param = torch.ones(1, dtype=torch.float32)
    for _ in range(1000):
        proximal_([param], [torch.tensor([0.0])], 1e-6, [torch.tensor([1.0])])
    assert param.item() == pytest.approx(math.exp(-1e-3), rel=1e-4)


@pytest.mark.parametrize("strength", [1e12, 1e38, 1e300])
def test_the_proximal_step_is_stable_at_any_strength(strength):
    _, params, anchors, weights = drawn()
    weights[1].zero_()
    free = params[1].clone()
    proximal_(params, anchors, strength, weights)
    assert torch.equal(params[1], free)
    for i in (0, 2, 3):
        torch.testing.assert_close(params[i], anchors[i])


def test_the_decoupled_step():
    _, params, anchors, _ = drawn()
    expected = [p - c * (p - a) for p, a, c in zip(params, anchors, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True)]
    decay_(params, anchors, [0.1, 0.2, 0.3, 0.4, 0.5], block=3)
    for found, reference in zip(params, expected, strict=True):
        torch.testing.assert_close(found, reference)


# --- the classes


@pytest.mark.parametrize("offload", [False, True])
def test_ewc_by_injection_equals_the_penalty_in_the_loss(offload):
    model = llama()
    importance = fisher(model, ROWS, "empirical")
    reference, start = copy.deepcopy(model), weights_of(model)
    train(model, [EWC(20.0, importance, offload=offload)])
    optimizer, generator = torch.optim.SGD(reference.parameters(), 0.05), torch.Generator().manual_seed(5)
    for _ in range(4):
        ids = torch.randint(0, 13, (2, 6), generator=generator)
        loss = F.cross_entropy(reference(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        penalty = sum((importance[n] * (p - start[n]) ** 2).sum() for n, p in tensors.trainable(reference))
        optimizer.zero_grad()
        (loss + 20.0 / 2 * penalty).backward()
        optimizer.step()
    for name, p in tensors.trainable(reference):
        torch.testing.assert_close(weights_of(model)[name], p.detach(), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("make", [lambda: EWC(0.0), lambda: EWC(0, form="proximal"), lambda: L2SP(0.0)])
def test_strength_zero_is_no_mitigator_and_computes_nothing(make, monkeypatch):
    monkeypatch.setattr(source, "fisher", lambda *a, **k: pytest.fail("computed"))
    model, plain = llama(), llama()
    run = train(model, [make()], cls=torch.optim.AdamW)
    train(plain, [], cls=torch.optim.AdamW)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert run.metrics == {}


@pytest.mark.parametrize(
    "make", [lambda f: EWC(1e12, f, form="proximal"), lambda f: L2SP(19.99), lambda f: L2SP(19.0, form="gradient")]
)
def test_a_large_strength_holds_the_weights(make):
    model = llama()
    start, free = weights_of(model), llama()
    train(free, [], steps=20)
    train(model, [make(fisher(model, ROWS, "empirical", floor=0.1))], steps=20)

    def distance(m):
        return math.sqrt(sum((p - start[n]).square().sum().item() for n, p in tensors.trainable(m)))

    assert distance(model) < 0.35 * distance(free)


def test_the_proximal_form_uses_each_group_s_own_rate():
    model = nn.Linear(2, 2)
    importance = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    method = EWC(3.0, importance, form="proximal")
    method.setup(Plan(model, None, None))
    start = weights_of(model)
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 1.0}]
    run = Run(model, model, optimizer=torch.optim.SGD(groups))
    method.start(run)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
        method.step(run)
    torch.testing.assert_close(model.weight.detach(), start["weight"] + 1 / (1 + 0.1 * 3))
    torch.testing.assert_close(model.bias.detach(), start["bias"] + 1 / (1 + 1.0 * 3))


def test_l2_sp_steps_by_rate_times_strength():
    model = nn.Linear(2, 2)
    method, start = L2SP(3.0), weights_of(model)
    method.setup(Plan(model, None, None))
    run = Run(model, model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    method.start(run)
    with torch.no_grad():
        model.weight.add_(1.0)
        method.step(run)
    torch.testing.assert_close(model.weight.detach(), start["weight"] + 1 - 0.3)
    assert torch.equal(model.bias, start["bias"])
    with pytest.raises(RunError, match="learning rate"):
        method.step(Run(model, model))


def test_the_anchor_is_the_model_of_setup_not_of_the_start_of_training():
    model = llama()
    method, start = L2SP(1.0, form="gradient"), weights_of(model)
    method.setup(Plan(model, None, None))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)  # a checkpoint is resumed
    run = Run(model, model)
    method.start(run)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    method.grad(run)
    for _, p in tensors.trainable(model):
        torch.testing.assert_close(p.grad, torch.ones_like(p))
    torch.testing.assert_close(method.anchors, start)


def test_a_parameter_without_gradient_is_left_alone():
    model = llama()
    method = EWC(1.0, fisher(model, ROWS))
    method.setup(Plan(model, None, None))
    run = Run(model, model)
    method.start(run)
    method.grad(run)
    assert all(p.grad is None for p in model.parameters())
    assert run.metrics == {}


def test_frozen_parameters_take_no_part_and_late_ones_are_refused():
    model = llama()
    model.model.norm.weight.requires_grad_(False)
    method = L2SP(1.0)
    method.setup(Plan(model, None, None))
    assert "model.norm.weight" not in method.anchors
    model.model.norm.weight.requires_grad_(True)
    with pytest.raises(RunError, match=r"l2_sp: model\.norm\.weight is trained but was frozen"):
        method.start(Run(model, model))


def test_it_logs_the_penalty_and_its_share_of_the_gradient():
    model = llama()
    importance = fisher(model, ROWS, "empirical")
    method, start = EWC(20.0, importance, log_every=2), weights_of(model)
    method.setup(Plan(model, None, None))
    run = Run(model, model)
    method.start(run)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn(p.shape, generator=generator))
        p.grad = torch.randn(p.shape, generator=generator)
    task = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
    pulls = {n: 20 * importance[n] * (p.detach() - start[n]) for n, p in tensors.trainable(model)}
    energy = sum((pulls[n] * (p.detach() - start[n])).sum().item() for n, p in tensors.trainable(model))
    run.step = 2
    method.grad(run)
    assert run.metrics == {}
    for n, p in tensors.trainable(model):
        p.grad -= pulls[n]
    run.step = 3
    method.grad(run)
    assert run.metrics["ewc_penalty"] == pytest.approx(energy / 2, rel=1e-4)
    pulled = math.sqrt(sum(v.square().sum().item() for v in pulls.values()))
    assert run.metrics["ewc_ratio"] == pytest.approx(pulled / task, rel=1e-4)


# --- where the importance comes from


def test_it_is_computed_at_setup_from_a_memory_and_noted():
    model = llama()
    arguments = {"memory": ROWS, "samples": 2, "kind": "empirical", "normalize": None}
    method, plan = EWC(2.0, arguments), Plan(model, None, None)
    method.setup(plan)
    expected = fisher(model, ROWS[:2], "empirical")
    assert all(torch.equal(method.importance[name], value) for name, value in expected.items())
    note = plan.notes["ewc"]
    assert note["sequences"] == 2
    assert note["tokens"] == expected.info["tokens"]
    assert note["anchor_digest"] == tensors.digest(weights_of(model))
    assert {"relative_se", "seconds", "data_digest", "strength"} <= set(note)
    default = EWC(2.0, {"memory": ROWS})
    default.setup(plan)
    assert sum(v.sum() for v in default.importance.values()) == pytest.approx(sum(p.numel() for p in model.parameters()))


def test_a_saved_importance(tmp_path):
    model = llama()
    path = fisher(model, ROWS).save(tmp_path / "f.safetensors")
    EWC(1.0, path).setup(Plan(model, None, None))
    EWC(1.0, str(path)).setup(Plan(model, None, None))
    with pytest.raises(InputError, match="computed for another model"):
        EWC(1.0, path).setup(Plan(llama(seed=1), None, None))


def with_control(control, model, **plan):
    method, plan = EWC(2.0, {"memory": ROWS, "kind": "empirical", "control": control}), Plan(model, None, None, **plan)
    method.setup(plan)
    return method.importance, plan.notes["ewc"]


def test_the_shuffled_control_keeps_every_tensor_s_numbers():
    plain, note = with_control(None, llama())
    found, other = with_control("shuffled", llama())
    for name, numbers in plain.items():
        assert found[name].shape == numbers.shape
        assert torch.equal(found[name].flatten().sort().values, numbers.flatten().sort().values)
    assert not torch.equal(found["model.embed_tokens.weight"], plain["model.embed_tokens.weight"])
    assert "control" not in note
    assert "shuffled" in other["control"]
    assert other["digest"] == tensors.digest(found) != note["digest"] == tensors.digest(plain)
    assert all(note[key] == other[key] for key in ("data_digest", "anchor_digest"))
    assert with_control("shuffled", llama())[1]["digest"] == other["digest"]


def test_the_uniform_control_is_the_mean_everywhere():
    plain, note = with_control(None, llama())
    found, other = with_control("uniform", llama())
    mean = torch.cat([numbers.flatten().double() for numbers in plain.values()]).mean().item()
    for numbers in found.values():
        assert (numbers == numbers.flatten()[0]).all()
        assert numbers.flatten()[0].item() == pytest.approx(mean, rel=1e-6)
    assert other["mean"] == pytest.approx(note["mean"], rel=1e-6)
    assert "uniform" in other["control"]
    assert other["digest"] != note["digest"]


def test_a_control_is_made_from_the_cached_importance(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(source, "fisher", lambda *a, **k: calls.append(k) or fisher(*a, **k))
    digests = [with_control(control, llama(), cache=tmp_path)[1]["digest"] for control in (None, "shuffled", "uniform", None)]
    assert len(calls) == 1
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


def test_the_cache_is_used_for_the_same_inputs_alone(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(source, "fisher", lambda *a, **k: calls.append(k) or fisher(*a, **k))

    def importance(model=None, **arguments):
        method = EWC(1.0, {"memory": ROWS, "samples": 3, **arguments})
        method.setup(Plan(model or llama(), None, None, cache=tmp_path))
        return method.importance

    first, second = importance(), importance()
    assert len(calls) == 1
    assert all(torch.equal(first[name], second[name]) for name in first)
    importance(seed=1)
    importance(samples=2)
    importance(memory=ROWS[::-1])
    importance(model=llama(seed=2))
    importance(autocast=True)
    assert len(calls) == 6
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    importance()
    assert len(calls) == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EWC(1.0), "no importance"),
        (lambda: EWC(1.0, {"samples": 5}), "no memory"),
        (lambda: EWC(1.0, {"memory": ROWS, "sample": 5}), "no argument 'sample'"),
        (
            lambda: EWC(1.0, {"memory": ROWS, "control": "shuffle"}),
            "importance.control is 'shuffle'; give one of shuffled, uniform",
        ),
        (lambda: EWC(1.0, 5), "is a int"),
        (lambda: EWC(-1.0, {"memory": ROWS}), "strength is -1.0"),
        (lambda: EWC(math.nan, {"memory": ROWS}), "strength is nan"),
        (lambda: EWC("1e3", {"memory": ROWS}), "strength is '1e3'"),
        (lambda: EWC(1.0, {"memory": ROWS}, form="loss"), "gradient, proximal"),
        (lambda: L2SP(1.0, form="proximal"), "decoupled, gradient"),
        (lambda: L2SP(math.inf), "strength is inf"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_given_mapping_must_fit_the_model():
    model = llama()
    ones = {name: torch.ones_like(p) for name, p in tensors.trainable(model)}
    EWC(1.0, ones).setup(Plan(model, None, None))
    del ones["model.norm.weight"]
    with pytest.raises(InputError, match=r"model\.norm\.weight is trained but has no importance"):
        EWC(1.0, Importance(ones)).setup(Plan(model, None, None))


# --- sharded


def _sharded(rank, folder, form):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/sync", rank=rank, world_size=2)
    model = llama()
    method = EWC(30.0, fisher(model, ROWS, "empirical"), form=form, log_every=1)
    method.setup(Plan(model, None, None))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    run = Run(model, model, optimizer=optimizer)
    method.start(run)
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        step(model, optimizer, [method], run, torch.randint(0, 13, (2, 6), generator=generator))
    whole = {name: p.detach().full_tensor() for name, p in tensors.trainable(model)}
    if rank == 0:
        torch.save({"weights": whole, "metrics": run.metrics}, f"{folder}/whole.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gradient", "proximal"])
def test_shards_give_the_same_weights_and_logs(tmp_path, form):
    forks.ranks(_sharded, str(tmp_path), form)
    found, model = torch.load(tmp_path / "whole.pt"), llama()
    run = train(model, [EWC(30.0, fisher(model, ROWS, "empirical"), form=form, log_every=1)])
    for name, p in tensors.trainable(model):
        torch.testing.assert_close(found["weights"][name], p.detach(), atol=1e-6, rtol=1e-5)
    assert found["metrics"] == pytest.approx(run.metrics, rel=1e-4)
