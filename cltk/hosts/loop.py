"""The same methods in a loop of your own: `session(model, optimizer, mitigators)`.

    with cltk.session(model, optimizer, [cltk.EWC(1.0, {"memory": "brown.txt"}), cltk.KL(0.1)]) as s:
        for batch in loader:
            out = model(**batch)
            (out.loss + s.loss(batch, out.logits)).backward()
            s.before_step()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            s.after_step()
            optimizer.zero_grad()

gives the weights that a transformers `Trainer` with `cltk.attach` gives. Behind the `with`, also after an exception,
requires_grad is as it was, and so are the groups and rates of an optimizer that was made before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from cltk import tensors
from cltk.errors import InputError, RunError
from cltk.forward.causal import check_causal
from cltk.hosts.optimizer import factors, rescale
from cltk.hosts.order import check_in_place, extra_loss, finishing, listed, overrides
from cltk.mitigate.interface import Mitigator, Plan, Run, counted

Optimizer = torch.optim.Optimizer
MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]


class Session:
    """Calls the hooks of the mitigators from a bare loop; made by `session`.

    Attributes:
        model, optimizer, data: what to train, with, and on: edited by the mitigators (adapters, rates, replayed rows).
        steps: how many steps to take, where `max_steps` was given (replay may add some).
        stopped: why training should end now; empty while it goes on.
        metrics: what the methods logged last (penalties, probes).
        notes: what each method decided.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | MakeOptimizer, mitigators: Sequence[Mitigator], plan: Plan):
        self.mitigators, self.plan = listed(mitigators), plan
        check_in_place(self.mitigators, plan.model.parameters())
        rate = plan.args.learning_rate
        self._flags = [(parameter, parameter.requires_grad) for parameter in plan.model.parameters()]
        self._groups, self._rescaled = _snapshot(optimizer) if isinstance(optimizer, Optimizer) else [], False
        try:
            for mitigator in self.mitigators:
                if overrides(mitigator, "loss"):
                    check_causal(plan.model, type(mitigator).__name__)
                mitigator.setup(plan)
            if isinstance(optimizer, Optimizer):
                self.optimizer = optimizer
                self._rescaled = _rescale(optimizer, plan, plan.args.learning_rate / rate if rate else 1.0, model)
            else:
                self.optimizer = optimizer(_groups(plan))
        except BaseException:
            self._leave()
            raise
        self.model, self.data, self.notes = plan.model, plan.data, plan.notes
        self.run = Run(self.model, self.model, max_steps=plan.args.max_steps, optimizer=self.optimizer)
        self.terms = [m for m in self.mitigators if overrides(m, "loss")]
        self.base_rates: list[float] = [group["lr"] for group in self.optimizer.param_groups]

    steps = property(lambda self: self.plan.args.max_steps)
    stopped = property(lambda self: self.run.stopped)
    metrics = property(lambda self: self.run.metrics)

    def __enter__(self) -> Session:
        try:
            for mitigator in self.mitigators:
                mitigator.start(self.run)
            self._each("look")
            self._schedule()
        except BaseException:  # then Python does not call __exit__
            self._leave()
            raise
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                with torch.no_grad():
                    for mitigator in finishing(self.mitigators):
                        mitigator.finish(self.run)
                self.model = self.run.model
                self.run.ended = True
                self._each("look")
        finally:
            self._leave()

    def _leave(self) -> None:
        """requires_grad and the rates as the caller had them."""
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        if self._rescaled:  # the next session with this optimizer begins at the caller's rates again
            self.optimizer.param_groups[:] = [group for group, _ in self._groups]
            for group, before in self._groups:
                group.pop("initial_lr", None)  # a scheduler made meanwhile leaves one
                group.update(before)

    def loss(
        self, batch: dict[str, Tensor], logits_BTV: Tensor, accumulation: int = 1, *, items: int | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """The methods' extra loss for this micro-batch, a scalar to add to yours: mean over counted tokens / accumulation.

        Args:
            batch: input_ids, labels, attention_mask or position_ids, all [B, T].
            logits_BTV: of the model under training.
            accumulation: micro-batches of an optimiser step, where your loss is the mean of each over `accumulation`.
            items: counted tokens of all micro-batches of the step, where your loss is a sum over tokens / items instead.
            label_smoothing: of your loss.
        """
        if not self.terms or not torch.is_grad_enabled():
            return logits_BTV.new_zeros(())
        where = counted(batch)
        count = where.sum().clamp(min=1)
        told = {"smoothing": label_smoothing} if label_smoothing else {}
        extra = extra_loss(self.terms, {**batch, **told, "divisor": count}, logits_BTV[where])
        if extra is None:
            return logits_BTV.new_zeros(())
        return extra / accumulation if items is None else extra * (count / items)

    def before_step(self, repeat: Callable[[], None] | None = None) -> None:
        """After backward, before clipping and `optimizer.step()`.

        Args:
            repeat: forward and backward of this step's micro-batches once more; for the methods that need a second
                gradient (SAM).
        """
        if repeat is None and (needs := [type(m).__name__ for m in self.mitigators if m.repeats]):
            raise InputError(
                f"{needs[0]} needs the gradient a second time: s.before_step(repeat=lambda: loss_of(batch).backward())"
            )
        self.run.repeat = None if repeat is None else torch.enable_grad()(repeat)
        self._each("grad")

    def after_step(self) -> None:
        """After `optimizer.step()`."""
        self.run.step += 1
        self._each("step")
        if not self.run.stopped:
            self._each("look")
        self._schedule()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the step and the methods' states, tensors, numbers and strings."""
        return {"step": self.run.step, **{str(i): m.state_dict() for i, m in enumerate(self.mitigators)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; inside the `with`, after the model's and the optimiser's states."""
        self.run.step = int(state["step"])
        for i, mitigator in enumerate(self.mitigators):
            if found := state.get(str(i)):
                mitigator.load_state_dict(found)
        self._schedule()

    @torch.no_grad()
    def _each(self, hook: str) -> None:
        for mitigator in self.mitigators:
            getattr(mitigator, hook)(self.run)

    def _schedule(self) -> None:
        """A method's own schedule of the rates, for the step to come."""
        if self.plan.schedule is None:
            return
        if self.run.max_steps <= 0:
            raise RunError("session: a method schedules the learning rate, which needs max_steps")
        factor = self.plan.schedule(self.run.step, self.run.max_steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor


def session(
    model: nn.Module, optimizer: Optimizer | MakeOptimizer, mitigators: Sequence[Mitigator], *, data: Any = None,
    validation: Any = None, tokenizer: Any = None, max_steps: int = 0, batch_size: int = 1, accumulation: int = 1,
    learning_rate: float | None = None, seed: int = 0, cache: Path | None = None,
) -> Session:  # fmt: skip
    """Mitigators in a bare PyTorch loop; see the top of this file. The list's order is the order of application.

    Args:
        model: a causal language model.
        optimizer: one over its parameters, made before; or a function from parameter groups to one, such as
            `lambda groups: torch.optim.AdamW(groups, lr=1e-4)`, which methods that add or freeze parameters need (LoRA).
        mitigators: for example `[cltk.Replay("brown.txt", 0.05), cltk.EWC(1.0, {"memory": "brown.txt"})]`.
        data, validation: token rows ({"input_ids", "labels"}) for the methods that edit the training data (read
            `s.data` back) or watch held-out rows.
        tokenizer: for memories given as text.
        max_steps, batch_size, accumulation: of the loop; for methods with a schedule, and replay's count of steps.
        learning_rate: the peak rate, where `optimizer` is a function; else that of the optimizer's first group.
        seed: of what methods draw at setup (adapters).
        cache: a folder for what other runs with the same inputs can reuse (a Fisher).

    Raises:
        InputError: a method's input is wrong, or it changes the parameters while the optimizer was made before.
    """
    if learning_rate is None:
        learning_rate = float(optimizer.param_groups[0]["lr"]) if isinstance(optimizer, Optimizer) else 0.0
    args = SimpleNamespace(
        learning_rate=learning_rate, max_steps=max_steps, per_device_train_batch_size=batch_size, num_train_epochs=1.0,
        gradient_accumulation_steps=accumulation, world_size=1, seed=seed,
    )  # fmt: skip
    return Session(model, optimizer, mitigators, Plan(model, data, args, tokenizer, validation, cache=cache))


def _groups(plan: Plan) -> list[dict[str, Any]]:
    """Parameter groups, one a rate; `lr` is set only where the session knows the rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    scales = factors(plan)
    for name, parameter in tensors.trainable(plan.model):
        groups.setdefault(scales[name], []).append(parameter)
    rate = plan.args.learning_rate
    if not rate and set(groups) != {1.0}:
        raise InputError("session: a method scales learning rates; give learning_rate")
    return [{"params": ps, **({"lr": rate * factor} if rate else {})} for factor, ps in groups.items()]


def _snapshot(optimizer: Optimizer) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every group, and what of it the methods' rates change."""
    kept = ("params", "lr", "initial_lr")
    return [(group, {key: group[key] for key in kept if key in group}) for group in optimizer.param_groups]


def _rescale(optimizer: Optimizer, plan: Plan, factor: float, model: nn.Module) -> bool:
    """The same parameters at the methods' rates: every group is split by factor. Whether any rate changes."""
    named, held = dict(tensors.trainable(plan.model)), {id(p) for group in optimizer.param_groups for p in group["params"]}
    if plan.model is not model or not {id(p) for p in named.values()} <= held:
        raise InputError(
            "session: a method adds parameters of its own, but the optimizer was made before; give a function instead,"
            " such as lambda groups: torch.optim.AdamW(groups, lr=1e-4)"
        )
    scales = {id(named[name]): factor * scale for name, scale in factors(plan).items()}
    changes = factor != 1 or plan.schedule is not None or any(scale != 1 for scale in scales.values())
    if changes and hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        raise InputError(
            "session: a method changes the learning rates, but a scheduler made before holds those of this optimizer; make the"
            " scheduler after session(...), from its `optimizer`"
        )
    if changes:
        rescale(optimizer, scales, factor)
    return changes
