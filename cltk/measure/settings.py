"""Settings of scoring: checked where they are given, found where they are not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch

from cltk.errors import InputError
from cltk.measure.requires import needs_lm_eval
from cltk.measure.tasks import files_of


def options(scorer: str, batch_size: int | str) -> int | str:
    """The batch size of these settings: "auto" or a number.

    "auto:N" is "auto": lm-eval measures N times what fits, here the tokens of a batch decide.

    Raises:
        InputError: a scorer that is neither "prefix" nor "stock", a batch size that is neither "auto" nor a number above 0.
    """
    if scorer not in ("prefix", "stock"):
        raise InputError(f"scorer: {scorer!r} is unknown; use prefix or stock")
    kind, _, times = str(batch_size).partition(":")
    if kind == "auto" and (not times or times.isdigit()):
        return "auto"
    if isinstance(batch_size, bool) or not str(batch_size).isdigit() or int(batch_size) < 1:
        raise InputError(f"batch_size: must be auto or a whole number above 0, got {batch_size!r}")
    return int(batch_size)


def whole_rows(kl_rows: int) -> None:
    """Raises InputError unless this is a whole number from 0."""
    if not isinstance(kl_rows, int) or isinstance(kl_rows, bool) or kl_rows < 0:
        raise InputError(f"kl_rows: expected a whole number of rows from 0, got {kl_rows!r}")


def fast_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """bfloat16 where a matrix product in it is at least 1.3 times as fast as in float32, else float32.

    `device` defaults to the GPU where there is one, else the CPU.
    """
    return torch.bfloat16 if bfloat16_gain(device) >= 1.3 else torch.float32


def bfloat16_gain(device: torch.device | str | None = None) -> float:
    """How many times as fast a matrix product in bfloat16 is as one in float32; 0 on a GPU that only emulates it."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return 0.0
    wide, narrow = (_seconds(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    return wide / narrow


def _seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Best of three products of square matrices, after a warm-up."""
    size = 512 if device.type == "cpu" else 4096
    a, times = torch.ones(size, size, device=device, dtype=dtype), []
    for _ in range(4):
        begin = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def task_names(tasks: Sequence[str] | str) -> list[str]:
    """Task names from a list, or from one string with commas; a folder or pattern of files is its files."""
    if not isinstance(tasks, Iterable):
        raise InputError(f"tasks: expected a list of names, got {type(tasks).__name__}")
    listed = tasks.split(",") if isinstance(tasks, str) else list(tasks)
    for name in listed:
        if not isinstance(name, str):
            raise InputError(f"tasks: expected names, got {type(name).__name__} {str(name)[:60]!r}")
    names = [one for name in listed if name.strip() for one in files_of(name.strip())]
    if names:
        needs_lm_eval()
    return names
