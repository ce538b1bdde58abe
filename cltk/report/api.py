"""report(runs): the one way from records to what people read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cltk.report import tables
from cltk.report.aggregate import summarize
from cltk.report.sources import read_entries


def report(
    runs: str | Path | Sequence[dict[str, Any] | str | Path], *, markdown: str | Path | None = None, show: bool = True
) -> str:
    """Print the verdicts and tables of records and return them as Markdown.

    The records of a method that differ in nothing but the seed are one line. With the per-document scores beside the
    records, intervals cover seeds x documents and every method is compared with plain training.

    Args:
        runs: a folder that `cltk run` wrote, one record's file, or a list of files and records. A record alone has no
            scores beside it.
        markdown: a file to write the Markdown to as well.
        show: whether to print to the terminal.

    Raises:
        InputError: no records, or a damaged one.
    """
    summaries = summarize(read_entries(runs))
    found = [tables.overview(summaries), tables.against_plain(summaries), tables.seeds(summaries), tables.details(summaries)]
    parts = [part for part in found if part is not None]
    words = tables.verdict(summaries)
    text = "\n".join(["\n".join(f"- {line}" for line in words), "", *[part.markdown() for part in parts]])
    if markdown is not None:
        Path(markdown).write_text(text, encoding="utf-8")
    if show:
        from rich.console import Console

        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(width=140)  # a file or a pipe has no width of its own
        for line in words:
            console.print(line, markup=False, highlight=False)
        for part in parts:
            console.print(part.rich())
    return text
