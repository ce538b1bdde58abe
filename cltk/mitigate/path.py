"""Importance from the path of training: SI. What a weight's moves gained is what it is worth.

    omega_i += -g_i (theta_i after the step - theta_i before)          the loss's fall that weight i brought, to first order

g is p.grad as it stands at the method's place in the list, before the method's own penalty. Everything is element by
element on this rank's shards. Source: Zenke et al. 2017 (arXiv 1703.04200).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cltk import tensors
from cltk.data.readers import Row
from cltk.data.rows import IGNORED, Collator
from cltk.errors import InputError
from cltk.forward.causal import check_causal
from cltk.forward.probe import logits_where
from cltk.importance.diagonal import trace
from cltk.mitigate.anchored import Anchored, check_penalty
from cltk.mitigate.calibrate import tried
from cltk.mitigate.interface import Plan, Run
from cltk.mitigate.memory import old_rows
from cltk.ranks import on_group, together


def gained_(path: Tensor, grad: Tensor, before: Tensor, after: Tensor) -> None:
    """path += -grad (after - before), in place, in float32."""
    path.addcmul_(grad.float(), after.float() - before.float(), value=-1)


def per_distance(path: Tensor, moved: Tensor, xi: float) -> Tensor:
    """SI: max(omega, 0) / (moved² + xi), moved = theta_end - theta_start."""
    return path.clamp(min=0) / (moved.float().square() + xi)


class Tracker:
    """Adds up omega over the steps of some parameters: `before` with the gradient in place, `after` once they moved."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = list(params)
        self.path = [torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for p in params]
        self.held: list[tuple[Tensor, Tensor] | None] = []

    def before(self) -> None:
        self.held = [
            None if p.grad is None else (tensors.local(p.grad).clone(), tensors.local(p.detach()).clone()) for p in self.params
        ]

    def after(self) -> None:
        for p, path, held in zip(self.params, self.path, self.held, strict=True):
            if held is not None:
                gained_(tensors.local(path), *held, tensors.local(p.detach()))
        self.held = []


def walk(
    model: nn.Module, rows: Sequence[Row], steps: int, rate: float, batch_size: int = 8, seed: int = 0
) -> tuple[tensors.Named, tensors.Named]:
    """(omega, theta_end - theta_start), float32, of plain AdamW steps on `rows`; the model is then as before, bit for bit.

    Args:
        rate: AdamW's learning rate, constant; no decay, no warm-up, no dropout; rows in a seeded order.
    """
    named, device = dict(tensors.trainable(model)), next(model.parameters()).device
    start = tensors.snapshot(model)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    with tried(model), torch.enable_grad():
        optimizer, tracker = torch.optim.AdamW(named.values(), rate, weight_decay=0.0), Tracker(list(named.values()))
        for step in range(steps):
            chosen = [rows[order[i % len(rows)]] for i in range(step * batch_size, (step + 1) * batch_size)]
            inputs = {name: value.to(device) for name, value in Collator(0)(chosen).items()}
            targets = inputs.pop("labels")[:, 1:]
            logits, kept = logits_where(model, inputs, targets)
            F.cross_entropy(logits.flatten(0, 1).float(), targets[:, kept].flatten(), ignore_index=IGNORED).backward()
            tracker.before()
            optimizer.step()
            tracker.after()
            optimizer.zero_grad()
        moved = {name: p.detach().float() - start[name].float() for name, p in named.items()}
    return dict(zip(named, tracker.path, strict=True)), moved


