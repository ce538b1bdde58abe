"""Updates of a part of the weights: MoFO moves the coordinates with the largest momentum, HFT half of the matrices."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cltk import tensors
from cltk.errors import InputError
from cltk.mitigate.freezing import layer_of
from cltk.mitigate.interface import Mitigator, Plan, Run


def threshold(moment: Tensor, fraction: float) -> Tensor:
    """The ceil(fraction * size)-th largest |moment|, a scalar; the whole tensor's, on every rank that holds a shard."""
    sizes = tensors.whole(moment).detach().abs().flatten()
    kept = min(max(-int(-fraction * len(sizes) // 1), 1), len(sizes))
    return sizes.kthvalue(len(sizes) - kept + 1).values


def top_mask(moment: Tensor, fraction: float) -> Tensor:
    """True at the `fraction` of coordinates with the largest |moment|; never where it is 0. Shape of (the shard of) moment."""
    here = tensors.local(moment).abs()
    return (here >= threshold(moment, fraction)) & (here > 0)


class MoFO(Mitigator):
    """Momentum-filtered optimiser: of every tensor only the coordinates with the largest Adam momentum move.

        theta_i <- theta_i + update_i   where |m_i| is among the largest `fraction` of its tensor; else theta_i stays

    Moments are updated everywhere; decoupled weight decay is masked with the update.

    Args:
        fraction: share of coordinates that move in a step; 1 changes nothing.

    Raises:
        InputError: fraction outside (0, 1]; an optimiser without `exp_avg`.

    Source: Chen et al. 2025 (arXiv 2407.20999).
    """

    def __init__(self, fraction: float = 0.15) -> None:
        if not 0 < fraction <= 1:
            raise InputError(f"mofo.fraction: must be above 0 and at most 1, got {fraction}")
        self.fraction = fraction
        self.kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def grad(self, run: Run) -> None:
        if self.fraction < 1:
            self.kept = {n: tensors.local(p.detach()).clone() for n, p in tensors.trainable(run.model) if p.grad is not None}

    @torch.no_grad()
    def step(self, run: Run) -> None:
        for name, parameter in tensors.trainable(run.model):
            if (before := self.kept.pop(name, None)) is None:
                continue
            here = tensors.local(parameter.detach())
            moment = _moment(run.optimizer, parameter)
            if moment is not None:
                here.copy_(torch.where(top_mask(moment, self.fraction), here, before))
            elif not torch.equal(here, before):  # else fp16 training skipped this step
                raise InputError(
                    f"mofo: the optimiser {_inner(run.optimizer)} keeps no exp_avg for {name}; use one of the Adam family,"
                    " such as optim: adamw_torch"
                )


def _moment(optimizer: Any, parameter: Tensor) -> Tensor | None:
    return optimizer.state.get(parameter, {}).get("exp_avg") if optimizer is not None else None


def _inner(optimizer: Any) -> str:
    return type(getattr(optimizer, "optimizer", optimizer)).__name__


def kind_of(module: str) -> str:
    """What a module inside a decoder layer is, from its name: "norm", "attention" or "ffn"."""
    parts = module.split(".")
    if "norm" in parts[-1] or re.fullmatch(r"ln(_.*|\d*)", parts[-1]):
        return "norm"
    return "attention" if any("attn" in part or "attention" in part for part in parts) else "ffn"


def draw_frozen(names: Iterable[str], fraction: float = 0.5, seed: int = 0, turn: int = 0) -> set[str]:
    """Names of the parameters that stay frozen in this turn.

    Of the modules of every kind (attention, ffn, norm) in every decoder layer, a share `fraction` trains, drawn at random;
    where it is no whole number, layers take turns with one more or less, so that it holds over the model. What stands
    outside the layers (embeddings, head, last norm) always trains. The draw depends on names, seed and turn alone.
    """
    rng = random.Random(f"{seed}/{turn}")
    groups: dict[tuple[str, int], dict[str, list[str]]] = {}
    for name in names:
        layer, module = layer_of(name), name.rpartition(".")[0]
        if layer is not None:
            groups.setdefault((kind_of(module), layer), {}).setdefault(module, []).append(name)
    done = {kind: rng.random() for kind, _ in sorted(groups)}
    frozen: set[str] = set()
    for (kind, _), modules in sorted(groups.items()):
        due = done[kind] + fraction * len(modules)
        trained = set(rng.sample(sorted(modules), int(due) - int(done[kind])))
        done[kind] = due
        frozen.update(name for module, own in modules.items() if module not in trained for name in own)
    return frozen


class HFT(Mitigator):
    """Half fine-tuning: in each round half of every layer's matrices train, the others stay as they are.

    2 of {q, k, v, o}, half of the FFN matrices, half of the norms; embeddings, head and last norm always. What is
    frozen gets no gradient, and so no decay and no optimiser state. Where q, k and v are one matrix (GPT-2's c_attn, NeoX's
    query_key_value), the draw is between that and the output projection.

    Args:
        every: optimiser steps of a round; 0 for one round all through the training.
        seed: of the draw.
        fraction: share of the modules that train; 1 changes nothing.

    Raises:
        InputError: a fraction outside (0, 1] or a negative `every`.

    Source: Hui et al. 2024 (arXiv 2404.18466).
    """

    def __init__(self, every: int = 0, seed: int = 0, fraction: float = 0.5) -> None:
        if not 0 < fraction <= 1 or every < 0:
            raise InputError(f"hft: fraction must be above 0 and at most 1, every at least 0; got {fraction} and {every}")
        self.every, self.seed, self.fraction = every, seed, fraction
        self.drawn: tuple[int, set[str]] = (-1, set())

    def setup(self, plan: Plan) -> None:
        self.drawn = -1, set()  # another model has other names
        sizes = {name: parameter.numel() for name, parameter in tensors.trainable(plan.model)}
        frozen = draw_frozen(sizes, self.fraction, self.seed) if self.fraction < 1 else set()
        share = 1 - sum(sizes[name] for name in frozen) / max(sum(sizes.values()), 1)
        plan.notes["hft"] = {"trained": share, "every": self.every, "first_frozen": sorted(frozen)}

    def grad(self, run: Run) -> None:
        if self.fraction == 1:
            return
        turn = run.step // self.every if self.every else 0
        named = dict(tensors.trainable(run.model))
        if self.drawn[0] != turn:
            self.drawn = turn, draw_frozen(named, self.fraction, self.seed, turn)
        for name in self.drawn[1]:
            named[name].grad = None
