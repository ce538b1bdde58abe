"""Rates: how fast and how long to train. LowLR, Rewarm and EarlyStopping."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from cltk import tensors
from cltk.errors import InputError
from cltk.forward.causal import check_causal
from cltk.forward.probe import mean_nll
from cltk.mitigate.interface import Mitigator, Plan, Run
from cltk.mitigate.memory import old_rows, probe_rows


def usual_rates(parameters: int, adapter: bool = False) -> tuple[float, float]:
    """The range of AdamW learning rates in common use for fine-tuning a model of this many parameters.

    1e-5 to 5e-5 for full fine-tuning from a billion parameters on (Touvron et al. 2023, arXiv 2307.09288: 2e-5),
    10 to 50 times higher at 135 M, log-linear in between; 1e-4 to 1e-3 for adapters (Biderman et al. 2024,
    arXiv 2405.09673).
    """
    if adapter:
        return 1e-4, 1e-3
    share = min(max((9 - _log10(parameters)) / (9 - _log10(135_000_000)), 0.0), 1.0)
    return 1e-5 * 10**share, 5e-5 * 50**share


def _log10(x: float) -> float:
    return torch.log10(torch.tensor(float(max(x, 1)), dtype=torch.float64)).item()


def check_rate(model: Any, rate: float) -> str:
    """A warning when `rate` is outside the usual range for this model; empty when it is inside."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapter = trained < 0.2 * total
    low, high = usual_rates(total, adapter)
    if low <= rate <= high:
        return ""
    kind = "adapters" if adapter else f"full fine-tuning of {total / 1e6:.0f} M parameters"
    side = "below" if rate < low else "above"
    return f"learning rate {rate:.1e} is {side} the usual range for {kind} ({low:.0e} to {high:.0e})"


class LowLR(Mitigator):
    """Train with a lower learning rate: eta <- factor * eta.

    The strongest simple baseline: forgetting grows with the learning rate (Lin et al. 2025, arXiv 2509.20758).
    Warns when the resulting rate is outside the usual range.

    Args:
        factor: multiplies `learning_rate`; 1 changes nothing.

    Raises:
        InputError: factor is not above 0.
    """

    def __init__(self, factor: float) -> None:
        if not factor > 0:
            raise InputError(f"low_lr.factor: must be above 0, got {factor}")
        self.factor = factor

    def setup(self, plan: Plan) -> None:
        if not plan.args.learning_rate:  # a bare loop that keeps its rate to itself
            plan.scale_lr(lambda name: self.factor)
            return
        plan.args.learning_rate *= self.factor
        plan.notes["low_lr"] = {"factor": self.factor, "learning_rate": plan.args.learning_rate}
        if message := check_rate(plan.model, plan.args.learning_rate):
            warnings.warn(f"low_lr: {message}", stacklevel=2)


def take_schedule(plan: Plan, name: str, rule: Callable[[int, int], float]) -> None:
    """`rule(step, max_steps)` becomes the factor on every rate. Raises InputError when another method set one."""
    if plan.schedule is not None:
        raise InputError(f"{name}: another method sets the schedule of the learning rate already; keep one of them")
    plan.schedule = rule


def rewarmed(step: int, max_steps: int, warmup: float = 0.01, decay_to: float = 0.1) -> float:
    """The factor (step + 1) / W over the first W = ceil(warmup max_steps) steps, then a cosine from 1 to `decay_to`."""
    rising = math.ceil(warmup * max_steps)
    if step < rising:
        return (step + 1) / rising
    share = min((step - rising) / max(max_steps - rising, 1), 1.0)
    return decay_to + (1 - decay_to) * (1 + math.cos(math.pi * share)) / 2


class Rewarm(Mitigator):
    """Warm the learning rate up again, then decay it: the schedule of continual pre-training. Combine it with Replay.

    Linear over the first `warmup` of all steps up to `learning_rate`, then a cosine down to `decay_to` of it, in place
    of the trainer's own schedule.

    Args:
        warmup: share of steps, 0 to below 1.
        decay_to: the last rate over the highest, 0 to 1.

    Raises:
        InputError: a number out of its range, or another method that sets the schedule.

    Source: Ibrahim et al. 2024 (arXiv 2403.08763).
    """

    once = True

    def __init__(self, warmup: float = 0.01, decay_to: float = 0.1) -> None:
        if not 0 <= warmup < 1 or not 0 <= decay_to <= 1:
            raise InputError(f"rewarm: warmup must be 0 to below 1 and decay_to 0 to 1, got {warmup} and {decay_to}")
        self.warmup, self.decay_to = warmup, decay_to

    def setup(self, plan: Plan) -> None:
        take_schedule(plan, "rewarm", lambda step, steps: rewarmed(step, steps, self.warmup, self.decay_to))


