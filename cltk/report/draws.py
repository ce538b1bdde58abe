"""Means of settings over seeds and documents, as they are and in bootstrap draws that all settings share.

For statistics that are no plain mean (a rank correlation, an exponent, a frontier): compute it from each draw's means.
For a mean of paired differences `seeds.combine` is sharper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as distributions

from cltk.errors import InputError
from cltk.measure.stats import Estimate, Floats, cluster_sums
from cltk.report.groups import differing
from cltk.report.sources import Entry, Losses, ScoreFiles, stack

DRAWS = 4_000


@dataclass(frozen=True)
class Draws:
    """[1 + draws] numbers a setting, the first as measured. Gain: fall of the new loss; forgetting: rise of the old."""

    seeds: int
    gain: dict[str, Floats]
    forgetting: dict[str, Floats]

    def estimate(self, values: Floats) -> Estimate | None:
        """A statistic of the means, [1 + draws]: its value, SE, 95 % interval and two-sided p of 0.

        SE: the draws' standard deviation, stretched by sqrt(S / (S - 1)) because S seeds are drawn from S; t on S - 1
        degrees of freedom, normal with one seed (which leaves training noise out). nan marks a draw that has no value;
        None when more than one in ten has none, or the value itself is nan.
        """
        value, inside = float(values[0]), values[1:][~np.isnan(values[1:])]
        if math.isnan(value) or len(inside) < 0.9 * (len(values) - 1):
            return None
        se = float(inside.std(ddof=1)) * math.sqrt(self.seeds / (self.seeds - 1) if self.seeds > 1 else 1.0)
        df = self.seeds - 1 if self.seeds > 1 else math.inf
        reach = float(distributions.t.ppf(0.975, df)) * se
        p = float(2 * distributions.t.sf(abs(value) / se, df)) if se else float(value == 0)
        return Estimate(value, se, value - reach, value + reach, p, self.seeds, self.seeds)


def drawn(found: Mapping[str, tuple[Losses, Losses]], draws: int = DRAWS, seed: int = 0) -> Draws:
    """Draws of settings (name -> losses on the new and the old task, as `settings` gives them), by seed and by cluster."""
    rng = np.random.default_rng(seed)
    first = next(iter(found.values()))
    seeds = len(first[0].d)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    new, old = (_weights(side, draws, rng) for side in first)
    return Draws(
        seeds,
        {name: -_means(sides[0], weights, new) for name, sides in found.items()},
        {name: _means(sides[1], weights, old) for name, sides in found.items()},
    )


def settings(entries: Sequence[Entry], new: str, old: str | None) -> dict[str, tuple[Losses, Losses]]:
    """Setting -> its losses [seeds, n] on the new and the old task, seeds in the same order for all.

    Raises:
        InputError: a task or scores.json is missing, a setting has a seed twice, or documents or seeds differ.
    """
    files = ScoreFiles()
    groups: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        name, seed = name_of(entry.record), entry.record["seed"]
        if (other := groups.setdefault(name, {}).setdefault(seed, entry)) is not entry:
            raise InputError(_twice(name, seed, other, entry))
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
                apart = [_scored(by_seed[seeds[0]].record), _scored(next(iter(groups.values()))[seeds[0]].record)]
                raise InputError(f"{name}: its documents of {task!r} ({apart[0]}) are not those of the other runs ({apart[1]})")
            sides.append(whole)
        done[name] = (sides[0], sides[1])
    return done


def _scored(record: Mapping[str, Any]) -> str:
    """Which documents a record says that it is about."""
    evals = record.get("config", {}).get("evals") or {}
    said = [f"{key} {evals[key]}" for key in ("limit", "sample", "sample_seed") if evals.get(key) is not None]
    return ", ".join(said) or "all documents"


def _twice(name: str, seed: int, one: Entry, other: Entry) -> str:
    """Two records of one setting: an edited YAML leaves the older one in the folder."""
    apart = ["; ".join(differing(a.record, [b.record])) or "nothing that is known" for a, b in ((one, other), (other, one))]
    return (
        f"{name}: two records have seed {seed}: {one.path} ({apart[0]}) and {other.path} ({apart[1]}); move away the one that"
        " is not meant, or give settings names of their own in the YAML's grid"
    )


def name_of(record: Mapping[str, Any]) -> str:
    """The method, and what else the grid varies: "plain learning_rate=0.0001"."""
    labels = {key: value for key, value in record.get("labels", {}).items() if key not in ("mitigators", "seed")}
    return " ".join([record["method"], *(f"{key.split('.')[-1]}={value}" for key, value in labels.items())])


def _first_retained(record: Mapping[str, Any]) -> str:
    if "retain" not in record:
        raise InputError(f"{record.get('cell', 'a record')}: evals.retain is empty, so there is no forgetting to compare")
    return str(record["retain"]["rows"][0]["task"])


def _weights(side: Losses, draws: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """How often each cluster is drawn [1 + draws, G]; the first row has each once. And the clusters' sizes."""
    _, sizes = cluster_sums(side.d[0], side.cluster or None)
    counts = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=draws)
    return np.vstack([np.ones((1, len(sizes))), counts]), sizes


def _means(side: Losses, seeds: Floats, documents: tuple[Floats, Floats]) -> Floats:
    """The mean over seeds and documents, as it is and in every draw: [1 + draws]."""
    counts, sizes = documents
    sums = np.stack([cluster_sums(row, side.cluster or None)[0] for row in side.d])  # [S, G]
    weights = np.vstack([np.full((1, len(sums)), 1 / len(sums)), seeds])
    return np.einsum("ds,sg,dg->d", weights, sums, counts) / (counts @ sizes)
