"""Distillation from the start model: KL and LwF. Shapes: B rows, T tokens, N counted positions, V vocabulary."""

from __future__ import annotations

import copy
import os
from typing import Any, Literal

import torch
from torch import Tensor

from cltk.data.memories import text_rows
from cltk.errors import InputError
from cltk.forward.causal import check_causal, inherit, logits_at
from cltk.forward.loss import kl_divergence
from cltk.forward.positions import check_length
from cltk.mitigate.interface import Mitigator, Plan, Run, counted
from cltk.mitigate.memory import (
    MemoryBatches,
    add_gradient,
    check_memory,
    check_number,
    forward_logits,
    frozen,
    old_rows,
)  # fmt: skip

LOG_EVERY = 10  # steps


class Reference:
    """The start model's logits: from a frozen copy; where only new peft adapters are trained, from the model without them.

    `shared` says which. Adapters that already change the logits belong to the start model: then it is a copy, too.
    """

    @classmethod
    def of(cls, plan: Plan) -> Reference:
        """The one of this training: methods of one list share it."""
        if plan.reference is None:
            plan.reference = cls(plan)
        found: Reference = plan.reference
        return found

    def __init__(self, plan: Plan) -> None:
        self.model = plan.model
        self.shared = _starts_without_adapters(plan.model)
        if not self.shared:
            self.model = copy.deepcopy(plan.model).eval().requires_grad_(False)
            model: Any = self.model
            top = model.get_base_model() if hasattr(model, "get_base_model") else model
            if not hasattr(top, "_hf_hook"):  # TRL's own forward calls the model that it was made for, which trains
                vars(top).pop("forward", None)
            inherit(plan.model, self.model)

    def place(self, run: Run) -> None:
        """To the device of the running model."""
        if not self.shared:
            self.model.to(next(run.model.parameters()).device)

    def logits(self, inputs: dict[str, Tensor], where_BT: Tensor) -> Tensor:
        """Logits [N, V] at the positions `where_BT`, without gradients and dropout."""
        if not self.shared:
            with torch.no_grad():
                return logits_at(self.model, inputs, where_BT)
        with frozen(self.model), self.model.disable_adapter():  # type: ignore[operator]
            return logits_at(self.model, inputs, where_BT)


def _starts_without_adapters(model: Any) -> bool:
    """Whether all that is trained are peft adapters, and they still change nothing. Not under FSDP, which re-wraps layers."""
    if not hasattr(model, "disable_adapter") or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true"):
        return False
    ids = torch.arange(min(16, model.config.get_text_config().vocab_size), device=next(model.parameters()).device)[None]
    with frozen(model):
        found = model(input_ids=ids, use_cache=False).logits
        with model.disable_adapter():
            if any(parameter.requires_grad for parameter in model.parameters()):
                return False
            return torch.equal(found, model(input_ids=ids, use_cache=False).logits)


