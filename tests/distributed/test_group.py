"""Collectives on tensors of the processor's where the group only knows the GPU's (NCCL), without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from cltk.ranks import on_group


@pytest.mark.parametrize(("backend", "gpu", "moves"), [
    ("nccl", True, True), ("gloo", True, False), ("cpu:gloo,cuda:nccl", True, False), ("nccl", False, False),
])  # fmt: skip
def test_a_tensor_is_summed_where_the_group_can(backend: str, gpu: bool, moves: bool, monkeypatch: Any) -> None:
    """Trainer leaves a model that FSDP or DeepSpeed will place on the processor: "No backend type ... with device type cpu"."""
    seen = []

    def doubled(value: torch.Tensor) -> None:
        seen.append(value)
        value.mul_(2)

    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.Tensor, "cuda", torch.Tensor.clone)
    value = torch.tensor([1.0, 3.0])
    on_group(doubled, value)
    assert value.tolist() == [2.0, 6.0]
    assert (seen[0] is not value) == moves
