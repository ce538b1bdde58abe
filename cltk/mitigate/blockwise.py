"""The quadratic penalty and its steps, in blocks of 256 Ki elements that stay in cache: pure functions on lists of tensors.

    penalty(theta) = strength/2 sum_i F_i (theta_i - theta*_i)²          gradient: strength F (theta - theta*)

with the factor 1/2, as in Kirkpatrick et al. 2017 (arXiv 1612.00796). No autograd graph, no temporary of the model's
size. Sharded parameters (FSDP2) are handled shard by shard, without communication.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cltk import tensors

BLOCK = 2**18
BLOCK_GPU = 2**24  # 64 MiB of float32: few launches, still no temporary of the model's size
Tensors = Sequence[Tensor]


def pull_(
    grads: Tensors,
    params: Tensors,
    anchors: Tensors,
    strength: float,
    importance: Tensors | None = None,
    block: int | None = None,
    norms: Tensor | None = None,
) -> None:
    """grad += strength F (theta - theta*), in place; F = 1 without `importance`. Strength 0 changes no bit.

    Args:
        grads, params, anchors, importance: the same shapes, in the same order; anchors and importance may be elsewhere
            (offloaded) and come block by block. Differences are taken in float32.
        block: elements at a time; 2^18 (1 MiB of float32), on a GPU 2^24.
        norms: if given, three sums are added to it in passing: F d², (F d)² and grad² (before), d = theta - theta*.
    """
    if strength == 0:
        return
    for grad, _, difference, weight in _blocks(block, grads, params, anchors, importance):
        if norms is not None:
            moved = difference.flatten()
            pulled = moved if weight is None else moved * weight.flatten()
            task = grad.flatten().to(moved.dtype)
            norms += torch.stack([moved.dot(pulled), pulled.dot(pulled), task.dot(task)]).to(norms)
        if weight is None:
            grad.add_(difference, alpha=strength)
        else:
            grad.addcmul_(difference, weight, value=strength)


def value(
    params: Tensors, anchors: Tensors, strength: float, importance: Tensors | None = None, block: int | None = None
) -> float:
    """strength/2 sum F (theta - theta*)²: float32 within a block, float64 over blocks; of this rank's shards."""
    total = torch.zeros((), dtype=torch.float64)
    for _, _, difference, weight in _blocks(block, None, params, anchors, importance):
        square = difference.square_()
        total = total.to(square.device) + (square if weight is None else square.mul_(weight)).sum()
    return strength / 2 * float(total)


def proximal_(
    params: Tensors,
    anchors: Tensors,
    lr_strength: float | Sequence[float],
    importance: Tensors | None = None,
    block: int | None = None,
) -> None:
    """theta <- (theta + c F theta*) / (1 + c F), c = lr strength: the penalty's own step, after the optimiser's.

    The minimiser of c/2 F (x - theta*)² + 1/2 (x - theta)²: stable for every strength, not rescaled by Adam, not
    clipped. Computed as theta + w (theta* - theta), w = 1 / (1 + 1/(c F)), which is exact at c F = 0 and at infinity.

    Args:
        lr_strength: c, one number or one a tensor.
    """
    factors = [lr_strength] * len(params) if isinstance(lr_strength, float | int) else list(lr_strength)
    for i, factor in enumerate(factors):
        if factor == 0:
            continue
        factor = min(factor, torch.finfo(torch.float32).max)
        one = None if importance is None else importance[i : i + 1]
        for _, param, difference, weight in _blocks(block, None, params[i : i + 1], anchors[i : i + 1], one):
            if weight is None:
                difference.mul_(1 / (1 + 1 / factor))
            else:
                difference.mul_((weight * factor).reciprocal_().add_(1).reciprocal_())
            param.sub_(difference)


def decay_(params: Tensors, anchors: Tensors, lr_strength: Sequence[float], block: int | None = None) -> None:
    """theta <- theta - c (theta - theta*), c = lr strength, one a tensor: decoupled L2-SP."""
    for i, factor in enumerate(lr_strength):
        for _, param, difference, _ in _blocks(block, None, params[i : i + 1], anchors[i : i + 1], None) if factor else ():
            param.sub_(difference, alpha=factor)


def _blocks(
    size: int | None, grads: Tensors | None, params: Tensors, anchors: Tensors, weights: Tensors | None
) -> Iterator[tuple[Any, Tensor, Tensor, Tensor | None]]:
    """(grad, param, param - anchor, importance) in aligned flat pieces of every tensor; None where a column is None.

    Grad and param share memory with their tensors; the difference is scratch, the caller's until the next piece.
    A tensor that cannot be flattened in place comes whole.
    """
    scratch = torch.empty(0)
    for i, whole in enumerate(params):
        device, wide = tensors.local(whole).device, torch.promote_types(whole.dtype, torch.float32)
        step = size or (BLOCK_GPU if device.type == "cuda" else BLOCK)
        if (scratch.device, scratch.dtype, len(scratch)) != (device, wide, step):
            scratch = torch.empty(step, device=device, dtype=wide)
        parts = [None if column is None else tensors.local(column[i]).detach() for column in (grads, params, anchors, weights)]
        for piece in _pieces(parts, tensors.local(whole).numel(), step):
            grad, param, anchor, weight = [_beside(part, device) for part in piece]
            flat = param.dim() == 1 and len(param) <= step
            out = scratch[: len(param)] if flat else torch.empty_like(param, dtype=wide)
            yield grad, param, _difference(param, anchor, out), weight


def _pieces(parts: list[Any], numel: int, step: int) -> Iterator[list[Any]]:
    if not all(part is None or part.is_contiguous() for part in parts):
        yield parts
        return
    flat = [None if part is None else part.view(-1) for part in parts]
    for k in range(0, numel, step):
        yield [None if part is None else part[k : k + step] for part in flat]


def _beside(part: Any, device: torch.device) -> Any:
    return None if part is None else part.to(device, non_blocking=True)


def _difference(param: Tensor, anchor: Tensor, out: Tensor) -> Tensor:
    """out = param - anchor, in float32 at least."""
    if param.dtype == anchor.dtype == out.dtype:
        return torch.sub(param, anchor, out=out)
    return out.copy_(param).sub_(anchor)
