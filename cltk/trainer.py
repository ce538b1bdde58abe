"""attach(trainer, mitigators): the only file that knows transformers' Trainer and its callbacks.

Why each part is as it is:
- Trainer clips before `on_pre_optimizer_step`, so a gradient added there would escape clipping. With mitigators that
  touch gradients, clipping moves behind them: `max_grad_norm` is set to 0 and the callback clips.
- Callbacks see neither inputs nor loss. An extra loss is tied to the decoder's last hidden state by an identity whose
  backward also back-propagates the extra loss (the auxiliary-loss trick of mixture-of-experts models). This works
  for Trainer, SFTTrainer, subclasses that override compute_loss, and peft models alike.
- The anchor of a quadratic penalty is the start model: `setup` runs at attach, before a checkpoint is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from cltk import deepspeed, tensors
from cltk.errors import InputError
from cltk.mitigate.interface import Mitigator, Plan, Run, counted
from cltk.probe import head_logits

STATE_FILE = "cltk.safetensors"


def extra_loss(terms: Sequence[Mitigator], inputs: dict[str, Any], logits_NV: Tensor) -> Tensor | None:
    """The sum of the methods' extra losses in float32; None when none has one for this micro-batch."""
    found = [value.float() for m in terms if (value := m.loss(inputs, logits_NV)) is not None]
    return torch.stack(found).sum() if found else None


def check_order(mitigators: Sequence[Mitigator]) -> None:
    """Raises InputError: something is no mitigator, cannot stand twice, or replaces a gradient that one before it edits."""
    edited = ""
    seen: set[str] = set()
    for mitigator in mitigators:
        if not isinstance(mitigator, Mitigator):
            raise InputError(f"attach: {mitigator!r} is not a mitigator; pass instances such as cltk.LowLR(0.1)")
        name = type(mitigator).__name__
        if name in seen and (mitigator.once or mitigator.wraps or mitigator.repeats):
            raise InputError(f"{name} stands twice in the list, and the second would undo the first; give it once")
        seen.add(name)
        if mitigator.repeats and edited:
            raise InputError(f"{name} replaces the gradient, so what {edited} added to it would be lost; put {name} before it")
        if overrides(mitigator, "grad"):
            edited = edited or name


def finishing(mitigators: Sequence[Mitigator]) -> list[Mitigator]:
    """The order in which training ends: the list's; then those that wrapped the model, the last first; then averages of it."""
    rest = [m for m in mitigators if not m.wraps and not m.averages]
    return rest + [m for m in reversed(mitigators) if m.wraps] + [m for m in mitigators if m.averages]


