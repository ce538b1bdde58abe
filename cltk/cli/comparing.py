"""`cltk compare`: the forgetting table from runs that exist."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cltk.cli import gating, showing
from cltk.cli.options import Command, json_option, margin, out, put_json, say


def add(command: Command) -> None:
    """Options of what compares runs, and of the gate that holds them against budgets."""
    sub = command("compare", compare, "compare runs that exist: lm-eval's folders, `cltk measure --json`, `cltk run`; no model")
    _runs(sub)
    sub.add_argument(
        "--margin", type=margin, metavar="METRIC=LOSS", action="append", default=[], help="a loss that does not matter"
    )
    json_option(sub, any_name=True)
    showing.options(sub)
    sub.add_argument("--gate", action="store_true", help=f"hold the result against the budgets, as `cltk gate`; {gating.CODES}")
    gating.options(sub)

    sub = command("gate", gate, f"hold runs that exist against a budget of forgetting; {gating.CODES}")
    _runs(sub)
    gating.options(sub)
    json_option(sub, any_name=True)


def _runs(sub: argparse.ArgumentParser) -> None:
    """Which runs, and how they are paired."""
    sub.add_argument("base", type=Path, help="folder or file of the model before training")
    sub.add_argument("tuned", type=Path, nargs="*", help="folders or files of models after it (default: the base's own)")
    sub.add_argument("--base-model", metavar="NAME", help="the model, where BASE holds several")
    sub.add_argument("--tuned-model", metavar="NAME", action="append", default=[], help="of TUNED (default: all but the base)")
    sub.add_argument(
        "--prompts", choices=["same", "differ"], default="same",
        help="differ: compare on documents although examples, templates, versions or limits are others (default: same)",
    )  # fmt: skip
    sub.add_argument("--members", action="store_true", help="rows for the tasks of a group, beside the group's")
    for name in ("higher", "lower"):
        sub.add_argument(
            f"--{name}-is-better", metavar="METRIC", action="append", default=[], help="of a metric whose log does not say it"
        )


def _compared(options: argparse.Namespace, margins: dict[str, float], lost: int = 0) -> dict[str, Any]:
    """Model -> Result."""
    from cltk.logs.comparing import compare_all

    return compare_all(
        options.base, options.tuned or [options.base], base_model=options.base_model, tuned_models=options.tuned_model,
        margins=margins, lost=lost, **_how(options),
    )  # fmt: skip


def _how(options: argparse.Namespace) -> dict[str, Any]:
    directions = {**dict.fromkeys(options.higher_is_better, True), **dict.fromkeys(options.lower_is_better, False)}
    return {"prompts": options.prompts, "members": options.members, "directions": directions}


def _held(options: argparse.Namespace, budgets: Any, found: dict[str, Any]) -> int:
    """The gate's exit code. Runs that should be equal are paired as the others are."""
    from cltk.logs.comparing import compare as pair

    name = options.base_model
    return gating.conclude(
        options,
        budgets,
        found,
        lambda one, other: pair(one, other, base_model=name if one == options.base else None, **_how(options)),
    )


def gate(options: argparse.Namespace) -> int:
    """`cltk gate`: a line a tuned model, and an exit code."""
    return _held(options, gating.budgets(options), _compared(options, {}))


def compare(options: argparse.Namespace) -> int:
    """`cltk compare`: a table for each tuned model."""
    from dataclasses import replace

    from cltk.measure.confirming import confirmed
    from cltk.report.measurement import measured

    budgets = gating.budgets(options) if options.gate or options.budget else None
    found = _compared(options, dict(options.margin), showing.lost_wanted(options))
    if options.json:
        results = {name: result.to_json() for name, result in found.items()}
        put_json(options.json, next(iter(results.values())) if len(results) == 1 else {"results": results})
    shown = out(options.json)
    for name, result in found.items():
        table = measured({"rows": [row.to_json() for row in result.rows], "macro": result.macro.to_json()})
        shown.print(replace(table, title=f"{table.title}: {result.settings['base']} -> {name}").rich())
        for note in result.notes:
            say(shown, f"note: {note}")
    if len(found) > 1:
        for name, row in confirmed(found).items():
            say(shown, f"{name}: {row.verdict} (Holm over {len(found)} models)")
    showing.show(options, found, shown)
    return _held(options, budgets, found) if budgets else 0
