"""The runs of experiments/*/results: which settings there are, and paired estimates over their seeds and documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cltk.errors import InputError
from cltk.measure.stats import Estimate, Floats
from cltk.report.noise import Statistic, combine, delta, from_documents
from cltk.report.settings import name_of, settings
from cltk.report.sources import Entry, Losses, read_entries

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
OLD = "old_text"
DRAWS = 4_000
Sides = Mapping[str, tuple[Losses, Losses]]
Picked = Callable[[Losses], Floats]


def folders(experiments: Path = EXPERIMENTS) -> list[Path]:
    """Every folder of records that the paper reads."""
    found = [experiments / "ewc-path" / "results", experiments / "methods-study" / "results"]
    return found + sorted(path for path in (experiments / "shapes" / "results").glob("*") if path.is_dir())


class Missing(Exception):
    """Settings that were not run, or not with enough seeds."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(", ".join(names))
        self.names = names


@dataclass
class Runs:
    """Entries by (old text, setting, seed). A statistic is taken over the seeds that all of its settings have."""

    entries: list[Entry]
    _by: dict[tuple[str, str], dict[int, Entry]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for entry in self.entries:
            old = str(entry.record["retain"]["rows"][0]["task"])
            name, seed = name_of(entry.record), entry.record["seed"]
            if self._by.setdefault((old, name), {}).setdefault(seed, entry) is not entry:
                raise InputError(f"{entry.path}: {name} with seed {seed} is there twice")

    @classmethod
    def read(cls, experiments: Path = EXPERIMENTS) -> Runs:
        """Every run that is there."""
        return cls([entry for folder in folders(experiments) for entry in read_entries(folder)])

    def names(self, old: str = OLD) -> list[str]:
        """The settings that were measured on this old text."""
        return [name for text, name in self._by if text == old]

    def one(self, name: str, old: str = OLD) -> dict[int, Entry]:
        """A setting's runs by seed. Raises Missing when there are none."""
        if (old, name) not in self._by:
            raise Missing((name,))
        return self._by[old, name]

    def sides(self, names: Sequence[str], old: str = OLD) -> Sides:
        """Losses on the new task and on the old text of every setting, over the seeds that all have."""
        if missing := [name for name in names if (old, name) not in self._by]:
            raise Missing(tuple(missing))
        seeds = set.intersection(*(set(self._by[old, name]) for name in names))
        return settings([self._by[old, name][seed] for name in names for seed in sorted(seeds)], "heldout", old)

    def contrast(self, weights: Mapping[str, float], side: int, pick: Picked = lambda one: one.d, old: str = OLD) -> Estimate:
        """sum of weight x mean over seeds and documents, paired; side 0 is the new task, 1 the old text."""
        found = self.sides(list(weights), old)
        matrix = np.sum([weight * pick(found[name][side]) for name, weight in weights.items()], axis=0)
        return combine([from_documents(matrix, next(iter(found.values()))[side].cluster)])

    def forgetting(self, weights: Mapping[str, float], old: str = OLD) -> Estimate:
        """Of the rise of old-text NLL."""
        return self.contrast(weights, 1, old=old)

    def gain(self, weights: Mapping[str, float]) -> Estimate:
        """Of the fall of new-task NLL."""
        return self.contrast(weights, 0, lambda one: -one.d)

    def loss(self, weights: Mapping[str, float], side: int = 0) -> Estimate:
        """Of the NLL after training itself."""
        return self.contrast(weights, side, lambda one: one.after)

    def of_means(self, statistic: Statistic, names: Sequence[str], *olds: str) -> Estimate | None:
        """A statistic of the settings' mean forgetting on each old text, [K] a text, over the seeds that all have."""
        tasks, seeds = [], []
        for old in olds or (OLD,):
            sides = [self.sides(names, old)[name][1] for name in names]
            tasks.append((np.stack([side.d for side in sides]), sides[0].cluster))
            seeds.append(len(sides[0].d))
        return delta(statistic, tasks) if len(set(seeds)) == 1 else None
