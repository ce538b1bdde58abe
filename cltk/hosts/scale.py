"""Extra losses inside a trainer, each token weighing as in the trainer's own loss.

An extra loss is tied to the decoder's last hidden state by an identity whose backward also back-propagates the extra loss
(the auxiliary-loss trick of mixture-of-experts models): so it works for Trainer, SFTTrainer, subclasses that override
compute_loss, and peft models alike. It is a mean over the N counted tokens of the micro-batch; multiplied by N w it weighs as
the host's loss, w being what one token's loss is multiplied by there:

    ranks / items    the step's tokens on all ranks (transformers, TRL)        1 / items      ranks left out
    1 / N            the mean of each micro-batch                              1 / (N A)      divided by the A micro-batches

Where the host does not say which, its gradient does: at the hidden states it is w times that of the sum of the token losses.

Shapes: B rows, T tokens, N counted positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer

from cltk.errors import InputError
from cltk.forward.causal import head_logits
from cltk.hosts import deepspeed
from cltk.hosts.labels import called_with
from cltk.hosts.order import extra_loss
from cltk.mitigate.interface import Mitigator, counted, targets

RULES = ("items", "mean of means", "mean", "items of one rank")
TOLERANCE, COARSE = {torch.float64: 1e-6, torch.float32: 1e-3}, 5e-2  # of a measured weight; bfloat16 keeps 8 bits


class _Tie(torch.autograd.Function):
    """Identity on `hidden`; its backward also sends `factor(gradient at hidden)` into `loss`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, factor: Callable[[Tensor], float]) -> Tensor:
        ctx.factor, ctx.like = factor, loss.detach()
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return grads[0], torch.full_like(ctx.like, ctx.factor(grads[0])), None


