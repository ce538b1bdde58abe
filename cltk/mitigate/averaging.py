"""Averages of weights: with the start model (WiSE-FT), along training (EMA), over several models (LM-Cocktail)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cltk import tensors
from cltk.errors import InputError
from cltk.mitigate.interface import Mitigator, Plan, Run
from cltk.models import load_model


def interpolate(start: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) start + alpha tuned; alpha 0 gives the start's bytes, alpha 1 the tuned bytes."""
    if alpha in (0, 1):
        return tuned if alpha else start
    return torch.lerp(start.float(), tuned.float(), alpha).to(tuned.dtype)


def mixture(losses: Sequence[float], temperature: float = 1.0) -> list[float]:
    """LM-Cocktail's weights, softmax(-loss / temperature): they sum to 1, the model of the lowest loss has the largest.

    A loss that is not finite gets weight 0; when none is finite all weigh the same.
    """
    scores = [-loss / temperature if math.isfinite(loss) else -math.inf for loss in losses]
    best = max(scores)
    if best == -math.inf:
        return [1 / len(scores)] * len(scores)
    shares = [math.exp(score - best) for score in scores]
    return [share / sum(shares) for share in shares]


def has_adapters(model: nn.Module) -> bool:
    """Whether this is a peft model whose adapters can be merged into its weights."""
    return hasattr(model, "merge_and_unload")


def plain_weights(model: nn.Module) -> tensors.Named:
    """A copy of what training changes in the plain model: the trainable parameters; behind adapters, all merged weights."""
    if not has_adapters(model):
        return tensors.snapshot(model)
    merged: Any = copy.deepcopy(model)
    return {name: parameter.detach() for name, parameter in merged.merge_and_unload().named_parameters()}


def fitting(spec: str | Path, anchor: Mapping[str, Tensor], where: str) -> tuple[Any, tensors.Named]:
    """The model `spec` in float32, and its weights under the names of `anchor`.

    Raises:
        InputError: it cannot be loaded, or has not the names and shapes of `anchor` and no others (a head that is tied here).
    """
    model = load_model(spec)[0]
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, start in anchor.items():
        if name not in weights or weights[name].shape != start.shape:
            found = f"{tuple(weights[name].shape)}, here {tuple(start.shape)}" if name in weights else "absent"
            raise InputError(f"{where}: {spec} is no fine-tune of this model: {name} is {found} there")
    if own := sorted(set(weights) - set(anchor)):  # what would be left out of the mix without a word
        raise InputError(
            f"{where}: {spec} has weights of its own that the start model ties or lacks ({own[0]}); untie it there first"
        )
    return model, {name: weights[name] for name in anchor}


class FromStart(Mitigator):
    """Keeps the start weights of the plain model, for those that mix them into the final ones."""

    name = ""
    averages = True

    def __init__(self) -> None:
        self.anchor: tensors.Named = {}

    def idle(self) -> bool:
        """Whether these settings leave the tuned weights as they are."""
        return False

    def setup(self, plan: Plan) -> None:
        self.anchor = {} if self.idle() else plain_weights(plan.model)

    def pairs(self, run: Run) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """(name, tuned parameter, its start) of the plain model; adapters that are still apart are merged first."""
        if has_adapters(run.model):
            run.model = run.model.merge_and_unload()  # type: ignore[operator]
        for whole_name, parameter in run.model.named_parameters():
            if (name := tensors.clean(whole_name)) in self.anchor:
                yield name, parameter, tensors.like(parameter, self.anchor[name])


class WiSEFT(FromStart):
    """Average the start weights and the fine-tuned weights: theta = (1 - alpha) theta_start + alpha theta_ft.

    With adapters it is the plain model's weights that are averaged: start + alpha (merged - start).

    Args:
        alpha: 0 (the start model) to 1 (the fine-tuned one, changes nothing); choose it on validation data.

    Raises:
        InputError: alpha outside 0 to 1.

    Source: Wortsman et al. 2022 (arXiv 2109.01903).
    """

    name = "wise_ft"

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise InputError(f"wise_ft.alpha: must be between 0 and 1, got {alpha}")
        self.alpha = alpha

    def idle(self) -> bool:
        return self.alpha == 1

    def finish(self, run: Run) -> None:
        for _, parameter, start in self.pairs(run) if self.anchor else ():
            parameter.data.copy_(interpolate(start, parameter.data, self.alpha))


class EMA(Mitigator):
    """Train as ever, keep a moving average of the weights beside, and end with the average.

        m_0 = theta_start;   m <- decay m + (1 - decay) theta   after every `every`-th step;   theta_end = m

    It starts at the start weights, so that no bias correction is needed: the start's share after n updates is decay^n.
    The average is float32. Where adapters are trained, these are averaged, then merged.

    Args:
        decay: 0 (the last weights, changes nothing) to below 1.
        every: steps between updates.

    Raises:
        InputError: decay outside [0, 1), or every below 1.

    Source: Polyak & Juditsky 1992 (doi 10.1137/0330046); Tarvainen & Valpola 2017 (arXiv 1703.01780).
    """

    once = True

    def __init__(self, decay: float = 0.999, every: int = 1) -> None:
        if not 0 <= decay < 1 or every < 1:
            raise InputError(f"ema: decay must be at least 0 and below 1, every at least 1; got {decay} and {every}")
        self.decay, self.every = decay, every
        self.replaces = "average" if decay else ""
        self.average: tensors.Named = {}

    def start(self, run: Run) -> None:
        """From the weights as they are: a resumed run takes the average back right after this."""
        named = tensors.trainable(run.model) if self.decay else ()
        self.average = {name: parameter.detach().to(torch.float32, copy=True) for name, parameter in named}

    def step(self, run: Run) -> None:
        if not self.decay or run.step % self.every:
            return
        for name, parameter in tensors.trainable(run.model):
            average, now = tensors.local(self.average[name]), tensors.local(parameter.detach())
            average.copy_(interpolate(average, now.float(), 1 - self.decay))

    def finish(self, run: Run) -> None:
        for name, parameter in tensors.trainable(run.model) if self.decay else ():
            tensors.local(parameter.data).copy_(tensors.local(self.average[name]))

    def state_dict(self) -> dict[str, Any]:
        return {name: tensors.whole(average) for name, average in self.average.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average = {name: tensors.like(average, state[name]) for name, average in self.average.items()}
