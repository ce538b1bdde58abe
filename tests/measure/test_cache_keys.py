"""What is kept of one model is not given for another: each part of the key alone makes a stranger."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import cltk
from cltk.measure import identity as module
from cltk.measure.identity import identity


@pytest.fixture
def llama(tiny: Any) -> Any:
    return tiny()


def test_the_same_model_is_known_again_wherever_it_lies(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("one", "two"):
        llama.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    found = [
        identity(AutoModelForCausalLM.from_pretrained(tmp_path / name), AutoTokenizer.from_pretrained(tmp_path / name))
        for name in ("one", "two")
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 100.0}),
        ("llama", "rms_norm_eps", 1e-3),
        ("llama", "num_key_value_heads", 4),
        ("mistral", "sliding_window", 9),
        ("gemma2", "final_logit_softcapping", 7.0),
        ("gemma2", "attn_logit_softcapping", 7.0),
        ("mixtral", "num_experts_per_tok", 1),
    ],
)
def test_every_setting_of_the_configuration_counts(kind: str, name: str, value: Any) -> None:
    from tests.forward.causal_models import build

    model = build(kind)
    other = build(kind, **{name: value})
    if name != "num_key_value_heads":
        other.load_state_dict(model.state_dict())
    assert identity(model, digest="same weights") != identity(other, digest="same weights")
    before = identity(model, digest="same weights")
    setattr(model.config, name, value)  # edited in place, on a live model
    assert identity(model, digest="same weights") != before


def test_a_live_model_that_differs_from_its_configuration(llama: Any) -> None:
    before = identity(llama)
    llama.model.layers[0].self_attn.scaling *= 2
    changed = identity(llama)
    llama.model.layers[0].self_attn.scaling /= 2
    assert identity(llama) == before != changed
    llama.model.rotary_emb.inv_freq.mul_(0.5)  # a buffer that is not saved
    assert identity(llama) != before


def test_weights_dtype_attention_and_generation_settings(llama: Any) -> None:
    before = identity(llama)
    other = copy.deepcopy(llama)
    with torch.no_grad():
        other.model.norm.weight[0] += 1e-3
    eager, greedy = copy.deepcopy(llama), copy.deepcopy(llama)
    eager.set_attn_implementation("eager")
    greedy.generation_config.repetition_penalty = 1.3
    changed = [identity(model) for model in (other, eager, greedy, copy.deepcopy(llama).to(torch.bfloat16))]
    assert len({before, *changed}) == 5


def test_class_and_tokeniser(llama: Any, tokenizer: Any) -> None:
    class Other(type(llama)):  # type: ignore[misc]
        pass

    other = Other(llama.config)
    other.load_state_dict(llama.state_dict())
    assert identity(other) != identity(llama)
    before = identity(llama, tokenizer)
    tokenizer(["a", "the cat sat"], padding=True, truncation=True, max_length=2)  # a call leaves its padding behind
    assert identity(llama, tokenizer) == before
    bigger = copy.deepcopy(tokenizer)
    bigger.add_tokens(["zebra"])
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{{ messages }}"
    assert len({before, identity(llama, bigger), identity(llama, chat)}) == 3


def test_versions_and_device(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(llama)
    monkeypatch.setattr(module, "_device", lambda device: "NVIDIA H100")
    assert identity(llama) != before
    monkeypatch.undo()
    for library in module.LIBRARIES:
        monkeypatch.setattr(module, "version", lambda name, library=library: "0" if name == library else "1")
        changed = identity(llama)
        monkeypatch.setattr(module, "version", lambda name: "1")
        assert changed != identity(llama)
        monkeypatch.undo()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_adapters_active_off_scaled_and_merged(llama: Any) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    seen = [identity(model, digest="same weights")]
    model.set_adapter("second")
    seen.append(identity(model, digest="same weights"))
    with model.disable_adapter():
        seen.append(identity(model, digest="same weights"))
    assert identity(model, digest="same weights") == seen[1]
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.scaling["second"] *= 3
    seen.append(identity(model, digest="same weights"))
    layer.scaling["second"] /= 3
    model.merge_adapter()
    seen.append(identity(model, digest="same weights"))
    assert len(set(seen)) == 5


def test_rotary_settings_that_hurt_are_measured_not_recalled(
    study: Path, tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights with other rotary settings: what the journal has of the one is not given for the other."""
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    model = tiny()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8)
    model.save_pretrained("base")
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 3.0}
    model.save_pretrained("other")
    for name in ("base", "other"):
        tokenizer.save_pretrained(name)
    text = cltk.measure.evaluate.TextTask("old", [{"text": "the cat sat on the mat and the dog ran under the tree."}])
    kept, fresh = (
        cltk.measure("base", "other", ["toy"], include_path="tasks", texts=[text], dtype="float32", journal=journal, kl_rows=0)
        for journal in (True, False)
    )
    assert [row.post for row in kept.rows] == pytest.approx([row.post for row in fresh.rows])
    assert any(abs(row.forgetting) > 1e-3 for row in kept.rows if row.metric == "nll")
