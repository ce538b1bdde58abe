"""Whatever stands in a name is text: in the terminal, in Markdown, in progress."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cltk.progress import Bar
from cltk.report.tables import Table
from cltk.run.estimate import Estimate
from cltk.run.estimates import table as estimates

NAMES = ["wiki [/x]", "news [en]", "[red]", "[link=file:///etc/passwd]x[/link]", "[/]", "a\\[b]"]


@pytest.mark.parametrize("name", NAMES)
def test_markup_in_names_is_text_in_the_terminal(name: str) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200)
    console.print(Table(f"T {name}", ["method", f"{name} NLL, rise"], [[name, "1"]], f"note {name}").rich())
    assert out.getvalue().count(name) == 4


@pytest.mark.parametrize("name", NAMES)
def test_markup_in_names_is_text_in_an_estimate(name: str) -> None:
    import dataclasses

    values = {f.name: 1 for f in dataclasses.fields(Estimate)} | {"method": name, "notes": [f"note {name}"], "moment": "x"}
    fields = {f.name for f in dataclasses.fields(Estimate) if f.init}
    out = io.StringIO()
    Console(file=out, width=200).print(estimates([Estimate(**{k: v for k, v in values.items() if k in fields})]))
    assert out.getvalue().count(name) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_markup_in_names_is_text_in_progress(name: str) -> None:
    with Bar() as bar:
        bar.console.file = io.StringIO()
        bar(name, 1, 2, name)
        bar.progress.update(bar.tasks[name], completed=2)
        console = Console(file=io.StringIO(), width=200)
        console.print(bar.progress.make_tasks_table(bar.progress.tasks))
        assert console.file.getvalue().count(name) == 2


@pytest.mark.parametrize("name", ["a\nb | c", "x\r\ny", "| --- |", "a\u2028b"])
def test_a_row_of_markdown_is_one_line(name: str) -> None:
    lines = Table("T", ["method", name], [[name, "1"], ["b", "2"]]).markdown().rstrip("\n").split("\n")
    assert len(lines) == 6
    assert all(len(line.replace("\\|", "").split("|")) == 4 for line in lines[2:])


def test_markup_of_markdown_is_text() -> None:
    text = Table("T", ["method"], [["<img src=x>"], ["[a](javascript:b)"], ["<0.001"]]).markdown()
    assert "<img" not in text
    assert "](" not in text
    assert "<0.001" in text


def test_a_cell_is_one_line_whatever_parts_lines() -> None:
    """Rows of plain text are not looked at cell by cell: all that `str.splitlines` parts at must be among what is odd."""
    parting = [chr(code) for code in range(0x2100) if len(f"a{chr(code)}b".splitlines()) > 1]
    assert len(parting) == 10
    for char in parting:
        assert Table("T", ["method"], [[f"a{char}b"]]).markdown().split("\n")[4] == "| a b |"
