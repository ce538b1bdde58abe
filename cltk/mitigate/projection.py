"""Gradients that may not raise the loss on old data: A-GEM and GEM. Gradients are lists of tensors, one a parameter.

Shapes: K memories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls
from torch import Tensor

from cltk import tensors
from cltk.errors import InputError
from cltk.mitigate.interface import Mitigator, Plan, Run
from cltk.mitigate.memory import MemoryBatches, check_memory, check_number, memory_batches, token_losses

LOG_EVERY = 10  # steps


def a_gem_(grads: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """g <- g - (g.g_ref / ||g_ref||²) g_ref where g.g_ref < 0, else g stays; in place. Returns g.g_ref of before."""
    along = tensors.dot(grads, reference).item()
    if along < 0:
        scale = -along / tensors.dot(reference, reference).item()
        for grad, old in zip(grads, reference, strict=True):
            grad.add_(old.to(grad.dtype), alpha=scale)
    return along


def gem_(
    grads: Sequence[Tensor], references: Sequence[Sequence[Tensor]], margin: float = 0.0
) -> tuple[list[float], list[float]]:
    """g <- g + sum_k v_k g_k where some g.g_k < 0, else g stays; in place. v as `gem_dual` says.

    Returns:
        g.g_k of before, and v (zeros where g stays); K numbers each.
    """
    along = [tensors.dot(grads, reference).item() for reference in references]
    if min(along) >= 0:
        return along, [0.0] * len(along)
    gram_KK = np.empty((len(references), len(references)))
    for i, first in enumerate(references):
        for j, second in enumerate(references[: i + 1]):
            gram_KK[i, j] = gram_KK[j, i] = tensors.dot(first, second).item()
    v_K = gem_dual(gram_KK, np.array(along), margin).tolist()
    for v, reference in zip(v_K, references, strict=True):
        for grad, old in zip(grads, reference, strict=True):
            grad.add_(old.to(grad.dtype), alpha=v)
    return along, v_K


def gem_dual(gram_KK: np.ndarray, along_K: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """argmin over v >= margin of 1/2 v' G v + a' v, with G = [g_i.g_j] and a = [g.g_k].

    With margin 0 it is the dual of: min 1/2 ||g - u||² subject to u.g_k >= 0 for all k, where u = g + sum v_k g_k. At every
    margin the solution has (G v + a)_k = u.g_k >= 0. Solved as non-negative least squares (an active-set method, exact) in
    w = v - margin, with gradients scaled to norm 1.
    """
    size_K = np.sqrt(np.diag(gram_KK))
    size_K = np.where(size_K > 0, size_K, 1.0)
    low_K = margin * size_K
    unit_KK = gram_KK / np.outer(size_K, size_K)
    values, vectors = np.linalg.eigh(unit_KK)
    kept = values > 1e-10 * max(values.max(), 1e-300)  # equal memories: G has no full rank
    root = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
    target = -(vectors[:, kept].T @ (along_K / size_K + unit_KK @ low_K)) / np.sqrt(values[kept])
    if not kept.any():
        return np.full(len(along_K), margin)
    return (nnls(root, target)[0] + low_K) / size_K


def memory_gradient(run: Run, batches: MemoryBatches) -> list[Tensor | None]:
    """The gradient of the mean NLL of the memory's batch of this step, a tensor a trainable parameter; p.grad stays."""
    batch = batches.of(run)
    return run.gradients(lambda: token_losses(run.forward, batch).mean())


