"""A comparison in a notebook: a table instead of thousands of documents, and data frames."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

from cltk.errors import InputError

if TYPE_CHECKING:
    from cltk.measure.results import Result, Row

COLUMNS = (
    "task", "metric", "n", "pre", "post", "forgetting", "se", "ci_low", "ci_high", "p", "lost", "gained", "clusters", "margin",
    "verdict",
)  # fmt: skip
HEADS = ("task", "metric", "n", "before", "after", "forgetting", "95 % interval", "p", "lost / gained", "verdict")
NOTES = 10  # shown below the table


def frame(result: Result) -> Any:
    """A pandas DataFrame, a line a row and the macro last, in the metrics' own units (an accuracy is a share)."""
    import pandas as pd

    rows = [*result.rows, result.macro]
    ends = [{"ci_low": row.ci[0], "ci_high": row.ci[1]} for row in rows]
    found = [
        {name: end[name] if name in end else getattr(row, name) for name in COLUMNS}
        for row, end in zip(rows, ends, strict=True)
    ]
    return pd.DataFrame(found, columns=list(COLUMNS)).astype({"lost": "Int64", "gained": "Int64"})


def documents(result: Result, task: str) -> Any:
    """A pandas DataFrame, a line a document: doc_hash, prompt_hash, cluster, and of every metric pre, post and d (the loss).

    Raises:
        InputError: no such task.
    """
    import pandas as pd

    if task not in result.samples:
        raise InputError(f"documents: no task {task!r} was compared; there are {', '.join(result.samples)}")
    return pd.DataFrame(result.samples[task])


def text(result: Result) -> str:
    """One line, whatever the number of documents."""
    one = result.macro
    tasks = len(result.samples)
    return (
        f"<Result: {len(result.rows)} rows, {tasks} task{'s' if tasks != 1 else ''}; {one.task} {one.metric} forgetting "
        f"{_number(one, one.forgetting, '+')} ({_interval(one)}): {one.verdict}>"
    )


def html(result: Result) -> str:
    """A table for a notebook: shares of documents in percent, everything else in its own unit; names are escaped."""
    heads = "".join(f"<th>{escape(head)}</th>" for head in HEADS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row)) + "</tr>" for row in [*result.rows, result.macro]
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes[:NOTES])
    more = f"<li>and {len(result.notes) - NOTES} more in .notes</li>" if len(result.notes) > NOTES else ""
    caption = "Forgetting: before minus after, paired; positive is bad. Accuracies in percent."
    return f"<table><caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>" + (
        f"<ul>{notes}{more}</ul>" if notes else ""
    )


def _cells(row: Row) -> list[str]:
    flips = "" if row.lost is None else f"{row.lost} / {row.gained}"
    p = "<0.001" if row.p < 0.001 else f"{row.p:.3f}"
    scores = [_number(row, value) for value in (row.pre, row.post)]
    return [
        row.task, row.metric, str(row.n), *scores, _number(row, row.forgetting, "+"), _interval(row), p, flips, row.verdict,
    ]  # fmt: skip


def _interval(row: Row) -> str:
    if not all(map(math.isfinite, row.ci)):
        return "no interval"
    return f"{_number(row, row.ci[0], '+')} to {_number(row, row.ci[1], '+')}"


def _number(row: Row, value: float, sign: str = "") -> str:
    """A share in percent with one digit, else three digits."""
    shown, digits = (100 * value, 1) if row.lost is not None else (value, 3)
    return f"{round(shown, digits) + 0.0:{sign}.{digits}f}"
