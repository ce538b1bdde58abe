"""A study as one HTML page that needs nothing else: no network, both colour schemes, keyboard, print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cltk.report import figures, judging, panels, search, streams, tables
from cltk.report.aggregate import Summary
from cltk.report.curves import curves, traces
from cltk.report.effects import Effect, unit
from cltk.report.lost import LISTED, flows
from cltk.report.pairs import Study, retained
from cltk.report.plane import area_table
from cltk.report.provenance import provenance

ROWS = 2_000  # of a table below the main one; Markdown has all
BAD, GOOD, OPEN = ("bad", "▲"), ("good", "●"), ("open", "○")
TONES = {
    "forgets": BAD,
    "does": GOOD,
    "cannot": OPEN,
    "learns": GOOD,
    "shows": OPEN,
    "within": GOOD,
    "over": BAD,
}  # by a verdict's first word


@dataclass(frozen=True)
class Cell:
    """Text, smaller text below it, what to sort by, and what the tests say of it."""

    text: str
    sort: str = ""  # empty: by the text
    below: str = ""
    words: str = ""

    @property
    def tone(self) -> str:
        return tone(self.words)

    @property
    def sign(self) -> str:
        return TONES[self.words.split()[0]][1] if self.words else ""


@dataclass(frozen=True)
class Picture:
    """A figure with its caption."""

    title: str
    caption: str
    svg: Markup


def render(study: Study, words: Sequence[str] | None = None, details: tables.Table | None = None) -> str:
    """The page, as text. The same study gives the same bytes. `words`, `details`: its verdicts and their table, if known."""
    summaries = study.summaries
    words = tables.verdict(summaries) if words is None else words
    entries = [entry for one in summaries for entry in one.entries]
    heads, rows = main_table(summaries)
    return environment().get_template("page.html.j2").render(
        light=figures.LIGHT, dark=figures.DARK, title=title(summaries), answer=answer(summaries), lines=lines(summaries, words),
        heads=heads, rows=rows, note=tables.note(summaries), pictures=pictures(summaries),
        area=area_table(study), costs=streams.costs(summaries),
        streams=[*search.tables(entries), *streams.all_tables(summaries), *judging.of_records([e.record for e in entries])],
        against=tables.against_plain(summaries), details=details or tables.details(summaries),
        by_seed=tables.seeds(summaries), most=ROWS, words=tables.TEXTS, flows=flows(study), listed=LISTED, tone=tone,
        **provenance([entry.record for entry in entries]),
    )  # fmt: skip


def environment() -> Environment:
    """Templates whose every value is escaped, and which name nothing that is not there."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters.update(score=tables.number, count=tables.count, compact=_compact)
    return found


def tone(words: str) -> str:
    """good, bad or open: what a verdict means to who reads it."""
    if words.startswith("forgets less"):
        return "good"
    return TONES[words.split()[0]][0] if words else ""


def title(summaries: Sequence[Summary]) -> str:
    """The names of the experiments."""
    names = dict.fromkeys(str(e.record.get("experiment")) for s in summaries for e in s.entries if e.record.get("experiment"))
    return ", ".join(names) or "cltk report"


def answer(summaries: Sequence[Summary]) -> list[str]:
    """The study in a few sentences: what plain training forgets, and which methods forget less."""
    said = []
    for one in summaries:
        if one.plain and one.primary is not None:
            main, (low, high) = one.primary, interval(one.primary)
            span = f", 95 % interval {low} to {high}" if low else ""
            mean = f"{tables.number(main.estimate.mean, main.metric, '+')} {unit(main.metric)}".strip()
            said.append(f"{one.label}: {main.verdict} on {main.task} ({mean}{span}).")
    compared: dict[str, list[str]] = {}
    for one in summaries:
        if one.difference is not None:
            compared.setdefault(one.difference.verdict, []).append(one.label)
    for words, labels in sorted(compared.items(), key=lambda item: not item[0].startswith("forgets less")):
        direct = words in ("forgets less", "forgets more")
        text = f"{words.capitalize()} than plain training" if direct else f"Against plain training, {words}"
        said.append(f"{text}: {tables.some(labels, 12)}.")
    if not compared:
        said.append("No method was compared with plain training.")
    return said


