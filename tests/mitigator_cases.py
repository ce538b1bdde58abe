"""The one table that every method must be in: settings that change nothing, and settings that do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cltk

Texts = list[str]


@dataclass(frozen=True)
class Case:
    """How the common tests build a method. `nothing`: strength 0 in this method's words; None when it has none."""

    active: Callable[[Texts], Any]
    nothing: Callable[[Texts], Any] | None


CASES: dict[str, Case] = {
    "early_stopping": Case(
        lambda old: cltk.EarlyStopping(patience=1, every=2, budget=10.0, memory=old, limit=4),
        lambda old: cltk.EarlyStopping(every=0),
    ),
    "ewc": Case(
        lambda old: cltk.EWC(3.0, {"memory": old, "samples": 4, "block": 16, "normalize": "mean"}),
        lambda old: cltk.EWC(0.0, {"memory": old, "samples": 4}),
    ),
    "kl": Case(lambda old: cltk.KL(0.5), lambda old: cltk.KL(0.0)),
    "l2_sp": Case(lambda old: cltk.L2SP(5.0), lambda old: cltk.L2SP(0.0)),
    "low_lr": Case(lambda old: cltk.LowLR(0.5), lambda old: cltk.LowLR(1.0)),
    "replay": Case(lambda old: cltk.Replay(old, 0.25), lambda old: cltk.Replay(old, 0.0)),
    "wise_ft": Case(lambda old: cltk.WiSEFT(0.5), lambda old: cltk.WiSEFT(1.0)),
}
