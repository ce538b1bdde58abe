"""How a comparison is shown beside its table: the lost documents, and a page."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cltk.cli.options import say
from cltk.secrets import hidden


def options(sub: argparse.ArgumentParser) -> None:
    """How a comparison is shown beside its table."""
    sub.add_argument("--show-lost", type=_count, default=0, metavar="N", help="print N lost documents of each task")
    sub.add_argument("--html", type=Path, metavar="FILE", help="also write one self-contained page here")


def _count(text: str) -> int:
    """A whole number from 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def show(options: argparse.Namespace, results: Mapping[str, Any], shown: Any) -> None:
    """What was asked for, of results by name of the tuned model, on the console of the tables."""
    if options.show_lost:  # imported where they are needed: matplotlib takes a second
        from cltk.report.forgotten import listing

        for name, result in results.items():
            lines = listing(_first(result.lost, options.show_lost))
            said = f"{name}: what was lost" if lines else f"{name}: no lost document whose text is logged"
            for line in [said, *lines]:
                say(shown, hidden(line))
    if options.html:
        from cltk.files import write_text
        from cltk.report.forgotten import render

        write_text(options.html, render(results))


def lost_wanted(options: argparse.Namespace) -> int:
    """How many lost documents of a task are kept."""
    return max(options.show_lost, 25 if options.html else 0)


def _first(lost: Sequence[Any], most: int) -> list[Any]:
    """The first of each task."""
    found: dict[str, list[Any]] = {}
    for one in lost:
        found.setdefault(one.task, []).append(one)
    return [one for listed in found.values() for one in listed[:most]]
