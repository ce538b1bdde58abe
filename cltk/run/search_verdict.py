"""What a record says to a search, and whether a search's budgets are about what will be measured."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from cltk.errors import InputError
from cltk.measure.budgets import Budget, held
from cltk.measure.forgetting import ACCURACIES, headline
from cltk.run.methods import nearest
from cltk.run.sampler import Past

MUCH = 1e6  # over a budget, where the loss is not known


def verdict(record: dict[str, Any], search: dict[str, Any]) -> tuple[float | None, dict[str, float]]:
    """What a record says to a search: the gain, and budget -> (lost - budget) / budget, at most 0 where it is within.

    Args:
        record: of a trial, or of the chosen setting (whose new task is held-out rows).
        search: its section `search`: the budgets, how they are held (`by`), and the name of the gain.
    """
    learned, lost = record["learn"], record["retain"]
    names = ("validation", "heldout") if search["gain"] == "validation" else (search["gain"],)
    rows = [row for row in learned["rows"] if row["task"] in names and row["metric"] == learned["headline"].get(row["task"])]
    gain = -rows[0]["forgetting"] if rows and rows[0]["forgetting"] is not None else None
    budgets = {name: Budget(name, most, "search") for name, most in search["budget"].items()}
    result: Any = SimpleNamespace(
        rows=[SimpleNamespace(**row) for row in lost["rows"]], macro=SimpleNamespace(**lost["macro"]),
        headline=lost["headline"], left_out=lost.get("left_out", {}),
    )  # fmt: skip
    over = {}
    for check in held(result, budgets):
        row: Any = check.row
        most = None if row is None else row.forgetting if search["by"] == "estimate" else (row.ci or [None, None])[1]
        over[f"{check.task}/{check.metric}"] = MUCH if most is None else (most - check.budget) / check.budget
    return gain, over


def none_within(past: Mapping[int, Past], failed: Mapping[int, str], trials: int, diverged: Collection[int] = ()) -> str:
    """What to say where no trial is within the budgets: which came nearest.

    Args:
        past, failed: by trial.
        diverged: the trials that did; others without a number have no interval.
    """
    worst = {at: max(one.over.items(), key=lambda item: item[1]) for at, one in past.items()}
    known = {at: (name, over) for at, (name, over) in worst.items() if over < MUCH}
    said = f"search: none of {trials} trials is within the budget"
    if known:
        at, (name, over) = min(known.items(), key=lambda item: item[1][1])
        said += f"; the nearest is trial {at}, with {1 + over:.2f} times the budget of {name}"
    said += f"; {len(diverged)} diverged" if diverged else ""
    if unknown := [name for at, (name, _) in worst.items() if at not in known and at not in diverged]:
        said += f"; {len(unknown)} have no number for {unknown[0]} (an interval needs two clusters)"
    if failed:
        said += f"; the first failure: {next(iter(failed.values()))}"
    return f"{said}; widen search.over, or the budget"


def check_budgets(budgets: Mapping[str, float], measured: Mapping[str, Iterable[str]], at: str) -> None:
    """What `verdict` would find wrong with budgets, before anything is trained.

    Args:
        measured: old row -> its metrics, by their names without a filter.
        at: file and key, for messages.

    Raises:
        InputError: a budget is about nothing, or two things, measured; or is all that an accuracy has.
    """
    rows = {row: list(metrics) for row, metrics in measured.items()}
    metrics = {metric for found in rows.values() for metric in found}
    heads = {row: headline(found) for row, found in rows.items() if found}
    for name, most in budgets.items():
        row, _, metric = name.rpartition("/")
        own, plain = f"{at}.budget.{name}", metric.split(",")[0]
        if name in rows and name in metrics:
            raise InputError(f"{own}: a task and a metric have this name; write {name}/METRIC")
        if name == "macro":
            about = [head for head in heads.values() if head in ACCURACIES] or list(heads.values())
        elif name in rows:
            about = [heads[name]] if name in heads else []
        elif name.split(",")[0] in metrics or (row in rows and plain in rows[row]):
            about = [plain]
        else:
            raise InputError(f"{own}: nothing old has this name{nearest(name, ['macro', *rows, *sorted(metrics)])}")
        if most >= 1 and (found := next((one for one in about if one in ACCURACIES), None)):
            raise InputError(f"{own}: {most:g} is all that {found} has, a share of 1; 1 pp is 0.01")
