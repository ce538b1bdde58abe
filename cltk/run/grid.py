"""`grid:` -> every combination of its axes. Axes under `zip` go together, value by value:

    grid:
      seed: [0, 1]                       4 cells: each seed with (1.0e-5, 400) and with (1.0e-4, 100)
      zip:
        train.learning_rate: [1.0e-5, 1.0e-4]
        train.max_steps: [400, 100]

`zip` may be a list of such mappings, each an axis of its own.
"""

from __future__ import annotations

import itertools
from typing import Any

from cltk.errors import InputError
from cltk.run.methods import method_name
from cltk.run.plans import Where
from cltk.run.yaml import Keys

ZIP = "zip"
Value = tuple[Keys, str, Any, Any]  # where it stands, its key, its name or place, and itself
Combination = tuple[dict[str, Any], str, Keys, dict[str, Any]]


def product(grid: dict[str, Any], where: Where) -> list[Combination]:
    """Every combination: labels, the method's given name, where its mitigators stand in the file, key -> value.

    Raises:
        InputError: an axis without values, a key on two axes, or zipped axes of different lengths.
    """
    axes: list[list[list[Value]]] = []
    for key, values in grid.items():
        if key != ZIP:
            axes.append([[value] for value in _axis(("grid", key), key, values, where)])
            continue
        for i, one in enumerate(values) if isinstance(values, list) else [(None, values)]:
            at: Keys = ("grid", ZIP) if i is None else ("grid", ZIP, i)
            axes.append(_zipped(at, one, where))
    keys = [key for axis in axes for _, key, _, _ in axis[0]]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise InputError(f"{where(('grid',))}: grid: {twice} stands on two axes; give it once")
    done: list[Combination] = []
    for parts in itertools.product(*axes):
        combination = [value for part in parts for value in part]
        labels = {key: name if isinstance(name, str) else _label(key, value) for _, key, name, value in combination}
        place: Keys = next(((*at, name) for at, key, name, _ in combination if key == "mitigators"), ("mitigators",))
        method = str(place[-1]) if len(place) > 1 and isinstance(place[-1], str) else ""
        done.append((labels, method, place, {key: value for _, key, _, value in combination}))
    return done


def _axis(at: Keys, key: str, values: Any, where: Where) -> list[Value]:
    if not values:
        raise InputError(f"{where(at)}: grid.{key}: give at least one value")
    return [(at, key, name, value) for name, value in (values.items() if isinstance(values, dict) else enumerate(values))]


def _zipped(at: Keys, axes: Any, where: Where) -> list[list[Value]]:
    """Value by value: the first ones of all axes, the second ones, and so on."""
    if not isinstance(axes, dict) or not axes or not all(isinstance(values, list | dict) for values in axes.values()):
        raise InputError(f"{where(at)}: grid.zip: expected keys with their values, such as {{seed: [0, 1]}}, got {axes!r:.60}")
    found = [_axis((*at, key), key, values, where) for key, values in axes.items()]
    if len({len(axis) for axis in found}) > 1:
        sizes = ", ".join(f"{key} has {len(values)}" for key, values in axes.items())
        raise InputError(f"{where(at)}: grid.zip: axes that go together need as many values each: {sizes}")
    return [list(values) for values in zip(*found, strict=True)]


def _label(key: str, value: Any) -> Any:
    return method_name(value) if key == "mitigators" and isinstance(value, list) else value
