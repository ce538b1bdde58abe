"""Attention on processors: of packed rows one sequence after the other, and in float32.

    with attention_by_sequence():
        trainer.train()

GPUs have kernels for this, and keep them. Shapes: R packed rows of L tokens, T of a sequence, H heads of D, G key heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Calls:
    """How many layers computed attention sequence by sequence."""

    count: int = 0


@contextmanager
def attention_by_sequence() -> Iterator[Calls]:
    """Inside, "sdpa" attention of transformers under a causal block-diagonal mask costs sum T^2, not R L^2.

    The blocks are read from the mask itself, so that any other mask (padding, sliding windows, prefixes) gets the stock
    attention. In 16 bits (autocast's as well) both compute in float32 and round the result: on processors torch's backward
    pass in bfloat16 takes two to four times as long. Process-wide, taken back at the end.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls = Calls()
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
        dropout: float = 0.0, scaling: float | None = None, position_bias: Tensor | None = None, **others: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        special = position_bias is not None or any(others.get(name) is not None for name in ("softcap", "cache"))
        stays = special or query.device.type != "cpu" or torch.compiler.is_compiling()
        lengths = None if stays else lengths_of(attention_mask, query, key)
        if lengths is not None:
            calls.count += 1
            return by_sequence(query, key, value, lengths, dropout, scaling), None
        keep = {"dropout": dropout, "scaling": scaling, "position_bias": position_bias, **others}
        narrow = torch.finfo(value.dtype).bits < 32 or torch.is_autocast_enabled("cpu")  # queries are float32 under autocast
        if stays or not narrow:
            return stock(module, query, key, value, attention_mask, **keep)
        with torch.autocast("cpu", enabled=False):
            found, _ = stock(module, query.float(), key.float(), value.float(), attention_mask, **keep)
        return found.to(value.dtype), None

    if stock is not sdpa_attention_forward:  # another library's, or already ours
        yield calls
        return
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield calls
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def by_sequence(
    query_RHLD: Tensor, key_RGLD: Tensor, value_RGLD: Tensor, lengths: list[list[int]], dropout: float, scaling: float | None
) -> Tensor:
    """Causal attention [R, L, H, D] of rows whose sequences have these lengths, in the dtype of the values."""
    dtype, rows = value_RGLD.dtype, []
    wide = torch.promote_types(dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        columns = [whole.to(wide).split(1) for whole in (query_RHLD, key_RGLD, value_RGLD)]
        for sizes, *row in zip(lengths, *columns, strict=True):
            parts = zip(*(x.split(sizes, 2) for x in row), strict=True)
            found = [
                F.scaled_dot_product_attention(
                    q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
                )
                for q, k, v in parts
            ]
            rows.append(torch.cat(found, 2))
        return torch.cat(rows).transpose(1, 2).to(dtype)


def lengths_of(mask: Tensor | None, query: Tensor, key: Tensor) -> list[list[int]] | None:
    """The lengths of every row's sequences, where `mask` [R, 1, L, L] (true: attended) is causal within sequences that
    stand end to end; else None. Kept with the mask, which all layers share."""
    if mask is None or mask.dtype != torch.bool:
        return None
    length = query.shape[2]
    if mask.shape != (query.shape[0], 1, length, length) or key.shape[2] != length:
        return None
    if not hasattr(mask, "_lengths"):
        mask._lengths = _lengths(mask[:, 0])  # type: ignore[attr-defined]
    found: list[list[int]] | None = mask._lengths  # type: ignore[attr-defined]
    return found


def _lengths(mask_RLL: Tensor) -> list[list[int]] | None:
    at = torch.arange(mask_RLL.shape[-1])
    start_RL = at + 1 - mask_RLL.sum(-1)  # if a position sees all from its sequence's start up to itself
    first_RL = start_RL == at
    if not bool((first_RL[:, 1:] | (start_RL[:, 1:] == start_RL[:, :-1])).all()):
        return None  # a window, whose start moves on
    if not torch.equal(mask_RLL, (at >= start_RL[:, :, None]) & (at <= at[:, None])):
        return None
    return [[int(n) for n in torch.diff(torch.cat([first.nonzero()[:, 0], at[-1:] + 1]))] for first in first_RL]
