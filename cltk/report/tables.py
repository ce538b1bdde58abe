"""Summaries -> tables: plain rows of text first, then rich or Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cltk.report.aggregate import Summary
from cltk.report.effects import Effect, is_accuracy, unit

P = 'p: what the verdict rests on, of no change, or of a loss of the margin or more for "does not forget"'
ODD = re.compile(r"[|<\n\r\v\f\x1c-\x1e\x85\u2028\u2029]|\]\(")  # what `_cell` changes
TEXTS = ("method", "task", "text", "verdict", "from", "available", "values")  # columns of words; the others hold numbers


@dataclass(frozen=True)
class Table:
    """A title, column heads, rows of text, and a note below."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        lines = [f"**{self.title}**", "", "| " + " | ".join(map(_cell, self.heads)) + " |"]
        lines.append("|" + "|".join(" --- " if head in TEXTS else " ---: " for head in self.heads) + "|")
        lines += ["| " + " | ".join(map(_cell, row) if ODD.search("".join(row)) else row) + " |" for row in self.rows]
        return "\n".join([*lines, *(["", self.note] if self.note else [])]) + "\n"

    def rich(self) -> Any:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=Text(self.title), caption=Text(self.note) if self.note else None, title_justify="left",
            caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        )  # fmt: skip
        for i, head in enumerate(self.heads):
            table.add_column(
                Text(head), justify="left" if head in TEXTS else "right", no_wrap=i == 0 or head == "metric", overflow="fold"
            )
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def _cell(text: str) -> str:
    """One cell of a Markdown table: a line of plain text, whatever is in a name."""
    text = " ".join(text.splitlines()).replace("|", "\\|").replace("](", "]\\(")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def quantity(effect: Effect, *, sign: int = 1, with_unit: bool = False) -> str:
    """ "+0.123 ±0.073": the forgetting (with sign -1: the gain) and the longer side of its 95 % interval."""
    if math.isinf(effect.estimate.high):
        text = f"{number(sign * effect.estimate.mean, effect.metric, '+')} (no interval)"
    else:
        half = max(effect.estimate.high - effect.estimate.mean, effect.estimate.mean - effect.estimate.low)
        text = f"{number(sign * effect.estimate.mean, effect.metric, '+')} ±{number(half, effect.metric)}"
    return f"{text} {unit(effect.metric)}".strip() if with_unit else text


def number(value: float, metric: str, sign: str = "") -> str:
    """Accuracies in percent (points) with one digit, everything else with three."""
    shown, digits = (100 * value, 1) if is_accuracy(metric) else (value, 3)
    return f"%{sign}.{digits}f" % (round(shown, digits) + 0.0)  # + 0.0: no -0.0


def named(metric: str) -> str:
    """ "acc (pp)": the metric and the unit of its forgetting."""
    return f"{metric} ({unit(metric)})" if unit(metric) else metric


def p_value(p: float | None) -> str:
    """Three digits, "<0.001" below that, nothing for none."""
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def count(value: float | None) -> str:
    """A number of documents; a mean over seeds with one digit."""
    return "" if value is None else f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def overview(summaries: Sequence[Summary]) -> Table:
    """One line a method: seeds, steps, what it learned, and what it forgot."""
    texts = _texts(summaries)
    rows = []
    for summary in summaries:
        learn, old = summary.new_task, {effect.task: effect for effect in summary.retain}
        rows.append([
            summary.label, str(len(summary.entries)), steps(summary),
            quantity(learn, sign=-1) if learn else "",
            *[quantity(old[name]) if name in old else "" for name in texts],
            quantity(summary.macro) if summary.macro else "",
        ])  # fmt: skip
    return Table("What was learned and what was forgotten", _heads(["method", "seeds", "steps"], texts), rows, note(summaries))


def steps(summary: Summary) -> str:
    """Of all seeds: one number, or the smallest and the largest."""
    found = [entry.record["train"]["steps"] for entry in summary.entries]
    return span(found)


def span(counts: Sequence[int]) -> str:
    """ "3" or "3-5"."""
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"


def _heads(first: list[str], texts: Sequence[str]) -> list[str]:
    return [*first, "new-task NLL, fall", *[f"{name} NLL, rise" for name in texts], "accuracy lost, pp"]


def _texts(summaries: Sequence[Summary]) -> list[str]:
    return list(dict.fromkeys(one.task for summary in summaries for one in summary.retain if one.metric == "nll"))


def note(summaries: Sequence[Summary]) -> str:
    """How the intervals came about, only what applies."""
    lines = [
        "±: the longer side of the 95 % interval, paired document by document. A rise and a loss are forgetting. NLL in nats a"
        " token, of a task of lm-eval's in nats a document."
    ]
    several = [summary for summary in summaries if len(summary.entries) > 1]
    if len(several) < len(summaries):
        lines.append("One seed: the interval covers documents, not training noise.")
    if any(summary.per_document for summary in several):
        lines.append("Several seeds: for new seeds and new documents.")
    if any(not summary.per_document for summary in several):
        lines.append(
            "Seeds x documents needs the per-document scores (scores.json, or NAME.scores.json and base.scores.json): where"
            " they are missing, the variance over seeds is added to that of the records' own intervals, which is too wide."
        )
    said: dict[str, list[str]] = {}
    for summary in summaries:
        for words in summary.notes:
            said.setdefault(words, []).append(summary.label)
    for words, labels in said.items():
        lines.append(f"{some(labels, 5)}: {words}.")
    return " ".join(lines)


