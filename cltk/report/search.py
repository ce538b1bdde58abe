"""What a search tried and what it chose: trials on the validation documents, the chosen setting on the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cltk.report.sources import Entry, Record
from cltk.report.tables import Table
from cltk.run.search_verdict import verdict


def tables(entries: Sequence[Entry]) -> list[Table]:
    """The trials, then what was chosen; none where nothing was searched."""
    found = [entry.record for entry in entries if entry.record.get("search")]
    tried = sorted((one for one in found if "validation" not in one["search"]), key=lambda one: int(one["search"]["trial"]))
    chosen = [one for one in found if "validation" in one["search"]]
    return [*([_trials(tried)] if tried else []), *([_chosen(chosen)] if chosen else [])]


def _trials(records: Sequence[Record]) -> Table:
    rows = []
    for record in records:
        search = record["search"]
        gain, over = verdict(record, search)
        within = "within" if all(excess <= 0 for excess in over.values()) else "over"
        rows.append([str(search["trial"]), record["method"], _values(search["values"]), _number(gain), _share(over), within])
    searches = {record["search"]["study"] for record in records}
    note = f"budget {_budgets(records)}; all on validation documents" + (
        f"; trials of {len(searches)} searches" if len(searches) > 1 else ""
    )
    return Table("Trials", ["trial", "method", "values", "gain", "of the budget", "verdict"], rows, note)


def _chosen(records: Sequence[Record]) -> Table:
    """Of a search that went on, what it chose before stays, and is said to be that: nobody picks among winners unseen."""
    rows, several = [], len({_budgets([record]) for record in records}) > 1
    trials: dict[str, int] = {}
    for search in (record["search"] for record in records):
        trials[search["study"]] = max(search["trials"], trials.get(search["study"], 0))
    for record in records:
        search, won = record["search"], record["search"]["validation"]
        gain, over = verdict(record, search)
        better = None if gain is None else won["gain"] - gain
        within = "within" if all(excess <= 0 for excess in over.values()) else "over"
        if search["trials"] < (now := trials[search["study"]]):
            within += f" (not the choice of {now} trials)"
        rows.append([
            record["method"], str(record.get("seed", 0)), f"{search['trial']} of {search['trials']}", _values(search["values"]),
            _number(won["gain"]), _number(gain), _number(better), _share(won["over"]), _share(over),
            *([_budgets([record])] if several else []), within,
        ])  # fmt: skip
    note = (
        f"budget {_budgets(records)}. The setting was chosen on the validation documents as the best of its"
        " trials, so its numbers there are too good (optimism: their gain less that of the test); only those of the test"
        " documents, which no trial saw, say what to expect, and the verdict is theirs"
    )
    heads = ["method", "seed", "trial", "values", "gain, validation", "gain, test", "optimism", "of the budget, validation"]
    heads += ["of the budget, test", *(["its budget"] if several else []), "verdict"]
    return Table("Chosen by a search", heads, rows, note)


def _budgets(records: Sequence[Record]) -> str:
    found = []
    for search in (record["search"] for record in records):
        held = "the upper end of the 95 % interval" if search["by"] == "interval" else "the estimate"
        found.append(f"{', '.join(f'{name} {most:g}' for name, most in search['budget'].items())}, held by {held}")
    return "; or ".join(dict.fromkeys(found))


def _values(values: dict[str, Any]) -> str:
    return ", ".join(f"{key.split('.', 1)[-1]}={value}" for key, value in values.items())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _share(over: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * (1 + excess):.0f} %" for name, excess in over.items())
