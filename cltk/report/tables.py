"""Records -> tables: plain rows of text first, then rich or Markdown. Knows records only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
UNITS = {"acc": ("pp", 100.0), "acc_norm": ("pp", 100.0), "exact_match": ("pp", 100.0), "nll": ("nats", 1.0)}


@dataclass(frozen=True)
class Table:
    """A title, column heads, rows of text, and a note below."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        lines = [f"**{self.title}**", "", "| " + " | ".join(self.heads) + " |"]
        lines.append("|" + "|".join(" --- " if i == 0 else " ---: " for i in range(len(self.heads))) + "|")
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows]
        return "\n".join([*lines, *(["", self.note] if self.note else [])]) + "\n"

    def rich(self) -> Any:
        from rich.table import Table as RichTable

        table = RichTable(title=self.title, caption=self.note or None, title_justify="left", caption_justify="left")
        for i, head in enumerate(self.heads):
            table.add_column(head, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in self.rows:
            table.add_row(*row)
        return table


def amount(row: Record, *, sign: int = 1, digits: int | None = None) -> str:
    """"+0.123 [0.050, 0.196] nats": the forgetting (or, with sign -1, the gain) and its 95 % interval."""
    unit, scale = UNITS.get(row["metric"], ("", 1.0))
    places = digits if digits is not None else (1 if unit == "pp" else 3)
    value = sign * row["forgetting"] * scale
    low, high = sorted(sign * end * scale if end is not None else float("nan") for end in row["ci"])
    return f"{value:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}] {unit}".strip()


def score(value: float, metric: str) -> str:
    unit, scale = UNITS.get(metric, ("", 1.0))
    return f"{value * scale:.1f}" if unit == "pp" else f"{value * scale:.3f}"


def headline_rows(record: Record, role: str) -> list[Record]:
    """The rows that stand for each task: one metric a task."""
    result = record.get(role)
    if not result:
        return []
    return [row for row in result["rows"] if row["metric"] == result["headline"].get(row["task"])]


def overview(records: Sequence[Record]) -> Table:
    """One line a cell: what it learned, what it forgot, and the verdict on each."""
    texts = _names(records, "retain", lambda row: row["metric"] == "nll")
    heads = ["method", "steps", "new-task NLL, fall", *[f"{name} NLL, rise" for name in texts], "accuracy lost, mean of tasks"]
    rows = []
    for record in records:
        learn = headline_rows(record, "learn")
        old = {row["task"]: row for row in headline_rows(record, "retain")}
        macro = record.get("retain", {}).get("macro")
        rows.append([
            label(record, records), str(record["train"]["steps"]),
            amount(learn[0], sign=-1) if learn else "",
            *[amount(old[name]) if name in old else "" for name in texts],
            amount(macro) if macro and macro["metric"] != "nll" else "",
        ])  # fmt: skip
    return Table(
        "What was learned and what was forgotten", heads, rows,
        "95 % intervals, paired document by document; positive rise and positive loss are forgetting.",
    )  # fmt: skip


def details(records: Sequence[Record]) -> Table:
    """One line a (cell, task): scores, forgetting with interval, p, flips, verdict."""
    heads = ["method", "task", "metric", "n", "pre", "post", "forgetting", "p", "lost", "gained", "verdict"]
    rows = []
    for record in records:
        for row in [*headline_rows(record, "retain"), *headline_rows(record, "learn")]:
            rows.append([
                label(record, records), row["task"], row["metric"], str(row["n"]), score(row["pre"], row["metric"]),
                score(row["post"], row["metric"]), amount(row), p_value(row["p"]), *[
                    "" if row[key] is None else str(row[key]) for key in ("lost", "gained")
                ], row["verdict"],
            ])  # fmt: skip
    return Table("Task by task", heads, rows, "p: McNemar exact for accuracy, sign-flip permutation for NLL; not adjusted.")


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def label(record: Record, records: Sequence[Record]) -> str:
    """The method, with what else differs between these records."""
    parts = [str(record["method"])]
    for key in record.get("labels", {}):
        if key != "mitigators" and len({str(other.get("labels", {}).get(key)) for other in records}) > 1:
            parts.append(f"{key.split('.')[-1]}={record['labels'][key]}")
    return " ".join(parts)


def _names(records: Sequence[Record], role: str, wanted: Any) -> list[str]:
    names: dict[str, None] = {}
    for record in records:
        names.update(dict.fromkeys(row["task"] for row in headline_rows(record, role) if wanted(row)))
    return list(names)


def verdict(records: Sequence[Record]) -> list[str]:
    """In words, a line a cell: does it learn, what does it forget."""
    lines = []
    for record in records:
        learn = headline_rows(record, "learn")
        learned = "learns" if learn and learn[0]["ci"][1] is not None and learn[0]["ci"][1] < 0 else "shows no learning at this n"
        lost = [row["task"] for row in headline_rows(record, "retain") if row["verdict"].startswith("forgets")]
        kept = [row["task"] for row in headline_rows(record, "retain") if row["verdict"].startswith("does not")]
        unsure = [row["task"] for row in headline_rows(record, "retain") if row["verdict"].startswith("cannot")]
        parts = [learned]
        parts += [f"forgets on {', '.join(lost)}"] if lost else []
        parts += [f"does not forget on {', '.join(kept)}"] if kept else []
        parts += [f"cannot tell at this n on {', '.join(unsure)}"] if unsure else []
        lines.append(f"{label(record, records)}: {'; '.join(parts)}.")
    return lines


def measured(result: dict[str, Any]) -> Table:
    """The forgetting table of two checkpoints, macro average last."""
    heads = ["task", "metric", "n", "pre", "post", "forgetting", "p", "lost", "gained", "verdict"]
    rows = []
    for row in [*result["rows"], result["macro"]]:
        metric = row["metric"]
        flips = ["" if row[key] is None else str(row[key]) for key in ("lost", "gained")]
        rows.append([
            row["task"], metric, str(row["n"]), score(row["pre"], metric), score(row["post"], metric), amount(row),
            p_value(row["p"]), *flips, row["verdict"],
        ])  # fmt: skip
    return Table("Forgetting: Perf_pre - Perf_ft, paired", heads, rows, "positive is bad; 95 % intervals")