class KL(Mitigator):
    """Keep the output distribution near the start model's.

        L + strength * mean_t T² KL(p_start(. | x_<t) || p(. | x_<t))

    over the counted tokens of the new task's own inputs, all of a step weighing the same as in the trainer's loss; with
    `memory` over those of old text instead, with `prompts` over every token of generic prompts, the last (where the answer
    begins) included: then one batch an optimiser step and rank in a pass of its own. Costs one more forward pass, and a
    frozen copy of the model (none beside new adapters).

    Args:
        strength: beta, 0.1 to 0.5 in the field; 0 changes nothing.
        direction: "forward" (start || model; covers what the start model says) or "reverse".
        temperature: T; both distributions are softened and the loss multiplied by T².
        memory: old-domain text or token rows (see `cltk.data.memory_rows`).
        prompts: texts, each a row of its own, or token rows. Not together with `memory`.
        batch_size: rows of memory or prompts a step and rank; the trainer's per-device batch size when not given.
        length: tokens of a row of memory, at most of a prompt.
        seed: of the rows' order.

    Raises:
        InputError: negative strength, temperature not above 0, an unknown direction, both memory and prompts, or an empty one.

    Source: Li & Hoiem 2016 (arXiv 1606.09282), Learning without Forgetting.
    """

    name = "kl"

    def __init__(
        self, strength: float, *, direction: Literal["forward", "reverse"] = "forward", temperature: float = 1.0,
        memory: Any = None, prompts: Any = None, batch_size: int | None = None, length: int = 256, seed: int = 0,
    ) -> None:  # fmt: skip
        check_number(f"{self.name}.strength", strength)
        check_number(f"{self.name}.temperature", temperature)
        if temperature == 0 or direction not in ("forward", "reverse"):
            raise InputError(
                f"{self.name}: temperature must be above 0, direction forward or reverse; got {temperature}, {direction!r}"
            )
        if memory is not None and prompts is not None:
            raise InputError(f"{self.name}: give memory or prompts, not both; the KL is taken in one place")
        for given in (memory, prompts):
            if given is not None:
                check_memory(self.name, given)
        self.strength, self.direction, self.temperature = strength, direction, temperature
        self.memory, self.prompts = memory, prompts
        self.batch_size, self.length, self.seed = batch_size, length, seed
        self.reference: Reference | None = None
        self.batches: MemoryBatches | None = None
        self.last: Tensor | float | None = None

    def setup(self, plan: Plan) -> None:
        if not self.strength:
            return
        check_causal(plan.model, self.name, head=self.memory is None and self.prompts is None)
        self.reference = Reference.of(plan)
        rows = None
        if self.memory is not None:
            rows = old_rows(self.name, self.memory, plan, self.length)
        elif self.prompts is not None:
            prompts = text_rows(self.prompts, plan.tokenizer, self.length, f"{self.name}.prompts")
            rows = [{"input_ids": row["input_ids"]} for row in prompts]
            check_length(plan.model, rows, f"{self.name}.prompts", "give a smaller length")
        if rows is not None:
            size = plan.args.per_device_train_batch_size if self.batch_size is None else self.batch_size
            self.batches = MemoryBatches(rows, size, self.seed)
        place = "inputs" if rows is None else "memory" if self.prompts is None else "prompts"
        plan.notes[self.name] = {
            "strength": self.strength, "direction": self.direction, "temperature": self.temperature, "place": place,
            "reference": "model without adapters" if self.reference.shared else "copy",
        }  # fmt: skip

    def start(self, run: Run) -> None:
        if self.reference is not None:
            self.reference.place(run)

    def loss(self, inputs: dict[str, Tensor], logits_NV: Tensor) -> Tensor | None:
        if self.reference is None or self.batches is not None or not len(logits_NV):
            return None
        value = self._divergence(logits_NV, self.reference.logits(inputs, counted(inputs)))
        self.last = value.detach()
        return self.strength * value * (len(logits_NV) / inputs["divisor"])

    def grad(self, run: Run) -> None:
        if self.reference is None or self.batches is None:
            return
        batch = self.batches.of(run)
        where_BT = counted(batch) if self.prompts is None else batch["attention_mask"].bool()
        start_NV = self.reference.logits(batch, where_BT)
        extra = add_gradient(
            run, lambda: self.strength * self._divergence(forward_logits(run.forward, batch, where_BT), start_NV)
        )
        self.last = extra / self.strength

    def step(self, run: Run) -> None:
        if self.last is not None and run.step % LOG_EVERY == 0:
            run.log(self.name, float(self.last))

    def _divergence(self, logits_NV: Tensor, start_NV: Tensor) -> Tensor:
        return kl_divergence(logits_NV, start_NV, direction=self.direction, temperature=self.temperature)


class LwF(KL):
    """Learning without Forgetting for language models: forward KL to the start model on the new inputs, softened.

        L + strength * mean_t T² KL(p_start^(T) || p^(T)),   p^(T) = softmax(logits / T)

    The paper keeps the outputs of the old heads; a language model has one head for all tasks, so that this is KL with T = 2.

    Args:
        strength: lambda_o; 0 changes nothing. 1 in the paper.
        temperature: T; 2 in the paper.

    Raises:
        InputError: negative strength, or temperature not above 0.

    Source: Li & Hoiem 2016 (arXiv 1606.09282); the factor T² after Hinton et al. 2015 (arXiv 1503.02531).
    """

    name = "lwf"

    def __init__(self, strength: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__(strength, temperature=temperature)
