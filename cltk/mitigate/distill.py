"""Distillation from the start model. Shapes: B rows, T tokens, N counted positions, V vocabulary."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cltk.data import IGNORED
from cltk.errors import InputError
from cltk.mitigate.interface import Mitigator, Plan, Run


def kl_divergence(
    logits_NV: Tensor, start_NV: Tensor, *, direction: Literal["forward", "reverse"] = "forward", temperature: float = 1.0
) -> Tensor:
    """Mean over the N positions of T^2 KL(p_start || p) (forward) or T^2 KL(p || p_start) (reverse), in nats.

    p = softmax(logits / T), in float32. The gradient of the forward form to the logits, at T = 1, is (p - p_start) / N.
    """
    log_p = F.log_softmax(logits_NV.float() / temperature, -1)
    log_start = F.log_softmax(start_NV.float() / temperature, -1)
    target, other = (log_start, log_p) if direction == "forward" else (log_p, log_start)
    return temperature**2 * F.kl_div(other, target, log_target=True, reduction="none").sum(-1).mean()


def counted(inputs: dict[str, Tensor]) -> Tensor:
    """Which positions [B, T] predict a token that counts: the next label is not -100 (next token not padding)."""
    labels = inputs.get("labels")
    if labels is None:
        mask = inputs.get("attention_mask")
        labels = inputs["input_ids"] if mask is None else inputs["input_ids"].masked_fill(mask == 0, IGNORED)
    return F.pad(labels[:, 1:] != IGNORED, (0, 1))


class KL(Mitigator):
    """Keep the output distribution near the start model's on the new task's own inputs.

        L + strength * mean_t KL(p_start(. | x_<t) || p(. | x_<t))

    over the counted tokens. Costs a frozen copy of the model and one more forward pass.

    Args:
        strength: beta, 0.1 to 0.5 in the field; 0 changes nothing.
        direction: "forward" (start || model; covers what the start model says) or "reverse".
        temperature: T; both distributions are softened and the loss multiplied by T^2.

    Raises:
        InputError: negative strength, temperature not above 0, or an unknown direction.

    Source: Li & Hoiem 2016 (arXiv 1606.09282), Learning without Forgetting.
    """

    def __init__(
        self, strength: float, *, direction: Literal["forward", "reverse"] = "forward", temperature: float = 1.0
    ) -> None:
        if strength < 0 or temperature <= 0 or direction not in ("forward", "reverse"):
            raise InputError(
                "kl: strength must be at least 0, temperature above 0, direction forward or reverse;"
                f" got {strength}, {temperature}, {direction!r}"
            )
        self.strength, self.direction, self.temperature = strength, direction, temperature
        self.reference: Any = None
        self.last: Tensor | None = None

    def setup(self, plan: Plan) -> None:
        if self.strength:
            self.reference = copy.deepcopy(plan.model).eval().requires_grad_(False)

    def start(self, run: Run) -> None:
        if self.reference is not None:
            self.reference.to(next(run.model.parameters()).device)

    def loss(self, inputs: dict[str, Tensor], logits_BTV: Tensor) -> Tensor | None:
        if self.reference is None:
            return None
        where = counted(inputs)
        given = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
        with torch.no_grad():
            start_BTV = self.reference(**given, use_cache=False).logits
        value = kl_divergence(logits_BTV[where], start_BTV[where], direction=self.direction, temperature=self.temperature)
        self.last = value.detach()
        return self.strength * value

    def step(self, run: Run) -> None:
        if self.last is not None and run.step % 10 == 0:
            run.log("kl", self.last.item())