class EarlyStopping(Mitigator):
    """Stop when held-out new-task NLL no longer falls, and go back to the best weights seen.

    Every `every` steps the mean NLL of `validation` is measured (the start model counts as step 0); after `patience`
    probes in a row without an improvement of more than `min_delta`, training stops. With `budget`, old-text NLL is
    probed too: training stops at the first probe where it rose by more than `budget` nats per token over the start
    model, and the best weights are chosen among the probes within the budget.

    Args:
        patience: probes without improvement before stopping.
        every: optimiser steps between probes; 0 switches the method off.
        min_delta: nats per token that count as an improvement.
        budget: largest rise of old-text NLL, nats per token; needs `memory`.
        memory: old-domain text (see `cltk.data.memory_rows`); use other text than the one you report on.
        validation: held-out rows with input_ids and labels; the trainer's eval_dataset when not given.
        limit: rows of each set to probe.
        restore: go back to the best weights at the end.

    Raises:
        InputError: no validation rows, or a budget without memory.

    Source: Prechelt 1998 (doi 10.1007/3-540-49430-8_3); stopping on a retention budget after Kalajdzievski 2024
    (arXiv 2401.05605), who finds that stopping early moves along the forgetting curve rather than off it.
    """

    once = True

    def __init__(
        self,
        patience: int = 3,
        every: int = 10,
        *,
        min_delta: float = 0.0,
        budget: float | None = None,
        memory: Any = None,
        validation: Any = None,
        limit: int | None = 64,
        restore: bool = True,
    ) -> None:
        if budget is not None and memory is None:
            raise InputError("early_stopping.budget: needs `memory`, old-domain text on which the rise is measured")
        if patience < 1 or every < 0:
            raise InputError(f"early_stopping: patience must be at least 1 and every at least 0, got {patience} and {every}")
        self.patience, self.every, self.min_delta, self.budget = patience, every, min_delta, budget
        self.memory, self.validation, self.limit, self.restore = memory, validation, limit, restore
        self.replaces = "best" if every and restore else ""
        self.best: dict[str, Any] = {}
        self.bad = 0
        self.old_start = 0.0
        self.trace: list[dict[str, float]] = []

    def setup(self, plan: Plan) -> None:
        self.trace = []  # what a training before this one logged is that one's
        if not self.every:
            return
        rows = self.validation if self.validation is not None else plan.validation
        check_causal(plan.model, "early_stopping")
        self.rows = probe_rows(rows, self.limit, "early_stopping.validation")
        self.old = old_rows("early_stopping", self.memory, plan, limit=self.limit) if self.budget is not None else []
        plan.notes["early_stopping"] = {"trace": self.trace, "validation_rows": len(self.rows), "old_rows": len(self.old)}

    def start(self, run: Run) -> None:
        if self.every:
            self.old_start = mean_nll(run.model, self.old) if self.old else 0.0
            self._keep(run, mean_nll(run.model, self.rows), 0)

    def _keep(self, run: Run, nll: float, step: int) -> None:
        weights = {name: p.cpu() for name, p in tensors.snapshot(run.model).items()} if self.restore else {}
        self.best, self.bad = {"nll": nll, "step": step, "weights": weights}, 0

    def step(self, run: Run) -> None:
        if not self.every or (run.step % self.every and run.step != run.max_steps):
            return
        nll = mean_nll(run.model, self.rows)
        probe = {"step": run.step, "validation_nll": nll}
        run.log("validation_nll", nll)
        if self.old:
            probe["old_nll_rise"] = mean_nll(run.model, self.old) - self.old_start
            run.log("old_nll_rise", probe["old_nll_rise"])
        self.trace.append(probe)
        if self.budget is not None and probe["old_nll_rise"] > self.budget:
            run.stop(f"old-text NLL rose by {probe['old_nll_rise']:.4f} nats, more than the budget of {self.budget}")
        elif nll < self.best["nll"] - self.min_delta:
            self._keep(run, nll, run.step)
        else:
            self.bad += 1
            if self.bad >= self.patience:
                run.stop(f"validation NLL has not improved for {self.bad} probes; the best was at step {self.best['step']}")

    def finish(self, run: Run) -> None:
        if not self.every or not self.restore:
            return
        for name, parameter in tensors.trainable(run.model):
            parameter.data.copy_(tensors.like(parameter, self.best["weights"][name]))
        run.log("best_step", self.best["step"])

    def state_dict(self) -> dict[str, Any]:
        if not self.every:
            return {}
        best = {**self.best, "weights": tensors.all_whole(self.best.get("weights", {}))}
        return {"best": best, "bad": self.bad, "old_start": self.old_start, "trace": list(self.trace)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.bad, self.old_start = state["best"], int(state["bad"]), float(state["old_start"])
        self.trace[:] = state["trace"]
