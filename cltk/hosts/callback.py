"""The hooks of the methods, called from inside a transformers Trainer.

Trainer clips before `on_pre_optimizer_step`, so a gradient added there would escape clipping. With methods that touch
gradients, clipping moves behind them: `max_grad_norm` is 0 in the trainer's own copy of the arguments, and the callback clips.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from cltk import tensors
from cltk.errors import InputError
from cltk.hosts import deepspeed, resume
from cltk.hosts.order import finishing, overrides
from cltk.hosts.scale import ExtraLosses
from cltk.mitigate.interface import Mitigator, Plan, Run

COUNTERS = ("_metrics", "_total_train_tokens")  # what TRL counts in every training_step


class MitigatorCallback(TrainerCallback):
    """Calls the hooks of the mitigators, in the list's order, from inside a Trainer."""

    def __init__(self, trainer: Any, mitigators: Sequence[Mitigator], plan: Plan) -> None:
        self.trainer, self.mitigators, self.plan = trainer, list(mitigators), plan
        self.clip = 0.0
        self.lookers = [m for m in self.mitigators if overrides(m, "look")]
        self.editors = [] if deepspeed.active(trainer) else self.mitigators  # of gradients and weights, step by step
        if any(overrides(m, "grad") for m in self.editors):
            self.clip, trainer.args.max_grad_norm = float(trainer.args.max_grad_norm or 0.0), 0.0
        self.checkpoint: str | None = None
        self.trial: Any = None
        self.handles: list[Any] = []
        self.batches: list[tuple[Any, dict[str, Any], Any]] = []  # of this step, when a method repeats them
        self.current: Run | None = None
        self.merged = self.skips = False
        self.losses = ExtraLosses(trainer, [m for m in mitigators if overrides(m, "loss")])
        self.training_step = trainer.training_step
        if self.losses.terms or any(m.repeats for m in mitigators):
            trainer.training_step = self._step

    def run(self) -> Run:
        """The running state, refreshed: the same object all through one training."""
        trainer, state = self.trainer, self.trainer.state
        if self.current is None:
            self.current = Run(trainer.model, trainer.model_wrapped, optimizer=trainer.optimizer, repeat=self.repeat)
            self.current.line = self._line
        self.current.model, self.current.forward = trainer.model, trainer.model_wrapped
        self.current.step, self.current.max_steps = state.global_step, state.max_steps
        return self.current

    def clear(self) -> None:
        """Nothing of a training is left on the model or here: after its end, and after an interruption."""
        for handle in self.handles:
            handle.remove()
        self.handles, self.batches = [], []
        self.losses.remove()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.clear()  # auto_find_batch_size begins again after an error
        self.current = None
        self.plan.notes.pop("stopped", None)
        run = self.run()
        for mitigator in self.mitigators:
            mitigator.start(run)
        if self.checkpoint:
            self._load(run, Path(self.checkpoint))
        self._look(run)
        if deepspeed.active(self.trainer):
            for mitigator in filter(deepspeed.hooked, self.mitigators):
                self.handles += deepspeed.pull(mitigator, self._factor)  # type: ignore[arg-type]
        if self.losses.terms:
            self.losses.hook(self.trainer.accelerator.unwrap_model(run.model))

    def _step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        if any(m.repeats for m in self.mitigators):
            self.batches.append((model, dict(inputs), num_items_in_batch))
        return self._forward_backward(model, inputs, num_items_in_batch)

    def _forward_backward(self, model: Any, inputs: dict[str, Any], items: Any) -> Tensor:
        self.losses.begin(inputs, items)
        loss = self.training_step(model, inputs, items)
        self.losses.end()
        return loss

    def _factor(self) -> float:
        """1 / accumulation, times the loss scale of fp16 training."""
        return self.losses.loss_scale() / self.losses.accumulation()

    def repeat(self) -> None:
        """The step's micro-batches again: their gradient, extra losses and all, added to p.grad (unscaled in fp16)."""
        kept = {name: copy.deepcopy(getattr(self.trainer, name)) for name in COUNTERS if hasattr(self.trainer, name)}
        self.losses.suspended = False
        try:
            with torch.enable_grad():
                for model, inputs, items in self.batches:
                    self._forward_backward(model, dict(inputs), items)
        finally:
            self.losses.suspended = True
            for name, value in kept.items():
                setattr(self.trainer, name, value)
        if (scale := self.losses.loss_scale()) != 1:
            for parameter in self.trainer.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(scale)

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        run = self.run()
        if run.stopped:  # resumed behind its end: Trainer takes one step all the same
            for parameter in run.model.parameters():
                parameter.grad = None
            return
        run.scale = self.losses.loss_scale()
        self.skips = not self._edit(run)
        self.batches.clear()
        if self.clip > 0 and not self.skips:
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), self.clip)

    def _edit(self, run: Run) -> bool:
        """The methods' work on the gradient; False where an overflow of fp16 ends it: the step is skipped, unseen by them.

        accelerate does not tell of a skipped step when the optimizer is fused, which is transformers' default.
        """
        scaler = getattr(self.trainer.accelerator, "scaler", None) if self.editors else None
        if scaler is not None and not finite(run.model):
            return False
        self.losses.suspended = True
        try:
            for mitigator in self.editors:
                mitigator.grad(run)
                if scaler is not None and overrides(mitigator, "grad") and not finite(run.model):
                    skip_step(scaler, self.trainer.optimizer)  # it looked for an overflow before the methods
                    return False
        finally:
            self.losses.suspended = False
        return True

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        run = self.run()
        run.step += 1  # Trainer counts the step after this event
        if run.stopped or self.skips or self.trainer.accelerator.optimizer_step_was_skipped:
            return
        self.losses.suspended = True
        try:
            for mitigator in self.editors:
                mitigator.step(run)
        finally:
            self.losses.suspended = False

    def _line(self, line: dict[str, float]) -> None:
        """A line of the trainer's log, by transformers' own `log`: TRL's takes the running means of the next line with it."""
        due = self.trainer.control.should_log  # on_log takes it back, and the loss of this step would never be logged
        Trainer.log(self.trainer, dict(line))
        self.trainer.control.should_log = due

    @torch.no_grad()
    def _look(self, run: Run) -> None:
        self.losses.suspended = True
        try:
            for mitigator in self.lookers:
                mitigator.look(run)
        finally:
            self.losses.suspended = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.current is not None and self.lookers and not self.current.stopped:
            self._look(self.run())
        if self.current is not None and self.current.stopped:
            self.plan.notes.setdefault("stopped", {"step": state.global_step, "reason": self.current.stopped})
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        metrics = dict(self.current.metrics) if self.current is not None else {}
        rest = {"metrics": metrics, "stopped": self.plan.notes.get("stopped", {}), "writes": state.is_world_process_zero}
        folder = Path(self.trainer._get_output_dir(trial=self.trial)) / f"checkpoint-{state.global_step}"
        resume.save(folder, self.mitigators, rest)

    def _load(self, run: Run, folder: Path) -> None:
        rest = resume.load(folder, self.mitigators)
        run.metrics.update(rest.get("metrics", {}))
        if stopped := rest.get("stopped"):
            self.plan.notes["stopped"] = stopped
            run.stop(stopped["reason"])

    @torch.no_grad()
    def end(self) -> None:
        """Training is over: the methods' last work on the weights."""
        self.clear()
        run = self.run()
        with deepspeed.whole(run.model, edit=True):
            for mitigator in finishing(self.mitigators):
                mitigator.finish(run)
        if run.model is not self.trainer.model:  # merged adapters: a plain model again
            self.trainer.model = self.trainer.model_wrapped = self.trainer.callback_handler.model = run.model
            self.merged = True
        run.ended = True
        self._look(run)

    def check_again(self) -> None:
        """Before another train(). Raises InputError: the adapters are merged, and the optimizer holds them still."""
        if self.merged:
            name = next((type(m).__name__ for m in self.mitigators if m.wraps or m.averages), "attach")
            raise InputError(
                f"{name}: its adapters were merged when this trainer's first training ended; make a new trainer, and attach"
                " again"
            )


class Ending(TrainerCallback):
    """Ends the methods before anybody else hears of it: loggers close their runs, and upload weights, when training ends."""

    def __init__(self, callback: MitigatorCallback) -> None:
        self.callback = callback

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.callback.end()


def finite(model: nn.Module) -> bool:
    """Whether every gradient is finite, on all ranks that share it."""
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())
    return bool(tensors.whole(norm).isfinite())


def skip_step(scaler: Any, optimizer: Any) -> None:
    """Let the scaler find an overflow in the step to come: it does not look at unscaled gradients again."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    for found in scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values():
        found.fill_(1.0)
