"""Forgetting at matched new-task score: what a method adds to what another one (plain fine-tuning, by default) can do anyway.

A setting k has a gain G_k (fall of new-task loss) and a forgetting F_k, means over seeds and documents. The settings of the
reference that no other of them beats in both make its frontier; F_ref(g) is the straight line between two neighbours on it,
and below its first setting that setting's forgetting, as long as a beaten one gains less than g. A setting m is judged by

    D_m = F_m - F_ref(G_m),    negative: it forgets less than the reference does at the same gain.

Where G_m is below the lowest or above the highest gain of the reference there is no D: nothing is known of the reference there,
and the untrained model is not one of its settings. Which settings make the frontier, and where m lies between them, is found on
other seeds and documents than those that D is taken from (`crossfit`): the least of several noisy numbers is less than any
of them. With a and b the neighbours of a seed and fold, l the place between them and h = G_b - G_a,

    D = mean of F_m - (1 - l) F_a - l F_b  -  (F_b - F_a) h / (h^2 + v) x mean of G_m - (1 - l) G_a - l G_b,

the second being the error of l; v is the variance of h, which draws l to one half where a and b cannot be told apart by gain.
Choices are made DRAWS times, with gains and forgetting moved by as much as their differences to m are uncertain: D is the mean,
and the variance between the draws is added to that of seeds and documents of both tasks (`noise`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from cltk.errors import InputError
from cltk.measure.stats import Estimate, Floats, holm
from cltk.report import noise
from cltk.report.crossfit import Split, Task, split
from cltk.report.settings import settings
from cltk.report.sources import Losses, read_entries
from cltk.report.tables import Table

DRAWS = 20  # choices made anew


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


def frontier(gain: Floats, forgetting: Floats) -> list[int]:
    """The settings that no other beats: more gain and no more forgetting, or as much and less. By rising gain."""
    kept: list[int] = []
    for k in np.lexsort((forgetting, -gain)):
        if not kept or forgetting[k] < forgetting[kept[-1]]:
            kept.append(int(k))
    return kept[::-1]


def place(gain: Floats, forgetting: Floats, at: float, v: Floats) -> tuple[Floats, float]:
    """Weight of each setting in F_ref(at), and the slope there; v [K, K] is the variance of differences of gains."""
    weights, kept = np.zeros(len(gain)), frontier(gain, forgetting)
    above = next((i for i, k in enumerate(kept) if gain[k] >= at), None)
    if not above:  # before the first, or behind the last
        weights[kept[-1 if above is None else 0]] = 1
        return weights, 0.0
    a, b = kept[above - 1], kept[above]
    h = gain[b] - gain[a]
    share = float(np.clip(((at - gain[a]) * h + v[a, b] / 2) / (h**2 + v[a, b]), 0, 1))
    weights[[a, b]] = 1 - share, share
    return weights, float((forgetting[b] - forgetting[a]) * h / (h**2 + v[a, b]))


def against_frontier(found: Mapping[str, tuple[Losses, Losses]], name: str, chosen: Sequence[str]) -> Estimate | None:
    """D of one setting against those that are chosen; None where it is out of their reach."""
    both = split(found, [*chosen, name])
    gain = both.gain.d.mean(axis=(1, 2))
    if not min(gain[:-1]) <= gain[-1] <= max(gain[:-1]):
        return None
    return _difference(both)


def _difference(both: Split) -> Estimate:
    """D of the last setting against the others."""
    gain, forgetting = both.gain.apart, both.forgetting.apart
    v, errors = _variances(both.gain), [np.sqrt(_variances(task)[:-1, -1]) for task in (both.gain, both.forgetting)]
    rng = np.random.default_rng(0)
    moved = rng.normal(size=(DRAWS, 2, len(v) - 1)) * np.stack(errors)
    found = []
    for more_gain, more_forgetting in moved:
        weights, slopes = np.zeros_like(gain), np.zeros(gain.shape[1:])
        for cell in np.ndindex(slopes.shape):
            at = (slice(None, -1), *cell)
            weights[at], slopes[cell] = place(gain[at] + more_gain, forgetting[at] + more_forgetting, gain[(-1, *cell)], v)
        weights[-1] = -1
        found.append((-both.forgetting.chosen(weights), both.gain.chosen(slopes * weights)))
    old, new = (np.mean([one[side] for one in found], axis=0) for side in (0, 1))
    choice = float(np.var([one[0].mean() + one[1].mean() for one in found], ddof=1))
    evidence = [noise.from_documents(d, task.cluster) for d, task in ((old, both.forgetting), (new, both.gain))]
    return noise.combine(evidence, total=True, choice=choice)


def _variances(task: Task) -> Floats:
    """Of the differences of two settings' means, [K, K]; 0 where documents tell nothing of it."""
    v = np.zeros((len(task.d), len(task.d)))
    for a in range(len(v)):
        for b in range(a):
            one = noise.from_documents(task.d[a] - task.d[b], task.cluster)
            v[a, b] = v[b, a] = noise.combine([one], total=True).se ** 2
    return np.nan_to_num(v)


