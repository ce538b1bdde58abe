"""Rows longer than a model's table of positions: one line, and not torch's index error in the middle of a training.

What people met: "index out of range in self" on rows longer than the positions (EleutherAI/gpt-neo#273).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from transformers import Trainer, TrainingArguments

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.forward.positions import check_length, table_size
from tests.conftest import TINY, sentences, write_jsonl

SMALL: dict[str, Any] = {"vocab_size": 300, "max_position_embeddings": 48}
MODELS: dict[str, Any] = {  # class and config, and whether a table of positions ends
    "gpt2": (t.GPT2LMHeadModel, t.GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=48), True),
    "opt": (t.OPTForCausalLM, t.OPTConfig(
        **SMALL, hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=32), True),
    "gpt-j": (t.GPTJForCausalLM, t.GPTJConfig(
        vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=48, rotary_dim=8), True),
    "roberta": (t.RobertaForCausalLM, t.RobertaConfig(
        **SMALL, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, is_decoder=True), True),
    "llama": (t.LlamaForCausalLM, t.LlamaConfig(
        **SMALL, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2), False),
    "bloom": (t.BloomForCausalLM, t.BloomConfig(vocab_size=300, hidden_size=32, n_layer=1, n_head=2), False),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_the_size_of_a_table_is_the_longest_row_that_runs(kind: str) -> None:
    cls, config, ends = MODELS[kind]
    model = cls(config).eval()
    size = table_size(model)
    assert (size is not None) == ends
    long = torch.arange(100) % 200 + 5  # no padding among them, which RoBERTa does not count
    with torch.no_grad():
        model(long[None, : size or 100])
        if size is not None:
            with pytest.raises((IndexError, RuntimeError)):
                model(long[None, : size + 1])
    rows = [{"input_ids": list(range(10))}, {"input_ids": long[: size or 100].tolist()}]
    check_length(model, rows, "x", "cut it")
    if size is not None:
        with pytest.raises(InputError, match=f"x: a row has 100 tokens, and the model has {size} positions; cut it"):
            check_length(model, [*rows, {"input_ids": long.tolist()}], "x", "cut it")


OLD = [{"input_ids": list(range(5, 295))}] * 6  # longer than the 256 positions of the tiny models
METHODS: dict[str, Any] = {
    "replay": lambda: cltk.Replay(OLD, 0.3),
    "reservoir": lambda: cltk.Reservoir(4, 0.3, memory=OLD),
    "ewc": lambda: cltk.EWC(1.0, {"memory": OLD, "samples": 2}),
    "kl": lambda: cltk.KL(0.1, memory=OLD),
    "kl prompts": lambda: cltk.KL(0.1, prompts=OLD),
    "der_pp": lambda: cltk.DERPP(OLD, samples=2),
    "replay_loss": lambda: cltk.ReplayLoss(OLD),
    "a_gem": lambda: cltk.AGEM(OLD),
    "early_stopping": lambda: cltk.EarlyStopping(every=1, memory=OLD, budget=1.0, validation=[{"input_ids": [5, 6, 7]}]),
    "lm_cocktail": lambda: cltk.LMCocktail(memory=OLD),
    "si": lambda: cltk.SI(1.0, memory=OLD, memory_steps=1),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_memory_is_refused_at_attach_or_read(name: str, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to="none", use_cpu=True)
    rows = [{"input_ids": list(range(i, i + 8)), "labels": list(range(i, i + 8))} for i in range(5, 21)]
    trainer = Trainer(model=tiny("gpt2"), args=args, train_dataset=rows, processing_class=tokenizer)
    with pytest.raises(InputError, match=rf"{name.split()[0]}.*: a row has 290 tokens, and the model has 256 positions"):
        cltk.attach(trainer, [METHODS[name]()])


def test_training_rows_are_found_too_long_before_weights_are_loaded(
    study: Path, tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(study)
    tiny("gpt2").save_pretrained("gpt2")
    tokenizer.save_pretrained("gpt2")
    write_jsonl(
        Path("new.jsonl"), [{"question": f"{i} {' '.join(sentences(60, seed=i))}", "answer": " yes"} for i in range(40)]
    )
    rest = "evals: {retain: [{text: old.jsonl, limit: 4}]}\nkeep_model: false\n"
    for model, code in (("gpt2", 2), ("tiny-llama", 0)):  # rotary angles go on
        Path("x.yaml").write_text(TINY.replace("tiny-llama", model).replace("64", "4096") + rest)
        assert main(["run", "x.yaml", "--out", "out", "--dry-run"]) == code
        told = capsys.readouterr().err
        assert ("data.max_length: a row has" in told) == (code == 2)
        assert not Path("out").exists()