def interval(effect: Effect, sign: int = 1) -> tuple[str, str]:
    """Both ends as text, ascending; empty when there are none."""
    ends = sorted(sign * end for end in effect.estimate.ci)
    if not all(map(math.isfinite, ends)):
        return "", ""
    return tables.number(ends[0], effect.metric, "+"), tables.number(ends[1], effect.metric, "+")


def lines(summaries: Sequence[Summary], words: Sequence[str]) -> list[tuple[str, str]]:
    """(method, its verdict in words)."""
    return [(one.label, line.removeprefix(one.label)) for one, line in zip(summaries, words, strict=True)]


def main_table(summaries: Sequence[Summary]) -> tuple[list[tuple[str, str]], list[list[Cell]]]:
    """Methods x tasks: heads (name, unit) and a row of cells a method."""
    metrics = {effect.task: effect.metric for one in reversed(summaries) for effect in one.retain}
    names, averaged = retained(summaries), any(one.macro is not None for one in summaries)
    heads = [("method", ""), ("seeds", ""), ("steps", ""), ("new-task NLL, fall", "nats")]
    heads += [(name, tables.named(metrics[name])) for name in names]
    heads += [("mean accuracy lost", "pp")] if averaged else []
    rows = []
    for one in summaries:
        old, learn = {effect.task: effect for effect in one.retain}, one.new_task
        row = [Cell(one.label), Cell(str(len(one.entries))), Cell(tables.steps(one))]
        row.append(cell(learn, -1, tables.learning(learn)) if learn else Cell(""))
        row += [cell(old[name], 1, old[name].verdict) if name in old else Cell("") for name in names]
        row += [cell(one.macro, 1, "") if one.macro is not None else Cell("")] if averaged else []
        rows.append(row)
    return heads, rows


def cell(effect: Effect, sign: int, words: str) -> Cell:
    """An estimate above its interval."""
    low, high = interval(effect, sign)
    mean = sign * effect.estimate.mean
    below = f"{low} to {high}" if low else "no interval"
    return Cell(tables.number(mean, effect.metric, "+"), repr(float(mean)), below, words)


def pictures(summaries: Sequence[Summary]) -> list[Picture]:
    """All figures that these records allow."""
    drawn = [
        ("plane", "Learning against forgetting", figures.plane(summaries),
         "Up and left is better. Big marks are means over seeds with 95 % intervals, small marks are seeds. Squares are plain"
         " fine-tuning; below and right of the dashed line is what it reaches at one of its learning rates."),
        ("forgetting", "What was forgotten", panels.forgetting(summaries),
         "Right of 0 is forgetting. Lines are 95 % intervals, dots below them are seeds."),
        ("tasks", "Forgetting by task", panels.tasks(summaries),
         "Forgetting of each task: bars right of 0 are losses; lines are paired 95 % intervals."),
        ("curves", "During training", curves(summaries), "What the runs logged, step by step; a line a seed."),
    ]  # fmt: skip
    more = f" The first {figures.MOST} of {len(summaries)} methods." if len(summaries) > figures.MOST else ""
    return [
        Picture(name, caption + more, Markup(figures.svg(figure, key, f"{name}. {_described(key, summaries)}")))
        for key, name, figure, caption in drawn
        if figure is not None
    ]  # fmt: skip


def _described(key: str, summaries: Sequence[Summary]) -> str:
    """What a figure shows, for who cannot see it; the tables have every number."""
    shown = summaries[: figures.MOST]
    if key == "curves":
        return f"Curves over training steps of {', '.join(traces(summaries))}."
    if key == "tasks":
        return f"Bars of forgetting on {', '.join(retained(summaries))} for {len(shown)} methods; the numbers are in the table."
    said = []
    for one in shown:
        parts = [f"forgets {tables.quantity(one.primary, with_unit=True)} on {one.primary.task}"] if one.primary else []
        gain = one.new_task if key == "plane" else None
        parts += [f"new-task NLL falls by {tables.quantity(gain, sign=-1)}"] if gain else []
        said.append(f"{one.label}: {', '.join(parts)}")
    return f"{'; '.join(said)}."


def _compact(digest: object) -> str:
    """The first 12 characters of a digest."""
    return "" if digest is None else str(digest)[:12]
