"""What this machine does fast: bfloat16, fused AdamW, float32 products through oneDNN, an allocator that keeps memory."""

from __future__ import annotations

import ctypes
import logging
from functools import cache

import torch

from cltk.forward.products import CLOSE, available, onednn_error, onednn_gain, products

__all__ = [
    "GAIN", "MEASURED", "faster_in_bfloat16", "faster_onednn", "keep_memory", "onednn_error", "onednn_gain", "products",
    "runs_fused", "warn_of_slow_scores",
]  # fmt: skip

MEASURED = ("autocast", "onednn")  # choices of `speed` that the machine's mood can change
SLOW = 0.7  # a product in bfloat16 that is worth a word
GAIN = 1.15  # how many times as fast a product must be for oneDNN to be taken


@cache
def faster_in_bfloat16(device: str) -> bool:
    """Whether matrix products are (measured once a process)."""
    from cltk.measure.settings import fast_dtype

    return fast_dtype(device) == torch.bfloat16


@cache
def warn_of_slow_scores(dtype: str | None) -> None:
    """Says once where `evals.dtype` will cost more time than it saves: some processors take a hundred times as long."""
    from cltk.measure.settings import bfloat16_gain

    if dtype == "bfloat16" and (gain := bfloat16_gain()) < SLOW:
        times = f"take {1 / gain:.3g} times as long as" if gain else "are emulated, and slower than"
        logging.getLogger(__name__).warning(
            "evals.dtype: bfloat16: products in it %s in float32 on this machine; leave evals.dtype out to score in the"
            " weights' own dtype",
            times,
        )


def faster_onednn() -> bool:
    """Whether float32 products through oneDNN are float32 on this machine's processor, and faster (measured once a process)."""
    return available() and onednn_error() <= CLOSE and onednn_gain() >= GAIN


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
