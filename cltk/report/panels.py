"""A panel a task, a row a method: what was forgotten, with intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from cltk.report.aggregate import Summary
from cltk.report.effects import Effect, scaled, unit
from cltk.report.figures import LIGHT, MOST, STYLE, colour, marker, short, shorts, whiskers
from cltk.report.pairs import retained


def forgetting(summaries: Sequence[Summary]) -> Figure | None:
    """A panel for each old text and the mean accuracy: a row a method, intervals, seeds as small points."""
    texts = dict.fromkeys(effect.task for one in summaries for effect in one.retain if effect.metric == "nll")
    columns = [[one.on(name) for one in summaries] for name in texts]
    if any(one.macro is not None for one in summaries):
        columns.append([one.macro for one in summaries])
    titles = [*[f"{short(name)}: NLL rise, nats" for name in texts], "mean accuracy lost, pp"]
    return _panels(summaries, columns, titles, across=3, bars=False)


def tasks(summaries: Sequence[Summary]) -> Figure | None:
    """A panel a task: bars of forgetting with paired intervals."""
    names = retained(summaries)
    columns = [[one.on(name) for one in summaries] for name in names]
    kinds = [next(effect for effect in column if effect is not None) for column in columns]
    titles = [
        f"{short(name, 26)} {effect.metric}, {unit(effect.metric) or 'units'}"
        for name, effect in zip(names, kinds, strict=True)
    ]  # fmt: skip
    return _panels(summaries, columns, titles, across=3, bars=True)


def _panels(
    summaries: Sequence[Summary], columns: Sequence[Sequence[Effect | None]], titles: Sequence[str], across: int, bars: bool
) -> Figure | None:
    if not columns:
        return None
    shown = summaries[:MOST]
    labels = shorts([one.label for one in shown], 30)
    across = min(across, len(columns))
    down = math.ceil(len(columns) / across)
    with mpl.rc_context(STYLE):
        figure, places = _places(down, across, labels)
        grid = figure.subplots(down, across, squeeze=False, sharey=True, gridspec_kw=places)
        for k, axes in enumerate(grid.flat):
            if k >= len(columns):
                axes.set_axis_off()
                continue
            _rows(axes, shown, columns[k], bars)
            axes.axvline(0, color=LIGHT["muted"], lw=1, zorder=0)
            axes.set_title(titles[k])
            axes.grid(axis="x", alpha=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
            axes.yaxis.set_visible(k % across == 0)  # the others' hidden labels would be drawn all the same
        grid[0, 0].set_yticks(range(len(shown)), labels)
        grid[0, 0].set_ylim(len(shown) - 0.4, -0.6)
    return figure


def _places(down: int, across: int, labels: Sequence[str]) -> tuple[Figure, dict[str, float]]:
    """A figure, and where its panels are: what stands around them is known, and a layout takes longer than drawing."""
    head, rows, foot, beside, left = 0.3, 0.26 * len(labels), 0.35, 0.3, 1.03 * _width(labels) + 0.15  # inches
    height, width = down * (head + rows + foot), max(8.6, left + across * (1 + beside))
    panel = (width - left - 0.15 - (across - 1) * beside) / across
    figure = Figure(figsize=(width, height))
    return figure, {
        "left": left / width, "right": 1 - 0.15 / width, "top": 1 - head / height, "bottom": foot / height,
        "wspace": beside / panel, "hspace": (head + foot) / rows,
    }  # fmt: skip


def _width(labels: Sequence[str]) -> float:
    """Of the widest, in inches."""
    font = FontProperties(family=STYLE["font.family"], size=STYLE["font.size"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `svg`
        return max(text_to_path.get_text_width_height_descent(label, font, False)[0] for label in labels) / 72


def _rows(axes: Axes, shown: Sequence[Summary], column: Sequence[Effect | None], bars: bool) -> None:
    """A row a method; what looks alike is one artist, of which matplotlib draws a few as fast as one of many rows."""
    found = [(i, one, effect) for i, (one, effect) in enumerate(zip(shown, column, strict=False)) if effect is not None]
    means = [scaled(effect, effect.estimate.mean) for _, _, effect in found]
    paints = [colour(i, one) for i, one, _ in found]
    if bars:
        axes.barh([i for i, _, _ in found], means, height=0.62, color=paints, alpha=0.45, lw=0)
    spans = [(i, *ends, paint) for (i, _, effect), paint in zip(found, paints, strict=True) if (ends := whiskers(effect))]
    if spans:
        at, low, high, of_each = zip(*spans, strict=True)
        axes.hlines(at, low, high, colors=of_each, lw=1.6)
    marks: dict[tuple[str, float], list[tuple[float, float, str]]] = {}  # (marker, size) -> (x, y, colour)
    for (i, one, effect), mean, paint in zip(found, means, paints, strict=True):
        if len(effect.points) > 1:
            marks.setdefault((".", 4), []).extend((scaled(effect, p), i + 0.28, paint) for p in effect.points)
        marks.setdefault((marker(i, one), 4 if bars else 6), []).append((mean, i, paint))
    for (shape, size), places in marks.items():
        x, y, of_each = zip(*places, strict=True)
        axes.scatter(x, y, s=size**2, c=of_each, marker=shape, linewidths=0, zorder=2)
