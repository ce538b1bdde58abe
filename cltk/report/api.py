"""report(runs): the one way from records to what people read."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cltk.report import card, export, judging, search, streams, tables
from cltk.report.aggregate import Summary, summarize
from cltk.report.sources import read_entries

LINES = 200  # of each table in a terminal; files have all


def report(
    runs: str | Path | Sequence[dict[str, Any] | str | Path],
    *,
    markdown: str | Path | None = None,
    html: str | Path | None = None,
    latex: str | Path | None = None,
    lm_eval: str | Path | None = None,
    model_card: str | Path | None = None,
    show: bool = True,
) -> str:
    """Print the verdicts and tables of records and return them as Markdown.

    The records of a method that differ in nothing but the seed are one line. With the per-document scores beside the
    records, intervals cover seeds x documents and every method is compared with plain training.

    Args:
        runs: a folder that `cltk run` wrote, one record's file, or a list of files and records. A record alone has no
            scores beside it.
        markdown: a file to write the Markdown to as well.
        html: a file to write a page to: tables, figures and lost documents, all in one file.
        latex: a folder to write tables (.tex, for booktabs) and figures (.pdf) to.
        lm_eval: a folder to copy lm-eval's own result files of every run to, in the layout of its tools.
        model_card: a folder to write a model card to, of several runs in a folder each; nothing is uploaded.
        show: whether to print to the terminal.

    Raises:
        InputError: no records, or a damaged one; `lm_eval` without lm-eval's files beside every record; a README in the
            place of a model card that is none of ours.
    """
    with _uncollected():
        return _report(runs, markdown, html, latex, lm_eval, model_card, show)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Thousands of records are millions of objects that stay: the collector would walk them again and again, in vain."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _report(
    runs: str | Path | Sequence[dict[str, Any] | str | Path],
    markdown: str | Path | None,
    html: str | Path | None,
    latex: str | Path | None,
    lm_eval: str | Path | None,
    model_card: str | Path | None,
    show: bool,
) -> str:
    entries = read_entries(runs)
    summaries = summarize(entries)
    if lm_eval is not None:
        export.write(summaries, Path(lm_eval))
    if model_card is not None:
        card.write(summaries, Path(model_card))
    found = [
        tables.overview(summaries),
        tables.against_plain(summaries),
        *search.tables(entries),
        *streams.all_tables(summaries),
        *judging.of_records([entry.record for one in summaries for entry in one.entries]),
    ]
    found += [tables.seeds(summaries), details := tables.details(summaries), streams.costs(summaries)]
    parts = [part for part in found if part is not None]
    words = tables.verdict(summaries)
    text = "\n".join(["\n".join(f"- {line}" for line in words), "", *[part.markdown() for part in parts]])
    if markdown is not None:
        _write(markdown, text)
    if html is not None or latex is not None:
        _publish(summaries, words, details, html, latex)
    if show:
        _print(words, parts)
    return text


def _publish(
    summaries: Sequence[Summary], words: Sequence[str], details: tables.Table, html: str | Path | None, latex: str | Path | None
) -> None:
    """Page and LaTeX need matplotlib, which tables do not wait for."""
    from cltk.report.pairs import Study

    study = Study(summaries)
    if html is not None:
        from cltk.report.page import render

        _write(html, render(study, words, details))
    if latex is not None:
        from cltk.report.latex import write

        write(study, Path(latex))


def _write(file: str | Path, text: str) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(text, encoding="utf-8")


def _print(words: Sequence[str], parts: Sequence[tables.Table]) -> None:
    """The first LINES lines and rows of each: nobody reads more in a terminal, and rich takes a millisecond a row."""
    from cltk.progress import console

    wide = console()
    for line in [*words[:LINES], *_rest(len(words), "lines")]:
        wide.print(line, markup=False, highlight=False)
    for part in parts:
        note = " ".join([*([part.note] if part.note else []), *_rest(len(part.rows), "rows")])
        wide.print(replace(part, rows=part.rows[:LINES], note=note).rich())


def _rest(count: int, what: str) -> list[str]:
    return [f"And {count - LINES:,} {what} more: --markdown FILE has all."] if count > LINES else []
