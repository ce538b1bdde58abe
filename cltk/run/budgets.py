"""Budgets of forgetting as people write them: NAME=NUMBER, or a YAML file of such lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cltk.errors import InputError
from cltk.measure.budgets import Budget
from cltk.run.yaml import Keys, read_yaml


def read_budgets(given: Sequence[str]) -> list[Budget]:
    """Budgets in the order given; what stands in the call itself counts before what stands in a file.

    A text with "=" is one budget, NAME=NUMBER; any other is a YAML file: `acc: 0.01`, or `gsm8k: {exact_match: 0.03}`.

    Raises:
        InputError: with file and line: not YAML, a value that is no number, a name that stands twice.
    """
    listed: dict[str, Budget] = {}
    written: dict[str, Budget] = {}
    for text in given:
        own = _line(text) if "=" in text else None
        for budget in [own] if own else _file(text):
            into = listed if own else written
            if budget.name in into:
                raise budget.error(f"budget {budget.name} stands twice")
            into[budget.name] = budget
    return list({**written, **listed}.values())


def _line(text: str) -> Budget:
    name, _, number = text.rpartition("=")
    if not name.strip():
        raise InputError(f"--budget {text}: whose budget? write NAME=0.01 with a task, a metric, TASK/METRIC or macro")
    return Budget(name.strip(), _number(number, f"--budget {text}"))


def _file(path: str) -> list[Budget]:
    data, lines = read_yaml(path)
    found = _budgets(path, data, lines, ())
    if not found:
        raise InputError(f"{path}: holds no budget; write lines such as acc: 0.01")
    return found


def _budgets(path: str, data: Mapping[str, Any], lines: Mapping[Keys, int], above: Keys) -> list[Budget]:
    found: list[Budget] = []
    for key, value in data.items():
        keys = (*above, key)
        where, name = f"{path}:{lines.get(keys, 1)}", "/".join(map(str, keys))
        if isinstance(value, dict) and not above:
            found += _budgets(path, value, lines, keys)
        else:
            found.append(Budget(name, _number(value, f"{where}: budget {name}"), where))
    return found


def _number(value: Any, where: str) -> float:
    """YAML 1.1 reads 1e-2 as a text."""
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise InputError(f"{where}: {value!r} is no number; write 0.01 for 1 pp of an accuracy")
