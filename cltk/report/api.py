"""report(runs): the one way from records to what people read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.report import tables


def report(runs: str | Path | Sequence[dict[str, Any]], *, markdown: str | Path | None = None, show: bool = True) -> str:
    """Print the tables of an output folder (or of records) and return them as Markdown.

    Args:
        runs: a folder that `cltk run` wrote, one record's file, or records.
        markdown: a file to write the Markdown to as well.
        show: whether to print to the terminal.

    Raises:
        InputError: no records, or a damaged one.
    """
    if isinstance(runs, str | Path):
        from cltk.run.records import read_records

        found = read_records(runs)
    else:
        found = list(runs)
    if not found:
        raise InputError("report: there are no records")
    parts = [tables.overview(found), tables.details(found)]
    words = tables.verdict(found)
    text = "\n".join(["\n".join(f"- {line}" for line in words), "", *[part.markdown() for part in parts]])
    if markdown is not None:
        Path(markdown).write_text(text, encoding="utf-8")
    if show:
        from rich.console import Console

        console = Console()
        for line in words:
            console.print(line)
        for part in parts:
            console.print(part.rich())
    return text
