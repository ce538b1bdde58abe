"""The plane of plasticity and stability: what plain fine-tuning reaches at any learning rate, and what a method adds.

A setting of a method is a point (f, g): f its forgetting on the primary endpoint, g its gain, the fall of new-task NLL. A
family is a method with all of its settings; plain fine-tuning at several learning rates is one. Its hypervolume is the area
that its points dominate (Zitzler and Thiele 1999, doi 10.1109/4235.797969),

    HV = area of the union over its points i of [f_i, F] x [0, g_i],

up to a corner (F, 0) that all families of a study share: no gain, and F = worst + (worst - best) / 10 over the forgetting of
all settings and of the start model (0).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats as distributions

from cltk.measure.stats import Floats, cluster_sums
from cltk.report.aggregate import Summary
from cltk.report.effects import Effect, scaled, unit
from cltk.report.groups import PLAIN
from cltk.report.pairs import Study
from cltk.report.sides import Side
from cltk.report.sources import stack
from cltk.report.tables import Table

DRAWS = 1_000


@dataclass(frozen=True)
class Point:
    """One summary in the plane; accuracies in percentage points."""

    number: int  # of the summary
    summary: Summary
    old: Effect
    new: Effect

    @property
    def f(self) -> float:
        return scaled(self.old, self.old.estimate.mean)

    @property
    def g(self) -> float:
        return -self.new.estimate.mean


@dataclass(frozen=True)
class Area:
    """A hypervolume, or a difference of two, with its 95 % interval; (-inf, inf) when nothing could be drawn."""

    value: float
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Volume:
    """What a family dominates, and how much more that is than what plain fine-tuning does."""

    family: str
    settings: int
    area: Area
    more: Area | None  # None for plain itself, and without it


def points(summaries: Sequence[Summary]) -> list[Point]:
    """The summaries that have both coordinates, on the endpoint of the first of them."""
    found = [Point(i, one, one.primary, one.new_task) for i, one in enumerate(summaries) if one.primary and one.new_task]
    return [point for point in found if _axes(point) == _axes(found[0])]


def _axes(point: Point) -> tuple[str, str, str]:
    return point.old.task, point.old.metric, point.new.task


def frontier(found: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (f, g) those that no other beats in both, by rising f."""
    best, kept = -math.inf, []
    for f, g in sorted(found, key=lambda point: (point[0], -point[1])):
        if g > best:
            kept.append((f, g))
            best = g
    return kept


def hypervolume(f: Floats, g: Floats, corner: float) -> Floats:
    """HV of points [P, ...] up to (corner, 0), one for each of the trailing places."""
    order = np.argsort(f, axis=0)
    x = np.minimum(np.take_along_axis(f, order, 0), corner)
    best = np.maximum.accumulate(np.maximum(np.take_along_axis(g, order, 0), 0), axis=0)
    widths = np.diff(x, axis=0, append=np.full_like(x[:1], corner))
    return np.asarray((widths * best).sum(axis=0))


def volumes(study: Study) -> list[Volume]:
    """The hypervolume of every family, in the order of the summaries.

    Interval: HV +- t SE, cut at 0. SE is that of a bootstrap in which all settings meet the same draw of seeds and, in
    each task, of documents (by cluster); F is kept. Weights of S seeds are stretched by sqrt(S / (S - 1)), because S are
    drawn from S. t has S - 1 degrees of freedom, with one seed those of the clusters.
    """
    found = points(study.summaries)
    if not found:
        return []
    worst, best = max(0.0, *(point.f for point in found)), min(0.0, *(point.f for point in found))
    corner = worst + (worst - best) / 10
    families = {name: [point for point in found if point.summary.family == name] for name in _families(found)}
    drawn = {name: _drawn(study, own, corner) for name, own in families.items()}
    values = {name: _value(own, corner) for name, own in families.items()}
    done = []
    for name, own in families.items():
        more = None if name == PLAIN or PLAIN not in families else _area(values, drawn, name, PLAIN)
        done.append(Volume(name, len(own), _area(values, drawn, name), more))
    return done


