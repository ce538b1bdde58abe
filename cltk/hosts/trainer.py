"""attach(trainer, mitigators): methods inside transformers' Trainer, TRL's trainers and subclasses of either.

The anchor of a quadratic penalty is the start model: `setup` runs at attach, before a checkpoint is loaded. How the hooks are
called is in `cltk.hosts.callback`, how extra losses are scaled in `cltk.hosts.scale`, what is refused in `cltk.hosts.checks`.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer_utils import get_last_checkpoint

from cltk import tensors
from cltk.errors import InputError
from cltk.forward.causal import check_causal
from cltk.hosts import deepspeed
from cltk.hosts.callback import Ending, MitigatorCallback
from cltk.hosts.checks import check_host, check_rates, check_schedule
from cltk.hosts.optimizer import scale_rates, schedule_rates
from cltk.hosts.order import check_in_place, check_order, extra_loss, finishing, listed, overrides
from cltk.hosts.resume import STATE_FILE, check_weights
from cltk.mitigate.interface import Mitigator, Plan

__all__ = ["STATE_FILE", "MitigatorCallback", "attach", "check_order", "extra_loss", "finishing", "overrides"]


def attach(trainer: Any, mitigators: Sequence[Mitigator], *, cache: Path | None = None) -> Any:
    """Attach `mitigators` to a transformers `Trainer`, a TRL `SFTTrainer`, or a subclass of either.

    Call it once, after the trainer is made and before `trainer.train()`; the list's order is the order of application.
    An empty list leaves the trainer untouched, bit for bit. The trainer gets its own copy of the TrainingArguments: what the
    methods change in them (steps, rates, clipping) is not seen by the next trainer made from the same ones. `requires_grad`
    and the model's hooks are after training, an exception or an interrupt as they were before `attach`.

    Args:
        trainer: the trainer; its model, data and arguments may be edited by the mitigators.
        mitigators: for example `[Replay("brown.txt", 0.05), EWC(100, {"memory": "brown.txt", "samples": 500})]`.
        cache: a folder in which methods keep what other runs with the same inputs can reuse (a Fisher).

    Returns:
        The same trainer.

    Raises:
        InputError: something in the list is not a mitigator, a method's input is wrong, or this trainer cannot run it: it has
            a model_init, several GPUs without DDP, an optimizer of its own beside methods that change rates or add
            parameters, an optimizer that steps inside backward, ... In training, before a weight changes: a loss whose scale
            is not known beside a method that adds one, or a checkpoint of other methods.
    """
    mitigators = listed(mitigators)
    if not mitigators:
        return trainer
    if any(isinstance(callback, MitigatorCallback) for callback in trainer.callback_handler.callbacks):
        raise InputError("attach: this trainer has mitigators already; pass all of them in one list")
    check_host(trainer, mitigators)
    check_in_place(mitigators, trainer.model.parameters())
    before = _flags(trainer.model)
    given, trainer.args = trainer.args, copy.copy(trainer.args)
    plan = Plan(trainer.model, trainer.train_dataset, trainer.args, _tokenizer(trainer), trainer.eval_dataset, cache=cache)
    try:
        _set_up(trainer, mitigators, plan)
        if plan.lr_scales or trainer.args.learning_rate != given.learning_rate:
            scale_rates(trainer, plan, given.learning_rate)
        if plan.schedule:
            schedule_rates(trainer, plan.schedule)
    except BaseException:
        trainer.args = given
        unload: Any = getattr(plan.model, "unload", None)
        if plan.model is not trainer.model and unload is not None:
            unload()  # adapters stand in the model itself
        _set(before, trainer.model)
        raise
    if plan.model is not trainer.model:
        trainer.model = trainer.model_wrapped = plan.model
    trainer.train_dataset = plan.data
    callback = MitigatorCallback(trainer, mitigators, plan)
    trainer.add_callback(callback)
    trainer.callback_handler.callbacks.insert(0, Ending(callback))
    _wrap(trainer, callback, before)
    trainer.cltk_plan = plan
    return trainer


def _tokenizer(trainer: Any) -> Any:
    """The trainer's; with the template that TRL has put in the place of its own for `assistant_only_loss`."""
    template = getattr(trainer, "chat_template", None)
    if not isinstance(template, str):
        return trainer.processing_class
    own = copy.copy(trainer.processing_class)
    own.chat_template = template
    return own


def _set_up(trainer: Any, mitigators: Sequence[Mitigator], plan: Plan) -> None:
    with deepspeed.whole(trainer.model):
        for mitigator in mitigators:
            if overrides(mitigator, "loss"):
                check_causal(plan.model, type(mitigator).__name__)
            rate, scales, schedule = plan.args.learning_rate, len(plan.lr_scales), plan.schedule
            mitigator.setup(plan)
            if plan.args.learning_rate != rate or len(plan.lr_scales) > scales:
                check_rates(trainer, type(mitigator).__name__)
            if plan.schedule is not schedule:
                check_schedule(trainer, type(mitigator).__name__)


Flags = list[tuple[str, weakref.ref[nn.Parameter], bool]]


def _flags(model: nn.Module) -> Flags:
    """requires_grad of every parameter, by name too: FSDP2 puts others in their places, and the whole ones must be freed."""
    return [(tensors.clean(name), weakref.ref(p), p.requires_grad) for name, p in model.named_parameters()]


def _set(flags: Flags, model: nn.Module) -> None:
    for _, reference, flag in flags:
        if (there := reference()) is not None:
            there.requires_grad_(flag)
    named = {name: flag for name, _, flag in flags}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(named.get(tensors.clean(name), parameter.requires_grad))


def _wrap(trainer: Any, callback: MitigatorCallback, before: Flags) -> None:
    """What no event gives: the beginning and every end of train(), and a log line before the loggers see it.

    Args:
        before: requires_grad as the caller had it; what the methods made of it holds while training runs.
    """
    train, log, during = trainer.train, trainer.log, _flags(trainer.model)

    def train_and_put_back(resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kw: Any) -> Any:
        callback.check_again()
        resume = resume_from_checkpoint
        callback.checkpoint = get_last_checkpoint(trainer.args.output_dir) if resume is True else (resume or None)
        callback.trial = trial
        if callback.checkpoint:
            check_weights(Path(callback.checkpoint), callback.mitigators, trainer.model)
        _set(during, trainer.model)
        try:
            return train(resume_from_checkpoint, trial, *args, **kw)
        finally:
            callback.clear()
            _set(before, trainer.model)

    def log_with_metrics(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        extra: dict[str, float] = {}
        if callback.current is not None and "loss" in logs:  # each number once, in the line after it was taken
            extra, callback.current.metrics = callback.current.metrics, {}
        log({**logs, **extra}, *args, **kwargs)

    trainer.train, trainer.log = train_and_put_back, log_with_metrics
