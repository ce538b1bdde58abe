"""Flat minima: SAM takes the gradient where the loss is highest nearby."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cltk import tensors
from cltk.errors import InputError, RunError
from cltk.mitigate.interface import Mitigator, Run


@torch.no_grad()
def ascend_(parameters: Sequence[Tensor], grads: Sequence[Tensor], rho: float) -> None:
    """theta += rho g / ||g||, with the norm over all tensors and shards; nothing where g = 0."""
    norm = tensors.dot(grads, grads).sqrt()
    factor = torch.where(norm > 0, rho / norm, torch.zeros_like(norm))
    for parameter, grad in zip(parameters, grads, strict=True):
        here = tensors.local(parameter)
        here.add_(tensors.local(grad) * factor.to(here.device, here.dtype))


class SAM(Mitigator):
    """Sharpness-aware minimisation: step with the gradient taken at theta + e, e = rho g / ||g||.

        min_theta max_{||e|| <= rho} L(theta + e)

    to first order. The weights are put back from copies, bit for bit, before the optimiser steps. Other methods' losses are
    part of L; what they add to the gradient itself (EWC's) is added afterwards, at theta.

    Args:
        rho: radius in the norm over all trained weights; 0 changes nothing.

    Raises:
        InputError: a negative rho.

    Source: Foret et al. 2021 (arXiv 2010.01412); against forgetting: Li et al. 2024 (arXiv 2406.04836).
    """

    repeats = True

    def __init__(self, rho: float = 0.05) -> None:
        if not rho >= 0:
            raise InputError(f"sam.rho: must be at least 0, got {rho}")
        self.rho = rho
        self.repeats = rho > 0

    @torch.no_grad()
    def grad(self, run: Run) -> None:
        if not self.rho:
            return
        if run.repeat is None:
            raise RunError("sam: the loop gives no second pass; call s.before_step(repeat=...)")
        named = [(p, p.grad) for _, p in tensors.trainable(run.model) if p.grad is not None]
        parameters = [parameter for parameter, _ in named]
        kept = [tensors.local(parameter).clone() for parameter in parameters]
        ascend_(parameters, [grad for _, grad in named], self.rho)
        for parameter in parameters:
            parameter.grad = None
        try:
            run.repeat()
        finally:
            for parameter, before in zip(parameters, kept, strict=True):
                tensors.local(parameter).copy_(before)
