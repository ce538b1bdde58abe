"""Many claims at once: p-values adjusted over the family in which they are made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cltk.measure.intervals import Floats


def holm(p: Sequence[float]) -> list[float]:
    """Holm (1979) adjusted p-values, in the order given: the chance of one false claim in the family stays below alpha."""
    order = np.argsort(p)
    scaled = np.asarray(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1)
    return _unsort(np.minimum(np.maximum.accumulate(scaled), 1), order)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg (1995) adjusted p-values, in the order given: the expected share of false claims."""
    order = np.argsort(p)
    scaled = np.asarray(p, dtype=np.float64)[order] * len(p) / np.arange(1, len(p) + 1)
    return _unsort(np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1), order)


def _unsort(values: Floats, order: NDArray[np.intp]) -> list[float]:
    out = np.empty_like(values)
    out[order] = values
    return [float(value) for value in out]
