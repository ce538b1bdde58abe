"""Quadratic penalties: EWC and L2-SP. The arithmetic is in `blockwise.py`.

    penalty(theta) = strength/2 sum_i F_i (theta_i - theta*_i)²          gradient: strength F (theta - theta*)

Sources: Kirkpatrick et al. 2017 (EWC, arXiv 1612.00796); Li et al. 2018 (L2-SP, arXiv 1802.01483).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cltk.errors import InputError
from cltk.importance.fisher import Importance
from cltk.mitigate.anchored import Anchored, check_penalty, rates
from cltk.mitigate.blockwise import decay_, proximal_, pull_, value
from cltk.mitigate.calibrate import calibrate, check_auto, held_out
from cltk.mitigate.interface import Plan, Run
from cltk.mitigate.source import check_source, importance_of, summary

__all__ = ["EWC", "L2SP", "decay_", "proximal_", "pull_", "value"]


class EWC(Anchored):
    """Elastic weight consolidation: pull each weight to its start, by its importance for the old data.

        L + strength/2 sum_i F_i (theta_i - theta*_i)²

    Args:
        strength: lambda. With importance normalised to mean 1 it compares with L2-SP's; try a log grid 1e-4..1e2, and
            look for both plateaus (plain fine-tuning; frozen). With raw F the useful values are 1e3 and more.
            0 changes no bit and computes nothing. "auto" finds one: short trial trainings at setup, without the other
            mitigators, see `calibrate`. A longer training moves further than the trials: what it forgets may exceed
            the budget, and only its own measurement says. Not with a saved importance.
        importance: an Importance, a path to a saved one, or arguments for one: {"memory": path, texts or rows,
            "block": 256, and those of fisher(): "kind", "samples", "batch_size", "normalize" (here "mean" unless set),
            "seed", "floor", "rtol", "clip", "autocast", and "control": "shuffled" or "uniform", what a paper compares the
            Fisher with}. Arguments are computed at setup, at the start model; with a cache folder, once.
        form: "gradient" adds the penalty's gradient before clipping and the step (Adam rescales it by 1/sqrt(v));
            "proximal" takes the penalty's own step after it, theta <- (theta + lr lambda F theta*) / (1 + lr lambda F):
            stable at every strength, not clipped, not rescaled.
        offload: keep theta* and F in CPU memory; they come block by block (two parameter-sized tensors less on a GPU).
        log_every: steps between log lines of the penalty and of its gradient's norm over the task's; 0 for none.
        budget: with "auto": the rise of the old text's NLL to aim at after the trial's steps, nats a token; 0.02. It is
            measured on rows of the memory that the importance does not use.
        trial_steps, trials: optimiser steps of a trial, and how many trials at most.

    Raises:
        InputError: no importance and no memory, an unknown argument or form, or an importance of another model; a budget
            without "auto"; "auto" without a memory, or with another optimiser than AdamW.

    Source: Kirkpatrick et al. 2017 (arXiv 1612.00796).
    """

    name = "ewc"

    def __init__(
        self,
        strength: float | Literal["auto"],
        importance: Importance | Mapping[str, Any] | str | Path | None = None,
        form: str = "gradient",
        offload: bool = False,
        log_every: int = 10,
        budget: float | None = None,
        trial_steps: int = 20,
        trials: int = 6,
    ) -> None:
        self.auto = strength == "auto"
        number = 1.0 if strength == "auto" else strength
        super().__init__(number, offload, log_every)
        check_penalty(self.name, number, form, ("gradient", "proximal"))
        check_source(importance, needed=number != 0)
        self.source, self.form = importance, form
        self.budget, self.trial_steps, self.trials = 0.02 if budget is None else budget, trial_steps, trials
        if self.auto:
            check_auto(self.budget, trial_steps, trials, importance)
        elif budget is not None:
            raise InputError(f"ewc: budget {budget} goes with strength 'auto', strength is {strength}; drop one of them")

    def setup(self, plan: Plan) -> None:
        self.strength = 1.0 if self.auto else self.strength
        super().setup(plan)
        if not self.strength:
            return
        source, rows = held_out(self.source, plan) if self.auto else (self.source, [])
        found = importance_of(source, plan)
        self.importance = {name: self._parked(value) for name, value in found.items()}
        note = {}
        if self.auto:
            note["calibration"] = calibrate(self, plan, rows, self.trial_steps, self.trials, 1 / (found.mean or 1.0))
        plan.notes[self.name] = {"strength": self.strength, "form": self.form, **summary(found), **note}

    def state_dict(self) -> dict[str, Any]:
        """A strength that was found stays what it was: trials of a resumed run may differ in their last bits."""
        return {"strength": self.strength} if self.auto else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.strength = float(state["strength"])

    def grad(self, run: Run) -> None:
        if self.strength and self.form == "gradient":
            self._pull(run)

    def step(self, run: Run) -> None:
        if self.strength and self.form == "proximal":
            params, anchors, weights = self.columns
            proximal_(params, anchors, [rate * self.strength for rate in rates(run, params)], weights)
            self._log_penalty(run)


class L2SP(Anchored):
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
        super().__init__(strength, offload, log_every)
        check_penalty(self.name, strength, form, ("decoupled", "gradient"))
        self.form = form

    def grad(self, run: Run) -> None:
        if self.strength and self.form == "gradient":
            self._pull(run)

    def step(self, run: Run) -> None:
        if self.strength and self.form == "decoupled":
            params, anchors, _ = self.columns
            decay_(params, anchors, [rate * self.strength for rate in rates(run, params)])
            self._log_penalty(run)
