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
    for grad, param, anchor, weight in _blocks(block, grads, params, anchors, importance):
        difference = _difference(param, anchor)
        pulled = difference if weight is None else difference * weight
        if norms is not None:
            before = grad.float()
            norms += torch.stack([(difference * pulled).sum(), pulled.square().sum(), before.square().sum()]).to(norms)
        grad.add_(pulled, alpha=strength)


def value(
    params: Tensors, anchors: Tensors, strength: float, importance: Tensors | None = None, block: int | None = None
) -> float:
    """strength/2 sum F (theta - theta*)²: float32 within a block, float64 over blocks; of this rank's shards."""
    total = torch.zeros((), dtype=torch.float64)
    for _, param, anchor, weight in _blocks(block, None, params, anchors, importance):
        square = _difference(param, anchor).square_()
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
        for _, param, anchor, weight in _blocks(block, None, params[i : i + 1], anchors[i : i + 1], one):
            difference = _difference(param, anchor)
            if weight is None:
                difference.mul_(1 / (1 + 1 / factor))
            else:
                difference.mul_((weight * factor).reciprocal_().add_(1).reciprocal_())
            param.copy_(param.float() - difference)


def decay_(params: Tensors, anchors: Tensors, lr_strength: Sequence[float], block: int | None = None) -> None:
    """theta <- theta - c (theta - theta*), c = lr strength, one a tensor: decoupled L2-SP."""
    for i, factor in enumerate(lr_strength):
        for _, param, anchor, _ in _blocks(block, None, params[i : i + 1], anchors[i : i + 1], None) if factor else ():
            param.sub_(_difference(param, anchor), alpha=factor)


def _blocks(size: int | None, *columns: Tensors | None) -> Iterator[list[Any]]:
    """Aligned flat pieces (grad, param, anchor, importance) of every tensor; None where a column is None.

    Pieces share memory with their tensors. A tensor that cannot be flattened in place comes whole.
    """
    length = next(len(column) for column in columns if column is not None)
    for i in range(length):
        parts = [None if column is None else tensors.local(column[i]).detach() for column in columns]
        param = next(part for part in parts if part is not None)
        step = size or (BLOCK_GPU if param.is_cuda else BLOCK)
        if all(part is None or part.is_contiguous() for part in parts):
            flat = [None if part is None else part.view(-1) for part in parts]
            pieces: Any = ([None if f is None else f[k : k + step] for f in flat] for k in range(0, param.numel(), step))
        else:
            pieces = [parts]
        for piece in pieces:
            yield [None if p is None else p.to(param.device, non_blocking=True) for p in piece]


def _difference(param: Tensor, anchor: Tensor) -> Tensor:
    """param - anchor in float32: a new tensor."""
    return param.float() - anchor.float()
