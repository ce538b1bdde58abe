"""Marks, lines and colours that can be told apart, by everybody; labels that stay different when they are cut."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex

from cltk.report import curves, figures, panels
from cltk.report.figures import DARK, LIGHT, shorts
from cltk.report.groups import PLAIN

SEEN = {  # Machado et al. 2009, severity 1: what becomes of linear RGB
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])


def lab(colour: str, seen: Any) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.asarray(seen) @ linear, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN)
def test_colours_are_far_apart_for_every_eye(scheme: dict[str, str], seen: Any) -> None:
    """CIELAB distances; 2.3 is just noticeable."""
    names = ["ink", *(f"s{i}" for i in range(8))]
    points = np.array([lab(scheme[name], seen) for name in names])
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(names))
    assert apart.min() > 25


def summary(label: str, family: str, losses: list[float]) -> Any:
    history = [{"step": i, "loss": loss} for i, loss in enumerate(losses)]
    return SimpleNamespace(label=label, family=family, entries=[SimpleNamespace(record={"train": {"history": history}})])


def test_no_two_lines_during_training_look_alike() -> None:
    settings = [summary(f"plain lr {i}", PLAIN, [1.0, i]) for i in range(5)] + [summary("low_lr", PLAIN, [1.0, 9])]
    methods = [summary(f"m{i}", f"m{i}", [1.0, -i]) for i in range(20)]
    figure = curves.curves([*settings, *methods])
    assert figure is not None
    looks = [
        (line.get_color(), line.get_marker(), line.get_linestyle(), line._dash_pattern[1] and tuple(line._dash_pattern[1]))
        for line in figure.axes[0].lines
    ]
    assert len(looks) == 26
    assert len(set(looks)) == 26
    assert [text.get_text() for text in figure.legends[0].get_texts()][5] == "low_lr"


def test_labels_are_cut_where_they_do_not_differ() -> None:
    long = "lora x4 experiment=methods-strength rank={}"
    assert [label.rpartition("=")[2] for label in shorts([long.format(8), long.format(16)], 24)] == ["8", "16"]
    middle = [f"{'a' * 40}{i}{'b' * 40}" for i in (1, 2)]
    assert len(set(shorts(middle, 24))) == 2
    assert all(len(label) <= 24 for label in shorts([long.format(8), "short"], 24))
    assert shorts(["a\nb", "a b"], 24) == ["a b", "a b"]
    assert shorts([], 24) == []


def effect(mean: float, low: float, high: float, *points: float) -> Any:
    estimate = SimpleNamespace(mean=mean, ci=(low, high))
    return SimpleNamespace(metric="nll", task="old", points=points or (mean,), estimate=estimate, binary=False)


def test_rows_of_a_panel_are_named_apart() -> None:
    one = summary("lora x4 experiment=methods-strength rank=8", "lora", [])
    other = summary("lora x4 experiment=methods-strength rank=16", "lora", [])
    figure = panels._panels([one, other], [[effect(0.1, 0.0, 0.2)] * 2], ["old"], across=1, bars=False)
    assert figure is not None
    named = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert named[0].endswith("rank=8")
    assert named[1].endswith("rank=16")


@pytest.mark.parametrize("bars", [True, False])
def test_a_panel_shows_every_mean_interval_and_seed(bars: bool) -> None:
    """Each method in its colour, seeds below the mean; a method without a number or an interval has none."""
    known = [effect(0.3, 0.1, 0.5, 0.2, 0.4), None, effect(-0.1, -math.inf, math.inf), effect(0.2, 0.1, 0.3)]
    methods = [summary(f"m{i}", "plain" if i == 3 else f"m{i}", []) for i in range(4)]
    figure = panels._panels(methods, [known], ["old"], across=1, bars=bars)
    assert figure is not None
    spans, *marks = figure.axes[0].collections
    assert isinstance(spans, LineCollection)
    assert isinstance(marks[0], PathCollection)
    colours = [figures.colour(i, one) for i, one in enumerate(methods)]
    ends = {to_hex(c): s.tolist() for c, s in zip(spans.get_color(), spans.get_segments(), strict=True)}
    assert ends == {colours[0]: [[0.1, 0], [0.5, 0]], colours[3]: [[0.1, 3], [0.3, 3]]}
    shown = {
        (to_hex(c), *place)
        for mark in marks for c, place in zip(mark.get_facecolor(), mark.get_offsets().tolist(), strict=True)
    }  # fmt: skip
    means = {(colours[0], 0.3, 0.0), (colours[2], -0.1, 2.0), (colours[3], 0.2, 3.0)}
    assert shown == means | {(colours[0], 0.2, 0.28), (colours[0], 0.4, 0.28)}
    assert [bar.get_width() for bar in figure.axes[0].patches] == ([0.3, -0.1, 0.2] if bars else [])


@pytest.mark.parametrize("count", [1, 60])
@pytest.mark.parametrize("label", ["m", "what this method is called is long", "a" * 60 + "{}" + "b" * 60])
def test_panels_leave_room_for_what_stands_around_them(count: int, label: str) -> None:
    """Where matplotlib itself says that labels, numbers and panels lie."""
    names = [label.format(i) if "{" in label else f"{label} {i}" for i in range(count)]
    methods = [summary(name, name, []) for name in names]
    figure = panels._panels(methods, [[effect(0.1, -1.0, 0.2)] * count] * 5, ["a title"] * 5, across=3, bars=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    drawn = [axes for axes in figure.axes if axes.axison]
    boxes = [axes.get_tightbbox(renderer) for axes in drawn]
    assert len(boxes) == 5
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    assert all(box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert not [one for i, one in enumerate(boxes) for other in boxes[:i] if one.overlaps(other)]
    hidden = [axes for axes in drawn if not axes.yaxis.get_visible()]
    assert [round(axes.get_position().width, 6) for axes in drawn] == [round(hidden[0].get_position().width, 6)] * 5


@pytest.mark.parametrize("bars", [True, False])
def test_a_task_of_none_of_the_methods_shown_is_an_empty_panel(bars: bool) -> None:
    """Figures show the first sixty; a later one may be the only one with a task."""
    figure = panels._panels([summary("m", "m", [])], [[None]], ["old"], across=1, bars=bars)
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    assert not figure.axes[0].collections
