"""What this machine does fast: bfloat16, fused AdamW, float32 products through oneDNN, an allocator that keeps memory."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

MEASURED = ("autocast", "onednn")  # choices of `speed` that the machine's mood can change


@cache
def faster_in_bfloat16(device: str) -> bool:
    """Whether matrix products are (measured once a process)."""
    from cltk.measure.settings import fast_dtype

    return fast_dtype(device) == torch.bfloat16


@cache
def runs_fused(device: str) -> bool:
    """Whether torch has AdamW as one kernel there."""
    parameter = torch.zeros(2, device=device, requires_grad=True)
    parameter.grad = torch.ones_like(parameter)
    try:
        torch.optim.AdamW([parameter], fused=True).step()
    except (RuntimeError, ValueError):
        return False
    return True


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


@cache
def keep_memory() -> bool:
    """Let glibc keep freed memory, so that parameter-sized temporaries cost no page faults; False on other C libraries.

    Process-wide and for good: for programs, not for libraries. Numbers do not change.
    """
    trim_threshold, mmap_max = -1, -4  # names of malloc.h
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - absent elsewhere
        return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, -1))
    except (AttributeError, OSError, TypeError):
        return False
