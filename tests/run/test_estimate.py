"""The memory formulas, against what autograd really saves and what optimisers and methods really hold."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cltk.cli import main
from cltk.errors import InputError
from cltk.mitigate import MITIGATORS
from cltk.run.estimate import STATES, Estimate, Setup, estimate, layer_bytes
from cltk.run.needs import NEEDS, needs_of
from cltk.run.shape import Shape, meta_model, shape_of

B, T = 3, 50
LAYERS = 2  # of the tiny model


def saved(model: Any) -> int:
    """Bytes that a forward pass keeps for backward, each storage once, parameters not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.randint(0, 300, (B, T))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(input_ids=ids, labels=ids, use_cache=False)
    return sum(seen.values())


def per_layer(make: Callable[[int], Any]) -> float:
    """Bytes a token that one more layer saves."""
    return (saved(make(4)) - saved(make(2))) / 2 / (B * T)


def test_a_layer_saves_what_the_formula_says(tiny: Any) -> None:
    assert per_layer(lambda n: tiny(num_hidden_layers=n)) == layer_bytes(shape_of(tiny()), Setup())


def test_a_layer_with_adapters(tiny: Any) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    shape = shape_of(tiny(), [{"lora": {"r": 4}}])
    with warnings.catch_warnings(action="ignore"):  # peft's own use of a deprecated name
        assert per_layer(lambda n: get_peft_model(tiny(num_hidden_layers=n), config)) == layer_bytes(shape, Setup())
        assert shape.adapters == get_peft_model(tiny(), config).num_parameters(only_trainable=True)


def test_layer_norm_without_gate(tiny: Any) -> None:
    """NeoX; the values are a view of its fused query_key_value, which so stays whole: 2 q more than the formula."""
    shape = shape_of(tiny("neox"))
    assert (shape.gated, shape.rms) == (False, False)
    assert layer_bytes(shape, Setup()) + 2 * 4 * shape.query == per_layer(lambda n: tiny("neox", num_hidden_layers=n))


def test_llama_formula_in_the_docstring(tiny: Any) -> None:
    s = shape_of(tiny())
    assert layer_bytes(s, Setup()) == 24 * s.hidden + 8 * s.query + 8 * s.shared + 4 * s.heads + 16 * s.inner + 8


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad"])
def test_optimiser_state(name: str) -> None:
    cls: Any = {"adamw_torch": "AdamW", "adamw_torch_fused": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad"}[
        name
    ]
    parameter = torch.zeros(1000, requires_grad=True)
    optimizer = getattr(torch.optim, cls)([parameter], lr=0.1)
    parameter.grad = torch.ones(1000)
    optimizer.step()
    held = sum(t.nbytes for t in optimizer.state[parameter].values() if t.numel() > 1)
    assert STATES[name](4) * 1000 == held


def test_meta_model_holds_no_weights_and_the_right_number(tiny_folder: Path, tiny: Any) -> None:
    (tiny_folder / "model.safetensors").write_bytes(b"not weights")
    model = meta_model(tiny_folder)
    assert all(p.is_meta for p in model.parameters())
    assert shape_of(model) == shape_of(tiny())
    assert shape_of(model).parameters == sum(p.numel() for p in tiny().parameters())
    with pytest.raises(InputError, match="no such folder"):
        meta_model("./nowhere")


@pytest.mark.parametrize(("size", "billions", "rule"), [("7b", 6.74, 54), ("13b", 13.02, 104), ("70b", 68.98, 552)])
def test_rule_of_thumb(size: str, billions: float, rule: float) -> None:
    found = estimate(shape_of(meta_model(f"meta-llama/Llama-2-{size}-hf")), Setup(dtype="bfloat16"))
    assert found.parameters / 1e9 == pytest.approx(billions, abs=0.01)
    assert found.rule / 1e9 == pytest.approx(rule, abs=1)


@pytest.fixture
def shape() -> Shape:
    return shape_of(meta_model("meta-llama/Llama-2-7b-hf"))


def make(shape: Shape, entries: list[Any] | None = None, **changes: Any) -> Estimate:
    return estimate(shape, replace(Setup(dtype="bfloat16", batch=2, length=2048, accumulation=8), **changes), entries or [])


def test_the_parts_add_up(shape: Shape) -> None:
    for found in (make(shape), make(shape, checkpointing=True), make(shape, ["ewc"]), make(shape, gpus=8, sharding="fsdp")):
        assert found.training == found.weights + found.gradients + found.optimizer + found.mitigators + found.activations


