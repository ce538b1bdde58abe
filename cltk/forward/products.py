"""float32 products of a processor through oneDNN, where they are float32 to 1e-5: up to twice as fast as torch's own.

Verified on the machine before they are used, against float64, with fixed numbers: every process on one machine decides alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

CLOSE = 1e-5  # of a product's largest entry
FEW = 64  # rows of a product up to which W x^T is faster than x W^T
_allowed = True


@contextmanager
def products(onednn: bool) -> Iterator[None]:
    """float32 matrix products of this process through oneDNN inside, as before outside.

    The setting is called "bf16": it allows oneDNN to compute in bfloat16, which it does where the processor has tiles
    for it; `onednn_error` finds that out.
    """
    if not onednn:
        yield
        return
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


@contextmanager
def by_torch() -> Iterator[None]:
    """Inside `products(True)`: torch's own products after all, for small ones whose shapes change from call to call: oneDNN
    compiles a kernel for every new shape."""
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if settings is None or settings.fp32_precision != "bf16":
        yield
        return
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = "bf16"


def available() -> bool:
    """Whether this build of torch has the setting."""
    return hasattr(torch.backends.mkldnn, "matmul") and torch.backends.mkldnn.is_available()


@cache
def onednn_error() -> float:
    """The largest error of products under `products(True)` against float64, relative to the largest entry."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for shape_a, shape_b in (((64, 576), (576, 1536)), ((300, 1536), (1536, 64)), ((6, 33, 64), (6, 64, 33))):
        a, b = (torch.randn(shape, generator=generator) for shape in (shape_a, shape_b))
        exact = a.double() @ b.double()
        with products(True):
            found = (a @ b, (b.mT.contiguous() @ a.mT.contiguous()).mT)
        worst = max([worst, *(float((f - exact).abs().max() / exact.abs().max()) for f in found)])
    return worst


@cache
def onednn_gain() -> float:
    """How many times faster a product is under `products(True)`; best of five each, in turns."""
    a, b = torch.ones(512, 1024), torch.ones(1024, 1024)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(6):
        for onednn, seconds in times.items():
            with products(onednn):
                begin = time.perf_counter()
                a @ b
                seconds.append(time.perf_counter() - begin)
    return min(times[False][1:]) / min(times[True][1:])


@contextmanager
def allowed(onednn: bool) -> Iterator[None]:
    """Inside, `fast` may use oneDNN or not: what a user decided. It may by default."""
    global _allowed
    before, _allowed = _allowed, _allowed and onednn
    try:
        yield
    finally:
        _allowed = before


@cache
def exact() -> bool:
    """Whether oneDNN computes products here, and float32: a fact, where being faster would be a measurement. torch asks whether
    the processor has what bfloat16 needs before it hands products over, also those that are float32."""
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return available() and (asked is None or bool(asked())) and onednn_error() <= CLOSE


def named(device: str) -> str:
    """What computes float32 products on this kind of device, for records: "oneDNN", or "torch" as it comes."""
    return "oneDNN" if device == "cpu" and _allowed and exact() else "torch"


def chosen(model: nn.Module) -> bool:
    """Whether `fast` computes this model's products by oneDNN: float32 weights on a processor, allowed and exact."""
    parameter = next(model.parameters(), None)
    return parameter is not None and parameter.dtype == torch.float32 and named(parameter.device.type) == "oneDNN"


@contextmanager
def fast(model: nn.Module) -> Iterator[None]:
    """For passes of `model` without a backward: its products by oneDNN, where `chosen`; as they are set elsewhere."""
    with products(chosen(model)):
        yield


@contextmanager
def few_rows(model: nn.Module) -> Iterator[None]:
    """For decoding: float32 layers on a processor compute 2 to FEW rows x [n, in] as (W x^T)^T instead of x W^T.

    The same sums, rounded otherwise; 1.2 to 2.1 times as fast where it was measured (benchmarks/products.py). Layers that are
    more than an `nn.Linear` with a plain weight are left alone: of other classes, sharded, quantized, or hooked.
    """
    changed = [
        layer for layer in model.modules()
        if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and "forward" not in vars(layer)
        and layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"
    ]  # fmt: skip
    for layer in changed:
        layer.forward = _transposed(layer)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _transposed(layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(input: torch.Tensor) -> torch.Tensor:  # nn.Linear's own name: models may give it
        if not 2 <= input.shape[:-1].numel() <= FEW:
            return nn.functional.linear(input, layer.weight, layer.bias)
        y = (layer.weight @ input.reshape(-1, input.shape[-1]).mT).mT.contiguous().view(*input.shape[:-1], -1)
        return y if layer.bias is None else y + layer.bias

    return forward
