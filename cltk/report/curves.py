"""What the runs logged while they trained: forgetting step by step where a probe measured it, and everything else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cltk.report.aggregate import Summary
from cltk.report.figures import MOST, STYLE, colour, marker, short, shorts
from cltk.report.groups import PLAIN

Curve = list[tuple[float, float]]  # (step, value)

TITLES = {
    "old_nll_rise": "old-text NLL, rise (nats)", "validation_nll": "held-out new-task NLL (nats)", "loss": "training loss",
}  # fmt: skip
DASHES: Any = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)))
WATCHED, ENDS = "forgetting_", ("_low", "_high")  # what a watch measured, and the ends of its intervals
BOOKKEEPING = {"step", "epoch", "grad_norm", "learning_rate", "total_flos", "train_loss", "best_step"}


def traces(summaries: Sequence[Summary]) -> dict[str, list[tuple[int, Curve]]]:
    """Quantity -> (number of its summary, its curve), a run a seed; forgetting first, the training loss last."""
    found: dict[str, list[tuple[int, Curve]]] = {}
    for i, summary in enumerate(summaries[:MOST]):
        for entry in summary.entries:
            for name, curve in _curves(entry.record["train"]).items():
                if len(curve) > 1 and not _end(name):
                    found.setdefault(name, []).append((i, curve))
    ranks = {"old_nll_rise": 0, "validation_nll": 1, "loss": 3}
    order = {name: (0 if _watched(name) else ranks.get(name, 2), name) for name in found}
    return {name: found[name] for name in sorted(found, key=order.__getitem__)}


def _watched(name: str) -> bool:
    """A watch's row; of a stream behind the name of the stage."""
    return name.rpartition(": ")[2].startswith(WATCHED)


def _end(name: str) -> bool:
    return _watched(name) and name.endswith(ENDS)


def bands(summaries: Sequence[Summary], name: str) -> list[tuple[int, list[tuple[float, float, float]]]]:
    """Of a watched quantity: number of its summary, and (step, low, high) of every moment, a run a seed."""
    found = []
    for i, summary in enumerate(summaries[:MOST] if _watched(name) else ()):
        for entry in summary.entries:
            known = _curves(entry.record["train"])
            low, high = (dict(known.get(name + end, [])) for end in ENDS)
            if both := [(step, low[step], high[step]) for step in low if step in high]:
                found.append((i, both))
    return found


def _curves(train: dict[str, Any]) -> dict[str, Curve]:
    """The methods' own traces, and what else was logged."""
    notes = [note.get("trace") for note in train.get("notes", {}).values() if isinstance(note, dict)]
    found: dict[str, Curve] = {}
    for rows in [*notes, train.get("history")]:
        here: dict[str, Curve] = {}
        for step, name, value in _numbers(rows if isinstance(rows, list) else []):
            here.setdefault(name, []).append((step, value))
        found = {**here, **found}
    return found


def _numbers(rows: Iterable[Any]) -> Iterator[tuple[float, str, float]]:
    """(step, name, value) of every finite number in rows of a log; each stage of a stream counts its own steps."""
    for row in rows:
        for name, value in row.items() if isinstance(row, dict) and "step" in row else ():
            name = name.removeprefix("eval_") if name.startswith(f"eval_{WATCHED}") else name  # a watch's line of the log
            kept = name not in BOOKKEEPING and not name.startswith(("train_", "eval_runtime"))
            if kept and isinstance(value, int | float) and math.isfinite(value):
                yield row["step"], f"{row['stage']}: {name}" if "stage" in row else name, value


def curves(summaries: Sequence[Summary]) -> Figure | None:
    """A panel a quantity; None when nothing was logged twice."""
    found = traces(summaries)
    if not found:
        return None
    across = min(3, len(found))
    down = math.ceil(len(found) / across)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 2.3 * down + 0.5), layout="constrained")
        grid = list(figure.subplots(down, across, squeeze=False).flat)
        named: dict[int, Any] = {}
        for axes, (name, runs) in zip(grid, found.items(), strict=False):
            named |= _panel(axes, name, runs, summaries)
        for axes in grid[len(found) :]:
            axes.set_axis_off()
        labels = shorts([summaries[i].label for i in sorted(named)], 24)
        figure.legend([named[i] for i in sorted(named)], labels, loc="outside lower center", ncols=4)
    return figure


def _title(name: str) -> str:
    """What a panel shows; a watched row is in its own unit, accuracies as shares."""
    return TITLES.get(name) or (name.replace(WATCHED, "forgetting: ", 1) if _watched(name) else name)


def _panel(axes: Axes, name: str, runs: Sequence[tuple[int, Curve]], summaries: Sequence[Summary]) -> dict[int, Any]:
    """Draw one quantity; a line of each summary, for the legend."""
    lines, plain = {}, [i for i, one in enumerate(summaries) if one.family == PLAIN]
    for i, curve in runs:
        dash = DASHES[plain.index(i) % len(DASHES)] if i in plain else "-"  # settings of plain training share colour and mark
        style: Any = {
            "color": colour(i, summaries[i]),
            "marker": marker(i, summaries[i]),
            "ms": 4,
            "mew": 0,
            "lw": 1.4,
            "ls": dash,
        }
        lines[i] = axes.plot([step for step, _ in curve], [value for _, value in curve], **style)[0]
    for i, band in bands(summaries, name):
        steps, low, high = zip(*band, strict=True)
        axes.fill_between(steps, low, high, color=colour(i, summaries[i]), alpha=0.15, lw=0)
    axes.set_title(short(_title(name), 40))
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.6)
    return lines
