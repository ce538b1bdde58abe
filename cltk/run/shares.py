"""Which cells a run takes: by their names on the axes of the grid (`--only`), and its share of them (`--cells`)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml

from cltk.errors import InputError, shown
from cltk.run.methods import nearest
from cltk.run.plans import Cell

SHARE = re.compile(r"(\d{1,9})/(\d{1,9})")
ARRAY = "SLURM_ARRAY_TASK_"


def chosen(cells: Sequence[Cell], only: Sequence[str] = (), share: str | None = None) -> tuple[list[int], str]:
    """The places of the cells to run, and a line that says which share it is; "" without one.

    Args:
        cells: all of them.
        only: "method=ewc,seed=0": cells that have all of it; of several, cells that fit any.
        share: "i/N", the cells at places p (from 1, of those that `only` leaves) with p = i modulo N, so that i from 0 to N - 1
            and from 1 to N both give every cell to one share; or "slurm", by this task's place in its Slurm array.

    Raises:
        InputError: no such axis or value, no such share, or no Slurm array.
    """
    asked = [_wanted(cells, text) for text in only]
    places = [at for at, cell in enumerate(cells) if not asked or any(fits(cell, one) for one in asked)]
    if asked and not places:
        raise InputError(f"--only {' --only '.join(only)}: no cell has all of it")
    if share is None:
        return places, ""
    number, of = _slurm(os.environ) if share == "slurm" else _share(share)
    mine = [at for p, at in enumerate(places, 1) if p % of == number % of]
    names = ", ".join(cells[at].name for at in mine) or "none"
    where = f" ({ARRAY}ID={os.environ.get(ARRAY + 'ID')})" if share == "slurm" else ""
    return mine, f"--cells {share}{where}: share {number or of} of {of} of {len(places)} cells: {names}"


def axes(cell: Cell) -> dict[str, Any]:
    """What a cell is called on every axis: the keys of its grid, whole and by their last part, method, seed, and its name."""
    short = {key.rpartition(".")[2]: value for key, value in cell.labels.items()}
    return {**short, **cell.labels, "method": cell.method, "seed": cell.config.seed, "cell": cell.name}


def fits(cell: Cell, wanted: Mapping[str, str]) -> bool:
    """Whether a cell has these values."""
    found = axes(cell)
    return all(axis in found and _same(text, found[axis]) for axis, text in wanted.items())


def _same(text: str, value: Any) -> bool:
    """Whether what was typed is this value, as text or as YAML; 1e-5 is a number here."""
    if text == str(value):
        return True
    if not isinstance(value, bool):
        with suppress(TypeError, ValueError):
            return float(text) == float(value)
    try:
        found = yaml.safe_load(text)
        return bool(found == value) and isinstance(found, bool) == isinstance(value, bool)
    except yaml.YAMLError:
        return False


def _wanted(cells: Sequence[Cell], text: str) -> dict[str, str]:
    parts = re.split(r",(?=[\w.]+=)", text)
    wanted = {axis.strip(): value.strip() for axis, mark, value in (part.partition("=") for part in parts) if mark}
    if len(wanted) < len(parts) or not all(wanted):
        raise InputError(f"--only {text}: expected AXIS=VALUE, or several with commas between, such as method=ewc,seed=0")
    known = {axis: value for cell in cells for axis, value in axes(cell).items()}
    for axis, value in wanted.items():
        if axis not in known:
            raise InputError(f"--only {text}: no axis {shown(axis)}{nearest(axis, known)}")
        if not any(fits(cell, {axis: value}) for cell in cells):
            there = list(dict.fromkeys(str(found[axis]) for cell in cells if axis in (found := axes(cell))))
            raise InputError(f"--only {text}: no cell has {axis}={value}; there is {', '.join(there)}")
    return wanted


def _share(text: str) -> tuple[int, int]:
    match = SHARE.fullmatch(text)
    if match is None:
        raise InputError(f"--cells {text}: expected i/N, such as 2/8, or slurm")
    number, of = int(match[1]), int(match[2])
    if of < 1 or number > of:
        raise InputError(f"--cells {text}: there is no such share; i is from 1 to N, or from 0 to N - 1")
    return number, of


def _slurm(environment: Mapping[str, str]) -> tuple[int, int]:
    """The place (from 1) of this task in its array, and the tasks of the array."""
    found = {}
    for key in ("ID", "MIN", "MAX", "COUNT"):
        value = environment.get(ARRAY + key, "")
        if not value.isdigit():
            raise InputError(f"--cells slurm: {ARRAY}{key} is not set; start it by `sbatch --array=...`, or give i/N")
        found[key] = int(value)
    first, last, count = found["MIN"], found["MAX"], found["COUNT"]
    step = (last - first) // (count - 1) if count > 1 else 1
    if first + step * (count - 1) != last or (found["ID"] - first) % step:
        raise InputError(
            f"--cells slurm: the array's numbers are not evenly spaced, so they do not say which share is whose;"
            f" give --cells ${ARRAY}ID/N, or none: runs share a folder"
        )
    return (found["ID"] - first) // step + 1, count
