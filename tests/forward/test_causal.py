"""What is proven of a model before a method takes losses from it: causality, and logits from hidden states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t

import cltk
from cltk.errors import InputError
from cltk.forward.causal import check_causal, head_logits, logits_at
from cltk.mitigate.interface import Plan

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
         "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}  # fmt: skip
LOUD = {"initializer_range": 0.3}  # logits of a size that scales and caps change

HEADS = {  # model: config that scales or caps what its head gives
    "llama": ("Llama", {}),
    "cohere": ("Cohere", {"logit_scale": 0.0625}),
    "granite": ("Granite", {"logits_scaling": 8.0}),
    "gemma2": ("Gemma2", {"final_logit_softcapping": 3.0}),
    "falcon_h1": ("FalconH1", {"lm_head_multiplier": 0.039, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}),
    "hyperclovax": ("HyperCLOVAX", {"logits_scaling": 0.125}),
    "recurrent_gemma": ("RecurrentGemma", {"logits_soft_cap": 3.0, "lru_width": 32, "block_types": ["recurrent", "attention"]}),
}


def make(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    name, changes = HEADS[kind]
    if not hasattr(t, f"{name}ForCausalLM"):
        pytest.skip(f"this transformers has no {name}")
    torch.manual_seed(0)
    model = getattr(t, f"{name}ForCausalLM")(getattr(t, f"{name}Config")(**SMALL | LOUD | changes, pad_token_id=0))
    return model.to(dtype).eval()


@pytest.mark.parametrize("kind", HEADS)
def test_logits_from_hidden_states_are_the_models_own(kind: str) -> None:
    model = make(kind)
    check_causal(model, "kl", head=True)
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    where = torch.rand(2, 12, generator=torch.Generator().manual_seed(2)) > 0.5
    with torch.no_grad():
        own = model(input_ids=ids, use_cache=False).logits[where]
        found = logits_at(model, {"input_ids": ids}, where)
    torch.testing.assert_close(found, own, atol=1e-5 * float(own.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["gemma2", "hyperclovax", "cohere"])
def test_in_bfloat16_the_configs_own_number_is_taken(kind: str) -> None:
    wide, narrow = make(kind), make(kind, torch.bfloat16)
    for model in (wide, narrow):
        check_causal(model, "kl", head=True)
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = head_logits(wide, hidden.float()).detach()
    torch.testing.assert_close(
        head_logits(narrow, hidden).detach().float(), expected, atol=0.02 * float(expected.abs().max()), rtol=0
    )


def test_a_model_with_a_head_of_its_own_gives_its_own_logits_or_is_refused(tiny: Any) -> None:
    """Behind this head stands what no scale explains: reference logits go through its forward, a loss beside it is refused."""
    model = tiny()
    forward = model.forward

    def bent(*args: Any, **settings: Any) -> Any:
        output = forward(*args, **settings)
        output.logits = output.logits + torch.linspace(-1, 1, 300)
        return output

    model.forward = bent
    check_causal(model, "kl")
    ids, where = torch.arange(3, 15)[None], torch.ones(1, 12, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(logits_at(model, {"input_ids": ids}, where), model(input_ids=ids).logits[0])
        with pytest.raises(InputError, match="no scaled or capped"):
            head_logits(model, torch.randn(2, 32))
    with pytest.raises(InputError, match=r"token_weights: .*LlamaForCausalLM"):
        check_causal(model, "token_weights", head=True)


def other_kinds() -> dict[str, Any]:
    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    t5 = t.T5Config(vocab_size=300, d_model=32, d_ff=32, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    both = t.BertLMHeadModel(t.BertConfig(**small, is_decoder=True))
    for module in both.modules():  # a decoder in name that sees all
        if hasattr(module, "is_decoder"):
            module.is_decoder = False
        if hasattr(module, "is_causal"):
            module.is_causal = False
    both.config.is_decoder = False
    return {
        "encoder-decoder": t.T5ForConditionalGeneration(t5),
        "no output head": t.BertForSequenceClassification(t.BertConfig(**small)),
        "output head": t.BertForMaskedLM(t.BertConfig(**small)),
        "later tokens": both,
    }


METHODS = {
    "ewc": lambda: cltk.EWC(1.0, {"memory": [{"input_ids": [1, 2, 3]}] * 4, "samples": 2}),
    "mas": lambda: cltk.MAS(1.0, memory=[{"input_ids": [1, 2, 3]}] * 4, samples=2),
    "kl": lambda: cltk.KL(0.1),
    "lwf": lambda: cltk.LwF(0.1),
    "token_weights": lambda: cltk.TokenWeights("stm"),
    "replay": lambda: cltk.Replay([{"input_ids": [1, 2, 3]}], 0.5),
    "replay_loss": lambda: cltk.ReplayLoss([{"input_ids": [1, 2, 3]}]),
    "a_gem": lambda: cltk.AGEM([{"input_ids": [1, 2, 3]}]),
    "gem": lambda: cltk.GEM([[{"input_ids": [1, 2, 3]}]]),
    "der_pp": lambda: cltk.DERPP([{"input_ids": [1, 2, 3]}]),
    "early_stopping": lambda: cltk.EarlyStopping(validation=[{"input_ids": [1, 2, 3]}]),
    "lm_cocktail": lambda: cltk.LMCocktail(memory=[{"input_ids": [1, 2, 3]}]),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_that_takes_token_losses_names_itself(name: str, tmp_path: Any, tokenizer: Any) -> None:
    """Refused at attach, by name, with nothing trained."""
    from types import SimpleNamespace

    for said, model in other_kinds().items():
        labels: Any = 1 if "Classification" in type(model).__name__ else [4, 5, 6]
        rows = [{"input_ids": [4, 5, 6], "labels": labels}] * 8
        args = SimpleNamespace(per_device_train_batch_size=2, gradient_accumulation_steps=1, world_size=1, max_steps=2,
                               num_train_epochs=1, learning_rate=1e-3, remove_unused_columns=False)  # fmt: skip
        before = {key: value.clone() for key, value in model.state_dict().items()}
        if name == "replay" and said in ("output head", "later tokens"):
            continue  # labels of every token: the trainer's own affair
        with pytest.raises(InputError, match=rf"^{name}"):
            METHODS[name]().setup(Plan(model, rows, args, tokenizer))
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), said


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_prompt_tuning_is_refused_and_lora_is_not(tiny: Any) -> None:
    import peft

    tuned = peft.get_peft_model(tiny(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    with pytest.raises(InputError, match="kl: the model puts 5 tokens of its own before the text"):
        check_causal(tuned, "kl")
    check_causal(
        peft.get_peft_model(tiny(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])), "kl", head=True
    )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_learned_prefix_is_part_of_the_start_model(tiny: Any) -> None:
    """peft puts it before the decoder, in the cache: the decoder alone does not know it. float32."""
    import peft

    from cltk.mitigate.distill import Reference
    from cltk.mitigate.interface import counted

    torch.manual_seed(0)
    tuned = peft.get_peft_model(tiny(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    batch = {"input_ids": torch.arange(24).reshape(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    where = counted(batch)
    own = tuned(**batch).logits[where].detach()
    assert float((own - tuned.get_base_model()(**batch).logits[where].detach()).abs().max()) > 1e-2  # it does something
    torch.testing.assert_close(Reference(Plan(tuned, None, None)).logits(batch, where), own, atol=1e-5, rtol=1e-5)
