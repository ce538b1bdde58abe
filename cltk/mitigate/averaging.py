"""Weight averaging after training."""

from __future__ import annotations

import torch
from torch import Tensor

from cltk import tensors
from cltk.errors import InputError
from cltk.mitigate.interface import Mitigator, Plan, Run


def interpolate(start: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) start + alpha tuned; alpha 0 gives the start's bytes, alpha 1 the tuned bytes."""
    if alpha in (0, 1):
        return tuned if alpha else start
    return torch.lerp(start.float(), tuned.float(), alpha).to(tuned.dtype)


class WiSEFT(Mitigator):
    """Average the start weights and the fine-tuned weights: theta = (1 - alpha) theta_start + alpha theta_ft.

    Args:
        alpha: 0 (the start model) to 1 (the fine-tuned one, changes nothing); choose it on validation data.

    Raises:
        InputError: alpha outside 0 to 1.

    Source: Wortsman et al. 2022 (arXiv 2109.01903).
    """

    def __init__(self, alpha: float = 0.5) -> None:
        if not 0 <= alpha <= 1:
            raise InputError(f"wise_ft.alpha: must be between 0 and 1, got {alpha}")
        self.alpha = alpha

    def setup(self, plan: Plan) -> None:
        self.anchor = tensors.snapshot(plan.model) if self.alpha < 1 else {}

    def finish(self, run: Run) -> None:
        if self.alpha == 1:
            return
        for name, parameter in tensors.trainable(run.model):
            parameter.data.copy_(interpolate(tensors.like(parameter, self.anchor[name]), parameter.data, self.alpha))