class ExtraLosses:
    """The methods' losses in a trainer: hooks that tie them, and what is known of the trainer's own scale.

    Args:
        trainer: the host.
        terms: the methods that have a loss.
    """

    def __init__(self, trainer: Any, terms: Sequence[Mitigator]) -> None:
        self.trainer, self.terms = trainer, list(terms)
        self.strict = next((type(m).__name__ for m in terms if m.reweighs), "")
        self.suspended = False  # extra passes of a method carry no extra losses
        self.handles: list[Any] = []
        self.rules = list(RULES)  # those that no gradient has contradicted
        self.proven = False
        self.begin({}, None)

    def begin(self, inputs: dict[str, Any], items: Any) -> None:
        """A micro-batch, as `training_step` gets it: a host may take the labels out, and keep the count to itself."""
        self.batch, self.items = dict(inputs), items
        self.call: dict[str, Any] = {}
        self.passes, self.tied, self.problem = 0, False, ""

    def end(self) -> None:
        """After the backward pass. Raises InputError: the host's scale is not known; no weight has changed yet."""
        if self.tied:
            self.problem = "its loss does not come from the decoder's last hidden states"
        problem, self.problem, self.batch, self.call = self.problem, "", {}, {}
        if problem:
            name, host = self.strict or type(self.terms[0]).__name__, type(self.trainer).__name__
            advice = (
                "it takes away from the losses of the tokens; use it beside the model's own loss, or KL or LwF, which add one"
                if self.strict
                else "train with gradient_accumulation_steps=1 on one device, let compute_loss return the model's loss, set"
                " loss_is_scaled_for_ga, or use cltk.session"
            )
            raise InputError(f"{name}: what one token weighs in the loss of {host} is not known: {problem}; {advice}")

    def hook(self, model: Any) -> None:
        self.handles = [
            model.register_forward_pre_hook(self._remember, with_kwargs=True),
            model.get_decoder().register_forward_hook(lambda *given: self._tie(model, *given), with_kwargs=True, prepend=True),
        ]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles, self.suspended = [], False
        self.begin({}, None)

    def _remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.suspended:
            names = list(signature(type(module).forward).parameters)[1:]
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            self.call = {name: value for name, value in given.items() if isinstance(value, Tensor | int)}

    def _tie(self, model: Any, decoder: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self.suspended or not (decoder.training and torch.is_grad_enabled()):
            return None
        self.passes += 1
        if self.passes > 1:  # one extra loss a micro-batch, and the first pass has it
            return None
        self.suspended = True
        try:
            hidden = output.last_hidden_state
            inputs = called_with(self.trainer, type(self.terms[0]).__name__, self.call, self.batch)
            if smoothing := self._smoothing():
                inputs["smoothing"] = smoothing
            where = counted(inputs)
            if where.shape != hidden.shape[:2]:
                raise InputError(
                    f"{type(self.terms[0]).__name__}: the model has {tuple(hidden.shape[:2])} hidden states for labels of"
                    f" {tuple(where.shape)}; a loss over tokens needs one for each (no prompt tuning)"
                )
            count = int(where.sum())
            extra = extra_loss(self.terms, {**inputs, "divisor": max(count, 1)}, head_logits(model, hidden[where]))
            if extra is not None and extra.requires_grad:
                probe = self._probe(model, hidden, where, inputs) if self._asks(count) else None
                self.tied = True
                output["last_hidden_state"] = _Tie.apply(hidden, extra, lambda grad: self._factor(grad, count, probe))
        finally:
            self.suspended = False
        return output

    def _smoothing(self) -> float:
        smoother = getattr(self.trainer, "label_smoother", None)
        own = self.trainer.compute_loss_func is not None or getattr(self.trainer.args, "loss_type", "nll") != "nll"
        return 0.0 if smoother is None or own else float(smoother.epsilon)

    def _weights(self, count: int) -> dict[str, float]:
        """What one of this micro-batch's `count` tokens weighs under each rule."""
        trainer, count = self.trainer, max(count, 1)
        found = {"mean of means": 1 / (count * self.accumulation()), "mean": 1 / count}
        if self.items is not None:
            ranks, items = trainer.accelerator.num_processes, max(float(self.items), 1.0)
            own = ranks // getattr(trainer, "get_tp_size", lambda: 1)() if trainer.args.average_tokens_across_devices else 1
            found |= {"items": own / items, "items of one rank": 1 / items}
        return {rule: found[rule] for rule in self.rules if rule in found}

    def accumulation(self) -> int:
        """Micro-batches of the running step."""
        steps = getattr(self.trainer, "current_gradient_accumulation_steps", None)
        return steps or self.trainer.args.gradient_accumulation_steps

    def expected(self) -> str | None:
        """The rule that the host's code or its `loss_is_scaled_for_ga` states; None where neither does."""
        trainer = self.trainer
        function = getattr(trainer.compute_loss, "__func__", None)
        stock = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}".startswith(
            ("transformers.trainer.Trainer.", "trl.trainer.sft_trainer.SFTTrainer.")
        )
        known = stock and trainer.compute_loss_func is None
        declared = getattr(trainer, "loss_is_scaled_for_ga", None) if hasattr(Trainer, "loss_is_scaled_for_ga") else None
        if self.items is None:
            return None if trainer.compute_loss_func is not None or declared else "mean of means"
        if known and self._smoothing() and "num_items_in_batch" not in signature(trainer.label_smoother).parameters:
            return "mean"  # transformers before 5.17 smooths labels by the micro-batch's mean, and divides it by nothing
        return "items" if known or declared else "mean of means" if declared is False else None

    def _asks(self, count: int) -> bool:
        """Whether the gradient is to be measured."""
        unknown = self.expected() is None and not _equal(self._weights(count))
        return bool(count) and (unknown or bool(self.strict and not self.proven))

    def _probe(self, model: Any, hidden_BTH: Tensor, where_BT: Tensor, inputs: dict[str, Any]) -> Tensor:
        """d (sum of the token losses) / d hidden, [B, T, H], in float32."""
        with torch.enable_grad():
            kept_NH = hidden_BTH.detach()[where_BT].requires_grad_()
            logits_NV = head_logits(model, kept_NH).float()
            smoothing = float(inputs.get("smoothing", 0.0))
            loss = F.cross_entropy(logits_NV, targets(inputs), reduction="sum", label_smoothing=smoothing)
            (grad_NH,) = torch.autograd.grad(loss, kept_NH)
        probe_BTH = torch.zeros_like(hidden_BTH, dtype=torch.promote_types(grad_NH.dtype, torch.float32))
        probe_BTH[where_BT] = grad_NH.to(probe_BTH.dtype)
        return probe_BTH

    def _factor(self, grad_BTH: Tensor, count: int, probe_BTH: Tensor | None) -> float:
        """What the mean over the `count` tokens is multiplied by in backward: N w, times the loss scale of fp16."""
        self.tied = False
        scale, expected = self.loss_scale(), self.expected()
        if self.passes > 1 and (self.strict or (expected is None and not _equal(self._weights(count)))):
            self.problem = f"compute_loss runs the model {self.passes} times for one batch"
        elif probe_BTH is not None:
            self._measure(grad_BTH.to(probe_BTH.dtype) / scale, count, probe_BTH)
        if self.problem:
            return 0.0
        weights = self._weights(count)
        return scale * count * (weights[expected] if expected in weights else next(iter(weights.values())))

    def _measure(self, grad_BTH: Tensor, count: int, probe_BTH: Tensor) -> None:
        """Keeps the rules that the host's gradient bears out; `problem` where it bears out none."""
        size, along = float(grad_BTH.norm()), float((probe_BTH * probe_BTH).sum())
        if not (0 < size < float("inf")) or not along > 0:
            return  # an overflow of fp16, or nothing to learn here
        coarse = grad_BTH.dtype == torch.float32 and self._half(grad_BTH.device.type)
        tolerance = COARSE if coarse else TOLERANCE.get(grad_BTH.dtype, COARSE)
        weight = float((grad_BTH * probe_BTH).sum()) / along
        weights = self._weights(count)
        if float((grad_BTH - weight * probe_BTH).norm()) > tolerance * size or weight <= 0:
            if self.strict:
                self.problem = "it is no sum of the losses of the counted tokens"
            elif self.expected() is None and not _equal(weights):
                self.problem = "it is no sum of the losses of the counted tokens, whose gradient would tell"
            return
        if fitting := [rule for rule, value in weights.items() if abs(weight / value - 1) <= tolerance]:
            self.rules = [rule for rule in self.rules if rule in fitting or rule not in weights]
            self.proven = True
        else:
            self.problem = f"a token weighs {weight:.4g} where one of {sorted(set(weights.values()))} was looked for"

    def _half(self, device: str) -> bool:
        """Whether 16 bits had a part in the gradient."""
        kinds = {parameter.dtype for parameter in self.trainer.model.parameters()}
        mixed = getattr(self.trainer.accelerator, "native_amp", False) or self.trainer.args.bf16 or self.trainer.args.fp16
        return bool(mixed) or torch.is_autocast_enabled(device) or bool(kinds & {torch.bfloat16, torch.float16})

    def loss_scale(self) -> float:
        """Of the trainer."""
        return loss_scale(self.trainer)


def loss_scale(trainer: Any) -> float:
    """What fp16 training multiplies the loss by; 1 elsewhere."""
    if deepspeed.active(trainer):
        return deepspeed.loss_scale(trainer)
    scaler = getattr(trainer.accelerator, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def _equal(weights: dict[str, float]) -> bool:
    return max(weights.values()) - min(weights.values()) <= 1e-9 * max(weights.values())
