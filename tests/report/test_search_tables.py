"""What the tables of a search say of what it chose, and chose before."""

from __future__ import annotations

from typing import Any

from cltk.report.page import environment, tone
from cltk.report.search import tables
from cltk.report.sources import Entry
from cltk.report.tables import TEXTS


def chosen(study: str, trial: int, trials: int, rise: float, budget: float = 0.5) -> Entry:
    """The final run of a setting, which raised the old text's NLL by so much and lowered the new task's by 1."""
    row: dict[str, Any] = {"task": "old", "metric": "nll", "forgetting": rise, "ci": [rise - 0.1, rise + 0.1]}
    search = {
        "study": study, "trial": trial, "trials": trials, "values": {"train.learning_rate": 0.1 * trial}, "by": "estimate",
        "budget": {"old": budget}, "gain": "validation", "validation": {"gain": 1.25, "over": {"old/nll": -0.5}},
    }  # fmt: skip
    record = {
        "method": "ewc", "seed": 0, "search": search,
        "retain": {"rows": [row], "macro": row | {"task": "macro"}, "headline": {"old": "nll"}},
        "learn": {"rows": [row | {"task": "heldout", "forgetting": -1.0}], "headline": {"heldout": "nll"}},
    }  # fmt: skip
    return Entry(record)


def test_what_a_search_chose_before_it_went_on_is_said() -> None:
    (table,) = tables([chosen("a", 3, 8, 0.4), chosen("a", 11, 16, 0.6), chosen("b", 2, 8, 0.2)])
    assert [row[2] for row in table.rows] == ["3 of 8", "11 of 16", "2 of 8"]
    assert [row[-1] for row in table.rows] == ["within (not the choice of 16 trials)", "over", "within"]
    assert [row[6] for row in table.rows] == ["0.25"] * 3  # the optimism


def test_of_several_budgets_each_row_says_its_own() -> None:
    (table,) = tables([chosen("a", 3, 8, 0.4), chosen("a", 5, 8, 0.4, 0.3)])
    at = table.heads.index("its budget")
    assert [row[at] for row in table.rows] == ["old 0.5, held by the estimate", "old 0.3, held by the estimate"]
    assert [row[-1] for row in table.rows] == ["within", "over"]


def test_every_verdict_of_a_table_has_a_tone_on_the_page() -> None:
    """A verdict whose first word the page did not know left nobody a page, nor the tables in the terminal."""
    (table,) = tables([chosen("a", 3, 8, 0.4), chosen("a", 11, 16, 0.6), chosen("a", 1, 4, 0.7)])
    assert [tone(row[-1]) for row in table.rows] == ["good", "bad", "bad"]
    parts = environment().get_template("parts.html.j2").make_module({"tone": tone, "words": TEXTS, "most": 10})
    assert "within (not the choice of 16 trials)" in str(parts.words_table(table, "x"))  # type: ignore[attr-defined]
