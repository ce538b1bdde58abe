"""What `cltk run` keeps of every model: scores.json in a cell's folder, and of the start models in base-*."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cltk.errors import InputError
from cltk.logs.side import Side
from cltk.measure.scores import Scores
from cltk.run.records import RECORD, SCORES, read_json, read_record


def cells(path: Path) -> dict[str, Path]:
    """Name -> file of scores: of a scores.json, of a folder with one, of an output folder with many."""
    if path.is_file():
        if path.name != SCORES and not path.name.endswith(f".{SCORES}"):
            return {}
        return {path.parent.name if path.name == SCORES else path.name.removesuffix(f".{SCORES}"): path}
    if (path / SCORES).is_file():
        return {path.absolute().name: path / SCORES}
    found = {file.parent.name: file for file in sorted(path.glob(f"*/{SCORES}"))}
    return found | {file.name.removesuffix(f".{SCORES}"): file for file in sorted(path.glob(f"*.{SCORES}"))}


def starts(cells: Iterable[str]) -> tuple[str, ...]:
    """Those of them that are start models."""
    return tuple(name for name in cells if name == "base" or name.startswith("base-"))


def side(file: Path, name: str) -> Side:
    """One model's scores; `about` has the digest of its weights, and of those that its record says it started from.

    Raises:
        InputError: the file is damaged or edited.
    """
    try:
        scores = Scores.from_json(read_json(file))
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: not as `cltk run` writes it ({type(error).__name__}: {error})") from None
    record = file.with_name(RECORD if file.name == SCORES else f"{file.name.removesuffix(f'.{SCORES}')}.json")
    start = read_record(record)["digests"].get("start_model") if record.is_file() else None
    about = {"weights": scores.digest, "start_model": start, "dtype": scores.dtype}
    return Side(name, scores, file, about={"harness": "cltk", **{key: value for key, value in about.items() if value}})
