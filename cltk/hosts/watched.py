"""What a watch is made with: checked rows and margins, and the suite that it measures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.measure.evaluate import Suite, TextTask


def margins(given: Any, key: str) -> dict[str, float]:
    """Row -> loss, from a mapping; none of None. Raises InputError for anything else."""
    if given is None:
        return {}
    good = isinstance(given, Mapping) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and math.isfinite(value)
        for value in given.values()
    )
    if not good:
        raise InputError(f"watch.{key}: expected rows and numbers from 0, such as {{macro: 0.02}}, got {given!r}")
    return {str(name): float(value) for name, value in given.items()}


def suite_of(tasks: Any, texts: Any, sample: Any, given: dict[str, Any]) -> Suite:
    """The suite of these tasks and texts. Raises InputError: an argument that `Suite` does not have, or refuses."""
    listed = [texts] if isinstance(texts, str | Path | TextTask) else list(texts)
    read = [one if isinstance(one, TextTask) else TextTask.read(Path(one).stem, str(one)) for one in listed]
    try:
        return Suite(tasks, texts=read, sample=sample, **given)
    except TypeError as error:
        raise InputError(f"watch: {error}") from None
