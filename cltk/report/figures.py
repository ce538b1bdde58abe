"""Figures of a study, with matplotlib: inline SVG whose colours follow the page's scheme, and PDF for a paper.

The same input gives the same bytes: no dates, ids from a fixed salt. Colours are those of LIGHT; in SVG each becomes the CSS
variable of its name, so that DARK can take over.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cltk.report.aggregate import Summary
from cltk.report.effects import Effect, scaled, unit
from cltk.report.groups import PLAIN, learning_rate
from cltk.report.plane import Point, frontier, points

LIGHT = {
    "ink": "#1b1f24", "muted": "#56606b", "line": "#d4d9df", "s0": "#0000ff", "s1": "#c3871e", "s2": "#960000", "s3": "#6996d2",
    "s4": "#a51e78", "s5": "#a55aff", "s6": "#f03c69", "s7": "#690096",
}  # fmt: skip  # far apart also for those who see no red, no green or no blue
DARK = {
    "ink": "#e8ebef", "muted": "#a4aeb9", "line": "#3b434d", "s0": "#ff8700", "s1": "#007878", "s2": "#ff96ff", "s3": "#78ff87",
    "s4": "#c31e00", "s5": "#969669", "s6": "#872dff", "s7": "#a52db4",
}  # fmt: skip
MARKERS = "ovDP^X<>*h"
MOST = 60  # methods in a figure; tables show all
STYLE: Any = {
    "axes.edgecolor": LIGHT["muted"], "axes.labelcolor": LIGHT["ink"], "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlelocation": "left", "axes.titlesize": 9, "axes.titleweight": "bold", "axes.unicode_minus": True, "font.size": 9,
    "font.family": "DejaVu Sans", "grid.color": LIGHT["line"], "legend.frameon": False, "pdf.fonttype": 42,
    "svg.fonttype": "none", "svg.hashsalt": "cltk", "text.color": LIGHT["ink"], "text.parse_math": False,
    "xtick.color": LIGHT["muted"], "ytick.color": LIGHT["muted"], "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
}  # fmt: skip


def colour(i: int, summary: Summary) -> str:
    """Plain training is ink, methods take turns."""
    return LIGHT["ink"] if summary.family == PLAIN else LIGHT[f"s{i % 8}"]


def marker(i: int, summary: Summary) -> str:
    """Plain training is a square, methods take turns."""
    return "s" if summary.family == PLAIN else MARKERS[i % len(MARKERS)]


def short(label: str, most: int = 40) -> str:
    """One line, at most so many characters."""
    line = " ".join(label.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def shorts(labels: Sequence[str], most: int = 40) -> list[str]:
    """One line each, cut in the middle to so many characters; longer where different labels would become equal."""
    lines = [" ".join(label.split()) for label in labels]
    for room in range(most, max([most, *map(len, lines)]) + 1):
        cut = [line if len(line) <= room else f"{line[: room - room // 2 - 1]}…{line[-(room // 2) :]}" for line in lines]
        if len(set(cut)) == len(set(lines)):
            return cut
    return lines


def svg(figure: Figure, key: str, description: str) -> str:
    """An <svg> element for a page: ids start with `key`, text stays text, colours are var(--name)."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that the measuring font lacks: the browser has its own fonts
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg ") :], flags=re.DOTALL)
    text = re.sub(r"\bid=\"", f'id="{key}-', text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{key}-", text)
    text = text.replace("'DejaVu Sans'", "var(--sans)")
    for name, value in LIGHT.items():
        text = text.replace(f": {value}", f": var(--{name})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)


def pdf(figure: Figure, path: Path) -> None:
    """Write a PDF with embedded fonts."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(path, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})


def whiskers(effect: Effect, sign: int = 1) -> list[float] | None:
    """The interval in the unit shown, ascending; None when it has no end."""
    ends = sorted(scaled(effect, end, sign) for end in effect.estimate.ci)
    return ends if all(map(math.isfinite, ends)) else None


def plane(summaries: Sequence[Summary]) -> Figure | None:
    """New-task gain (up is good) against forgetting (left is good); None when no method has both."""
    found = points(summaries[:MOST])
    if not found:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, max(4.2, 0.22 * len(found) + 0.6)), layout="constrained")
        axes = figure.subplots()
        for point, label in zip(found, shorts([point.summary.label for point in found], 30), strict=True):
            _point(axes, point, label)
        linear = _linear([point.f for point in found])
        if linear is not None:
            axes.set_xscale("symlog", linthresh=linear, linscale=4)
            axes.xaxis.set_major_formatter("{x:g}")
        _frontier(axes, [point for point in found if point.summary.family == PLAIN])
        old = found[0].old
        beyond = "" if linear is None else f", logarithmic beyond {linear:g}"
        axes.set_xlabel(f"{short(old.task)} {old.metric}, forgetting, {unit(old.metric) or 'units'} (← less){beyond}")
        axes.set_ylabel("new-task NLL, fall, nats (more →)")
        axes.grid(alpha=0.6)
        axes.set_axisbelow(True)
        figure.legend(loc="outside right upper", handletextpad=0.4)
    return figure


def _linear(values: Sequence[float]) -> float | None:
    """Up to where an axis is linear when a few values far out would press all others together; None when none is."""
    sizes = np.abs(values)
    bulk = float(np.quantile(sizes, 0.75))
    return float(f"{bulk:.1g}") if bulk > 0 and sizes.max() > 5 * bulk else None


def _point(axes: Axes, point: Point, label: str) -> None:
    """A big mark with whiskers; a small mark a seed."""
    old, new, paint, shape = point.old, point.new, colour(point.number, point.summary), marker(point.number, point.summary)
    if across := whiskers(old):
        axes.plot(across, [point.g, point.g], color=paint, lw=1.2, alpha=0.55)
    if up := whiskers(new, -1):
        axes.plot([point.f, point.f], up, color=paint, lw=1.2, alpha=0.55)
    if len(old.points) > 1 and len(old.points) == len(new.points):
        small: Any = {"color": paint, "ms": 3, "alpha": 0.6, "mew": 0}
        axes.plot([scaled(old, p) for p in old.points], [-p for p in new.points], shape, **small)
    plain = point.summary.family == PLAIN
    look: Any = {"ms": 11, "mfc": "none", "mew": 1.6} if plain else {"ms": 8, "mew": 0}  # hollow: what equals plain shows
    axes.plot([point.f], [point.g], shape, color=paint, label=label, ls="", **look)


def _frontier(axes: Axes, plain: Sequence[Point]) -> None:
    """What plain training reaches at its best learning rates: below and right of the line is dominated; rates are named."""
    if not plain:
        return
    (_, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    edge = frontier([(point.f, point.g) for point in plain])
    across, up = [edge[0][0], *[f for f, _ in edge], right], [bottom, *[g for _, g in edge], edge[-1][1]]
    axes.plot(across, up, drawstyle="steps-post", color=LIGHT["muted"], lw=1, ls="--", zorder=0)
    axes.set(xlim=(None, right), ylim=(bottom, top))
    rates = [learning_rate(point.summary.entries[0].record) for point in plain]
    for point, rate in zip(plain, rates, strict=True) if len(set(rates)) > 1 else ():
        style: Any = {"xytext": (8, -10), "textcoords": "offset points", "fontsize": 7.5, "color": LIGHT["muted"]}
        axes.annotate("" if rate is None else f"lr {rate:g}", (point.f, point.g), **style)
