"""The arguments of fisher(), checked without a model: before weights are loaded."""

from __future__ import annotations

import math

from cltk.errors import InputError
from cltk.importance.diagonal import Info, check_scaling

KINDS: dict[str, Info] = {
    "mc": {"level": "token", "labels": "sampled from the model at every position", "reduction": "mean over tokens"},
    "exact": {"level": "token", "labels": "all, weighted by the model", "reduction": "mean over tokens"},
    "empirical": {"level": "sequence", "labels": "the data's", "reduction": "sum over a sequence, mean over sequences"},
    "mas": {"level": "sequence", "labels": "none", "reduction": "sum over a sequence, mean over sequences"},
}


def check_arguments(
    kind: str = "mc",
    samples: int | None = None,
    batch_size: int = 8,
    normalize: str | None = None,
    seed: int = 0,
    floor: float = 0.0,
    rtol: float | None = None,
    autocast: bool = False,
    clip: float | None = None,
) -> None:
    """Raises InputError, one line, for a value that fisher() cannot take."""
    if kind not in KINDS:
        raise InputError(f"fisher: kind={kind!r}; give one of {', '.join(KINDS)}")
    if samples is not None and samples < 1:
        raise InputError(f"fisher: samples={samples}; give a number of rows, or None for all")
    if batch_size < 1:
        raise InputError(f"fisher: batch_size={batch_size}; give at least 1")
    if not 0 <= seed < 2**64:
        raise InputError(f"fisher: seed={seed}; give a number from 0 to 2^64 - 1")
    if rtol is not None and not rtol > 0:
        raise InputError(f"fisher: rtol={rtol}; give a positive relative error such as 0.05")
    if clip is not None and (isinstance(clip, bool | str) or not 0 < clip < math.inf):
        raise InputError(f"fisher: clip={clip!r}; give a positive number, the largest norm of a sequence's gradient, or None")
    if clip is not None and kind == "exact":
        raise InputError("fisher: clip bounds a sequence's gradient, and exact has one of every position and label; give mc")
    check_scaling(normalize, floor)
