"""A strength from a budget: how much the old text's NLL may rise. Short trial trainings, then a search over log lambda.

rise(lambda) = NLL_old(theta after `steps` AdamW steps at lambda) - NLL_old(theta*)          nats a token
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from cltk import tensors
from cltk.data.readers import Row
from cltk.data.rows import IGNORED, Collator
from cltk.errors import InputError
from cltk.forward.probe import logits_where, mean_nll
from cltk.importance.estimators import untouched
from cltk.mitigate.interface import Mitigator, Plan, Run
from cltk.mitigate.memory import labelled, old_rows
from cltk.ranks import agreed

TOLERANCE = 0.2  # of the budget
STEP, TOP = 100.0, 1e4  # the bracket grows by STEP; with an importance of mean 1 no strength above TOP is tried
HELD = 32  # rows of the memory to measure on, at most


class Trial(NamedTuple):
    """One trial training: its strength, and the old text's rise of NLL (inf where it diverged)."""

    strength: float
    rise: float


def search(rise: Callable[[float], float], budget: float, trials: int, unit: float = 1.0) -> tuple[float, str, list[Trial]]:
    """The strength whose `rise` is `budget`, within 20 %, in at most `trials` calls.

    Strength 0 first: if it keeps the budget nothing else is tried. Then unit, and from there steps of 100 up (to 10^4
    units) or down until the budget lies between two neighbours; then between these, log rise taken as linear in log
    lambda, in the middle 60 % of the interval. `rise` should fall with strength; nothing is assumed where it does not.

    Returns:
        The smallest strength tried that keeps the budget (to 20 %), or where none does that of the smallest rise;
        "unneeded" (0 keeps it), "met", "kept" (below the budget by more than 20 %) or "exceeded"; every trial, in order.
    """
    done: list[Trial] = []
    at: float | None = 0.0
    while at is not None and len(done) < trials:
        found = rise(at)
        done.append(Trial(at, found if math.isfinite(found) else math.inf))
        met = abs(done[-1].rise - budget) <= TOLERANCE * budget
        at = None if met or done[0].rise <= budget else _next(done, budget, unit)
    kept = [trial for trial in done if trial.rise <= budget * (1 + TOLERANCE)]
    best = min(kept) if kept else min(done, key=lambda trial: (trial.rise, trial.strength))
    if not kept:
        return best.strength, "exceeded", done
    state = "unneeded" if best.strength == 0 else "met" if best.rise >= budget * (1 - TOLERANCE) else "kept"
    return best.strength, state, done


def _next(done: list[Trial], budget: float, unit: float) -> float | None:
    """The strength to try next; None where TOP units exceed the budget."""
    tried = sorted(trial for trial in done if trial.strength > 0)
    if not tried:
        return unit
    high = next((trial for trial in tried if trial.rise <= budget), None)
    if high is None:
        return tried[-1].strength * STEP if tried[-1].strength < TOP * unit else None
    below = [trial for trial in tried if trial.strength < high.strength]
    if not below:
        return high.strength / STEP
    share = 0.5
    if high.rise > 0 and below[-1].rise < math.inf:
        share = math.log(below[-1].rise / budget) / math.log(below[-1].rise / high.rise)
    return below[-1].strength * (high.strength / below[-1].strength) ** min(max(share, 0.2), 0.8)


def check_auto(budget: float, steps: int, trials: int, importance: Any) -> None:
    """Early: raises InputError unless strength="auto" can be calibrated with these."""
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < math.inf:
        raise InputError(f"ewc: budget is {budget!r}; give the rise of the old text's NLL to allow, such as 0.02 nats")
    if steps < 1 or trials < 2:
        raise InputError(f"ewc: trial_steps is {steps} and trials {trials}; give at least 1 step and 2 trials")
    if not hasattr(importance, "get") or "memory" not in importance:
        raise InputError("ewc: strength 'auto' measures on old text; give importance as {'memory': old data, 'samples': 500}")