class _Tie(torch.autograd.Function):
    """Identity on `hidden`; its backward also sends `scale` into `loss`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (scale,) = ctx.saved_tensors
        return grads[0], scale, None


def overrides(mitigator: Mitigator, hook: str) -> bool:
    """Whether this method does anything in `hook`."""
    return getattr(type(mitigator), hook) is not getattr(Mitigator, hook)


class MitigatorCallback(TrainerCallback):
    """Calls the hooks of the mitigators, in the list's order, from inside a Trainer."""

    def __init__(self, trainer: Any, mitigators: Sequence[Mitigator], plan: Plan) -> None:
        self.trainer, self.mitigators, self.plan = trainer, list(mitigators), plan
        self.clip = 0.0
        self.editors = [] if deepspeed.active(trainer) else self.mitigators  # of gradients and weights, step by step
        if any(overrides(m, "grad") for m in self.editors):
            self.clip, trainer.args.max_grad_norm = float(trainer.args.max_grad_norm or 0.0), 0.0
        self.checkpoint: str | None = None
        self.busy = False
        self.handles: list[Any] = []
        self.inputs: dict[str, Any] = {}
        self.batches: list[tuple[Any, dict[str, Any], Any]] = []  # of this step, when a method repeats them
        self.current: Run | None = None
        self.training_step = trainer.training_step
        if any(m.repeats for m in mitigators):
            trainer.training_step = self._remember_batch

    def run(self) -> Run:
        """The running state, refreshed: the same object all through one training."""
        trainer, state = self.trainer, self.trainer.state
        if self.current is None:
            self.current = Run(trainer.model, trainer.model_wrapped, optimizer=trainer.optimizer, repeat=self.repeat)
        self.current.model, self.current.forward = trainer.model, trainer.model_wrapped
        self.current.step, self.current.max_steps = state.global_step, state.max_steps
        return self.current

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.current = None
        run = self.run()
        for mitigator in self.mitigators:
            mitigator.start(run)
        if self.checkpoint:
            self._load(Path(self.checkpoint))
        if deepspeed.active(self.trainer):
            for mitigator in filter(deepspeed.hooked, self.mitigators):
                self.handles += deepspeed.pull(mitigator, self._factor)  # type: ignore[arg-type]
        terms = [m for m in self.mitigators if overrides(m, "loss")]
        if terms:
            self._hook(self.trainer.accelerator.unwrap_model(run.model), terms)

    def _remember_batch(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self.batches.append((model, dict(inputs), num_items_in_batch))
        return self.training_step(model, inputs, num_items_in_batch)

    def _hook(self, model: Any, terms: list[Mitigator]) -> None:
        def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.busy:
                self.inputs = {name: value for name, value in kwargs.items() if isinstance(value, Tensor | int)}

        def tie(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if self.busy or not (decoder.training and torch.is_grad_enabled()):
                return None
            self.busy = True
            try:
                hidden = output.last_hidden_state
                where = counted(self.inputs)
                inputs = {**self.inputs, "divisor": self._divisor(where)}
                extra = extra_loss(terms, inputs, head_logits(model, hidden[where]))
                if extra is not None:
                    output["last_hidden_state"] = _Tie.apply(hidden, extra, self._scale(extra))
            finally:
                self.busy = False
            return output

        self.handles += [
            model.register_forward_pre_hook(remember, with_kwargs=True),
            model.get_decoder().register_forward_hook(tie, with_kwargs=True, prepend=True),
        ]

    def _scale(self, loss: Tensor) -> Tensor:
        """1 / accumulation, times the loss scale of fp16 training."""
        return torch.full_like(loss, self._factor())

    def _factor(self) -> float:
        return self._loss_scale() / self._accumulation()

    def _accumulation(self) -> int:
        trainer = self.trainer
        return getattr(trainer, "current_gradient_accumulation_steps", None) or trainer.args.gradient_accumulation_steps

    def _loss_scale(self) -> float:
        if deepspeed.active(self.trainer):
            return deepspeed.loss_scale(self.trainer)
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        return scaler.get_scale() if scaler is not None else 1.0

    def _divisor(self, where: Tensor) -> Any:
        """D such that a token sum / D, scaled by `_scale`, weighs each token as the trainer's loss does.

        That loss is sum / items * ranks where the trainer counted the items of all micro-batches on all ranks; else the
        mean of the micro-batch / accumulation.
        """
        items = self.inputs.get("num_items_in_batch")
        if items is None:
            return where.sum().clamp(min=1)
        ranks = self.trainer.accelerator.num_processes if self.trainer.args.average_tokens_across_devices else 1
        return items / (self._accumulation() * ranks)

    def repeat(self) -> None:
        """The step's micro-batches again: their gradient, extra losses and all, added to p.grad (unscaled in fp16)."""
        self.busy, batches = False, list(self.batches)
        with torch.enable_grad():
            for model, inputs, items in batches:
                self.training_step(model, dict(inputs), items)
        self.busy = True
        if (scale := self._loss_scale()) != 1:
            for parameter in self.trainer.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(scale)

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        run = self.run()
        self.busy = True  # extra passes of a mitigator carry no extra losses
        for mitigator in self.editors:
            mitigator.grad(run)
        self.busy = False
        self.batches.clear()
        if self.clip > 0:
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), self.clip)

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        run = self.run()
        run.step += 1  # Trainer counts the step after this event
        self.busy = True
        for mitigator in self.editors:
            mitigator.step(run)
        self.busy = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.current is not None and self.current.stopped:
            self.plan.notes.setdefault("stopped", {"step": state.global_step, "reason": self.current.stopped})
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        states: dict[str, Any] = {str(i): m.state_dict() for i, m in enumerate(self.mitigators)}
        states["metrics"] = dict(self.current.metrics) if self.current is not None else {}
        states["stopped"] = self.plan.notes.get("stopped", {})
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if any(states.values()) and state.is_world_process_zero and folder.is_dir():
            tensors.save_tree(folder / STATE_FILE, states)

    def _load(self, folder: Path) -> None:
        if not (folder / STATE_FILE).exists():
            return
        states = tensors.load_tree(folder / STATE_FILE)
        for i, mitigator in enumerate(self.mitigators):
            if state := states.get(str(i)):
                mitigator.load_state_dict(state)
        if self.current is not None:
            self.current.metrics.update(states.get("metrics", {}))
        if stopped := states.get("stopped"):
            self.plan.notes["stopped"] = stopped

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        run = self.run()
        with deepspeed.whole(run.model, edit=True):
            for mitigator in finishing(self.mitigators):
                mitigator.finish(run)
        if run.model is not self.trainer.model:  # merged adapters: a plain model again
            self.trainer.model = self.trainer.model_wrapped = run.model


