"""What a stream of trainings did, by the measures of continual learning. Pure functions of numbers.

R[t][i] is the performance on task i after training t (t = 0: the start model; i, t = 1 to T). Performance is the score
where higher is better, and minus the score where lower is better (NLL): more is better everywhere here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cltk.errors import InputError
from cltk.measure.bootstrap import resample
from cltk.measure.stats import Floats, cluster_sums

NAMES = ("ACC", "BWT", "FWT", "forgetting")


@dataclass(frozen=True)
class Measure:
    """One of `NAMES`: its value, and what the choice of documents leaves open (the training's own noise is not in it)."""

    value: float
    se: float
    ci: tuple[float, float]
    clusters: int  # independent groups of documents, over all tasks
    n: int  # documents, over all tasks


def measures(r_TI: Floats) -> dict[str, Floats]:
    """ACC, BWT, FWT and forgetting of R [..., T + 1, T]; of a single training ACC alone.

        ACC        = mean_i R[T][i]
        BWT        = mean_{i<T} (R[T][i] - R[i][i])
        FWT        = mean_{i>1} (R[i-1][i] - R[0][i])
        forgetting = mean_{i<T} max_{1<=l<T} (R[l][i] - R[T][i])

    The baseline of FWT is the start model: a language model's random initialisation says nothing.

    Source: ACC, BWT, FWT: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840); forgetting: Chaudhry et al. 2018 (arXiv 1801.10112).
    """
    r = np.asarray(r_TI, dtype=np.float64)
    last = r.shape[-1]
    if r.shape[-2] != last + 1 or last < 1:
        raise InputError(f"R: expected T + 1 rows for T tasks, got {r.shape[-2]} rows for {last} tasks")
    end = r[..., last, :]
    found = {"ACC": end.mean(-1)}
    if last > 1:
        old, new = np.arange(last - 1), np.arange(1, last)
        found["BWT"] = (end[..., old] - r[..., old + 1, old]).mean(-1)
        found["FWT"] = (r[..., new, new] - r[..., 0, new]).mean(-1)
        found["forgetting"] = (r[..., 1:last, :-1].max(-2) - end[..., :-1]).mean(-1)
    return found


def summarise(
    scores: Sequence[ArrayLike],
    clusters: Sequence[Sequence[str] | None],
    draws: int = 10_000,
    seed: int = 0,
    alpha: float = 0.05,
) -> dict[str, Measure]:
    """`measures` with standard errors and percentile intervals over documents (a paired cluster bootstrap; tasks are fixed).

    Args:
        scores: for each of T tasks, performance [T + 1, n_i] of every document after 0 to T trainings.
        clusters: for each task, a label a document, or None: documents are independent.

    Forgetting takes a maximum, which noise raises: with few documents its interval lies a little high.
    """
    rng = np.random.default_rng(seed)
    means, drawn, clustered, n = [], [], 0, 0
    for values, labels in zip(scores, clusters, strict=True):
        rows = np.atleast_2d(np.asarray(values, dtype=np.float64))
        sums = [cluster_sums(row, labels) for row in rows]
        columns = np.column_stack([total for total, _ in sums] + [sums[0][1]])
        totals = resample(columns, draws, rng)
        drawn.append(totals[:, :-1] / totals[:, -1:])
        means.append(rows.mean(axis=1))
        clustered, n = clustered + len(columns), n + rows.shape[1]
    found, spread = measures(np.stack(means, axis=-1)), measures(np.stack(drawn, axis=-1))
    return {
        name: Measure(float(value), float(spread[name].std(ddof=1)), _percentiles(spread[name], alpha), clustered, n)
        for name, value in found.items()
    }


def _percentiles(draws: Floats, alpha: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)
