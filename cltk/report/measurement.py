"""Tables of one measurement: what was forgotten, how far predictions moved, what documents can show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cltk.measure.power import Plan
from cltk.report.effects import Effect
from cltk.report.tables import P, Table, count, named, number, p_value, quantity


def measured(result: dict[str, Any]) -> Table:
    """The forgetting table of two checkpoints, macro average last."""
    rows = []
    for row in [*result["rows"], result["macro"]]:
        effect = Effect.of(row, row["task"])
        flips = "" if effect.lost is None else f"{count(effect.lost)}/{count(effect.gained)}"
        rows.append([
            effect.task, named(effect.metric), str(effect.n), number(effect.pre, effect.metric),
            number(effect.post, effect.metric), quantity(effect), p_value(effect.rests_on[0]), flips, row["verdict"],
        ])  # fmt: skip
    heads = ["task", "metric", "n", "pre", "post", "forgetting", "p", "lost / gained", "verdict"]
    return Table(
        "Forgetting: Perf_pre - Perf_ft, paired", heads, rows, f"positive is bad; ± the longer side of the 95 % interval; {P}"
    )


def moved(result: dict[str, Any]) -> Table | None:
    """How far the predictions went from the start model's, text by text; None where that was not measured."""
    rows = []
    for text, found in result["divergence"].items():
        half = "(no interval)" if found["ci"][1] is None else f"±{found['ci'][1] - found['kl']:.3f}"
        rows.append([text, str(found["n"]), f"{found['kl']:.3f} {half}"])
    note = "nats a token, forward KL(base || tuned); 0: the same predictions"
    return Table("How far the predictions moved", ["text", "rows", "KL"], rows, note) if rows else None


def planned(plans: Sequence[Plan], effect: float) -> Table:
    """What a study with so many documents can show."""
    based = any(plan.base is not None for plan in plans)
    rows = []
    for plan in plans:
        shares = [plan.base, plan.losable] if based else []
        needed = "" if plan.needed is None else str(plan.needed)
        row = [plan.task, str(plan.n), "none" if plan.mde is None else f"{100 * plan.mde:.1f}", needed]
        rows.append([*row, *["" if share is None else f"{100 * share:.1f}" for share in shares]])
    heads = [
        "task",
        "n",
        "smallest loss shown, pp",
        f"n for {100 * effect:g} pp",
        *(["base, %", "can be lost, pp"] if based else []),
    ]
    note = "Accuracy lost, paired, two-sided at 0.05 with 80 % power."
    if based:
        note += " Can be lost: what the base knows beyond guessing."
    return Table("What these documents can show", heads, rows, note)
