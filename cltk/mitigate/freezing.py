"""Which layers train, how fast, and when: freezing from below, and ULMFiT's three rules."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from cltk import tensors
from cltk.errors import InputError
from cltk.mitigate.interface import Mitigator, Plan, Run
from cltk.mitigate.rates import take_schedule


def layer_of(name: str) -> int | None:
    """The decoder layer of a parameter: the first number in its name ("model.layers.3.mlp..." -> 3); None outside them."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(found[1]) if found else None


def layer_count(model: nn.Module) -> int:
    """Decoder layers of the model."""
    numbers = [layer for name, _ in model.named_parameters() if (layer := layer_of(tensors.clean(name))) is not None]
    return max(numbers, default=-1) + 1


def embeddings_of(model: nn.Module) -> list[Tensor]:
    """The weights of all token and position embeddings, each once."""
    modules = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return list({id(module.weight): module.weight for module in modules}.values())


class Freeze(Mitigator):
    """Train the upper part of the model alone: the embeddings and the bottom layers keep their start weights.

    Frozen parameters have no gradient, no optimiser state and no decay. With tied embeddings the output head is the
    embedding, and frozen with it.

    Args:
        layers: how many decoder layers from the bottom (an integer), or what share of them (0.5).
        embeddings: whether token and position embeddings are frozen too. layers 0 without embeddings changes nothing.

    Raises:
        InputError: layers below 0 or more than there are, or nothing left to train.

    Source: Zheng et al. 2025 (arXiv 2501.13453).
    """

    freezes = True

    def __init__(self, layers: float | int = 0.5, embeddings: bool = True) -> None:
        if isinstance(layers, bool) or layers < 0 or (isinstance(layers, float) and layers > 1):
            raise InputError(f"freeze.layers: must be a share 0.0 to 1.0 or a number of layers, got {layers!r}")
        self.layers, self.embeddings = layers, embeddings

    def setup(self, plan: Plan) -> None:
        count = layer_count(plan.model)
        bottom = round(self.layers * count) if isinstance(self.layers, float) else self.layers
        if bottom > count:
            raise InputError(f"freeze.layers: {bottom}, but the model has {count} layers")
        held = {id(weight) for weight in embeddings_of(plan.model)} if self.embeddings else set()
        frozen = 0
        for name, parameter in tensors.trainable(plan.model):
            layer = layer_of(name)
            if id(parameter) in held or (layer is not None and layer < bottom):
                parameter.requires_grad_(False)  # the host puts it back after training
                frozen += parameter.numel()
        if not any(parameter.requires_grad for parameter in plan.model.parameters()):
            raise InputError("freeze: nothing is left to train; lower `layers` or set embeddings to false")
        model: Any = plan.model
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        tied = head is not None and id(head.weight) in held
        plan.notes["freeze"] = {"layers": bottom, "of": count, "frozen": frozen, "head_frozen": tied}


def slanted_triangle(step: int, max_steps: int, cut_frac: float = 0.1, ratio: float = 32) -> float:
    """The factor (1 + p (ratio - 1)) / ratio; p rises linearly to 1 over the first cut_frac of steps, then falls to 0."""
    cut = max(int(max_steps * cut_frac), 1)
    p = step / cut if step < cut else 1 - (step - cut) / max(max_steps - cut, 1)
    return (1 + max(p, 0.0) * (ratio - 1)) / ratio


class ULMFiT(Mitigator):
    """Lower layers learn slower and later: discriminative rates, a slanted triangular schedule, gradual unfreezing.

        eta_l = eta / decay^(L - l)        layer l of L; the head trains as layer L, embeddings as layer 0

    and the group l trains from step (L - l) * interval on.

    Args:
        decay: between neighbouring layers; 2.6 in the paper, for 4 layers. With many layers take less: 2.6^-30 is 1e-13.
            1 for none.
        cut_frac: share of steps in which the rate rises; 0 leaves the schedule to the trainer.
        ratio: highest over lowest rate of the schedule.
        unfreeze: whether a further layer starts to train every max_steps / (L + 1) steps, or the number of steps between
            two; false trains all from the start.

    Raises:
        InputError: a number out of its range, or another method that sets the schedule.

    Source: Howard & Ruder 2018 (arXiv 1801.06146).
    """

    once = True

    def __init__(self, decay: float = 2.6, cut_frac: float = 0.1, ratio: float = 32, unfreeze: bool | int = True) -> None:
        if decay < 1 or not 0 <= cut_frac < 1 or ratio < 1 or unfreeze < 0:
            raise InputError(
                "ulmfit: decay and ratio must be at least 1, cut_frac 0 to below 1, unfreeze true, false or a number of steps;"
                f" got {decay}, {ratio}, {cut_frac}, {unfreeze!r}"
            )
        self.decay, self.cut_frac, self.ratio, self.unfreeze = decay, cut_frac, ratio, unfreeze
        self.depths: dict[str, int] = {}

    def setup(self, plan: Plan) -> None:
        self.count = layer_count(plan.model)
        held = {id(weight) for weight in embeddings_of(plan.model)}
        self.depths = {}
        for name, parameter in tensors.trainable(plan.model):
            layer = layer_of(name)
            self.depths[name] = 0 if id(parameter) in held else self.count if layer is None else layer + 1
        if self.decay > 1:
            plan.scale_lr(lambda name: self.decay ** (self._depth(name) - self.count))
        if self.cut_frac:
            take_schedule(plan, "ulmfit", lambda step, steps: slanted_triangle(step, steps, self.cut_frac, self.ratio))

    def _depth(self, name: str) -> int:
        if name not in self.depths:
            raise InputError(f"ulmfit: {name} was not there at setup; put ulmfit behind the method that adds parameters")
        return self.depths[name]

    def interval(self, max_steps: int) -> float:
        """Steps between two layers; 0 when all train from the start."""
        return max_steps / (self.count + 1) if self.unfreeze is True else float(self.unfreeze)

    @torch.no_grad()
    def grad(self, run: Run) -> None:
        interval = self.interval(run.max_steps)
        if self.unfreeze is True and run.max_steps <= 0:
            raise InputError("ulmfit.unfreeze: true needs to know max_steps; give it, or a number of steps")
        for name, parameter in tensors.trainable(run.model) if interval else ():
            if run.step < (self.count - self._depth(name)) * interval:
                parameter.grad = None
