"""Experts that are fused in one tensor: adapters reach them, OSFT protects them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

import cltk
from cltk.errors import InputError
from cltk.mitigate.interface import Plan, Run
from cltk.mitigate.subspace import fused_experts

IDS = torch.arange(24).view(2, 12) % 60


def mixture() -> Any:
    torch.manual_seed(0)
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=60,
            hidden_size=16,
            intermediate_size=16,
            moe_intermediate_size=12,
            num_hidden_layers=1,
            num_experts=4,
            shared_expert_intermediate_size=16,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )


def train(model: Any, method: Any) -> Any:
    plan = Plan(model, None, None)
    method.setup(plan)
    optimizer = torch.optim.AdamW([p for p in plan.model.parameters() if p.requires_grad], 0.02)
    run = Run(plan.model, plan.model, optimizer=optimizer)
    method.start(run)
    for _ in range(3):
        plan.model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        method.step(run)
        optimizer.zero_grad()
    method.finish(run)
    return run.model


@pytest.mark.parametrize("form", ["printed", "released"])
def test_osft_protects_every_expert(form: str) -> None:
    start, model = mixture(), train(mixture(), cltk.OSFT(0.5, form))
    experts = fused_experts(start)
    assert sorted(p.shape[0] for p in experts.values()) == [4, 4]
    now = dict(model.named_parameters())
    moved = 0.0
    for name, old in experts.items():
        for before, after in zip(old.detach().double().numpy(), now[name].detach().double().numpy(), strict=True):
            u, s, vh = np.linalg.svd(before, full_matrices=False)
            k = round(0.5 * len(s))
            delta = after - before
            sides = [u[:, :k].T @ delta @ vh[:k].T] if form == "printed" else [u[:, :k].T @ delta, delta @ vh[:k].T]
            assert max(abs(side).max() for side in sides) < 2e-6
            moved = max(moved, abs(delta).max())
    assert moved > 1e-3


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_lora_reaches_the_experts_and_merges_them() -> None:
    start, model = dict(mixture().named_parameters()), train(mixture(), cltk.LoRA(2))
    assert not hasattr(model, "peft_config")
    assert {name for name, _ in model.named_parameters()} == set(start)
    for name in fused_experts(model):
        delta = dict(model.named_parameters())[name].detach() - start[name].detach()
        assert delta.abs().max() > 1e-4
        assert max(int(torch.linalg.matrix_rank(one, rtol=1e-3)) for one in delta) <= 2
    with pytest.raises(InputError, match=r"lora\.dropout: .*fused"):
        cltk.LoRA(2, dropout=0.1).setup(Plan(mixture(), None, None))
