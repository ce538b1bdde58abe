"""Per-sequence gradients, squared and summed without ever being held: forward and backward hooks.

A linear layer's gradient for one sequence is G'X (G: gradient of its output, T x O; X: its input, T x I). It is made in
blocks that stay in cache, squared there and added; autograd computes no weight gradient at all. (G²)'(X²) is something
else: it forgets the products between positions.

Shapes: n sequences, T positions, I inputs, O outputs, D width, U distinct tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cltk import tensors

BLOCK = 2**18  # elements made at a time on a CPU: 1 MiB, about one core's cache
BLOCK_GPU = 2**24


class UnsupportedError(Exception):
    """A parameter is used in a way that these hooks do not know; the caller takes a loop over sequences."""


class PerSample:
    """sums[name] += sum over sequences of m(gradient of that sequence); m(x) = x², or |x|.

    Known exactly: nn.Linear, GPT-2's Conv1D, nn.Embedding, an embedding tied to one linear head ((A + B)², A the
    embedding's part, B the head's), LayerNorm, RMSNorm classes with one weight, and their biases. Anything else raises
    UnsupportedError, at once or in the forward pass, before anything is added. `parts_n` holds what each sequence of the last
    batch added to the trace of `sums`; with adding=False its squared norm, and nothing is added.

        hooks = PerSample(model, parameters, sums)  # narrow: products in bfloat16, squares and sums in float32
        with hooks.batch(lengths):
            model(ids).logits.backward(cotangent)    # of a sum over sequences
    """

    def __init__(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], sums: tensors.Named, absolute: bool = False,
        narrow: bool = False,
    ):  # fmt: skip
        self.parameters, self.absolute = list(parameters.values()), absolute
        self.dtype = torch.bfloat16 if narrow else torch.float32  # of the factors of G'X
        self.sums = {id(parameter): sums[name] for name, parameter in parameters.items()}
        self.block = BLOCK_GPU if next(iter(sums.values())).is_cuda else BLOCK
        users = _users(model, parameters)
        self.kinds = {module: _kind(module) for found in users.values() for module in found}
        self.tied = {key: _tie(found, self.kinds) for key, found in users.items() if len(found) > 1}
        self.lengths: Sequence[int] = ()
        self.adding, self.parts_n = True, torch.zeros(0, dtype=torch.float64)
        self.inputs: dict[nn.Module, Tensor] = {}  # by layer, of the present batch
        self.heads: dict[int, list[Tensor]] = {}  # by tied parameter: each sequence's B, U x D, until A is known

    @contextmanager
    def batch(self, lengths: Sequence[int], adding: bool = True) -> Iterator[None]:
        """Hooks on and weight gradients off, for one forward and backward over sequences of these lengths."""
        self.lengths, self.adding = lengths, adding
        self.parts_n = torch.zeros(len(lengths), dtype=torch.float64, device=next(iter(self.sums.values())).device)
        hooks = [m.register_forward_hook(partial(self._forward, kind), with_kwargs=True) for m, kind in self.kinds.items()]
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in self.parameters:
                parameter.requires_grad_(True)
            self.inputs.clear()
            self.heads.clear()

    def _forward(self, kind: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> Tensor:
        x, n = args[0] if args else next(iter(kwargs.values()), None), len(self.lengths)
        if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or module in self.inputs:
            raise UnsupportedError(f"a {type(module).__name__} is called twice, or not with one tensor")
        if kind == "embedding" and x.shape[0] == 1:  # positions: one row for all sequences
            x, y = x.expand(n, *x.shape[1:]), y.expand(n, *y.shape[1:])
        if x.shape[0] != n or y.shape[0] != n or y.dim() < 3:  # a layer of an expert sees tokens, n of them by chance
            raise UnsupportedError(f"a {type(module).__name__} does not see sequences along its first dimension")
        self.inputs[module] = x.detach()
        if not y.requires_grad:  # the lowest trained layer: the graph begins here
            y.requires_grad_()
        y.register_hook(partial(self._backward, kind, module))
        return y

    def _backward(self, kind: str, module: Any, g: Tensor) -> None:
        n, x = len(self.lengths), self.inputs.pop(module)
        g_nto = g.reshape(n, -1, g.shape[-1])
        if kind == "embedding":
            self._embedding(module, x, g_nto)
            return
        x_nti = x.reshape(n, -1, x.shape[-1])
        if kind == "linear":
            self._outer(module.weight, g_nto.to(self.dtype), x_nti.to(self.dtype))
        elif kind == "conv1d":
            self._outer(module.weight, x_nti.to(self.dtype), g_nto.to(self.dtype))
        else:
            self._vector(module.weight, g_nto.float() * _standardised(kind, module, x_nti.float()))
        self._vector(getattr(module, "bias", None), g_nto.float())

    def _outer(self, weight: nn.Parameter, left_nta: Tensor, right_ntb: Tensor) -> None:
        """sums (a x b) += sum_n m(left' right), made in blocks of rows."""
        total_ab = self.sums.get(id(weight))
        if total_ab is None:
            return
        rows = max(1, self.block // total_ab.shape[1])
        for i in range(len(self.lengths)):
            left_ta, right_tb = self._unpadded(left_nta, i), self._unpadded(right_ntb, i)
            for start in range(0, len(total_ab), rows):
                self._add(total_ab[start : start + rows], (left_ta[:, start : start + rows].T @ right_tb).float(), i)
        if id(weight) in self.tied:
            embedding = self.tied[id(weight)]
            present = [self._present(embedding, self.inputs[embedding], i)[1] for i in range(len(self.lengths))]
            self.heads[id(weight)] = [(left_nta[i][:, u].T @ right_ntb[i]).float() for i, u in enumerate(present)]

    def _embedding(self, module: nn.Embedding, ids_nt: Tensor, g_ntd: Tensor) -> None:
        """sums[rows of the tokens present] += m(A), or m(A + B) - m(B) where the head has added m(B)."""
        key = id(module.weight)
        for i in range(len(self.lengths)):
            counted_t, rows_u, place_t = self._present(module, ids_nt, i)
            a_ud = g_ntd.new_zeros(len(rows_u), g_ntd.shape[-1], dtype=torch.float32)
            a_ud.index_add_(0, place_t, self._unpadded(g_ntd, i)[counted_t].float())
            if key in self.tied:
                b_ud = self.heads[key][i]
                a_ud = self._measure(a_ud + b_ud) - self._measure(b_ud)
            else:
                a_ud = self._measure(a_ud)
            self.parts_n[i] += a_ud.sum()
            if self.adding:
                self.sums[key].index_add_(0, rows_u, a_ud)

    def _present(self, module: nn.Embedding, ids_nt: Tensor, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of sequence i: which positions have a gradient (padding_idx has none), their distinct ids, each one's place."""
        ids_t = self._unpadded(ids_nt, i)
        counted_t = ids_t != (-1 if module.padding_idx is None else module.padding_idx)
        return counted_t, *ids_t[counted_t].unique(return_inverse=True)

    def _vector(self, parameter: nn.Parameter | None, g_ntd: Tensor) -> None:
        total_d = self.sums.get(id(parameter))
        if total_d is not None:
            measured_nd = self._measure(g_ntd.sum(1))
            self.parts_n += measured_nd.sum(1)
            if self.adding:
                total_d.add_(measured_nd.sum(0))

    def _unpadded(self, values: Tensor, i: int) -> Tensor:
        """Sequence i without padding, whose gradient is zero anyhow."""
        return values[i, : self.lengths[i]] if values.shape[1] == max(self.lengths) else values[i]

    def _measure(self, x: Tensor) -> Tensor:
        return x.abs() if self.absolute and self.adding else x.square()

    def _add(self, total: Tensor, x: Tensor, i: int) -> None:
        """total += m(x), of sequence i; x is in cache."""
        if self.absolute and self.adding:
            total.add_(x.abs_())
            self.parts_n[i] += x.sum()
            return
        if self.adding:
            total.addcmul_(x, x)
        self.parts_n[i] += square_sum(x)


def square_sum(x: Tensor) -> Tensor:
    """sum x², without a temporary of its size."""
    flat = x.reshape(-1)
    return flat.dot(flat)


def _users(model: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[int, list[nn.Module]]:
    """By parameter, the layers that hold it."""
    users: dict[int, list[nn.Module]] = {id(parameter): [] for parameter in parameters.values()}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in users:
                users[id(parameter)].append(module)
    return users


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq:
        return "embedding"
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return "layernorm"
    names = [name for name, _ in module.named_parameters()]
    if type(module).__name__.endswith("RMSNorm") and names == ["weight"]:
        return "rmsnorm"
    if type(module).__name__ == "Conv1D" and sorted(names) == ["bias", "weight"]:
        return "conv1d"
    raise UnsupportedError(f"{type(module).__name__} is not a layer that the hooks know")


def _tie(users: list[nn.Module], kinds: dict[nn.Module, str]) -> nn.Embedding:
    found = {kinds[module]: module for module in users}
    if len(users) != 2 or set(found) != {"embedding", "linear"}:
        raise UnsupportedError("a parameter is shared by more than an embedding and its head")
    embedding = found["embedding"]
    assert isinstance(embedding, nn.Embedding)
    return embedding


def _standardised(kind: str, module: Any, x_ntd: Tensor) -> Tensor:
    """The norm's output before its weight: d output / d weight. (Gemma's 1 + weight has the same.)"""
    if kind == "layernorm":
        return F.layer_norm(x_ntd, module.normalized_shape, eps=module.eps)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return F.rms_norm(x_ntd, x_ntd.shape[-1:], eps=eps)
