"""Which part of an importance is the largest: one sequence can make most of a trace."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

from cltk.ranks import first, gathered

SHARE = 0.25  # of the trace, above which one part of it is worth a warning ...
TIMES = 2.0  # ... if it is so many times its even share


class Tail:
    """The largest part of the trace so far, a sequence's, or a batch's where squares are of batches; how many were clipped."""

    def __init__(self) -> None:
        self.trace, self.row, self.clipped = 0.0, -1, 0

    def see(self, parts: Iterable[tuple[int, float]]) -> None:
        """(row, what it added to the trace), of a batch its first row."""
        for row, part in parts:
            if part > self.trace:
                self.trace, self.row = part, row

    def state(self) -> list[float]:
        return [self.trace, self.row, self.clipped]

    def load(self, state: list[float]) -> None:
        self.trace, self.row, self.clipped = float(state[0]), int(state[1]), int(state[2])

    def reduce(self) -> None:
        """Over all ranks; every rank must call it."""
        found = gathered(self.state())
        self.load([*max(found, key=lambda one: one[0])[:2], sum(one[2] for one in found)])


def shares(tail: Tail, trace: float, unit: str, clip: float | None) -> dict[str, Any]:
    """What `info` says of it; of a batch `largest_row` is the first."""
    share = tail.trace / trace if trace > 0 else 0.0
    found = {"largest_share": share, "largest_of": unit, "largest_row": tail.row, "clip": clip}
    return found if clip is None else {**found, "clipped": tail.clipped}


def warn(info: dict[str, Any], trace: float) -> None:
    """One line in the log if one part makes more than a quarter of the trace, and twice its even share (rank 0 speaks).

    It names the norm that such a bound could have: sqrt of the mean square that the others have, where these are known.
    """
    share, unit = info["largest_share"], info["largest_of"]
    count = info["sequences" if unit == "sequence" else "batches"]
    if not first() or not share > max(SHARE, TIMES / count):
        return
    where = f"row {info['largest_row']}" if unit == "sequence" else f"rows from {info['largest_row']} on"
    text = f"one {unit} of {count} ({where}) makes {share:.0%} of the trace"
    if info["level"] == "sequence" and info["kind"] != "mas" and trace * (1 - share) > 0:
        norms = math.sqrt(trace * share), math.sqrt(trace * (1 - share) / (count - 1))
        text += f": its gradient has a norm of {norms[0]:.3g}, the others of {norms[1]:.3g} (root mean square)"
    advice = "clip bounds a sequence's norm" if info["clip"] is None else "a lower clip bounds it further"
    narrow = "; bfloat16 may give such a row another size (autocast)" if info["autocast"] else ""
    logging.getLogger("cltk.importance").warning("fisher: %s; %s%s", text, advice, narrow)


def merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Of two parts of the data, from their `moments` (the traces' sums) and shares; nothing where one does not say."""
    if not all("largest_share" in one for one in (a, b)):
        return {}
    traces = [one["moments"][2] for one in (a, b)]
    large = max((one["largest_share"] * trace, one["largest_row"]) for one, trace in zip((a, b), traces, strict=True))
    units = {one["largest_of"] for one in (a, b)}
    found = {"largest_share": large[0] / sum(traces) if sum(traces) > 0 else 0.0, "largest_row": large[1]}
    found["largest_of"] = units.pop() if len(units) == 1 else "batch"
    return found | ({"clipped": a["clipped"] + b["clipped"]} if "clipped" in a and "clipped" in b else {})
