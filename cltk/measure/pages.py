"""Memory of its own for a tensor that grows: it counts as it is written, and leaves no holes in the heap."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor


def zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of the dtype and on the device of `like`.

    On a processor of a POSIX system anonymous pages: what is never written takes no memory (no huge pages therefore, of which
    one byte would take 2 MiB), and all of it goes back at once. glibc keeps buffers of up to 32 MiB in the heap, where those
    that grow leave holes too small for the next. Elsewhere, and where the system gives no pages, torch's own.
    """
    if like.device.type != "cpu" or not hasattr(mmap, "MAP_ANONYMOUS"):
        return like.new_zeros(shape)
    try:
        pages = mmap.mmap(-1, torch.Size(shape).numel() * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # torch says what out of memory is said with
        return like.new_zeros(shape)
    with suppress(OSError, AttributeError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    made = torch.frombuffer(pages, dtype=like.dtype).view(shape)
    made.pages = pages  # type: ignore[attr-defined]
    return made


def forget(made: Tensor, row: int, length: int = 0) -> None:
    """Give back what a row of `zeros` [rows, H, L, D] takes behind its first `length` places of L, in every head.

    What is there afterwards is not said: zeros on Linux, what was there elsewhere.
    """
    pages: Any = getattr(made, "pages", None)
    if pages is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    _, heads, places, width = made.shape
    size = width * made.element_size()  # bytes of a place
    for head in range(row * heads, (row + 1) * heads) if length else (row * heads,):
        first, end = (head * places + length) * size, (head + (1 if length else heads)) * places * size
        first, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            with suppress(OSError):
                pages.madvise(mmap.MADV_DONTNEED, first, end - first)
