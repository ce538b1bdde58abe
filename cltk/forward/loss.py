"""Losses on the logits of a causal language model without float32 copies of them. Shapes: N positions, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cltk.data.rows import IGNORED

BLOCK = {"cpu": 2**19, "cuda": 2**26}  # logits in float32 at once: a core's cache; enough for a whole GPU


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-log softmax(z)[y] of every position, float32 [N] (float64 of float64 logits); 0 where y is -100.

    Equal to `F.cross_entropy(logits.float(), targets, reduction="none")`, of which torch keeps the float32 logits, their
    log-softmax and two gradients of that size. Here blocks of rows are float32, and the one gradient dz = (softmax(z) - e_y) g
    has the dtype of the logits. Differentiable once.
    """
    found: Tensor = _CrossEntropy.apply(logits_NV, targets_N)
    return found


def kl_divergence(
    logits_NV: Tensor, start_NV: Tensor, *, direction: Literal["forward", "reverse"] = "forward", temperature: float = 1.0
) -> Tensor:
    """Mean over the N positions of T² KL(p_start || p) (forward) or T² KL(p || p_start) (reverse), in nats; 0 where N is 0.

    p = softmax(logits / T), in float32 (float64 of float64 logits). The gradient to the logits is T (p - p_start) / N forward
    and T p (log p - log p_start - KL) / N reverse, in their dtype; the start model gets none. It is made with the value, block
    by block of rows, and is all that is kept. Differentiable once. Tokens to which the first distribution gives no probability
    (logits of -inf) add 0, as in `scipy.special.rel_entr`; those which only the second excludes make it infinite.
    """
    term = _forward_kl if direction == "forward" else _reverse_kl
    found: Tensor = _Distance.apply(logits_NV, start_NV, term, temperature, temperature**2 / max(len(logits_NV), 1))
    return found


def squared_distance(logits_NV: Tensor, start_NV: Tensor) -> Tensor:
    """Mean over positions and vocabulary of (z - z_start)², made as `kl_divergence` is; gradient 2 (z - z_start) / (N V)."""
    found: Tensor = _Distance.apply(logits_NV, start_NV, _square, 1.0, 1 / max(logits_NV.numel(), 1))
    return found


def causal_lm_loss(
    logits: Tensor, labels: Tensor | None, vocab_size: int, num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORED, shift_labels: Tensor | None = None, **others: Any,
) -> Tensor:  # fmt: skip
    """What transformers' ForCausalLMLoss is where labels come shifted, by `cross_entropy`; elsewhere that itself."""
    if shift_labels is None or ignore_index != IGNORED:
        from transformers.loss.loss_utils import ForCausalLMLoss

        keep = {"num_items_in_batch": num_items_in_batch, "ignore_index": ignore_index, "shift_labels": shift_labels, **others}
        stock: Tensor = ForCausalLMLoss(logits, labels, vocab_size, **keep)
        return stock
    targets = shift_labels.reshape(-1).to(logits.device)
    total = cross_entropy(logits.reshape(-1, vocab_size), targets).sum()
    if num_items_in_batch is None:
        return total / (targets != IGNORED).sum()
    return total / (num_items_in_batch.to(total.device) if isinstance(num_items_in_batch, Tensor) else num_items_in_batch)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        counted = targets_N != IGNORED
        at_N1 = targets_N.where(counted, 0)[:, None]
        # log sum exp z = top + rest, kept apart: their sum would round away digits of a rest that is small beside it
        top_N1, rest_N1 = (torch.empty(at_N1.shape, dtype=wide, device=logits_NV.device) for _ in range(2))
        for rows in _blocks(logits_NV):
            top_N1[rows] = logits_NV[rows].amax(1, keepdim=True)
            torch.sum((logits_NV[rows] - top_N1[rows]).exp_(), 1, keepdim=True, out=rest_N1[rows])
        rest_N1.log_()
        ctx.save_for_backward(logits_NV, at_N1, top_N1, rest_N1, counted)
        return (rest_N1 - (logits_NV.gather(1, at_N1) - top_N1))[:, 0].where(counted, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        logits_NV, at_N1, top_N1, rest_N1, counted = ctx.saved_tensors
        scale_N1 = (grads[0] * counted)[:, None]
        grad_NV = torch.empty_like(logits_NV)
        for rows in _blocks(logits_NV):
            into = grad_NV[rows] if grad_NV.dtype == top_N1.dtype else None
            block = torch.sub(logits_NV[rows], top_N1[rows], out=into).sub_(rest_N1[rows]).exp_()
            block.scatter_add_(1, at_N1[rows], torch.full_like(block[:, :1], -1)).mul_(scale_N1[rows])
            if into is None:
                grad_NV[rows] = block
        return grad_NV, None


Term = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # z, z_start [n, V] -> values [n], their gradients to z [n, V]


def _forward_kl(z: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    log_p, log_start = z.log_softmax(-1), start.log_softmax(-1)
    p_start = log_start.exp()
    values = log_start.sub_(log_p).mul_(p_start).masked_fill_(p_start == 0, 0)  # a token that is excluded adds nothing
    return values.sum(-1), log_p.exp_().sub_(p_start)


def _reverse_kl(z: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    ratio = log_p.sub_(start.log_softmax(-1)).masked_fill_(p == 0, 0)
    values = (p * ratio).sum(-1)
    return values, ratio.sub_(values[:, None]).mul_(p)


def _square(z: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    gap = (z - start).masked_fill_(z == start, 0)  # -inf in both is no distance
    return gap.square().sum(-1), gap.mul_(2)


class _Distance(torch.autograd.Function):
    """weight times the sum over rows of term(z / T, z_start / T)."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, start_NV: Tensor, term: Term, temperature: float, weight: float) -> Tensor:
        wide, own = torch.promote_types(logits_NV.dtype, torch.float32), logits_NV.dtype
        # float16 is kept wide: gradients below 6e-8 would be gone before the loss scale comes
        grad_NV = torch.empty_like(logits_NV, dtype=wide if own == torch.float16 else own) if ctx.needs_input_grad[0] else None
        total = logits_NV.new_zeros((), dtype=wide)
        for rows in _blocks(logits_NV):
            values, block = term(*(given[rows].to(wide) / temperature for given in (logits_NV, start_NV)))
            total += values.sum()
            if grad_NV is not None:
                grad_NV[rows] = block.mul_(weight / temperature)
        ctx.save_for_backward(grad_NV)
        ctx.own = own
        return total * weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None, None]:
        (grad_NV,) = ctx.saved_tensors
        return (grad_NV * grads[0]).to(ctx.own), None, None, None, None


def _blocks(logits_NV: Tensor) -> list[slice]:
    count = max(1, BLOCK.get(logits_NV.device.type, BLOCK["cuda"]) // max(logits_NV.shape[1], 1))
    return [slice(at, at + count) for at in range(0, len(logits_NV), count)]
