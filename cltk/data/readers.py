"""Files of rows: JSON lines, JSON, CSV, Parquet, text, saved `datasets`, hub sets. Every refusal names file and line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cltk.data import assets
from cltk.errors import InputError

Row = dict[str, Any]


def locate(source: str | Path) -> Path | None:
    """The file or folder that `source` names ("asset:NAME/FILE" or a path); None when it can only be a hub id."""
    found = assets.resolve(str(source))
    if os.path.exists(found):
        return found
    looks_like_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) and found.suffix.lower() not in READERS
    if looks_like_hub_id:
        return None
    raise InputError(f"{source}: no such file or folder")


def read_rows(
    source: str | Path, *, name: str | None = None, split: str | None = None, revision: str | None = None
) -> list[Row]:
    """All rows of a .jsonl, .json, .csv, .parquet or .txt file, of a folder of such files, a saved or a hub data set.

    Args:
        name: the configuration of a hub data set.
        split: of a data set; of a hub data set or a folder also a part of one ("train[:1000]").
        revision: a commit, tag or branch of a hub data set.

    Text files are UTF-8, with or without a byte order mark. A .txt file gives one {"text": ...} row per paragraph (blank
    lines separate). Values are as the file has them: null stays None, and is refused where a text is made of it (`fill`).

    Raises:
        InputError: no such file, another encoding, a line that cannot be read, a missing split; names file and line.
    """
    path = locate(source)
    if path is not None and (revision or (name and path.is_file())):
        given = f"revision {revision!r}" if revision else f"name {name!r}"
        raise InputError(f"{source}: {given} of what is on disk; it belongs to data sets on the hub")
    if path is None or path.is_dir():
        return _read_dataset(str(source), path, name, split, revision)
    if split is not None:
        raise InputError(f"{source}: split {split!r} of a single file; splits are of saved or hub data sets")
    if path.suffix.lower() not in READERS:
        raise InputError(f"{source}: unknown file type {path.suffix!r}; use one of {', '.join(READERS)}")
    try:
        rows = READERS[path.suffix.lower()](path)
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror or error})") from None
    if not rows:
        raise InputError(f"{source}: the data set is empty")
    return rows


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8") from None
    if "\0" in text:  # UTF-16 without a mark reads as UTF-8 with a NUL behind every letter
        raise InputError(f"{path}:{text[: text.index(chr(0))].count(chr(10)) + 1}: holds a NUL; save the file as UTF-8 text")
    return text


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = "" if where.rsplit(":", 1)[-1].isdigit() else f":{error.lineno}"
        raise InputError(f"{where}{line}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # integers of thousands of digits; brackets nested thousands deep
        raise InputError(f"{where}: not JSON that can be read: {error}") from None


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            row = _json(line, f"{path}:{number}")
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: expected an object with named columns, found {type(row).__name__}")
            rows.append(row)
    return rows


def _read_json(path: Path) -> list[Row]:
    rows = _json(_text(path), str(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of objects with named columns")
    return rows


def _read_csv(path: Path) -> list[Row]:
    """Cells are text; one that a short line lacks is None."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the module's own limit is 128 KiB a cell
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise InputError(f"{path}:1: two columns are called {twice!r}")
        rows = []
        for cells in reader:
            if len(cells) > len(header):
                raise InputError(f"{path}:{reader.line_num}: {len(cells)} cells under {len(header)} columns; quote commas")
            if cells:
                rows.append(dict(zip(header, [*cells, *[None] * (len(header) - len(cells))], strict=True)))
        return rows
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a Parquet file that can be read: {str(error).strip().splitlines()[0]}") from None


def _read_text(path: Path) -> list[Row]:
    paragraphs = re.split(r"\n\s*\n", _text(path).replace("\r\n", "\n").replace("\r", "\n"))
    return [{"text": paragraph.strip()} for paragraph in paragraphs if paragraph.strip()]


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet, ".txt": _read_text
}  # fmt: skip


SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves


def _read_dataset(source: str, path: Path | None, name: str | None, split: str | None, revision: str | None) -> list[Row]:
    """A split of a data set; "train" or the only one where none is named."""
    import datasets

    saved = path is not None and any((path / file).exists() for file in SAVED)
    part = split if split and "[" in split and not saved else None  # a part of a split is read by the library
    try:
        if saved:
            data = datasets.load_from_disk(str(path))
        else:
            data = datasets.load_dataset(str(path or source), name, split=part, revision=revision)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        at = f" at revision {revision!r}" if revision else ""
        raise InputError(f"{source}: no such file, and it cannot be loaded as a data set{at} ({reason})") from None
    if isinstance(data, datasets.DatasetDict):
        chosen = split or ("train" if "train" in data else next(iter(data)) if len(data) == 1 else None)
        if chosen not in data:
            raise InputError(f"{source}: split {chosen!r} does not exist; it has {', '.join(map(str, data))}")
        data = data[chosen]
    elif split is not None and part is None:
        raise InputError(f"{source}: split {split!r} of a data set without splits")
    rows = [dict(row) for row in data.with_format(None)]
    if not rows:
        raise InputError(f"{source}: the data set is empty")
    return rows


__all__ = ["READERS", "Row", "locate", "read_rows"]
