"""The examples that TRL, transformers and peft document, on tiny models and texts, with one line of ours: at strength 0 the
loss of every step is the one without it, to the last bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

import cltk
from tests.conftest import sentences

SETTINGS: dict[str, Any] = {
    "max_steps": 3, "logging_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True,
    "dataloader_pin_memory": False, "learning_rate": 1e-3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _warnings() -> Any:
    with warnings.catch_warnings():
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


def dpo(folder: Path, tokenizer: Any, out: str) -> Any:
    """TRL, DPO trainer, quick start: preferences."""
    from trl import DPOConfig, DPOTrainer

    words = [s.split() for s in sentences(24)]
    data = Dataset.from_list([{"prompt": " ".join(w), "chosen": f" {w[0]}", "rejected": f" {w[1]} {w[2]}"} for w in words])
    model = AutoModelForCausalLM.from_pretrained(folder)
    return DPOTrainer(model=model, args=DPOConfig(out, bf16=False, **SETTINGS), train_dataset=data, processing_class=tokenizer)


def causal_language_modelling(folder: Path, tokenizer: Any, out: str) -> Any:
    """transformers, causal language modelling guide: blocks, a collator that copies ids to labels, an evaluation set."""
    from transformers import DataCollatorForLanguageModeling

    ids = tokenizer(" ".join(sentences(60)))["input_ids"]
    data = Dataset.from_list([{"input_ids": ids[i : i + 32]} for i in range(0, len(ids) - 32, 32)]).train_test_split(
        0.2, seed=0
    )
    return Trainer(
        model=AutoModelForCausalLM.from_pretrained(folder), args=TrainingArguments(out, **SETTINGS),
        train_dataset=data["train"], eval_dataset=data["test"], processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )  # fmt: skip


def lora_in_a_trainer(folder: Path, tokenizer: Any, out: str) -> Any:
    """peft, quick tour: get_peft_model and a Trainer."""
    from peft import LoraConfig, TaskType, get_peft_model

    trainer = causal_language_modelling(folder, tokenizer, out)
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, inference_mode=False, r=4, lora_alpha=8, lora_dropout=0.1)
    trainer.model = trainer.model_wrapped = get_peft_model(trainer.model, config)
    return trainer


EXAMPLES = [sft_of_texts, sft_of_conversations, dpo, causal_language_modelling, lora_in_a_trainer]
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