def attach(trainer: Any, mitigators: Sequence[Mitigator], *, cache: Path | None = None) -> Any:
    """Attach `mitigators` to a transformers `Trainer`, a TRL `SFTTrainer`, or a subclass of either.

    Call it once, after the trainer is made and before `trainer.train()`; the list's order is the order of application.
    An empty list leaves the trainer untouched, bit for bit.

    Args:
        trainer: the trainer; its model, data and arguments may be edited by the mitigators.
        mitigators: for example `[Replay("brown.txt", 0.05), EWC(100, {"memory": "brown.txt", "samples": 500})]`.
        cache: a folder in which methods keep what other runs with the same inputs can reuse (a Fisher).

    Returns:
        The same trainer.

    Raises:
        InputError: something in the list is not a mitigator, a method's input is wrong, or the engine cannot run it.
    """
    check_order(mitigators)
    for mitigator in mitigators if deepspeed.active(trainer) else ():
        deepspeed.check(mitigator)
    for mitigator in mitigators if trainer.args.torch_compile else ():
        if overrides(mitigator, "loss"):
            raise InputError(
                f"{type(mitigator).__name__}: its loss is tied to the hidden states by hooks, which a compiled model does"
                " not call; train without torch_compile, or in a loop of your own with cltk.session"
            )
    if not mitigators:
        return trainer
    if any(isinstance(callback, MitigatorCallback) for callback in trainer.callback_handler.callbacks):
        raise InputError("attach: this trainer has mitigators already; pass all of them in one list")
    plan = Plan(trainer.model, trainer.train_dataset, trainer.args, trainer.processing_class, trainer.eval_dataset, cache=cache)
    with deepspeed.whole(trainer.model):
        for mitigator in mitigators:
            mitigator.setup(plan)
    if plan.model is not trainer.model:
        trainer.model = trainer.model_wrapped = plan.model
    trainer.train_dataset = plan.data
    if plan.lr_scales:
        _scale_rates(trainer, plan)
    if plan.schedule:
        _schedule(trainer, plan.schedule)
    callback = MitigatorCallback(trainer, mitigators, plan)
    trainer.add_callback(callback)
    _wrap(trainer, callback)
    trainer.cltk_plan = plan
    return trainer


def _scale_rates(trainer: Any, plan: Plan) -> None:
    """Parameter groups by (rate factor, decayed or not); how Trainer makes groups, with a factor on the rate."""
    cls, kwargs = trainer.get_optimizer_cls_and_kwargs(trainer.args, plan.model)
    decayed = set(trainer.get_decay_parameter_names(plan.model))
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in plan.model.named_parameters():
        if parameter.requires_grad:
            factor = math.prod(scale(tensors.clean(name)) for scale in plan.lr_scales)
            groups.setdefault((factor, name in decayed), []).append(parameter)
    params = [
        {"params": ps, "lr": kwargs["lr"] * factor, "weight_decay": trainer.args.weight_decay if decay else 0.0}
        for (factor, decay), ps in groups.items()
    ]
    trainer.optimizer_cls_and_kwargs = (cls, {**kwargs, "params": params})


def _schedule(trainer: Any, factor: Callable[[int, int], float]) -> None:
    """The method's schedule in place of `lr_scheduler_type`."""

    def create_scheduler(num_training_steps: int, optimizer: Any = None) -> Any:
        chosen = trainer.optimizer if optimizer is None else optimizer
        rule = partial(lambda steps, step: factor(step, steps), num_training_steps)
        trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, rule)
        return trainer.lr_scheduler

    trainer.create_scheduler = create_scheduler


def _wrap(trainer: Any, callback: MitigatorCallback) -> None:
    """Two things no event gives: which checkpoint is resumed, and a log line before the loggers see it."""
    train, log = trainer.train, trainer.log

    def train_and_remember(resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        resume = resume_from_checkpoint
        callback.checkpoint = get_last_checkpoint(trainer.args.output_dir) if resume is True else (resume or None)
        return train(resume_from_checkpoint, *args, **kwargs)

    def log_with_metrics(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        extra = callback.current.metrics if callback.current is not None and "loss" in logs else {}
        log({**logs, **extra}, *args, **kwargs)

    trainer.train, trainer.log = train_and_remember, log_with_metrics
