"""Choices among settings that are made on other seeds and other documents than those they are judged on.

The best of several noisy settings looks better than it is. So clusters of documents are dealt into FOLDS folds, and for every
(seed s, fold f) the choice is made from means over the other seeds and folds, and applied to seed s and fold f. A choice is a
weight for each setting; what was chosen is then a matrix [S, n] like any other (`cltk.report.noise`). With one seed only
documents are held apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cltk.measure.stats import Floats
from cltk.report.sources import Losses

FOLDS = 5


@dataclass(frozen=True)
class Task:
    """All settings on one task: d [K, S, n], the fold of each document, and means of the other seeds and folds [K, S, F]."""

    d: Floats
    fold: NDArray[np.intp]
    cluster: Sequence[str]
    apart: Floats

    def chosen(self, weights: Floats) -> Floats:
        """sum_k weights[k, s, fold of i] d[k, s, i], [S, n]."""
        return np.asarray((weights[:, :, self.fold] * self.d[: len(weights)]).sum(axis=0))


@dataclass(frozen=True)
class Split:
    """Both tasks, gains as rises are positive: `gain` is the fall of the new loss, `forgetting` the rise of the old."""

    gain: Task
    forgetting: Task


def split(found: Mapping[str, tuple[Losses, Losses]], names: Sequence[str]) -> Split:
    """Settings by name (as `settings.settings` gives them), in this order."""
    new, old = ([found[name][side] for name in names] for side in (0, 1))
    return Split(_task(new, -1.0), _task(old, 1.0))


def _task(sides: Sequence[Losses], sign: float) -> Task:
    d, first = sign * np.stack([side.d for side in sides]), sides[0]
    labels = first.cluster or [str(i) for i in range(d.shape[2])]
    names, index = np.unique(np.asarray(labels), return_inverse=True)
    folds = min(FOLDS, len(names))
    fold = np.random.default_rng(0).permutation(len(names))[index.ravel()] % folds
    counts = np.bincount(fold, minlength=folds)
    sums = np.stack([d[:, :, fold == f].sum(axis=2) for f in range(folds)], axis=2)  # [K, S, F]
    seeds = d.shape[1]
    others = sums.sum(axis=1, keepdims=True) - sums if seeds > 1 else sums
    n = max(seeds - 1, 1) * np.maximum(d.shape[2] - counts, 1)
    apart = (others.sum(axis=2, keepdims=True) - others) / n
    if folds < FOLDS:  # the folds of both tasks are counted alike
        apart = apart[:, :, np.arange(FOLDS) % folds]
    return Task(d, fold, first.cluster, apart)
