"""lm-eval's groups as its results name them; how their members weigh follows from lm-eval's own number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cltk.measure.documents import as_number
from cltk.measure.groups import Group, pool
from cltk.measure.scores import TaskScores, documents


def groups_of(data: Mapping[str, Any], tasks: Mapping[str, TaskScores]) -> tuple[list[Group], list[str]]:
    """The outermost groups with a row, and a line for each that has none.

    Members weigh by their documents, which is lm-eval's default, or all alike, whichever gives lm-eval's own number.
    """
    listed = {name: list(inside) for name, inside in (data.get("group_subtasks") or {}).items() if inside}
    inner = {name for inside in listed.values() for name in inside}
    found, notes = [], list[str]()
    for name in listed:
        if name in inner or name in (data.get("configs") or {}):
            continue
        members = _leaves(name, listed)
        own = (data.get("groups") or {}).get(name) or (data.get("results") or {}).get(name) or {}
        if missing := [one for one in members if one not in tasks]:
            notes.append(f"group {name}: {', '.join(missing)} is not there; its other tasks have a row each")
            continue
        group, odd = _weighed(name, members, own, tasks)
        if group is None:
            notes.append(f"group {name}: {odd}; its tasks have a row each")
        else:
            found.append(group)
    return found, notes


def _leaves(name: str, listed: Mapping[str, list[str]]) -> tuple[str, ...]:
    """The tasks of a group and of the groups in it, each once."""
    found: dict[str, None] = {}
    for one in listed[name]:
        found |= dict.fromkeys(_leaves(one, listed) if one in listed else (one,))
    return tuple(found)


def _weighed(
    name: str, members: tuple[str, ...], own: Mapping[str, Any], tasks: Mapping[str, TaskScores]
) -> tuple[Group | None, str]:
    """The group with the weights that give lm-eval's numbers, or what is not so."""
    numbers = {key: number for key, value in own.items() if "," in key and (number := as_number(value)) is not None}
    numbers = {key: value for key, value in numbers.items() if not key.split(",")[0].endswith("_stderr")}
    if not numbers:
        return Group(name, members), ""
    odd = ""
    for by_size in (True, False):
        group = Group(name, members, {(key.split(",")[0], (key.split(",")[1],)): by_size for key in numbers})
        one = pool(group, tasks)[0]
        if one is None:
            return None, "its tasks have no metric in common"
        wrong = [
            key for key, value in numbers.items() if not math.isclose(_score(one, key), value, rel_tol=1e-9, abs_tol=1e-12)
        ]
        if not wrong:
            return group, ""
        odd = f"lm-eval's own {wrong[0]}, {numbers[wrong[0]]:.6g}, is no mean of its tasks"
    return None, odd


def _score(scores: TaskScores, key: str) -> float:
    """The group's score of "metric,filter"; its first filter's metrics stand under their own name. nan: it has none."""
    for name in (key, key.split(",")[0]):
        if name in scores.values:
            return float(documents(scores, name).mean())
        if name in scores.corpus:
            return float(scores.corpus[name][0] or math.nan)
    return math.nan