def some(labels: Sequence[str], most: int) -> str:
    """The first of them, and how many there are more."""
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return f"{', '.join(labels[:most])}{more}"


def seeds(summaries: Sequence[Summary]) -> Table | None:
    """Every seed's own values; None when each method has one."""
    if all(len(summary.entries) == 1 for summary in summaries):
        return None
    texts = _texts(summaries)
    rows = []
    for summary in summaries:
        old = {effect.task: effect for effect in summary.retain}
        shown = [(summary.new_task, -1), *[(old.get(name), 1) for name in texts], (summary.macro, 1)]
        for i, seed in enumerate(summary.seeds):
            cells = [number(sign * one.points[i], one.metric, "+") if one else "" for one, sign in shown]
            rows.append([summary.label, str(seed), *cells])
    return Table("Seed by seed", _heads(["method", "seed"], texts), rows)


def against_plain(summaries: Sequence[Summary]) -> Table | None:
    """The confirmatory table: forgetting of each method minus that of plain training; None when nothing was compared."""
    rows, endpoints = [], dict[str, None]()
    for summary in summaries:
        one = summary.difference
        if one is None:
            continue
        endpoints[f"{one.task} {one.metric}"] = None
        rows.append([
            summary.label, str(len(one.points)), quantity(one, with_unit=True), *map(p_value, one.rests_on),
            quantity(summary.learning, with_unit=True) if summary.learning else "", one.verdict,
        ])  # fmt: skip
    note = (
        f"Primary endpoint: {', '.join(endpoints)}; forgetting minus that of plain training with the same seeds on the same"
        " documents, negative is better. Holm over the methods. New-task NLL above plain: what the method did not learn."
    )
    heads = ["method", "seeds", "forgets more by", "p", "Holm p", "new-task NLL above plain", "verdict"]
    return Table("Against plain training", heads, rows, note) if rows else None


def details(summaries: Sequence[Summary]) -> Table:
    """One line a (method, task): scores, forgetting with interval, p, flips, verdict."""
    churned = any(effect.churn is not None for summary in summaries for effect in summary.retain)
    rows = []
    for summary in summaries:
        mean = [summary.primary] if summary.primary and not any(map(summary.is_primary, summary.retain)) else []
        for effect in [*mean, *summary.retain, *summary.learn]:
            new = effect.adjusted is None
            words, found = (learning(effect), (effect.estimate.p, None)) if new else (effect.verdict, effect.rests_on)
            flips = "" if effect.lost is None else f"{count(effect.lost)}/{count(effect.gained)}"
            rows.append([
                summary.label, f"{effect.task} {named(effect.metric)}", str(effect.n), number(effect.pre, effect.metric),
                number(effect.post, effect.metric), quantity(effect), *map(p_value, found), flips,
                *([count(effect.churn)] if churned else []), words,
            ])  # fmt: skip
    heads = ["method", "task", "n", "pre", "post", "forgetting", "p", "adj. p", "lost / gained"]
    note = (
        f"{P}. adj. p, which verdicts go by: Holm over methods on the primary endpoint (old-text NLL, else mean accuracy);"
        " elsewhere Benjamini-Hochberg over methods x tasks."
    )
    if churned:
        note += " churn: documents that flip one way between two seeds of the method; lost and gained beyond it are no noise."
    return Table("Task by task", [*heads, *(["churn"] if churned else []), "verdict"], rows, note)


def learning(effect: Effect) -> str:
    """The verdict on a new task."""
    return "learns" if effect.estimate.high < 0 and effect.estimate.p < 0.05 else "shows no learning at this n"


def verdict(summaries: Sequence[Summary]) -> list[str]:
    """In words, a line a method: does it learn, what does it forget, is it better than plain training."""
    lines = []
    for summary in summaries:
        learn, on = summary.new_task, dict[str, list[str]]()
        for effect in summary.retain:
            if not summary.is_primary(effect):
                on.setdefault(effect.verdict, []).append(effect.task)
        parts = [learning(learn)] if learn else []
        if (main := summary.primary) is not None:
            parts.append(f"{main.verdict} on {main.task} ({_holm(main)})")
        parts += [f"{words} on {', '.join(tasks)}" for words, tasks in sorted(on.items(), key=lambda item: _rank(item[0]))]
        if summary.difference is not None:
            parts.append(f"against plain: {summary.difference.verdict} ({_holm(summary.difference)})")
        seeds = f" ({len(summary.entries)} seeds)" if len(summary.entries) > 1 else ""
        lines.append(f"{summary.label}{seeds}: {'; '.join(parts)}.")
    return lines


def _holm(effect: Effect) -> str:
    """The adjusted p that the verdict rests on; of what cannot be told those of both claims."""
    if effect.verdict.startswith("cannot") and effect.adjusted_margin is not None:
        return f"Holm p {p_value(effect.adjusted)}, of {effect.margin_text} or more {p_value(effect.adjusted_margin)}"
    return f"Holm p {p_value(effect.rests_on[1])}"


def _rank(words: str) -> int:
    return ["forgets", "does", "cannot"].index(words.split()[0])
