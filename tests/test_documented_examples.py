"""The examples that TRL, transformers and peft document, on tiny models and texts, with one line of ours: at strength 0 the
loss of every step is the one without it, to the last bit."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

import cltk
from tests.conftest import sentences
from tests.hosts.test_scale import TURNS

SETTINGS: dict[str, Any] = {
    "max_steps": 3, "logging_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True,
    "dataloader_pin_memory": False, "learning_rate": 1e-3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _warnings() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(packing|padding-free|flash).*"
        )  # TRL's: rows see one another without flash
        warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing\w*` is deprecated")  # TRL's and peft's own
        yield


def sft_of_texts(folder: Path, tokenizer: Any, out: str) -> Any:
    """TRL, SFT trainer, quick start: a model and a data set of texts."""
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"text": s} for s in sentences(24)])
    return SFTTrainer(model=str(folder), args=SFTConfig(out, bf16=False, **SETTINGS), train_dataset=data)


def sft_of_conversations(folder: Path, tokenizer: Any, out: str) -> Any:
    """TRL, SFT trainer: prompts and completions, the loss on completions, adapters through peft_config."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"prompt": s, "completion": f" {s.split()[0]}"} for s in sentences(24)])
    args = SFTConfig(out, bf16=False, completion_only_loss=True, **SETTINGS)
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder), args=args, train_dataset=data, processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip


def sft_packed(folder: Path, tokenizer: Any, out: str) -> Any:
    """TRL, SFT trainer, packing."""
    return _sft(folder, tokenizer, out, packing=True, max_length=32)


def sft_without_padding(folder: Path, tokenizer: Any, out: str) -> Any:
    """TRL, reducing memory usage: padding-free batches."""
    return _sft(folder, tokenizer, out, padding_free=True, max_length=None)


def _sft(folder: Path, tokenizer: Any, out: str, **settings: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"text": s} for s in sentences(48)])
    args = SFTConfig(out, bf16=False, **SETTINGS, **settings)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def sft_on_assistant_turns(folder: Path, tokenizer: Any, out: str) -> Any:
    """TRL, SFT trainer, train on assistant messages only: a template that marks what is generated."""
    from trl import SFTConfig, SFTTrainer

    own = copy.deepcopy(tokenizer)
    own.chat_template = TURNS
    turns = [(s, f" {s.split()[0]}") for s in sentences(24)]
    data = Dataset.from_list(
        [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in turns]
    )
    args = SFTConfig(out, bf16=False, assistant_only_loss=True, **SETTINGS)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=own)


def dpo(folder: Path, tokenizer: Any, out: str) -> Any:
    """TRL, DPO trainer, quick start: preferences."""
    from trl import DPOConfig, DPOTrainer

    words = [s.split() for s in sentences(24)]
    data = Dataset.from_list([{"prompt": " ".join(w), "chosen": f" {w[0]}", "rejected": f" {w[1]} {w[2]}"} for w in words])
    model = AutoModelForCausalLM.from_pretrained(folder)
    return DPOTrainer(model=model, args=DPOConfig(out, bf16=False, **SETTINGS), train_dataset=data, processing_class=tokenizer)


def causal_language_modelling(folder: Path, tokenizer: Any, out: str, cls: Any = Trainer, **given: Any) -> Any:
    """transformers, causal language modelling guide: blocks, a collator that copies ids to labels, an evaluation set."""
    from transformers import DataCollatorForLanguageModeling

    ids = tokenizer(" ".join(sentences(60)))["input_ids"]
    data = Dataset.from_list([{"input_ids": ids[i : i + 32]} for i in range(0, len(ids) - 32, 32)]).train_test_split(
        0.2, seed=0
    )
    return cls(
        model=AutoModelForCausalLM.from_pretrained(folder), args=TrainingArguments(out, **SETTINGS),
        train_dataset=data["train"], eval_dataset=data["test"], processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False), **given,
    )  # fmt: skip


def own_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    logits, shifted = outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    loss = F.cross_entropy(logits, shifted, reduction="mean" if num_items_in_batch is None else "sum")
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def a_loss_function(folder: Path, tokenizer: Any, out: str) -> Any:
    """transformers, Trainer, customising: compute_loss_func."""
    return causal_language_modelling(folder, tokenizer, out, compute_loss_func=own_loss)


def a_trainer_of_ones_own(folder: Path, tokenizer: Any, out: str) -> Any:
    """transformers, Trainer, customising: a subclass whose compute_loss takes the labels out."""

    class CustomTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = own_loss(outputs, labels, num_items_in_batch)
            return (loss, outputs) if return_outputs else loss

    return causal_language_modelling(folder, tokenizer, out, CustomTrainer)


def lora_in_a_trainer(folder: Path, tokenizer: Any, out: str) -> Any:
    """peft, quick tour: get_peft_model and a Trainer."""
    from peft import LoraConfig, TaskType, get_peft_model

    trainer = causal_language_modelling(folder, tokenizer, out)
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, inference_mode=False, r=4, lora_alpha=8, lora_dropout=0.1)
    trainer.model = trainer.model_wrapped = get_peft_model(trainer.model, config)
    return trainer


EXAMPLES = [
    sft_of_texts, sft_of_conversations, sft_packed, sft_without_padding, sft_on_assistant_turns, dpo,
    causal_language_modelling, a_loss_function, a_trainer_of_ones_own, lora_in_a_trainer,
]  # fmt: skip
NOTHING = {"penalty": lambda: cltk.L2SP(0.0), "distillation": lambda: cltk.KL(0.0), "average": lambda: cltk.EMA(0.0)}


@pytest.mark.parametrize("example", EXAMPLES)
def test_one_line_at_strength_0(example: Callable[..., Any], tiny_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    def curve(methods: list[Any] | None) -> list[float]:
        set_seed(0)
        trainer = example(tiny_folder, tokenizer, str(tmp_path / "out"))
        if methods is not None:
            cltk.attach(trainer, methods)
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    theirs = curve(None)
    assert len(theirs) == 3
    assert curve([make() for make in NOTHING.values()]) == theirs
    assert curve([cltk.L2SP(50.0, form="gradient"), cltk.KL(5.0)]) != theirs
