"""What a mitigator is, and when each of its hooks is called.

    for m in mitigators: m.setup(plan)                       # before training: model, data, arguments
    trainer places, wraps and shards the model; the optimiser is made
    for m in mitigators: m.start(run)
    for every optimiser step:
        for every micro-batch:
            loss = trainer's loss + sum(m.loss(inputs, logits_NV) for m in mitigators)
            backward
        for m in mitigators: m.grad(run)                     # no_grad; p.grad is the mean over micro-batches
        clip the gradient to max_grad_norm
        optimiser step
        for m in mitigators: m.step(run)                     # no_grad
        for m in mitigators: m.look(run)                     # reads; also before the first step
    for m in mitigators: m.finish(run)                       # no_grad; wrappers of the model last, then averages
    for m in mitigators: m.look(run)                         # run.ended: the weights that are left

List order is application order; nothing reorders. An empty list leaves the trainer untouched, and a mitigator of
strength 0 trains the same weights bit for bit. A mitigator owns its own state and nothing else.

Shapes: B rows, T tokens, N counted positions (those that predict a label that is not -100, in row-major order), V
vocabulary. Losses get logits at the N positions alone: no method reads the rest, and with short completions most positions are
rest (the head is a fifth of the parameters of a SmolLM2-135M).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cltk.data.rows import IGNORED
from cltk.tensors import trainable


def counted(inputs: dict[str, Tensor]) -> Tensor:
    """Which positions [B, T] predict a token that counts: the next label is not -100 (next token not padding)."""
    return F.pad(_labels(inputs)[:, 1:] != IGNORED, (0, 1))


def targets(inputs: dict[str, Tensor]) -> Tensor:
    """The labels [N] of the counted positions."""
    return F.pad(_labels(inputs)[:, 1:], (0, 1), value=IGNORED)[counted(inputs)]


def _labels(inputs: dict[str, Tensor]) -> Tensor:
    labels, mask = inputs.get("labels"), inputs.get("attention_mask")
    if labels is not None:
        return labels
    return inputs["input_ids"] if mask is None else inputs["input_ids"].masked_fill(mask == 0, IGNORED)


@dataclass
class Plan:
    """What is trained, on what, and how. `setup` may edit all of it; it becomes the trainer's."""

    model: nn.Module
    data: Any  # training rows: len() and [i] -> {"input_ids": ..., "labels": ...}
    args: Any  # transformers.TrainingArguments
    tokenizer: Any = None
    validation: Any = None  # held-out rows of the new task (never the rows that are reported)
    notes: dict[str, Any] = field(default_factory=dict)  # what a method decided, kept in the record
    lr_scales: list[Callable[[str], float]] = field(default_factory=list)
    cache: Path | None = None  # a folder for what other runs with the same inputs can reuse
    reference: Any = None  # the start model's logits, one for all methods (`cltk.mitigate.distill.Reference`)
    schedule: Callable[[int, int], float] | None = None  # (step, max_steps) -> factor on every rate, for the trainer's own

    def scale_lr(self, factor: Callable[[str], float]) -> None:
        """Multiply the learning rate of every parameter by `factor(name)`; several multiply together."""
        self.lr_scales.append(factor)


@dataclass
class Run:
    """What a mitigator may touch while training runs."""

    model: nn.Module  # parameters as the optimiser holds them (DTensor under FSDP2)
    forward: nn.Module  # the wrapped model: extra passes go through it, so that ranks stay in step
    step: int = 0  # optimiser steps taken
    max_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)  # merged into the trainer's next log line
    optimizer: Any = None
    stopped: str = ""  # why training was asked to stop; empty while it goes on
    repeat: Callable[[], None] | None = None  # adds the gradient of this step's micro-batches, losses and all, to p.grad
    ended: bool = False  # `finish` has been called: the weights are those that training leaves
    line: Callable[[dict[str, float]], None] | None = None  # writes a log line; None: the host has no log
    scale: float = 1.0  # of the loss in fp16 training: what an extra pass multiplies its loss by, and divides its gradient by

    def log(self, name: str, value: float) -> None:
        self.metrics[name] = float(value)

    def tell(self, line: dict[str, float]) -> None:
        """A log line of its own, at this very step; into `metrics` where the host has no log."""
        if self.line is None:
            self.metrics.update(line)
        else:
            self.line(line)

    def stop(self, reason: str) -> None:
        """End training after this step."""
        self.stopped = reason

    def gradients(self, loss: Callable[[], Tensor]) -> list[Tensor | None]:
        """d loss() / d p of every trainable parameter, in their order; p.grad itself is as before.

        Ranks that share the model must all call it. Run the model as `self.forward`: through `self.model`, replicas of
        DDP would drift apart.
        """
        parameters = [parameter for _, parameter in trainable(self.model)]
        kept = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        try:
            with torch.enable_grad():
                (loss() * self.scale).backward()
            found = [parameter.grad for parameter in parameters]
            return found if self.scale == 1 else [None if grad is None else grad / self.scale for grad in found]
        finally:
            for parameter, grad in zip(parameters, kept, strict=True):
                parameter.grad = grad


class Mitigator:
    """Every hook is optional and does nothing by default."""

    repeats = False  # `grad` calls run.repeat() and replaces p.grad: it must stand before every other method that edits it
    wraps = False  # `setup` puts another model in place of plan.model, and `finish`, called after all others, puts it back
    once = False  # two of its kind in one list would undo each other
    averages = False  # `finish` mixes whole weights with other models': called last, on the plain model
    freezes = False  # `setup` leaves parameters out of training, so that averages behind it mix fewer of them
    replaces = ""  # `finish` puts other weights of this training in place of the last: "average" or "best"
    reweighs = False  # `loss` takes away from the host's own token losses: it must know them exactly
    given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})  # what the constructor was called with

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        made.given = args, kwargs
        return made

    def __init__(self) -> None:
        """No settings."""

    def setup(self, plan: Plan) -> None:
        """Before training: edit `plan.model`, `plan.data`, `plan.args`; call `plan.scale_lr`."""

    def start(self, run: Run) -> None:
        """The model is placed and sharded: place anchors, open state."""

    def loss(self, inputs: dict[str, Tensor], logits_NV: Tensor) -> Tensor | None:
        """An extra loss for this micro-batch: a mean over its N counted tokens, with a gradient to the logits.

        `targets(inputs)` are their labels, and inputs["divisor"] is N, at least 1. The host weighs this mean as it weighs its
        own loss of these tokens, whatever it divides by (the tokens of a step, of a micro-batch, ...). inputs["smoothing"] is
        the label smoothing of the host's loss, absent for none.
        """
        return None

    def grad(self, run: Run) -> None:
        """After backward, before clipping and the step: read or edit `p.grad` (no_grad)."""

    def step(self, run: Run) -> None:
        """After the optimiser step: read or edit the weights (no_grad)."""

    def look(self, run: Run) -> None:
        """Behind all that is done in a step, before the first one, and at the end (`run.ended`): read, change nothing."""

    def finish(self, run: Run) -> None:
        """After training: edit the final weights (no_grad)."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: tensors, numbers and strings."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