class SI(Anchored):
    """Synaptic intelligence: pull each weight to where the last training ended, by what its moves in it gained.

        L + strength sum_i Omega_i (theta_i - theta*_i)²          gradient: 2 strength Omega (theta - theta*)
        Omega_i += max(omega_i, 0) / ((theta_end - theta_start)² + xi)   at the end of each training

    The paper's convention, without 1/2: strength is its c, and corresponds to EWC's 2 c. Attach one object to successive
    trainings. The first has no path behind it, and nobody kept the pretrained model's: alone, SI is inert in it, and says
    so in a warning. With `memory` and `memory_steps`, setup walks so many AdamW steps on the old data to have a path, and
    puts the weights back bit for bit.

    Args:
        strength: c, 0.1 in the paper; 0 changes no bit and computes nothing.
        xi: damping. Fine-tuning moves weights by 1e-4 to 1e-3, so that the paper's 1e-3 outweighs moved² and Omega is
            omega / xi: lower xi to 1e-8 for the paper's proportion, and strength by as much as Omega grows.
        memory: old-domain text or rows for the walk; see `cltk.data.memory_rows`.
        memory_steps: steps of the walk, 8 rows each; 0 for none.
        memory_lr: its learning rate.
        log_every: steps between log lines of the penalty; 0 for none.

    Raises:
        InputError: a negative strength, xi or memory_lr not above 0, memory without memory_steps or the reverse; or a later
            training with other parameters.

    Source: Zenke, Poole & Ganguli 2017 (arXiv 1703.04200). The walk is ours.
    """

    name = "si"

    def __init__(
        self,
        strength: float,
        xi: float = 1e-3,
        memory: Any = None,
        memory_steps: int = 0,
        memory_lr: float = 1e-5,
        log_every: int = 10,
    ) -> None:
        check_penalty(self.name, strength, "gradient", ("gradient",))
        super().__init__(2 * strength, False, log_every)  # the base has the factor 1/2
        if not xi > 0 or not memory_lr > 0 or memory_steps < 0:
            raise InputError(
                f"si: xi and memory_lr must be above 0, memory_steps at least 0; got {xi}, {memory_lr}, {memory_steps}"
            )
        if (memory is None) != (memory_steps == 0):
            raise InputError("si: memory and memory_steps go together: old data, and how many steps to walk on it")
        self.xi, self.memory, self.memory_steps, self.memory_lr = xi, memory, memory_steps, memory_lr
        self.tracker = Tracker([])

    def setup(self, plan: Plan) -> None:
        super().setup(plan)
        if not self.strength:
            return
        if self.importance is None and self.memory_steps:
            check_causal(plan.model, "si")
            rows = old_rows("si", self.memory, plan)
            path, moved = walk(plan.model, rows, self.memory_steps, self.memory_lr)
            self.importance = _shared({name: per_distance(omega, moved[name], self.xi) for name, omega in path.items()})
        elif self.importance is None:
            warnings.warn("si: nothing is protected in the first training; give memory and memory_steps", stacklevel=2)
        check_names(self.name, self.importance, self.anchors)
        plan.notes["si"] = {"strength": self.strength / 2, "xi": self.xi, "memory_steps": self.memory_steps,
                            "mean": None if self.importance is None else mean_of(self.importance)}  # fmt: skip

    def start(self, run: Run) -> None:
        super().start(run)
        self.tracker = Tracker(self.columns[0])

    def grad(self, run: Run) -> None:
        self.tracker.before()
        if self.importance is not None:
            self._pull(run)

    def step(self, run: Run) -> None:
        self.tracker.after()

    def finish(self, run: Run) -> None:
        params, anchors, _ = self.columns
        new = {}
        for name, p, anchor, path in zip(self.names, params, anchors, self.tracker.path, strict=True):
            here = tensors.local(path)
            here.copy_(per_distance(here, tensors.local(p.detach()).float() - anchor.float(), self.xi))
            new[name] = tensors.whole(path)
        if new:
            old = self.importance
            self.importance = new if old is None else {name: old[name].to(omega.device) + omega for name, omega in new.items()}
        self.tracker, self.columns = Tracker([]), ([], [], None)

    def state_dict(self) -> dict[str, Any]:
        state = {"path": {name: tensors.whole(path) for name, path in zip(self.names, self.tracker.path, strict=False)}}
        kept = {} if self.importance is None else {"importance": dict(self.importance)}
        return {**state, **kept} if self.strength else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "importance" in state:
            self._weigh(state["importance"])
        for name, path in zip(self.names, self.tracker.path, strict=True):
            path.copy_(tensors.like(path, state["path"][name]))


def _shared(named: tensors.Named) -> tensors.Named:
    """Rank 0's values on every rank: the same walk on several GPUs differs in its last bits."""
    if together():
        for value in named.values():
            on_group(partial(dist.broadcast, src=0), value)
    return named


def check_names(where: str, importance: Mapping[str, Tensor] | None, anchors: Mapping[str, Tensor]) -> None:
    """Raises InputError when a weight that is trained now has no importance from the trainings before."""
    lacking = [name for name in anchors if importance is not None and name not in importance]
    if lacking:
        raise InputError(f"{where}: {lacking[0]} is trained now and was not in the trainings before; use a new {where} for it")


def mean_of(named: Mapping[str, Tensor]) -> float:
    """The mean over all elements of all tensors, summed in float64; 0 for none."""
    return trace(named) / max(1, sum(value.numel() for value in named.values()))