def _families(found: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.summary.family for point in found))


def _value(own: Sequence[Point], corner: float) -> float:
    return float(hypervolume(np.array([point.f for point in own]), np.array([point.g for point in own]), corner))


@dataclass(frozen=True)
class _Drawn:
    areas: Floats  # [draws]
    degrees: int


def _area(values: dict[str, float], drawn: dict[str, _Drawn | None], name: str, minus: str | None = None) -> Area:
    value, ours = values[name], drawn[name]
    if minus is None:
        theirs = _Drawn(np.zeros(DRAWS), ours.degrees) if ours else None
    else:
        value, theirs = value - values[minus], drawn[minus]
    if ours is None or theirs is None:
        return Area(value)
    se = float(np.std(ours.areas - theirs.areas, ddof=1))
    half = float(distributions.t.ppf(0.975, min(ours.degrees, theirs.degrees))) * se
    return Area(value, value - half if minus else max(value - half, 0.0), value + half)


def _drawn(study: Study, own: Sequence[Point], corner: float) -> _Drawn | None:
    """HV of every draw; None when a setting lacks per-document scores."""
    f, g, degrees = [], [], []
    for point in own:
        side = study.side(point.number)
        old, new = (_means(side, tasks) for tasks in (point.summary.primary_tasks, [point.new.task]))
        if old is None or new is None:
            return None
        f.append(scaled(point.old, old[0]))
        g.append(-new[0])
        degrees += [old[1], new[1]]
    return _Drawn(hypervolume(np.array(f), np.array(g), corner), min(degrees))


def _means(side: Side, tasks: Sequence[str]) -> tuple[Floats, int] | None:
    """The mean over tasks, seeds and documents of every draw, and its degrees of freedom."""
    seeds = len(side.entries)
    total, degrees = np.zeros((DRAWS, seeds)), []
    for task in tasks:
        whole = stack(side.runs(task))
        if whole is None:
            return None
        per_seed = [cluster_sums(row, whole.cluster) for row in whole.d]
        counts = per_seed[0][1]
        if len(counts) < 2:
            return None
        weights = _weights(len(counts), task)
        total += (weights @ np.column_stack([sums for sums, _ in per_seed])) / (weights @ counts)[:, None]
        degrees.append(len(counts) - 1)
    stretch = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    own = 1 / seeds + stretch * (_weights(seeds, "seeds") / seeds - 1 / seeds)
    return (own * total / len(tasks)).sum(axis=1), seeds - 1 if seeds > 1 else min(degrees)


@lru_cache(maxsize=32)
def _weights(groups: int, name: str) -> Floats:
    """How often each of `groups` is drawn [draws, groups]; the same for the same name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=DRAWS).astype(np.float64)


def area_table(study: Study) -> Table | None:
    """The hypervolumes as a table; None when no method has both coordinates."""
    found = volumes(study)
    if not found:
        return None
    old = points(study.summaries)[0].old
    rows = [[one.family, str(one.settings), _shown(one.area), _shown(one.more) if one.more else ""] for one in found]
    note = (
        f"The area between a method's settings (forgetting on {old.task}, new-task NLL fall) and a corner that all methods"
        " share: no gain, and forgetting a tenth of the study's range beyond the worst setting. Larger is better; a method"
        " tried at more settings has more chances, so compare equal numbers. Plain is fine-tuning without a method at any"
        " learning rate, low_lr alone included. Brackets: 95 % intervals, from a bootstrap in which all settings meet the"
        " same seeds and documents."
    )
    name = f"area, {unit(old.metric) or 'units'} × nats"
    return Table("What each method dominates (hypervolume)", ["method", "settings", name, "more than plain"], rows, note)


def _shown(area: Area) -> str:
    return f"{area.value:.3f}" if math.isinf(area.low) else f"{area.value:.3f} [{area.low:.3f}, {area.high:.3f}]"
