"""Marks, lines and colours that can be told apart, by everybody; labels that stay different when they are cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cltk.report import curves, figures
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


def test_rows_of_a_panel_are_named_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    effect: Any = SimpleNamespace(
        metric="nll", task="old", points=(0.1,), estimate=SimpleNamespace(mean=0.1, ci=(0.0, 0.2)), scale=1
    )
    monkeypatch.setattr(figures, "scaled", lambda effect, value, sign=1: value)
    one = summary("lora x4 experiment=methods-strength rank=8", "lora", [])
    other = summary("lora x4 experiment=methods-strength rank=16", "lora", [])
    figure = figures._panels([one, other], [[effect, effect]], ["old"], across=1, bars=False)
    assert figure is not None
    named = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert named[0].endswith("rank=8")
    assert named[1].endswith("rank=16")
