"""`key=value` behind the file: as if the file said so, through the same checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.run.yaml import Keys, read_value

AXES = ("grid", "search.over")  # mappings whose keys are dotted
OTHERS = {  # what others call it, and what it is called here
    "lr": "train.learning_rate", "train.lr": "train.learning_rate", "learning_rate": "train.learning_rate",
    "batch_size": "train.per_device_train_batch_size", "train.batch_size": "train.per_device_train_batch_size",
    "epochs": "train.num_train_epochs", "train.epochs": "train.num_train_epochs", "train.steps": "train.max_steps",
    "max_steps": "train.max_steps", "model": "model.pretrained", "seeds": "grid.seed", "train.seed": "seed",
    "method": "mitigators", "methods": "grid.mitigators",
}  # fmt: skip


def overridden(
    data: dict[str, Any], lines: dict[Keys, int], files: dict[Keys, Path], overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[Keys, int], dict[Keys, Path]]:
    """The file's data, and where its keys stand, with `key=value` in the place of what the file says.

    `key` is dotted (`train.learning_rate`, `evals.retain.0`); what follows `grid.` or `search.over.` is the name of an axis;
    `value` is YAML. A key that came from here has the line 0.

    Raises:
        InputError: it is no KEY=VALUE, the value is no YAML, or the grid, or a search, sets the key in every cell.
    """
    for text in overrides:
        key, mark, value = text.partition("=")
        if not mark or not key:
            raise InputError(f"{text}: expected KEY=VALUE, such as train.learning_rate=1.0e-5")
        inside = next((one for one in AXES if key.startswith(f"{one}.")), "")
        keys = [*inside.split("."), key.removeprefix(f"{inside}.")] if inside else key.split(".")
        if keys[0] == "base":
            raise InputError(f"{text}: base: another base is another file; give that")
        if key in OTHERS and (key != "model" or not value.startswith("{")):
            raise InputError(f"{text}: unknown key; did you mean {OTHERS[key]!r}?")
        axis = next((one for one in _axes(data.get("grid")) if f"{key}.".startswith(f"{one}.")), None)
        if axis is not None and keys[0] != "grid":
            raise InputError(f"{text}: the grid sets {axis} in every cell; give grid.{axis}=[...], or --only")
        if key in _searched(data) and "mitigators" not in _axes(data.get("grid")):
            raise InputError(f"{text}: the search sets it; give search.over.{key}={{choices: [...]}}, or search=null")
        placed: Keys = tuple(int(one) if one.isdigit() else one for one in keys)
        data = put(data, keys, read_value(value, text), text)
        new = [placed[:n] for n in range(1, len(placed) + 1) if n == len(placed) or placed[:n] not in lines]
        lines = {at: line for at, line in lines.items() if at[: len(placed)] != placed} | dict.fromkeys(new, 0)
        files = files | dict.fromkeys(new, Path(text))
    return data, lines, files


def _searched(data: dict[str, Any]) -> list[str]:
    """The keys that a search sets."""
    over = search.get("over") if isinstance(search := data.get("search"), dict) else None
    return list(over) if isinstance(over, dict) else []


def _axes(grid: Any) -> list[str]:
    """The names of all axes, zipped ones too."""
    if not isinstance(grid, dict):
        return []
    zipped = grid.get("zip")
    inside = [one for one in (zipped if isinstance(zipped, list) else [zipped]) if isinstance(one, dict)]
    return [key for one in (grid, *inside) for key in one if key != "zip"]


def put(data: Any, keys: Sequence[str], value: Any, at: str) -> Any:
    """`data` with `value` at the nested `keys`; in lists they are places, from 0."""
    key, *deeper = keys
    if not isinstance(data, dict | list):
        raise InputError(f"{at}: {str(data)[:40]!r} is a name without keys; give {key} in the file")
    if isinstance(data, list):
        if not key.isdigit() or int(key) >= len(data):
            raise InputError(f"{at}: {key} is no place in a list of {len(data)}, from 0")
        changed = put(data[int(key)], deeper, value, at) if deeper else value
        return [changed if i == int(key) else one for i, one in enumerate(data)]
    if not deeper:
        return {**data, key: value}
    inner = data.get(key) or {}
    if not isinstance(inner, dict | list):
        raise InputError(f"{at}: {key} is {str(inner)[:40]!r} and has no keys")
    return {**data, key: put(inner, deeper, value, at)}
