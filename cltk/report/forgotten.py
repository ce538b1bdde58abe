"""One comparison for readers: the documents that were lost as text, and everything as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cltk.measure.lost import Lost
from cltk.measure.results import Result, Row
from cltk.report import figures, measurement, page, tables
from cltk.report.documents import ANSWER, PROMPT
from cltk.report.provenance import leaves

SHOWN = 25  # lost documents of a task on a page


def listing(lost: Sequence[Lost]) -> list[str]:
    """Lines for a terminal; texts are cut, and on one line each."""
    lines = []
    for one in lost:
        margin = ""
        if one.margin_before is not None and one.margin_after is not None:
            margin = f", margin {one.margin_before:+.3f} -> {one.margin_after:+.3f} nats"
        lines += [
            f"{one.task} {one.doc_hash[:12]}: {one.metric} lost {one.loss:g}{margin}", f"  question: {end(one.question)}",
            f"  right:    {start(one.right)}", f"  before:   {start(one.before)}", f"  now:      {start(one.after)}",
        ]  # fmt: skip
    return lines


def end(text: str, most: int = PROMPT) -> str:
    """The end of a question, on one line: examples stand before it."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"…{text[-most:]}"


def start(text: str, most: int = ANSWER) -> str:
    """The start of an answer, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}…"


def render(results: Mapping[str, Result]) -> str:
    """A page that needs nothing else, as text: of each tuned model its table, flips, lost documents, notes and settings."""
    parts = []
    for name, result in results.items():
        found = result.to_json()
        settings = {key: value for key, value in leaves(result.settings) if key != "base"}
        parts.append({
            "name": name, "table": measurement.measured(found), "moved": measurement.moved(found), "notes": result.notes,
            "flows": [_flow(row) for row in result.rows if row.lost is not None], "lost": _by_task(result.lost),
            "settings": settings, "digests": {"before": result.pre_digest, "after": result.post_digest},
        })  # fmt: skip
    first = next(iter(results.values()))
    return page.environment().get_template("result.html.j2").render(
        light=figures.LIGHT, dark=figures.DARK, base=str(first.settings.get("base", "base")), parts=parts, most=page.ROWS,
        words=tables.TEXTS, tone=page.tone, answers=[_answer(name, one.macro) for name, one in results.items()],
        end=end, start=start,
    )  # fmt: skip


def _answer(name: str, row: Row) -> str:
    low, high = (tables.number(one, row.metric, "+") for one in row.ci)
    span = "" if "inf" in low + high else f" (95 % interval {low} to {high})"
    mean = tables.number(row.forgetting, row.metric, "+")
    return f"{name}: {row.verdict} on {row.task} {tables.named(row.metric)}, {mean}{span}."


def _flow(row: Row) -> dict[str, Any]:
    """The shares of a bar, in percent: stays right, lost, gained; and the counts."""
    right = row.pre if row.higher_is_better else 1 - row.pre
    lost, gained = row.lost or 0, row.gained or 0
    kept = max(right * row.n - lost, 0.0)
    shares = {key: 100 * value / row.n for key, value in (("kept", kept), ("lost", lost), ("gained", gained))}
    return {"name": f"{row.task} {row.metric}", "n": row.n, "counts": (round(kept), lost, gained), **shares}


def _by_task(lost: Sequence[Lost]) -> dict[str, list[Lost]]:
    found: dict[str, list[Lost]] = {}
    for one in lost:
        found.setdefault(one.task, []).append(one)
    return {task: listed[:SHOWN] for task, listed in found.items()}
