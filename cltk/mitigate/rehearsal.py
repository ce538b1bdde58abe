"""Rehearsal as a second loss: ReplayLoss (PPO-ptx) and DER++. Old rows once an optimiser step, in a pass of their own.

Shapes: B rows, T tokens, N counted positions, K kept logits, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cltk.data.readers import Row
from cltk.data.rows import Collator
from cltk.errors import InputError
from cltk.forward.causal import logits_at
from cltk.forward.loss import squared_distance
from cltk.mitigate.distill import Reference
from cltk.mitigate.interface import Mitigator, Plan, Run, counted, targets
from cltk.mitigate.memory import (
    Batch,
    MemoryBatches,
    add_gradient,
    check_memory,
    check_number,
    forward_logits,
    frozen,
    memory_batches,
    token_losses,
)  # fmt: skip

LOG_EVERY = 10  # steps


class ReplayLoss(Mitigator):
    """Replay as a weighted loss of its own, the "pre-training mix" of InstructGPT (PPO-ptx):

        gradient = g_new + strength * g_old,   g_old = d/d theta of the mean NLL of the old batch's tokens

    One old batch of every rank an optimiser step, whatever the accumulation; under several ranks g_old is the mean of the
    ranks' means. The number of steps stays.

    Args:
        memory: old-domain text or token rows (see `cltk.data.memory_rows`).
        strength: gamma; 0 changes nothing. 0.1 to 1 beside supervised fine-tuning; InstructGPT used 27.8 beside PPO.
        batch_size: old rows a step and rank; the trainer's per-device batch size when not given.
        length: tokens of an old row, when the memory is text.
        seed: of the order of the old rows.

    Raises:
        InputError: a negative strength or an empty memory.

    Source: Ouyang et al. 2022 (arXiv 2203.02155), section 3.4 and appendix C.4.
    """

    def __init__(
        self, memory: Any, strength: float = 1.0, *, batch_size: int | None = None, length: int = 256, seed: int = 0
    ) -> None:
        check_number("replay_loss.strength", strength)
        check_memory("replay_loss", memory)
        self.memory, self.strength = memory, strength
        self.batch_size, self.length, self.seed = batch_size, length, seed
        self.batches: MemoryBatches | None = None

    def setup(self, plan: Plan) -> None:
        if self.strength:
            self.batches = memory_batches("replay_loss", self.memory, plan, self.batch_size, self.length, self.seed)
            plan.notes["replay_loss"] = {
                "strength": self.strength, "batch_size": self.batches.size, "old_rows": len(self.batches.rows),
            }  # fmt: skip

    def grad(self, run: Run) -> None:
        if self.batches is None:
            return
        batch = self.batches.of(run)
        value = add_gradient(run, lambda: self.strength * token_losses(run.forward, batch).mean())
        if run.step % LOG_EVERY == 0:
            run.log("replay_loss", value / self.strength)


def logit_distance(logits_NV: Tensor, start_NK: Tensor, kept_NK: Tensor | None = None) -> Tensor:
    """mean over the N positions and their K kept logits of (f - z)², in float32; all V logits where `kept_NK` is None."""
    return squared_distance(logits_NV if kept_NK is None else logits_NV.gather(-1, kept_NK), start_NK)


class DERPP(Mitigator):
    """Dark experience replay++: on old rows, stay near the start model's logits, and predict the text.

        L + alpha * mean_{n,k} (f_k(x_b)_n - z_nk)² + beta * CE(x_b, y_b)

    z are the start model's logits, n runs over the counted positions of the old batch, k over the `top_k` largest z_n
    (over the whole vocabulary with `top_k=None`); CE is the mean NLL of the same positions. The paper draws a second
    batch for the last term, and keeps z of the moment when a row was stored; here all rows are older than the training.

    Args:
        memory: old-domain text or token rows (see `cltk.data.memory_rows`).
        alpha: weight of the logits' distance. beta: weight of the old text's NLL. Both 0 change nothing.
        top_k: logits kept a position, 6 bytes each (float16 and int32, on the CPU), computed once at setup. None: a frozen
            copy of the model computes all of them again at every step.
        samples: old rows to keep, drawn by `seed`; None for all. With `top_k` each costs a forward pass at setup.
        batch_size: old rows a step and rank; the trainer's per-device batch size when not given.
        length: tokens of an old row, when the memory is text.
        seed: of the choice and the order of the old rows.

    Raises:
        InputError: negative weights, top_k or samples below 1, or an empty memory.

    Source: Buzzega et al. 2020 (arXiv 2004.07211).
    """

    def __init__(
        self, memory: Any, alpha: float = 0.5, beta: float = 0.5, *, top_k: int | None = 64, samples: int | None = 512,
        batch_size: int | None = None, length: int = 256, seed: int = 0,
    ) -> None:  # fmt: skip
        check_number("der_pp.alpha", alpha)
        check_number("der_pp.beta", beta)
        check_memory("der_pp", memory)
        for name, value in (("top_k", top_k), ("samples", samples)):
            if value is not None and value < 1:
                raise InputError(f"der_pp.{name}: must be at least 1, or null; got {value}")
        self.memory, self.alpha, self.beta, self.top_k, self.samples = memory, alpha, beta, top_k, samples
        self.batch_size, self.length, self.seed = batch_size, length, seed
        self.batches: MemoryBatches | None = None
        self.reference: Reference | None = None
        self.stored: list[tuple[Tensor, Tensor]] = []  # of each row: values [N, K], indices [N, K]

    def setup(self, plan: Plan) -> None:
        if not (self.alpha or self.beta):
            return
        every = memory_batches("der_pp", self.memory, plan, self.batch_size, self.length, self.seed)
        self.batches = MemoryBatches(self._drawn(every.rows), every.size, self.seed)
        if self.alpha and self.top_k is None:
            self.reference = Reference.of(plan)
        elif self.alpha and self.top_k is not None:
            self.stored = start_logits(plan.model, self.batches.rows, self.top_k, every.size)
        kept = sum(values.numel() for values, _ in self.stored)
        plan.notes["der_pp"] = {
            "alpha": self.alpha, "beta": self.beta, "top_k": self.top_k,
            "old_rows": len(self.batches.rows), "stored_bytes": 6 * kept,
        }  # fmt: skip

    def _drawn(self, rows: Sequence[Row]) -> Sequence[Row]:
        if self.samples is None or self.samples >= len(rows):
            return rows
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return [rows[i] for i in sorted(order[: self.samples])]

    def start(self, run: Run) -> None:
        if self.reference is not None:
            self.reference.place(run)

    def grad(self, run: Run) -> None:
        if self.batches is None:
            return
        batch = self.batches.of(run)
        parts: dict[str, Tensor] = {}

        def loss() -> Tensor:
            logits_NV = forward_logits(run.forward, batch, counted(batch))
            nll = F.cross_entropy(logits_NV.float(), targets(batch))
            far = logit_distance(logits_NV, *self._start(run, batch)) if self.alpha else nll.new_zeros(())
            parts.update(der_pp_logits=far.detach(), der_pp_nll=nll.detach())
            return self.alpha * far + self.beta * nll

        add_gradient(run, loss)
        if run.step % LOG_EVERY == 0:
            for name, value in parts.items():
                run.log(name, value.item())

    def _start(self, run: Run, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The start model's logits [N, K] of the running batch, and which [N, K] they are (None: all)."""
        if self.reference is not None:
            return self.reference.logits(batch, counted(batch)), None
        assert self.batches is not None
        rank_of = [self.stored[i] for i in self.batches.chosen(run)]
        device = batch["input_ids"].device
        values_NK, indices_NK = (torch.cat(part).to(device) for part in zip(*rank_of, strict=True))
        return values_NK, indices_NK.long()


def start_logits(model: Any, rows: Sequence[Row], top_k: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Each row's `top_k` largest logits at its counted positions (float16), and their tokens (int32): [N, K], on the CPU."""
    device = next(model.parameters()).device
    found: list[tuple[Tensor, Tensor]] = []
    with frozen(model):
        for first in range(0, len(rows), batch_size):
            batch = {name: value.to(device) for name, value in Collator(0)(rows[first : first + batch_size]).items()}
            where_BT = counted(batch)
            logits_NV = logits_at(model, batch, where_BT)
            values_NK, indices_NK = logits_NV.topk(min(top_k, logits_NV.shape[-1]))
            sizes = where_BT.sum(1).tolist()
            found += zip(values_NK.half().cpu().split(sizes), indices_NK.int().cpu().split(sizes), strict=True)
    logging.getLogger(__name__).info("der_pp: start logits of %d rows", len(rows))
    return found