def held_out(importance: Any, plan: Plan) -> tuple[dict[str, Any], Sequence[Row]]:
    """Arguments of an importance without the memory's last rows (a quarter, 32 at most), and these rows."""
    rows = old_rows("ewc", importance["memory"], plan, importance.get("block", 256))
    if len(rows) < 4:
        raise InputError(f"ewc: the memory has {len(rows)} rows; 'auto' needs 4, a quarter of them to measure on; add text")
    kept = len(rows) - min(HELD, len(rows) // 4)
    return {**importance, "memory": rows[:kept]}, rows[kept:]


def calibrate(method: Any, plan: Plan, rows: Sequence[Row], steps: int, trials: int, unit: float) -> dict[str, Any]:
    """Set `method.strength` for `method.budget` on `rows`; the model and all random states are as before.

    Returns:
        What the record keeps: budget, state (see `search`), every trial, what they were.

    Raises:
        InputError: the plan has no data or no arguments, or trains with another optimiser than AdamW.
    """
    _check(plan)
    start = mean_nll(plan.model, rows)

    def rise(strength: float) -> float:
        method.strength = strength
        with tried(plan.model):
            train(plan, method, steps)
            return mean_nll(plan.model, rows) - start

    strength, state, done = agreed(search(rise, method.budget, trials, unit))
    method.strength = strength
    if state == "exceeded":
        best = min(trial.rise for trial in done)
        logging.getLogger(__name__).warning(
            "ewc: no strength tried keeps the budget %g; the smallest rise is %g", method.budget, best
        )
    return {
        "budget": method.budget, "state": state, "trial_steps": steps, "rows": len(rows), "start_nll": start,
        "trials": [trial._asdict() for trial in done],
    }  # fmt: skip


@contextlib.contextmanager
def tried(model: nn.Module) -> Iterator[None]:
    """Whatever happens to parameters and buffers inside, bit for bit undone; so are gradients, modes and random states."""
    held = [*(p for _, p in tensors.trainable(model)), *model.buffers()]
    copies = [tensor.detach().clone() for tensor in held]
    try:
        with untouched(model):
            yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(held, copies, strict=True):
                tensor.copy_(copy)


def train(plan: Plan, method: Mitigator, steps: int) -> None:
    """`steps` optimiser steps of plain AdamW on `plan.data`, with `method`'s hooks: constant rate, seeded order, no warm-up.

    Batch, rate, its scales, decay, clipping and bfloat16 autocast are the plan's; a step holds all ranks' rows.
    """
    args, model = plan.args, plan.model
    torch.manual_seed(args.seed)
    optimizer = _adamw(plan)
    run = Run(model, model, max_steps=steps, optimizer=optimizer)
    method.start(run)
    size = args.per_device_train_batch_size
    micro = args.gradient_accumulation_steps * args.world_size
    order = torch.randperm(len(plan.data), generator=torch.Generator().manual_seed(args.seed)).tolist()
    model.train()
    for step in range(steps):
        chosen = [order[i % len(order)] for i in range(step * size * micro, (step + 1) * size * micro)]
        rows = [labelled(plan.data[i]) for i in chosen]
        _backward(model, [rows[i : i + size] for i in range(0, len(rows), size)], bool(args.bf16))
        with torch.no_grad():
            method.grad(run)
            if args.max_grad_norm:
                nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        run.step += 1
        with torch.no_grad():
            method.step(run)


def _adamw(plan: Plan) -> torch.optim.AdamW:
    args = plan.args
    groups = []
    for name, p in tensors.trainable(plan.model):
        rate = args.learning_rate * math.prod(scale(name) for scale in plan.lr_scales)
        groups.append({"params": [p], "lr": rate, "weight_decay": args.weight_decay if p.dim() > 1 else 0.0})
    return torch.optim.AdamW(groups, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon)


def _backward(model: nn.Module, batches: Sequence[Sequence[Row]], bf16: bool) -> None:
    """The gradient of the mean loss over all counted tokens of `batches`."""
    device = next(model.parameters()).device
    ready = [{name: value.to(device) for name, value in Collator(0)(rows).items()} for rows in batches]
    counted = sum(int((inputs["labels"][:, 1:] != IGNORED).sum()) for inputs in ready)
    for inputs in ready:
        targets = inputs.pop("labels")[:, 1:]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16), torch.enable_grad():
            logits, kept = logits_where(model, inputs, targets)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets[:, kept].flatten(), reduction="sum")
        (loss / max(1, counted)).backward()


def _check(plan: Plan) -> None:
    if plan.args is None or not hasattr(plan.data, "__len__") or not len(plan.data) or "input_ids" not in plan.data[0]:
        raise InputError("ewc: strength 'auto' tries the training itself; it needs arguments and tokenised rows with a length")
    if not hasattr(plan.args, "optim"):
        raise InputError(
            "ewc: strength 'auto' tries the training itself, which a session leaves to your loop; give strength a number, or"
            " use attach with a Trainer"
        )
    if "adamw" not in str(plan.args.optim).lower():
        raise InputError(f"ewc: strength 'auto' tries AdamW, this training uses {plan.args.optim}; give strength a number")
