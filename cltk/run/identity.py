"""What identifies a measurement and a cell: the one place that says so.

Folders of cells and of start models, kept trainings, the digests in a record and `cltk reproduce` all take it from here.

    measurement   every number of Perf_pre follows from it: the tasks' documents, prompts and rules, the texts' and the new
                  tasks' bytes, the settings, the start model's weights, config and tokeniser, the number of the numerics
    cell          the measurement, the whole configuration, and the bytes of all that training reads

Files count by their bytes and are not parsed; lm-eval's tasks count by what they will ask and how they score it, since
their documents may lie anywhere. Nothing here loads weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cltk.run import judging

if TYPE_CHECKING:
    from cltk.run.inputs import Inputs
    from cltk.run.plans import Cell

NUMERICS = 1  # raised by hand when a number that a cell or a measurement yields changes; see tests/run/test_numerics.py

# settings of `evals` that no score of the start model depends on
AFTER = ("margins", "kl_rows", "documents", "during", "judge")
APART = ("keep_model", "base", "grid")  # keys that change no number of a record


def measurement(inputs: Inputs, cell: Cell, numerics: int = NUMERICS) -> dict[str, Any]:
    """All that the start model's scores follow from, as plain data."""
    evals = cell.config.evals
    settings = {key: value for key, value in evals.model_dump().items() if key not in (*AFTER, "retain", "learn")}
    measured = inputs.entries([*evals.retain, *evals.learn])  # suites by what they list
    return {
        "numerics": numerics,
        "model": {**cell.config.model.model_dump(), "digest": inputs.model_digest(cell.config.model.spec)},
        "settings": settings,
        "measured": [entry.model_dump() for entry in measured],
        "new": [[one.stage, one.data.model_dump()] for one in cell.trainings],
        "files": inputs.measured_files(cell),
        "tasks": inputs.tasks(cell),
        "rules": inputs.rules(cell),
    }


def identity(inputs: Inputs, cell: Cell, numerics: int = NUMERICS) -> dict[str, Any]:
    """All that a cell's record follows from, as plain data: equal identities, equal records."""
    whole = {"measurement": measurement(inputs, cell, numerics), "config": _config(cell), "files": inputs.files(cell)}
    references = [[_config(one), inputs.files(one)] for one in inputs.references(cell)]
    return whole | ({"references": references} if references else {}) | judging.identity_of(inputs, cell)


def _config(cell: Cell) -> dict[str, Any]:
    config = {key: value for key, value in cell.config.model_dump().items() if key not in APART}
    config["train"] = {key: value for key, value in config["train"].items() if key != "output_dir"}
    for key in ("documents", "during"):
        if config["evals"][key] is None:
            del config["evals"][key]
    return config


def training(inputs: Inputs, cell: Cell) -> dict[str, Any]:
    """The identity of a cell up to the averages of whole weights at its end (WiSE-FT and others)."""
    listed = [entry for entry in cell.config.mitigators if not averages(entry)]
    found = identity(inputs, replace(cell, config=cell.config.model_copy(update={"mitigators": listed})))
    return {key: value for key, value in found.items() if key not in ("references", "judge")}  # of what is measured after it


def averages(entry: Any) -> bool:
    """Whether an entry of `mitigators` only mixes whole weights when training has ended."""
    return _method(entry).averages


def freezes(entry: Any) -> bool:
    """Whether an entry of `mitigators` leaves weights out of training."""
    return _method(entry).freezes


def _method(entry: Any) -> Any:
    from cltk.mitigate import MITIGATORS

    return MITIGATORS[next(iter(entry)) if isinstance(entry, dict) else entry]
