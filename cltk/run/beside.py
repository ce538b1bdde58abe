"""A record whose documents were scored in part goes with its references, whose scores predict the others: found beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.run import records
from cltk.run.config import validate
from cltk.run.plans import Cell
from cltk.run.spec import DocumentsSpec, Experiment


def references_of(record: dict[str, Any], file: Path | None) -> list[tuple[dict[str, Any], Path]]:
    """(record, file of scores) of every reference that predicted documents of this record; none where all were scored.

    Raises:
        InputError: one of them is not in the record's folder any more, or is another training.
    """
    wanted, found = (record.get("documents") or {}).get("references", {}), []
    near = list(map(_read, _near(file))) if wanted else []
    for name, digest in wanted.items():
        same = [one for one in near if one and one[0]["digests"].get("tuned_model") == digest]
        whole = [one for one in same if not one[0].get("documents")]  # other cells may have its weights
        one = next((one for one in whole if one[0]["method"] == name), next(iter(whole), None))
        if one is None:
            raise InputError(
                f"{file}: part of its documents was scored, and {name} ({digest[:12]}), which predicts the others, has no"
                " record with scores beside it; put both into one folder again, or run the experiment anew"
            )
        found.append(one)
    return found


def _near(file: Path | None) -> list[Path]:
    """All records of the output folder, or of the folder of flat files."""
    if file is None:
        return []
    place = file.resolve()
    return records.find_records(place.parent.parent if place.name == records.RECORD else place.parent)


def _read(file: Path) -> tuple[dict[str, Any], Path] | None:
    """A record and its scores; None where there are none, or the record is damaged."""
    try:
        record, scores = records.read_record(file), records.scores_file(file)
    except InputError:
        return None
    return (record, scores) if scores.is_file() else None


def cells_of(record: dict[str, Any], source: Path, references: list[tuple[dict[str, Any], Path]]) -> list[Cell]:
    """The record's cell, behind those that it is measured with: its references as their records have them.

    A cell that is a reference itself stands behind its own configuration by the names of the other ones.
    """
    config = _config(record, source)
    found = [Cell(one["method"], one["labels"], _config(one, source)) for one, _ in references]
    if config.evals.documents and not references:
        others = [name for name in config.evals.documents.references if name != record["method"]]
        found += [Cell(name, record["labels"], config) for name in others]
    return [*found, Cell(record["method"], record["labels"], config)]


def _config(record: dict[str, Any], source: Path) -> Experiment:
    """A record's configuration; `documents` names other cells, and is checked where there are all of them."""
    given = record["config"]
    documents = (given.get("evals") or {}).get("documents")
    alone = {**given, "evals": {**given["evals"], "documents": None}} if documents else given
    config = validate({**alone, "base": None, "grid": {}}, source, {}, {}).cells[0].config
    evals = config.evals.model_copy(update={"documents": DocumentsSpec.model_validate(documents) if documents else None})
    return config.model_copy(update={"keep_model": False, "evals": evals})
