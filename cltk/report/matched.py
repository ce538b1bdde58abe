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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats as distributions

from cltk.errors import InputError
from cltk.measure.stats import Floats, cluster_sums, holm
from cltk.report.sources import Entry, Losses, ScoreFiles, read_entries, stack
from cltk.report.tables import Table

DRAWS = 4_000


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
    found = _settings([entry for folder in runs for entry in read_entries(folder)], new, old)
    chosen = [name for name in found if fnmatchcase(name, reference)]
    if not chosen:
        raise InputError(f"--reference {reference!r}: no method has such a name; there are {', '.join(found)}")
    rng = np.random.default_rng(0)
    first = found[chosen[0]]
    seeds = len(first[0].d)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    documents = [_weights(side, draws, rng) for side in first]
    g, f = ({name: _drawn(sides[i], weights, documents[i]) for name, sides in found.items()} for i in (0, 1))
    done = []
    for name in found:
        if name not in chosen:
            gain, forgetting = (float(x[name][0]) for x in (g, f))
            at = interpolated(np.stack([-g[k] for k in chosen]), np.stack([f[k] for k in chosen]), -g[name])
            done.append(_judged(name, seeds, -gain, forgetting, float(at[0]), f[name][1:] - at[1:]))
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


def _settings(entries: Sequence[Entry], new: str, old: str | None) -> dict[str, tuple[Losses, Losses]]:
    """Method -> its losses [seeds, n] on the new and the old task, seeds in the same order for all."""
    files = ScoreFiles()
    groups: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        name, seed = _name(entry.record), entry.record["seed"]
        if groups.setdefault(name, {}).setdefault(seed, entry) is not entry:
            raise InputError(f"{name}: two records have seed {seed}; give settings names of their own in the YAML's grid")
    seeds = sorted(next(iter(groups.values())))
    done: dict[str, tuple[Losses, Losses]] = {}
    for name, by_seed in groups.items():
        if sorted(by_seed) != seeds:
            raise InputError(
                f"{name}: has the seeds {sorted(by_seed)}, others have {seeds}; a paired comparison needs the same"
            )
        losses = [files.losses(by_seed[seed]) for seed in seeds]
        sides: list[Losses] = []
        for task in (new, old or _first_retained(by_seed[seeds[0]].record)):
            if any(one is None or task not in one for one in losses):
                raise InputError(f"{name}: no scores of {task!r} beside its records; name the folders that `cltk run` wrote")
            whole = stack([one[task] for one in losses if one is not None])
            first = next(iter(done.values()))[len(sides)] if done else whole
            if whole is None or first is None or whole.documents != first.documents:
                raise InputError(f"{name}: its documents of {task!r} are not those of the other runs")
            sides.append(whole)
        done[name] = (sides[0], sides[1])
    return done


def _name(record: dict[str, Any]) -> str:
    """The method, and what else the grid varies: "plain learning_rate=0.0001"."""
    labels = {key: value for key, value in record.get("labels", {}).items() if key not in ("mitigators", "seed")}
    return " ".join([record["method"], *(f"{key.split('.')[-1]}={value}" for key, value in labels.items())])


def _first_retained(record: dict[str, Any]) -> str:
    return str(record["retain"]["rows"][0]["task"])


def _weights(side: Losses, draws: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """How often each cluster is drawn [1 + draws, G]; the first row has each once. And the clusters' sizes."""
    _, sizes = cluster_sums(side.d[0], side.cluster or None)
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=draws)
    return np.vstack([np.ones((1, len(sizes))), drawn]), sizes


def _drawn(side: Losses, seeds: Floats, documents: tuple[Floats, Floats]) -> Floats:
    """The mean over seeds and documents, as it is and in every draw: [1 + draws]."""
    counts, sizes = documents
    sums = np.stack([cluster_sums(row, side.cluster or None)[0] for row in side.d])  # [S, G]
    weights = np.vstack([np.full((1, len(sums)), 1 / len(sums)), seeds])
    return np.einsum("ds,sg,dg->d", weights, sums, counts) / (counts @ sizes)


def _judged(name: str, seeds: int, gain: float, forgetting: float, reference: float, drawn: Floats) -> Matched:
    """SE from the draws that have a D (at least nine of ten), stretched because S seeds are drawn from S."""
    inside = drawn[~np.isnan(drawn)]
    if math.isnan(reference) or len(inside) < 0.9 * len(drawn):
        return Matched(name, seeds, gain, forgetting, None if math.isnan(reference) else reference, None, None, None, None)
    difference = forgetting - reference
    se = float(inside.std(ddof=1)) * math.sqrt(seeds / (seeds - 1) if seeds > 1 else 1.0)
    df = seeds - 1 if seeds > 1 else math.inf
    reach = float(distributions.t.ppf(0.975, df)) * se
    p = float(2 * distributions.t.sf(abs(difference) / se, df)) if se else float(difference == 0)
    return Matched(name, seeds, gain, forgetting, reference, difference, se, (difference - reach, difference + reach), p)
