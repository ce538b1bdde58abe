"""Budgets on the command line: what a gate is asked, what it says, and its exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cltk.cli.options import out, put_json, say
from cltk.errors import InputError
from cltk.files import write_text

CODES = "exit code 0: within budget, 3: over, 4: cannot tell"


def options(sub: argparse.ArgumentParser) -> None:
    """What a gate is asked."""
    sub.add_argument(
        "--budget", action="append", default=[], metavar="NAME=LOSS",
        help="the most that may be lost: of a metric (acc=0.01 is 1 pp, nll=0.02), a task (gsm8k=0.03), TASK/METRIC, or macro;"
        " or a YAML file of such lines; repeatable",
    )  # fmt: skip
    sub.add_argument(
        "--on-unknown",
        choices=["fail", "pass"],
        default="fail",
        help="pass: exit code 0 where nothing can be told (default: fail)",
    )
    sub.add_argument(
        "--repeats", type=Path, nargs="+", default=[], metavar="RUN",
        help="further runs of BASE: what they differ by from it is noise that no loss is shown or excluded against",
    )  # fmt: skip
    sub.add_argument(
        "--noise", type=Path, nargs=2, action="append", default=[], metavar="RUN",
        help="the same of two runs that should be equal, such as two seeds of one training; repeatable",
    )  # fmt: skip
    sub.add_argument("--markdown", type=Path, metavar="FILE", help="also write Markdown for a job's summary here")
    sub.add_argument("--junit", type=Path, metavar="FILE", help="also write JUnit XML here")


def budgets(options: argparse.Namespace) -> Any:
    """The budgets that were given, read before any run is. Raises InputError: none, or one that is no budget."""
    from cltk.run.budgets import read_budgets

    if not options.budget:
        raise InputError("gate: name at least one budget, such as --budget acc=0.01, nll=0.02, macro=0.01 or TASK=0.03")
    return read_budgets(options.budget)


def conclude(options: argparse.Namespace, most: Any, found: Mapping[str, Any], pair: Callable[[Path, Path], Any]) -> int:
    """Hold the results against the budgets, say a line a model, write what was asked for; the exit code.

    Args:
        most: the budgets.
        found: model -> Result.
        pair: compares two runs.
    """
    from cltk.measure.gate import gate
    from cltk.report.gating import junit, line, markdown

    pairs = [*((options.base, run) for run in options.repeats), *(tuple(runs) for runs in options.noise)]
    held = gate(found, most, [pair(*runs) for runs in pairs])
    for model in held.models:
        say(out(options.json), line(held, model))
    if options.markdown:
        write_text(options.markdown, markdown(held))
    if options.junit:
        write_text(options.junit, junit(held, options.on_unknown))
    if options.command.__name__ == "gate" and options.json:
        code = held.code(options.on_unknown)
        put_json(options.json, {**held.to_json(), "on_unknown": options.on_unknown, "exit_code": code})
    return held.code(options.on_unknown)
