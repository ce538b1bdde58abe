"""Forgetting at matched new-task score: what a method adds to what another one (plain fine-tuning, by default) can do anyway.

A setting k has a gain G_k (fall of new-task loss) and a forgetting F_k, means over seeds and documents. The settings of the
reference, with the start model (0, 0), that no other of them beats in both make its frontier; F_ref(g) is the straight line
between them. A setting m is judged by

    D_m = F_m - F_ref(G_m),    negative: it forgets less than the reference does at the same gain.

Where G_m is above every gain of the reference there is no D. Interval: m and all reference settings meet the same draws of
seeds and of documents (both tasks, by cluster), so that what they share cancels; t on S - 1 degrees of freedom, normal
with one seed (which leaves training noise out).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from cltk.errors import InputError
from cltk.measure.stats import Floats, holm
from cltk.report.draws import DRAWS, Draws, drawn, settings
from cltk.report.sources import Losses, read_entries
from cltk.report.tables import Table


@dataclass(frozen=True)
class Matched:
    """One setting against the reference at its own gain; units are the tasks' (nats for NLL). None: out of its reach."""

    method: str
    seeds: int
    gain: float
    forgetting: float
    reference: float | None  # F_ref at this gain
    difference: float | None  # D
    se: float | None
    ci: tuple[float, float] | None
    p: float | None  # of D = 0
    adjusted: float | None = None  # Holm, over all settings that have a p


def interpolated(g: Floats, f: Floats, at: Floats) -> Floats:
    """F_ref of settings g, f [K, draws] at gains `at` [draws]: the start model joins them; nan above the largest gain."""
    g, f = (np.vstack([np.zeros_like(x[:1]), x]) for x in (g, f))
    found = np.full(at.shape, np.nan)
    for draw in range(g.shape[1]):
        order = np.lexsort((f[:, draw], -g[:, draw]))  # by falling gain
        x, y = g[order, draw], f[order, draw]
        kept = y < np.minimum.accumulate(np.concatenate([[np.inf], y[:-1]]))  # beaten by none with more gain
        x, y = x[kept][::-1], y[kept][::-1]
        if at[draw] <= x[-1]:
            found[draw] = np.interp(at[draw], x, y)
    return found


def matched(
    runs: Sequence[str | Path], reference: str = "plain*", new: str = "heldout", old: str | None = None, draws: int = DRAWS
) -> list[Matched]:
    """Every setting that is not the reference's, in the order of the records.

    Args:
        runs: output folders of `cltk run`, or their records, on the same model, documents and seeds.
        reference: which methods make the frontier: a pattern of their names in the YAML.
        new: the task whose fall is the gain.
        old: the task whose rise is the forgetting; the first of `evals.retain` when not given.

    Raises:
        InputError: no method fits the pattern, a task is missing, scores.json is missing, or documents or seeds differ.
    """
    found = settings([entry for folder in runs for entry in read_entries(folder)], new, old)
    return against(found, reference, draws)


def against(found: Mapping[str, tuple[Losses, Losses]], reference: str = "plain*", draws: int = DRAWS) -> list[Matched]:
    """`matched` of settings that were read already (`draws.settings`)."""
    chosen = [name for name in found if fnmatchcase(name, reference)]
    if not chosen:
        raise InputError(f"--reference {reference!r}: no method has such a name; there are {', '.join(found)}")
    means = drawn(found, draws)
    done = []
    for name in found:
        if name not in chosen:
            done.append(_judged(name, means, chosen))
    adjusted = iter(holm([one.p for one in done if one.p is not None]))
    return [Matched(**{**asdict(one), "adjusted": next(adjusted)}) if one.p is not None else one for one in done]


def table(found: Sequence[Matched], reference: str) -> Table:
    """A row a setting."""
    heads = ["method", "seeds", "gain", "forgetting", "reference", "difference", "Holm p"]
    rows = [
        [
            one.method, str(one.seeds), f"{one.gain:.3f}", f"{one.forgetting:+.3f}",
            "out of reach" if one.reference is None else f"{one.reference:+.3f}",
            "" if one.ci is None else f"{one.difference:+.3f} [{one.ci[0]:+.3f}, {one.ci[1]:+.3f}]",
            "" if one.adjusted is None else f"{one.adjusted:.3f}",
        ]
        for one in found
    ]  # fmt: skip
    note = "reference: its forgetting at the same gain; difference below 0: the method forgets less; 95 % intervals"
    return Table(f"Forgetting at matched new-task gain, against {reference}", heads, rows, note)


def _judged(name: str, means: Draws, chosen: Sequence[str]) -> Matched:
    """D of one setting; none where fewer than nine of ten draws have one."""
    gain, forgetting = float(means.gain[name][0]), float(means.forgetting[name][0])
    at = interpolated(
        np.stack([means.gain[k] for k in chosen]), np.stack([means.forgetting[k] for k in chosen]), means.gain[name]
    )
    reference = None if math.isnan(at[0]) else float(at[0])
    found = means.estimate(means.forgetting[name] - at)
    if reference is None or found is None:
        return Matched(name, means.seeds, gain, forgetting, reference, None, None, None, None)
    return Matched(name, means.seeds, gain, forgetting, reference, found.mean, found.se, found.ci, found.p)
