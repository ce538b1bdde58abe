"""The estimators behind fisher(): each adds one batch to the sums, with one cotangent of the logits a backward pass.

Shapes: B sequences, T positions, V vocabulary, N = B x T positions in a row, n of them at a time.

    mc         p - onehot(y^), y^ drawn from p at every counted position     squared over the whole batch
    exact      p - onehot(v), for every v, weighted by p(v)                  squared for every position and label
    empirical  p - onehot(y), y the data's next token                        squared for every sequence
    mas        2 logits                                                      absolute, for every sequence
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from cltk import tensors
from cltk.data.rows import IGNORED
from cltk.forward.attention import attention_by_sequence
from cltk.importance.persample import PerSample, UnsupportedError
from cltk.importance.sequences import Batch

Parameters = dict[str, nn.Parameter]
PIECE, PIECE_GPU = 512, 2**20  # tokens a pass of PerSequence: on a CPU more are no faster and hold more activations
TRIAL = 8  # counted positions on which the hooks must agree with autograd
CHUNK = 2**22  # logits handled at a time when labels are drawn: 16 MiB of float32


class Sampled:
    """sums += (d sum over the batch's counted positions of log p(y^) / d theta)², y^ drawn from the model."""

    method = "batch"

    def __init__(self, model: nn.Module, parameters: Parameters, sums: tensors.Named, seed: int, autocast: bool) -> None:
        self.model, self.parameters, self.sums, self.seed, self.autocast = model, parameters, sums, seed, autocast

    def __call__(self, batch: Batch) -> None:
        logits_BTV = _forward(self.model, batch, self.autocast)
        score_BTV = scores(logits_BTV.detach(), batch.targets, uniforms(batch, self.seed))
        logits_BTV.backward(score_BTV)
        collect(self.parameters, self.sums)


class Exact:
    """sums += sum_t sum_v p(v) (d log p(v) / d theta)²: naive, one backward pass for each position and label."""

    method = "loop"

    def __init__(self, model: nn.Module, parameters: Parameters, sums: tensors.Named, autocast: bool) -> None:
        self.model, self.parameters, self.sums, self.autocast = model, parameters, sums, autocast

    def __call__(self, batch: Batch) -> None:
        for row in batch.rows():
            logits_TV = _forward(self.model, row, self.autocast)[0]
            for t in (row.targets[0] != IGNORED).nonzero().flatten().tolist():
                logp_V = logits_TV[t].float().log_softmax(-1)
                for v, p in enumerate(logp_V.exp().tolist()):
                    logp_V[v].backward(retain_graph=True)
                    collect(self.parameters, self.sums, weight=p)


class PerSequence:
    """sums += sum over sequences of m(gradient of the sequence's sum); m squares, or takes the absolute value (MAS).

    By hooks where every trainable parameter is of a known kind and the first sequence's beginning agrees with autograd;
    by a loop of one sequence at a time otherwise, which the log says once.
    """

    def __init__(self, model: nn.Module, parameters: Parameters, sums: tensors.Named, absolute: bool, autocast: bool) -> None:
        self.model, self.parameters, self.sums, self.absolute, self.autocast = model, parameters, sums, absolute, autocast
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
        try:
            self.hooks = PerSample(self.model, self.parameters, self.sums, self.absolute, self.autocast)
            self._hooked(row)
            self._backward(row)
            reason = disagreement(self.parameters, self.sums, self.absolute, self.autocast)
        except UnsupportedError as error:
            reason = str(error)
        for value in self.sums.values():
            value.zero_()
        return self._fall_back(reason) if reason else "hooks"

    def _fall_back(self, reason: str) -> str:
        logging.getLogger(__name__).warning("fisher: one sequence at a time, because %s", reason)
        return "loop"

    def _hooked(self, batch: Batch) -> None:
        assert self.hooks is not None
        with self.hooks.batch(batch.lengths):
            self._backward(batch)

    def _looped(self, batch: Batch) -> None:
        for row in batch.rows():
            self._backward(row)
            collect(self.parameters, self.sums, self.absolute)

    def _backward(self, batch: Batch) -> None:
        logits_BTV = _forward(self.model, batch, self.autocast)
        found = logits_BTV.detach()
        score_BTV = outputs(found, batch.targets) if self.absolute else scores(found, batch.targets)
        logits_BTV.backward(score_BTV)


def _forward(model: nn.Module, batch: Batch, autocast: bool) -> Tensor:
    mask = {} if len(set(batch.lengths)) == 1 else {"attention_mask": batch.mask}
    if not autocast:
        return model(input_ids=batch.ids, use_cache=False, **mask).logits
    with attention_by_sequence(), torch.autocast(batch.ids.device.type, torch.bfloat16):
        return model(input_ids=batch.ids, use_cache=False, **mask).logits


def scores(logits_BTV: Tensor, targets_BT: Tensor, uniforms_BT: Tensor | None = None) -> Tensor:
    """d(-sum over counted positions of log p(y)) / d logits = p - onehot(y), 0 elsewhere; y the target, or drawn from p.

    A draw is the first label whose cumulated probability exceeds the position's uniform number.
    """
    V = logits_BTV.shape[-1]
    logits_NV, targets_N = logits_BTV.reshape(-1, V), targets_BT.reshape(-1).to(logits_BTV.device)
    result_NV = torch.zeros_like(logits_NV)
    for rows in (targets_N != IGNORED).nonzero().flatten().split(max(1, CHUNK // V)):
        p_nV = logits_NV[rows].float().softmax(-1)
        y_n = targets_N[rows]
        if uniforms_BT is not None:
            cumulated_nV = p_nV.cumsum(-1)
            u_n = uniforms_BT.reshape(-1).to(p_nV.device)[rows] * cumulated_nV[:, -1]
            y_n = torch.searchsorted(cumulated_nV, u_n[:, None], right=True)[:, 0].clamp_(max=V - 1)
        p_nV[torch.arange(len(rows), device=rows.device), y_n] -= 1
        result_NV[rows] = p_nV.to(result_NV.dtype)
    return result_NV.view_as(logits_BTV)


def outputs(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """d(sum over counted positions of ||logits||²) / d logits = 2 logits, 0 elsewhere."""
    return 2 * logits_BTV * (targets_BT != IGNORED).to(logits_BTV.device)[..., None]


def uniforms(batch: Batch, seed: int) -> Tensor:
    """U(0, 1) numbers, B x T, float32: of each row from (seed, its index) alone, on every machine the same."""
    result_BT = torch.zeros(batch.targets.shape)
    for i, (index, length) in enumerate(zip(batch.indices, batch.lengths, strict=True)):
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
        result_BT[i, :length] = torch.from_numpy(generator.random(length, dtype=np.float32))
    return result_BT


def collect(parameters: Parameters, sums: tensors.Named, absolute: bool = False, weight: float = 1.0) -> None:
    """sums += weight grad² (or |grad|), in float32; the gradients are dropped."""
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            grad = parameter.grad.float()
            sums[name].add_(grad.abs_()) if absolute else sums[name].addcmul_(grad, grad, value=weight)
            parameter.grad = None


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