def test_sharding(shape: Shape) -> None:
    whole = make(shape, checkpointing=True)
    n = shape.parameters
    assert (whole.weights, whole.gradients, whole.optimizer) == (2 * n, 2 * n, 4 * n)
    ddp, one, two, three, fsdp = (
        make(shape, checkpointing=True, gpus=8, sharding=name) for name in ("ddp", "zero1", "zero2", "zero3", "fsdp")
    )
    assert ddp.activations - whole.activations == whole.gradients  # its buckets
    assert (one.weights, one.gradients, one.optimizer) == (2 * n, 2 * n, 12 * n // 8)  # float32 weights and moments
    assert (two.weights, two.gradients, two.optimizer) == (2 * n, 2 * n // 8, 12 * n // 8)
    assert (three.weights, three.gradients, three.optimizer) == (2 * n // 8, 2 * n // 8, 12 * n // 8)
    assert (fsdp.weights, fsdp.gradients, fsdp.optimizer) == (2 * n // 8, 2 * n // 8, 4 * n // 8)
    wide = make(shape, checkpointing=True, gpus=8, sharding="fsdp", autocast=True)  # accelerate: float32 weights
    assert (wide.weights, wide.gradients, wide.optimizer) == (4 * n // 8, 4 * n // 8, 8 * n // 8)
    assert three.training < two.training < one.training


def test_whole_models_on_every_gpu(shape: Shape) -> None:
    """What sharding does not divide: 6.74e9 parameters of two bytes for the model that KL compares with, and so on."""
    n, eight = shape.parameters, {"gpus": 8, "sharding": "fsdp", "checkpointing": True}
    assert make(shape, ["kl"], **eight).mitigators == 2 * n
    assert make(shape, ["lwf"], **eight).mitigators == 2 * n
    assert make(shape, ["wise_ft"], **eight).mitigators == 2 * n
    ewc = make(shape, ["ewc"], **eight)
    assert (ewc.moment, ewc.peak) == ("start", 2 * n + 6 * n)  # read whole: the model, its anchors and its importance
    assert ewc.host == 6 * n  # which then wait in CPU memory
    zero = make(shape, ["ewc"], gpus=8, sharding="zero3", length=4096)
    assert zero.mitigators == 6 * n  # DeepSpeed: whole on every rank
    assert any("kl: refused under DeepSpeed" in note for note in make(shape, ["kl"], gpus=8, sharding="zero3").notes)


def test_70b_says_that_whole_models_do_not_fit() -> None:
    large = shape_of(meta_model("meta-llama/Llama-2-70b-hf"))
    setup = Setup(dtype="bfloat16", batch=1, length=2048, checkpointing=True, gpus=64, sharding="fsdp", autocast=True)
    found = estimate(large, setup)
    assert (found.moment, found.peak) == ("scoring", 2 * 2 * large.parameters)  # 276 GB: start and tuned model, bfloat16
    assert found.training < 40e9
    assert any("whole models on every GPU" in note for note in found.notes)
    assert estimate(large, replace(setup, compared=False)).peak == 2 * large.parameters


def test_checkpointing_accumulation_and_length(shape: Shape) -> None:
    assert make(shape, checkpointing=True).activations < make(shape).activations / 3
    assert make(shape, accumulation=1).peak < make(shape).peak  # gradients do not wait beside saved tensors
    assert make(shape, length=4096).activations == 2 * make(shape).activations
    few = make(shape, counted=0.5)
    assert make(shape).activations - few.activations == pytest.approx(0.5 * 4096 * (12 * 32000 + 2 * 4096), rel=1e-6)


def test_mitigators_state(shape: Shape) -> None:
    n, plain = shape.parameters, make(shape)
    state = {name: make(shape, [name]).mitigators for name in ("ewc", "ema", "l2_sp", "kl", "wise_ft", "low_lr")}
    assert state == {"ewc": 6 * n, "ema": 4 * n, "l2_sp": 2 * n, "kl": 2 * n, "wise_ft": 2 * n, "low_lr": 0}
    assert make(shape, [{"ewc": {"strength": 0}}]).peak == plain.peak
    offloaded = make(shape, [{"ewc": {"strength": 1, "offload": True}}])
    assert (offloaded.mitigators, offloaded.host) == (0, 6 * n)
    assert make(shape, ["mofo"], checkpointing=True).peak >= make(shape, checkpointing=True).peak
    assert make(shape, [{"osft": {"keep": 0.5}}]).mitigators > make(shape, [{"osft": {"keep": 0.1}}]).mitigators > 0


def test_adapters_and_frozen_layers(tiny: Any) -> None:
    plain, half = shape_of(tiny()), shape_of(tiny(), [{"freeze": {"layers": 0.5}}])
    assert half.trained < plain.trained
    assert half.layers == LAYERS - 1
    lora = [{"lora": {"r": 4}}]
    adapted = estimate(shape_of(tiny(), lora), Setup(), [*lora, {"kl": {"strength": 1.0}}])
    assert adapted.mitigators == 0  # the start model is the model without its adapters
    assert adapted.trained == shape_of(tiny(), lora).adapters
    assert shape_of(tiny(), [{"lora": {"r": 4, "targets": ["q_proj"]}}]).adapters == LAYERS * 4 * (32 + 32)
    assert shape_of(tiny(), [{"lora": {"r": 0}}]) == plain
    assert shape_of(tiny(), ["hft"]).trained < plain.trained


def test_every_mitigator_says_what_it_holds() -> None:
    missing = sorted(set(MITIGATORS) - set(NEEDS))
    assert not missing, f"add to cltk/run/needs.py what these hold: {missing}"
    assert needs_of(["ewc", "ema"]).wide == 2
    assert needs_of(["my_own"]).unknown == {"my_own"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "adamw_torhc"}, "did you mean 'adamw_torch'"),
        ({"dtype": "int8"}, "int8"),
        ({"batch": 0}, "batch is 0"),
        ({"gpus": 4}, "need a sharding"),
        ({"counted": 0.0}, "counted"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Setup(**changes)


def test_command(experiment: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(tiny_folder), "--batch", "4", "--method", "ewc", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["mitigators"] == 8 * found["parameters"]
    assert main(["estimate", "--yaml", str(experiment), "--json"]) == 0
    by_method = {one["method"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(by_method) == ["plain", "low_lr", "early_stopping", "replay", "ewc"]
    assert by_method["ewc"]["peak"] == by_method["plain"]["peak"] + 8 * by_method["plain"]["parameters"]
    assert main(["estimate", str(tiny_folder)]) == 0
    assert "peak" in capsys.readouterr().out
    assert main(["estimate"]) == 2
    assert "name a model" in capsys.readouterr().err
