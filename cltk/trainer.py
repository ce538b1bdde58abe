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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from cltk import tensors
from cltk.errors import InputError
from cltk.mitigate.interface import Mitigator, Plan, Run

STATE_FILE = "cltk.safetensors"


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
        if any(overrides(m, "grad") for m in mitigators):
            self.clip, trainer.args.max_grad_norm = float(trainer.args.max_grad_norm or 0.0), 0.0
        self.checkpoint: str | None = None
        self.busy = False
        self.handles: list[Any] = []
        self.inputs: dict[str, Tensor] = {}
        self.current: Run | None = None

    def run(self) -> Run:
        """The running state, refreshed: the same object all through one training."""
        trainer, state = self.trainer, self.trainer.state
        if self.current is None:
            self.current = Run(trainer.model, trainer.model_wrapped, optimizer=trainer.optimizer)
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
        terms = [m for m in self.mitigators if overrides(m, "loss")]
        if terms:
            self._hook(self.trainer.accelerator.unwrap_model(run.model), terms)

    def _hook(self, model: Any, terms: list[Mitigator]) -> None:
        def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.busy:
                self.inputs = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}

        def tie(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if self.busy or not (decoder.training and torch.is_grad_enabled()):
                return None
            self.busy = True
            try:
                hidden = output.last_hidden_state
                logits = model.get_output_embeddings()(hidden)
                extra = [value for m in terms if (value := m.loss(self.inputs, logits)) is not None]
                if extra:
                    total = torch.stack([value.float() for value in extra]).sum()
                    output["last_hidden_state"] = _Tie.apply(hidden, total, self._scale(total))
            finally:
                self.busy = False
            return output

        self.handles = [
            model.register_forward_pre_hook(remember, with_kwargs=True),
            model.get_decoder().register_forward_hook(tie, with_kwargs=True, prepend=True),
        ]

    def _scale(self, loss: Tensor) -> Tensor:
        """1 / accumulation, times the loss scale of fp16 training."""
        trainer = self.trainer
        steps = getattr(trainer, "current_gradient_accumulation_steps", None) or trainer.args.gradient_accumulation_steps
        scaler = getattr(trainer.accelerator, "scaler", None)
        return torch.full_like(loss, (scaler.get_scale() if scaler is not None else 1.0) / steps)

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        run = self.run()
        self.busy = True  # extra passes of a mitigator carry no extra losses
        for mitigator in self.mitigators:
            mitigator.grad(run)
        self.busy = False
        if self.clip > 0:
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), self.clip)

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        run = self.run()
        run.step += 1  # Trainer counts the step after this event
        self.busy = True
        for mitigator in self.mitigators:
            mitigator.step(run)
        self.busy = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.current is not None and self.current.stopped:
            self.plan.notes.setdefault("stopped", {"step": state.global_step, "reason": self.current.stopped})
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        states = {str(i): m.state_dict() for i, m in enumerate(self.mitigators)}
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

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        run = self.run()
        for mitigator in self.mitigators:
            mitigator.finish(run)


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
    for mitigator in mitigators:
        if not isinstance(mitigator, Mitigator):
            raise InputError(f"attach: {mitigator!r} is not a mitigator; pass instances such as cltk.LowLR(0.1)")
        _check_engine(trainer, mitigator)
    if not mitigators:
        return trainer
    if any(isinstance(callback, MitigatorCallback) for callback in trainer.callback_handler.callbacks):
        raise InputError("attach: this trainer has mitigators already; pass all of them in one list")
    plan = Plan(trainer.model, trainer.train_dataset, trainer.args, trainer.processing_class, trainer.eval_dataset, cache=cache)
    for mitigator in mitigators:
        mitigator.setup(plan)
    if plan.model is not trainer.model:
        trainer.model = trainer.model_wrapped = plan.model
    trainer.train_dataset = plan.data
    if plan.lr_scales:
        _scale_rates(trainer, plan)
    callback = MitigatorCallback(trainer, mitigators, plan)
    trainer.add_callback(callback)
    _wrap(trainer, callback)
    trainer.cltk_plan = plan
    return trainer


def _check_engine(trainer: Any, mitigator: Mitigator) -> None:
    if getattr(trainer, "is_deepspeed_enabled", False) and any(overrides(mitigator, hook) for hook in ("grad", "step")):
        raise InputError(
            f"{type(mitigator).__name__}: DeepSpeed steps inside backward, so gradients and updates cannot be edited;"
            " use DDP or FSDP2 (accelerate's fsdp_version: 2) for this method"
        )


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