def _matched(run: Run, references: list[list[Tensor | None]]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The gradients of the step and those of the memories, for the parameters that have one in this step."""
    grads = [parameter.grad for _, parameter in tensors.trainable(run.model)]
    chosen = [i for i, grad in enumerate(grads) if grad is not None and any(old[i] is not None for old in references)]
    found = [grads[i] for i in chosen]
    olds = [[old[i] if old[i] is not None else grads[i] * 0 for i in chosen] for old in references]  # type: ignore[operator]
    return found, olds  # type: ignore[return-value]


class AGEM(Mitigator):
    """Averaged gradient episodic memory: a step may not raise the loss of an old batch, to first order.

        g <- g - (g.g_ref / ||g_ref||²) g_ref     where g.g_ref < 0

    g_ref is the gradient of the mean NLL of one old batch. The gradient is projected before clipping; AdamW rescales it by
    coordinate, so that the step itself keeps the angle only roughly.

    Args:
        memory: old-domain text or token rows (see `cltk.data.memory_rows`).
        batch_size: old rows a step and rank; the trainer's per-device batch size when not given; 0 changes nothing.
        length: tokens of an old row, when the memory is text.
        seed: of the order of the old rows.

    Raises:
        InputError: an empty memory or a negative batch size.

    Source: Chaudhry et al. 2019 (arXiv 1812.00420).
    """

    def __init__(self, memory: Any, batch_size: int | None = None, *, length: int = 256, seed: int = 0) -> None:
        check_memory("a_gem", memory)
        check_number("a_gem.batch_size", 1 if batch_size is None else batch_size)
        self.memory, self.batch_size, self.length, self.seed = memory, batch_size, length, seed
        self.batches: MemoryBatches | None = None

    def setup(self, plan: Plan) -> None:
        if self.batch_size != 0:
            self.batches = memory_batches("a_gem", self.memory, plan, self.batch_size, self.length, self.seed)
            plan.notes["a_gem"] = {"batch_size": self.batches.size, "old_rows": len(self.batches.rows)}

    def grad(self, run: Run) -> None:
        if self.batches is None:
            return
        grads, (reference,) = _matched(run, [memory_gradient(run, self.batches)])
        due = run.step % LOG_EVERY == 0
        norms = (tensors.dot(grads, grads) * tensors.dot(reference, reference)).sqrt().item() if due else 0.0
        along = a_gem_(grads, reference)
        if due:
            run.log("a_gem_cosine", along / norms if norms else 0.0)


class GEM(Mitigator):
    """Gradient episodic memory: a step may not raise the loss of any of K memories, to first order.

        u = argmin 1/2 ||g - u||²  subject to  u.g_k >= 0 for k = 1..K

    g_k is the gradient of the mean NLL of one batch of memory k; u = g + sum v_k g_k, v from the dual problem in K
    variables. g stays where all g.g_k >= 0. `margin` asks for v_k >= margin, as the authors' code does, so that the step
    helps the old data rather than sparing it (the paper adds it to the solution v, which can break a constraint).

    Args:
        memories: {name: memory} or a list of memories, each a path, texts or token rows (see `cltk.data.memory_rows`).
        margin: gamma, at least 0; 0.5 in the authors' experiments, in units of g_k.
        batch_size: old rows a step, rank and memory; the trainer's per-device batch size when not given; 0 changes nothing.
        length: tokens of an old row, when a memory is text.
        seed: of the order of the old rows.

    Raises:
        InputError: no memory, an empty one, a negative margin or batch size.

    Source: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840).
    """

    def __init__(
        self, memories: Mapping[str, Any] | Sequence[Any], margin: float = 0.5, *, batch_size: int | None = None,
        length: int = 256, seed: int = 0,
    ) -> None:  # fmt: skip
        if not isinstance(memories, Mapping | list | tuple) or not memories:
            raise InputError(f"gem.memories: give a list of memories or {{name: memory}} with at least one; got {memories!r}")
        named = memories if isinstance(memories, Mapping) else {str(k): memory for k, memory in enumerate(memories)}
        for name, memory in named.items():
            check_memory(f"gem.memories.{name}", memory)
        check_number("gem.margin", margin)
        check_number("gem.batch_size", 1 if batch_size is None else batch_size)
        self.memories, self.margin = dict(named), margin
        self.batch_size, self.length, self.seed = batch_size, length, seed
        self.batches: dict[str, MemoryBatches] = {}

    def setup(self, plan: Plan) -> None:
        if self.batch_size == 0:
            return
        self.batches = {
            name: memory_batches("gem", memory, plan, self.batch_size, self.length, self.seed)
            for name, memory in self.memories.items()
        }
        plan.notes["gem"] = {"margin": self.margin, "old_rows": {name: len(one.rows) for name, one in self.batches.items()}}

    def grad(self, run: Run) -> None:
        if not self.batches:
            return
        grads, references = _matched(run, [memory_gradient(run, batches) for batches in self.batches.values()])
        _, v_K = gem_(grads, references, self.margin)
        if run.step % LOG_EVERY == 0:
            for name, v in zip(self.batches, v_K, strict=True):
                run.log(f"gem_{name}", v)
