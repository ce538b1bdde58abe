"""Unequal inclusion probabilities: documents that tell more are scored more often, and weigh less when they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cltk.errors import InputError
from cltk.measure.stats import Floats


def inclusion(size: ArrayLike, n: int, floor: float = 2 / 3) -> Floats:
    """Probabilities pi [N] that sum to n, in proportion to `size` between a floor and 1.

    The best sizes are sqrt(E[(d_i - g_i)^2] / c_i), for predictions g and costs c. The floor, floor n/N, bounds the weight of a
    document whose size was misjudged: with it no variance is more than 1/floor times that of equal probabilities, and losses
    that no document shows are bounded as by floor n documents. The default is as low as leaves that bound below the rest of
    an interval, from some 250 documents on.
    Source: Zrnic and Candes (2024), arXiv 2403.03208, section 4.

    Raises:
        InputError: sizes that are negative or not finite, n outside 1..N, or a floor outside 0 < floor <= 1.
    """
    sizes = np.asarray(size, np.float64)
    if sizes.ndim != 1 or not np.isfinite(sizes).all() or (sizes < 0).any():
        raise InputError("inclusion: sizes must be numbers from 0")
    if not 1 <= n <= len(sizes):
        raise InputError(f"inclusion: cannot draw {n} of {len(sizes)} documents")
    if not 0 < floor <= 1:
        raise InputError(f"inclusion: floor is {floor}; it must be above 0 and up to 1")
    least = floor * n / len(sizes)

    def bounded(scale: float) -> Floats:
        return np.clip(scale * sizes, least, 1.0)

    if not sizes.any():
        return np.full(len(sizes), n / len(sizes))
    low, high = 0.0, 1.0 / float(sizes[sizes > 0].min())
    if bounded(high).sum() <= n:  # documents of size 0 take the rest
        left = sizes == 0
        return np.where(left, (n - (~left).sum()) / max(int(left.sum()), 1), 1.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if bounded(middle).sum() < n else (low, middle)
    found = bounded(high)
    free = (found > least) & (found < 1)  # the last digits, so that the sum is n
    return found + np.where(free, (n - found.sum()) / max(int(free.sum()), 1), 0.0)


def systematic(chance: ArrayLike, seed: int = 0) -> NDArray[np.intp]:
    """Places of the drawn, sorted: systematic sampling of the documents in random order.

    Document i comes with probability pi_i, and sum(pi) documents come, up to rounding. Source: Madow (1949). Equal
    probabilities and seeds, equal documents: the stream of RandomState changes with no version of numpy (NEP 19).
    """
    pi = np.asarray(chance, np.float64)
    rng = np.random.RandomState(seed)
    order = rng.permutation(len(pi))
    ends = np.cumsum(pi[order])
    start = rng.uniform()
    hit = np.floor(ends - start) > np.floor(np.concatenate([[0.0], ends[:-1]]) - start)
    return np.sort(order[hit])


def draw(size: ArrayLike, n: int, labels: Sequence[str] = (), seed: str = "") -> tuple[list[int], Floats]:
    """(places [n], ascending; pi [N]) of about n documents in proportion to `size`, whole clusters: see `inclusion`.

    A cluster's size is the root of its documents' summed squares, as of residuals that are independent; m = n G / N of the G
    clusters are drawn, and all documents of one have its probability.

    Args:
        size: [N], of each document.
        labels: [N], of the clusters; empty where documents are independent.
        seed: of the draw; give tasks seeds of their own by their names.
    """
    sizes = np.asarray(size, np.float64)
    unit = np.unique(np.asarray(labels), return_inverse=True)[1].ravel() if len(labels) else np.arange(len(sizes))
    groups = int(unit.max()) + 1
    wanted = min(groups, max(1, round(n * groups / len(sizes))))
    chance = inclusion(np.sqrt(np.bincount(unit, sizes**2)), wanted)
    drawn = systematic(chance, int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big"))
    return np.flatnonzero(np.isin(unit, drawn)).tolist(), chance[unit]


def flip_sizes(margin: ArrayLike, moved: ArrayLike, bins: int = 10) -> Floats:
    """sqrt of the mean square of `moved` among documents of like |margin| [N]: how likely another model flips each.

    `margin` is the start model's, of the score whose sign is the answer; `moved` the reference's loss, or what predictions left
    of it. Bins hold equally many documents and are smoothed to fall with |margin| (pooled neighbours), so that few flips in a
    bin do not make it look safe.
    """
    distance, square = np.abs(np.asarray(margin, np.float64)), np.asarray(moved, np.float64) ** 2
    if distance.shape != square.shape or distance.ndim != 1 or not len(distance):
        raise InputError(f"inclusion: {distance.shape} margins and {square.shape} losses; give one of each a document")
    parts = [part for part in np.array_split(np.argsort(distance, kind="stable"), min(bins, len(distance))) if len(part)]
    pools: list[tuple[float, list[NDArray[np.intp]]]] = []
    for part in parts:
        pools.append((float(square[part].mean()), [part]))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (_, before), (_, last) = pools[-2:]
            joined = [*before, *last]
            pools[-2:] = [(float(square[np.concatenate(joined)].mean()), joined)]
    out = np.zeros(len(distance))
    for mean, members in pools:
        out[np.concatenate(members)] = np.sqrt(mean)
    return out
