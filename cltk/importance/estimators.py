"""The estimators behind fisher(): each adds one batch to the sums, with one cotangent of the logits a backward pass.

Shapes: B sequences, T positions, V vocabulary, N = B x T positions in a row, n of them at a time.

    mc         p - onehot(y^), y^ drawn from p at every counted position     squared over the whole batch
    exact      p - onehot(v), for every v, weighted by p(v)                  squared for every position and label
    empirical  p - onehot(y), y the data's next token                        squared for every sequence
    mas        2 logits                                                      absolute, for every sequence

With `clip` a sequence's gradient is bounded before it is measured, g <- g min(1, clip / ||g||_2), the norm over all trained
parameters (per-sample clipping: Abadi et al. 2016, arXiv 1607.00133). mc is then squared sequence by sequence.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cltk import tensors
from cltk.data.rows import IGNORED
from cltk.forward.attention import attention_by_sequence
from cltk.importance.cotangents import outputs, scores, uniforms
from cltk.importance.diagonal import trace
from cltk.importance.persample import PerSample, UnsupportedError, square_sum
from cltk.importance.sequences import Batch
from cltk.importance.tail import Tail

Parameters = dict[str, nn.Parameter]
PIECE, PIECE_GPU = 512, 2**20  # tokens a pass of PerSequence: on a CPU more are no faster and hold more activations
TRIAL = 8  # counted positions on which the hooks must agree with autograd


@dataclass
class Work:
    """What an estimator needs: `sums` are added to; `parameters` and `sums` have the same names."""

    model: nn.Module
    parameters: Parameters
    sums: tensors.Named
    seed: int
    autocast: bool
    clip: float | None


class Sampled:
    """sums += (d sum over the batch's counted positions of log p(y^) / d theta)², y^ drawn from the model."""

    method, unit = "batch", "batch"

    def __init__(self, work: Work) -> None:
        self.work, self.tail = work, Tail()

    def __call__(self, batch: Batch) -> None:
        logits_BTV = _forward(self.work.model, batch, self.work.autocast)
        score_BTV = scores(logits_BTV.detach(), batch.targets, uniforms(batch, self.work.seed))
        logits_BTV.backward(score_BTV)
        collect(self.work.parameters, self.work.sums)


class Exact:
    """sums += sum_t sum_v p(v) (d log p(v) / d theta)²: naive, one backward pass for each position and label."""

    method, unit = "loop", "sequence"

    def __init__(self, work: Work) -> None:
        self.work, self.tail = work, Tail()

    def __call__(self, batch: Batch) -> None:
        for row in batch.rows():
            before = trace(self.work.sums)
            logits_TV = _forward(self.work.model, row, self.work.autocast)[0]
            for t in (row.targets[0] != IGNORED).nonzero().flatten().tolist():
                logp_V = logits_TV[t].float().log_softmax(-1)
                for v, p in enumerate(logp_V.exp().tolist()):
                    logp_V[v].backward(retain_graph=True)
                    collect(self.work.parameters, self.work.sums, weight=p)
            self.tail.see([(row.indices[0], trace(self.work.sums) - before)])


class PerSequence:
    """sums += sum over sequences of m(gradient of the sequence's sum); m squares, or takes the absolute value (MAS).

    By hooks where every trainable parameter is of a known kind and the first sequence's beginning agrees with autograd;
    by a loop of one sequence at a time otherwise, which the log says once. With a bound the hooks take two passes: the
    first finds the norms, the second scales each sequence's cotangent, and with it its gradient.
    """

    unit = "sequence"

    def __init__(self, work: Work, kind: str) -> None:
        self.work, self.kind, self.absolute, self.tail = work, kind, kind == "mas", Tail()
        self.hooks: PerSample | None = None
        self.method = "untried"

    def __call__(self, batch: Batch) -> None:
        if self.method == "untried":
            self.method = self._try(batch.trial(TRIAL))
        for piece in batch.pieces(PIECE_GPU if batch.ids.is_cuda else PIECE):
            try:
                self._hooked(piece) if self.method == "hooks" else self._looped(piece)
            except UnsupportedError as error:  # raised in the forward pass: nothing of this piece was added
                self.method = self._fall_back(str(error))
                self._looped(piece)

    def proceed(self, first: Batch, method: str) -> None:
        """Go on as an interrupted run did, which tried the hooks on `first`. The sums are zeroed."""
        self.method = self._try(first.trial(TRIAL)) if method == "hooks" else method

    def _try(self, row: Batch) -> str:
        work = self.work
        try:
            self.hooks = PerSample(work.model, work.parameters, work.sums, self.absolute, work.autocast)
            with self.hooks.batch(row.lengths):
                self._backward(row)
            self._backward(row)
            reason = disagreement(work.parameters, work.sums, self.absolute, work.autocast)
        except UnsupportedError as error:
            reason = str(error)
        for value in work.sums.values():
            value.zero_()
        return self._fall_back(reason) if reason else "hooks"

    def _fall_back(self, reason: str) -> str:
        logging.getLogger(__name__).warning("fisher: one sequence at a time, because %s", reason)
        return "loop"

    def _hooked(self, batch: Batch) -> None:
        assert self.hooks is not None
        factors_B = None
        if self.work.clip is not None:
            with self.hooks.batch(batch.lengths, adding=False):
                self._backward(batch)
            factors_B = self._factors(self.hooks.parts_n)
        with self.hooks.batch(batch.lengths):
            self._backward(batch, factors_B)
        self.tail.see(zip(batch.indices, self.hooks.parts_n.tolist(), strict=True))

    def _looped(self, batch: Batch) -> None:
        for row in batch.rows():
            self._backward(row)
            factor = 1.0
            if self.work.clip is not None:
                factor = float(self._factors(squared_norm(self.work.parameters)[None]))
            self.tail.see([(row.indices[0], collect(self.work.parameters, self.work.sums, self.absolute, factor=factor))])

    def _factors(self, squares_n: Tensor) -> Tensor:
        """min(1, clip / norm) for each sequence, float64."""
        assert self.work.clip is not None
        found = (self.work.clip / squares_n.sqrt()).clamp_(max=1.0)
        self.tail.clipped += int((found < 1).sum())
        return found

    def _backward(self, batch: Batch, factors_B: Tensor | None = None) -> None:
        logits_BTV = _forward(self.work.model, batch, self.work.autocast)
        found = logits_BTV.detach()
        if self.absolute:
            score_BTV = outputs(found, batch.targets)
        else:
            drawn = uniforms(batch, self.work.seed) if self.kind == "mc" else None
            score_BTV = scores(found, batch.targets, drawn)
        if factors_B is not None:
            score_BTV = score_BTV.mul_(factors_B.to(score_BTV)[:, None, None])
        logits_BTV.backward(score_BTV)


def _forward(model: nn.Module, batch: Batch, autocast: bool) -> Tensor:
    mask = {} if len(set(batch.lengths)) == 1 else {"attention_mask": batch.mask}
    if not autocast:
        return model(input_ids=batch.ids, use_cache=False, **mask).logits
    with attention_by_sequence(), torch.autocast(batch.ids.device.type, torch.bfloat16):
        return model(input_ids=batch.ids, use_cache=False, **mask).logits


def collect(
    parameters: Parameters, sums: tensors.Named, absolute: bool = False, weight: float = 1.0, factor: float = 1.0
) -> float:
    """sums += weight (factor grad)² (or |factor grad|), in float32; the gradients are dropped. The sum of what is measured."""
    parts = []
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            grad = parameter.grad.float().mul_(factor) if factor != 1 else parameter.grad.float()
            sums[name].add_(grad.abs_()) if absolute else sums[name].addcmul_(grad, grad, value=weight)
            parts.append(grad.sum() if absolute else square_sum(grad))
            parameter.grad = None
    return float(sum(parts)) if parts else 0.0


def squared_norm(parameters: Parameters) -> Tensor:
    """Of all gradients together, float64, a scalar."""
    found = [square_sum(p.grad.float()).double() for p in parameters.values() if p.grad is not None]
    return torch.stack(found).sum() if found else torch.zeros((), dtype=torch.float64)


def disagreement(parameters: Parameters, sums: tensors.Named, absolute: bool, autocast: bool = False) -> str:
    """ "" if every sum is the measure of its gradient, else a sentence that names one; the gradients are dropped.

    Both sides round: 1e-3 of a tensor's largest element is ten thousand roundings of float32; lower precisions get 5 %.
    Gradients that are zero but for rounding (a key's bias) are let be: below 30 roundings of the largest anywhere.
    """
    grads = {name: p.grad.float() for name, p in parameters.items() if p.grad is not None}
    largest = max((float(grad.abs().max()) for grad in grads.values()), default=0.0)
    worst = ""
    for name, parameter in parameters.items():
        measured = grads.pop(name, torch.zeros_like(sums[name])).abs()
        measured = measured if absolute else measured.square_()
        parameter.grad = None
        dtype = torch.bfloat16 if autocast else parameter.dtype
        precise = dtype in (torch.float32, torch.float64)
        noise = 30 * torch.finfo(dtype).eps * largest
        allowed = (1e-3 if precise else 0.05) * float(measured.max()) + (noise if absolute else noise**2)
        if not float(measured.sub_(sums[name]).abs_().max()) <= allowed:
            worst = f"{name} is used in a way the hooks do not know"
    return worst


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Dropout off and gradients empty inside; mode, requires_grad, gradients and random states as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    state = {p: (p.requires_grad, p.grad) for p in model.parameters()}
    python, numbers, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        for parameter in state:
            parameter.grad = None
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, (requires_grad, grad) in state.items():
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cuda) if cuda else None
