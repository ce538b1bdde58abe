"""Quadratic penalties: EWC and L2-SP. The arithmetic is in `blockwise.py`.

    penalty(theta) = strength/2 sum_i F_i (theta_i - theta*_i)²          gradient: strength F (theta - theta*)

Sources: Kirkpatrick et al. 2017 (EWC, arXiv 1612.00796); Li et al. 2018 (L2-SP, arXiv 1802.01483).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cltk import tensors
from cltk.errors import InputError, RunError
from cltk.mitigate.blockwise import decay_, proximal_, pull_, value
from cltk.mitigate.importance import Importance
from cltk.mitigate.interface import Mitigator, Plan, Run
from cltk.mitigate.source import check_source, importance_of, summary

__all__ = ["EWC", "L2SP", "decay_", "proximal_", "pull_", "value"]


class _Anchored(Mitigator):
    """Keeps the start weights, and sets them beside the parameters once these are placed."""

    name = ""
    strength = 0.0
    offload = False

    def __init__(self) -> None:
        self.anchors: dict[str, Tensor] = {}
        self.importance: Mapping[str, Tensor] | None = None
        self.columns: tuple[list[Tensor], list[Tensor], list[Tensor] | None] = ([], [], None)

    def setup(self, plan: Plan) -> None:
        """The start model is here and nowhere else: a resumed run begins training with other weights."""
        if self.strength:
            self.anchors = {name: self._parked(tensor) for name, tensor in tensors.snapshot(plan.model).items()}

    def start(self, run: Run) -> None:
        """Columns (parameters, anchors, importance) in one order, each on its parameter's device and shard."""
        named = dict(tensors.trainable(run.model)) if self.strength else {}
        for name in named:
            if name not in self.anchors:
                raise RunError(f"{self.name}: {name} is trained but was frozen or absent at setup; unfreeze before attach")
        weights = None
        if self.importance is not None:
            weights = [self._placed(p, self.importance[name]) for name, p in named.items()]
        self.columns = (list(named.values()), [self._placed(p, self.anchors[name]) for name, p in named.items()], weights)

    def _parked(self, tensor: Tensor) -> Tensor:
        return tensor.cpu() if self.offload else tensor

    def _placed(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        if not self.offload:
            return tensors.local(tensors.like(parameter, tensor))
        if hasattr(parameter, "device_mesh"):
            tensor = tensors.local(tensors.like(parameter, tensor)).cpu()
        return tensor.pin_memory() if torch.cuda.is_available() else tensor.cpu()

    def _pull(self, run: Run, log_every: int) -> None:
        """Add the penalty's gradient to the gradients; every `log_every` steps log the penalty and its share."""
        params, anchors, weights = self.columns
        kept = [i for i, p in enumerate(params) if p.grad is not None]
        if not kept:
            return
        due = log_every and run.step % log_every == 0
        norms = torch.zeros(3, dtype=torch.float64, device=tensors.local(params[0]).device) if due else None
        grads = [params[i].grad for i in kept]
        chosen = [weights[i] for i in kept] if weights else None
        pull_(grads, [params[i] for i in kept], [anchors[i] for i in kept], self.strength, chosen, norms=norms)  # type: ignore[arg-type]
        if norms is not None:
            _log(run, self.name, self.strength, norms, sharded=any(hasattr(p, "device_mesh") for p in params))


def _log(run: Run, name: str, strength: float, norms: Tensor, sharded: bool) -> None:
    """NAME_penalty = strength/2 sum F d²; NAME_ratio = |penalty's gradient| / |task's gradient|, over all shards."""
    if sharded:
        dist.all_reduce(norms)
    energy, pulled, task = norms.tolist()
    run.log(f"{name}_penalty", strength / 2 * energy)
    run.log(f"{name}_ratio", strength * math.sqrt(pulled / task) if task else math.inf if pulled else 0.0)


def _rates(run: Run, params: list[Tensor]) -> list[float]:
    """The learning rate of each parameter's group, as it was in the step just taken."""
    if run.optimizer is None:
        raise RunError("this form steps with the optimizer's learning rate; set run.optimizer, or use form='gradient'")
    rates = {id(p): float(group["lr"]) for group in run.optimizer.param_groups for p in group["params"]}
    return [rates.get(id(p), 0.0) for p in params]


class EWC(_Anchored):
    """Elastic weight consolidation: pull each weight to its start, by its importance for the old data.

        L + strength/2 sum_i F_i (theta_i - theta*_i)²

    Args:
        strength: lambda. With importance normalised to mean 1 it compares with L2-SP's; try a log grid 1e-4..1e2, and
            look for both plateaus (plain fine-tuning; frozen). With raw F the useful values are 1e3 and more.
            0 changes no bit and computes nothing.
        importance: an Importance, a path to a saved one, or arguments for one: {"memory": path, texts or rows,
            "block": 256, and those of fisher(): "kind", "samples", "batch_size", "normalize" (here "mean" unless set),
            "seed", "floor", "rtol"}. Arguments are computed at setup, at the start model; with a cache folder, once.
        form: "gradient" adds the penalty's gradient before clipping and the step (Adam rescales it by 1/sqrt(v));
            "proximal" takes the penalty's own step after it, theta <- (theta + lr lambda F theta*) / (1 + lr lambda F):
            stable at every strength, not clipped, not rescaled.
        offload: keep theta* and F in CPU memory; they come block by block (two parameter-sized tensors less on a GPU).
        log_every: steps between log lines of the penalty and of its gradient's norm over the task's; 0 for none.

    Raises:
        InputError: no importance and no memory, an unknown argument or form, or an importance of another model.

    Source: Kirkpatrick et al. 2017 (arXiv 1612.00796).
    """

    name = "ewc"

    def __init__(
        self,
        strength: float,
        importance: Importance | Mapping[str, Any] | str | Path | None = None,
        form: str = "gradient",
        offload: bool = False,
        log_every: int = 10,
    ) -> None:
        super().__init__()
        _check(self.name, strength, form, ("gradient", "proximal"))
        check_source(importance, needed=strength != 0)
        self.strength, self.source, self.form = strength, importance, form
        self.offload, self.log_every = offload, log_every

    def setup(self, plan: Plan) -> None:
        super().setup(plan)
        if self.strength:
            found = importance_of(self.source, plan)
            plan.notes[self.name] = {"strength": self.strength, "form": self.form, **summary(found)}
            self.importance = {name: self._parked(value) for name, value in found.items()}

    def grad(self, run: Run) -> None:
        if self.strength and self.form == "gradient":
            self._pull(run, self.log_every)

    def step(self, run: Run) -> None:
        if self.strength and self.form == "proximal":
            params, anchors, weights = self.columns
            proximal_(params, anchors, [rate * self.strength for rate in _rates(run, params)], weights)
            if self.log_every and run.step % self.log_every == 0:
                run.log(f"{self.name}_penalty", value(params, anchors, self.strength, weights))


class L2SP(_Anchored):
    """L2-SP: pull every weight to its start with one strength. The baseline that EWC must beat.

        decoupled  theta <- theta - lr strength (theta - theta*), after the step, as AdamW decays to 0
        gradient   L + strength/2 ||theta - theta*||²: EWC with F = 1

    Args:
        strength: alpha, 1e-3 to 1; 0 changes no bit. decoupled needs lr * strength < 1.
        form: "decoupled" or "gradient".
        log_every: steps between log lines of the penalty; 0 for none.

    Raises:
        InputError: a negative strength or an unknown form.

    Source: Li, Grandvalet & Davoine 2018 (arXiv 1802.01483); decoupling: Loshchilov & Hutter 2019 (arXiv 1711.05101).
    """

    name = "l2_sp"

    def __init__(self, strength: float, form: str = "decoupled", offload: bool = False, log_every: int = 10) -> None:
        super().__init__()
        _check(self.name, strength, form, ("decoupled", "gradient"))
        self.strength, self.form, self.offload, self.log_every = strength, form, offload, log_every

    def grad(self, run: Run) -> None:
        if self.strength and self.form == "gradient":
            self._pull(run, self.log_every)

    def step(self, run: Run) -> None:
        if self.strength and self.form == "decoupled":
            params, anchors, _ = self.columns
            decay_(params, anchors, [rate * self.strength for rate in _rates(run, params)])
            if self.log_every and run.step % self.log_every == 0:
                run.log(f"{self.name}_penalty", value(params, anchors, self.strength))


def _check(name: str, strength: float, form: str, forms: tuple[str, ...]) -> None:
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength < math.inf:
        raise InputError(f"{name}: strength is {strength!r}; give a finite number >= 0")
    if form not in forms:
        raise InputError(f"{name}: form is {form!r}; give one of {', '.join(forms)}")
