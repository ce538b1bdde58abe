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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cltk.measure.stats import Floats
from cltk.report import noise
from cltk.report.aggregate import Summary
from cltk.report.effects import Effect, scaled, unit
from cltk.report.groups import PLAIN
from cltk.report.pairs import Study
from cltk.report.sources import stack
from cltk.report.tables import Table


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
    """A hypervolume, or a difference of two, with its 95 % interval; (-inf, inf) without scores that are paired."""

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

    Interval: that of `noise.delta`, for new seeds and new documents of all settings at once, cut at 0; F is kept.
    """
    found = points(study.summaries)
    if not found:
        return []
    worst, best = max(0.0, *(point.f for point in found)), min(0.0, *(point.f for point in found))
    corner = worst + (worst - best) / 10
    families = {name: [point for point in found if point.summary.family == name] for name in _families(found)}
    done = []
    for name, own in families.items():
        more = None if name == PLAIN or PLAIN not in families else _area(study, own, families[PLAIN], corner)
        done.append(Volume(name, len(own), _area(study, own, [], corner), more))
    return done


def _families(found: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.summary.family for point in found))


def _value(own: Sequence[Point], corner: float) -> float:
    return float(hypervolume(np.array([point.f for point in own]), np.array([point.g for point in own]), corner))


def _area(study: Study, own: Sequence[Point], minus: Sequence[Point], corner: float) -> Area:
    """HV of `own`, less that of `minus` where there are some."""
    value = _value(own, corner) - (_value(minus, corner) if minus else 0.0)
    tasks = _noise(study, [*own, *minus])
    if tasks is None:
        return Area(value)
    scale = scaled(own[0].old, 1.0)

    def more(means: Sequence[Floats]) -> float:
        f, g = scale * np.mean(means[:-1], axis=0), -means[-1]
        less = float(hypervolume(f[len(own) :], g[len(own) :], corner)) if minus else 0.0
        return float(hypervolume(f[: len(own)], g[: len(own)], corner)) - less

    estimate = noise.delta(more, tasks)
    if estimate is None:
        return Area(value)
    low, high = (value + end - estimate.mean for end in estimate.ci)
    return Area(value, low if minus else max(low, 0.0), high)


def _noise(study: Study, found: Sequence[Point]) -> list[tuple[Floats, list[str]]] | None:
    """(d [K, S, n], clusters) of each old task and of the new one, on the seeds that all have; None without such scores."""
    if not study.side(found[0].number).documents:
        return None
    sides = [study.side(point.number) for point in found]
    seeds = [seed for seed in sides[0].seeds if all(seed in side.seeds for side in sides)]
    if not seeds or any(point.summary.primary_tasks != found[0].summary.primary_tasks for point in found):
        return None
    done = []
    for task in [*found[0].summary.primary_tasks, found[0].new.task]:
        whole = [stack(side.runs(task, seeds)) for side in sides]
        if any(one is None or whole[0] is None or one.documents != whole[0].documents for one in whole):
            return None
        known = [one for one in whole if one is not None]
        done.append((np.stack([one.d for one in known]), known[0].cluster))
    return done


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
        " learning rate, low_lr alone included. Brackets: 95 % intervals for new seeds and documents, which all"
        " settings meet alike."
    )
    name = f"area, {unit(old.metric) or 'units'} × nats"
    return Table("What each method dominates (hypervolume)", ["method", "settings", name, "more than plain"], rows, note)


def _shown(area: Area) -> str:
    return f"{area.value:.3f}" if math.isinf(area.low) else f"{area.value:.3f} [{area.low:.3f}, {area.high:.3f}]"