def matched(
    runs: Sequence[str | Path], reference: str = "plain*", new: str = "heldout", old: str | None = None
) -> list[Matched]:
    """Every setting that is not the reference's, in the order of the records.

    Args:
        runs: output folders of `cltk run`, or their records, on the same model, documents and seeds.
        reference: which methods make the frontier: a pattern of their names in the YAML.
        new: the task whose fall is the gain.
        old: the task whose rise is the forgetting; the first of `evals.retain` when not given.

    Raises:
        InputError: no method fits the pattern, or one alone; a task or scores.json is missing; documents or seeds differ.
    """
    found = settings([entry for folder in runs for entry in read_entries(folder)], new, old)
    return against(found, reference)


def against(found: Mapping[str, tuple[Losses, Losses]], reference: str = "plain*") -> list[Matched]:
    """`matched` of settings that were read already (`settings.settings`)."""
    chosen = [name for name in found if fnmatchcase(name, reference)]
    if not chosen:
        raise InputError(f"--reference {reference!r}: no method has such a name; there are {', '.join(found)}")
    if len(chosen) == 1:
        raise InputError(
            f"--reference {reference!r}: {chosen[0]} is its only setting, and tells nothing of other gains; train it at several"
            " learning rates"
        )
    done = [_judged(name, found, chosen) for name in found if name not in chosen]
    adjusted = iter(holm([one.p for one in done if one.p is not None]))
    return [Matched(**{**asdict(one), "adjusted": next(adjusted)}) if one.p is not None else one for one in done]


def table(found: Sequence[Matched], reference: str, old: str | None = None) -> Table:
    """A row a setting; `old` names what is forgotten in the title."""
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
    note = (
        "reference: its forgetting at the same gain, from settings chosen on other seeds and documents; out of reach: less gain"
        " than any of its settings, or more; difference below 0: the method forgets less; 95 % intervals"
    )
    if any(one.seeds == 1 for one in found):
        note += ". One seed: intervals are of documents alone, training noise is left out"
    what = f"Forgetting of {old}" if old else "Forgetting"
    return Table(f"{what} at matched new-task gain, against {reference}", heads, rows, note)


def _judged(name: str, found: Mapping[str, tuple[Losses, Losses]], chosen: Sequence[str]) -> Matched:
    new, old = found[name]
    seeds, gain, forgetting = len(new.d), -float(new.d.mean()), float(old.d.mean())
    one = against_frontier(found, name, chosen)
    if one is None:
        return Matched(name, seeds, gain, forgetting, None, None, None, None, None)
    return Matched(name, seeds, gain, forgetting, forgetting - one.mean, one.mean, one.se, one.ci, one.p)
