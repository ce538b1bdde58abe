"""Files of rows: JSON lines, JSON, CSV, Parquet, text, saved `datasets`, hub sets. Every refusal names file and line."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
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


@dataclass(frozen=True)
class Rows:
    """The rows of a file or data set. Each iteration reads them anew, from the first, and holds one at a time.

    Only a .json file, which is one value, is read whole. `data` is the data set, of which any row can be read alone.
    """

    source: str
    path: Path | None
    data: Any = None
    limit: int | None = None  # the first so many

    def __iter__(self) -> Iterator[Row]:
        rows: Iterable[Row] = self.data if self.data is not None else _file_rows(self.source, self.path or Path())
        row = None
        for row in islice(rows, self.limit):
            yield row
        if row is None:
            raise InputError(f"{self.source}: the data set is empty")

    @property
    def bytes(self) -> int:
        """How much there is to read, at most."""
        return int(self.data.data.nbytes) if self.data is not None else (self.path or Path()).stat().st_size

    def digest(self) -> str:
        """sha256 (hex) of the file and its kind, or of all files of the folder; beside it what `datasets` knows the set by."""
        kind = self.path.suffix.lower() if self.path is not None and self.data is None else ""
        sha = hashlib.sha256((kind + getattr(self.data, "_fingerprint", "")).encode())
        for file in sorted(self.path.rglob("*") if self.path.is_dir() else [self.path]) if self.path else ():
            if file.is_file():
                with file.open("rb") as opened:
                    sha.update(hashlib.file_digest(opened, "sha256").digest())
        return sha.hexdigest()


def open_rows(
    source: str | Path, *, name: str | None = None, split: str | None = None, revision: str | None = None,
    limit: int | None = None, streaming: bool = False,
) -> Rows:  # fmt: skip
    """The rows of a .jsonl, .json, .csv, .parquet or .txt file, of a folder of such files, a saved or a hub data set.

    Args:
        name: the configuration of a hub data set.
        split: of a data set; of a hub data set or a folder also a part of one ("train[:1000]").
        revision: a commit, tag or branch of a hub data set.
        limit: the first N rows.
        streaming: whether a hub data set (or a folder of files) is fetched while it is read.

    Text files are UTF-8, with or without a byte order mark. A .txt file gives one {"text": ...} row per paragraph (blank
    lines separate). Values are as the file has them: null stays None, and is refused where a text is made of it (`fill`).

    Raises:
        InputError: no such file, a missing split; when it is read: another encoding, a line that cannot be read, no rows.
    """
    path = locate(source)
    if path is not None and (revision or (name and path.is_file())):
        given = f"revision {revision!r}" if revision else f"name {name!r}"
        raise InputError(f"{source}: {given} of what is on disk; it belongs to data sets on the hub")
    if path is None or path.is_dir():
        return Rows(str(source), path, _dataset(str(source), path, name, split, revision, streaming), limit)
    if split is not None:
        raise InputError(f"{source}: split {split!r} of a single file; splits are of saved or hub data sets")
    if path.suffix.lower() not in READERS:
        raise InputError(f"{source}: unknown file type {path.suffix!r}; use one of {', '.join(READERS)}")
    return Rows(str(source), path, None, limit)


def read_rows(
    source: str | Path, *, name: str | None = None, split: str | None = None, revision: str | None = None
) -> list[Row]:
    """All of `open_rows`, at once."""
    return [dict(row) for row in open_rows(source, name=name, split=split, revision=revision)]


def _file_rows(source: str, path: Path) -> Iterator[Row]:
    try:
        yield from READERS[path.suffix.lower()](path)
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror or error})") from None


def _lines(path: Path, newline: str | None) -> Iterator[str]:
    """The lines of a text file, which end as `open` understands `newline`."""
    number = 0
    with path.open(encoding="utf-8-sig", newline=newline) as file:
        try:
            for number, line in enumerate(file, 1):
                if "\0" in line:  # UTF-16 without a mark reads as UTF-8 with a NUL behind every letter
                    raise InputError(f"{path}:{number}: holds a NUL; save the file as UTF-8 text")
                yield line
        except UnicodeDecodeError:
            raise _not_text(path) from None


def _not_text(path: Path) -> InputError:
    """The refusal of a file that is no UTF-8: what was decoded ahead of the line that was asked for does not say where."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return InputError(f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8")
    return InputError(f"{path}: not UTF-8; save the file as UTF-8")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = "" if where.rsplit(":", 1)[-1].isdigit() else f":{error.lineno}"
        raise InputError(f"{where}{line}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # integers of thousands of digits; brackets nested thousands deep
        raise InputError(f"{where}: not JSON that can be read: {error}") from None


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path, "\n"), 1):
        if line.strip():
            row = _json(line, f"{path}:{number}")
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: expected an object with named columns, found {type(row).__name__}")
            yield row


def _read_json(path: Path) -> Iterator[Row]:
    rows = _json("".join(_lines(path, "")), str(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of objects with named columns")
    yield from rows


def _read_csv(path: Path) -> Iterator[Row]:
    """Cells are text; one that a short line lacks is None."""
    reader = csv.reader(_lines(path, ""), strict=True)
    header = _next(reader, path) or []
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"{path}:1: two columns are called {twice!r}")
    while (cells := _next(reader, path)) is not None:
        if len(cells) > len(header):
            raise InputError(f"{path}:{reader.line_num}: {len(cells)} cells under {len(header)} columns; quote commas")
        if cells:
            yield dict(zip(header, [*cells, *[None] * (len(header) - len(cells))], strict=True))


def _next(reader: Any, path: Path) -> list[str] | None:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the module's own limit is 128 KiB a cell
    try:
        return next(reader, None)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1_000):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a Parquet file that can be read: {str(error).strip().splitlines()[0]}") from None


def _read_text(path: Path) -> Iterator[Row]:
    lines: list[str] = []
    for line in _lines(path, None):
        if line.strip():
            lines.append(line)
        elif lines:
            yield {"text": "".join(lines).strip()}
            lines = []
    if lines:
        yield {"text": "".join(lines).strip()}


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet, ".txt": _read_text
}  # fmt: skip


SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves


def _dataset(
    source: str, path: Path | None, name: str | None, split: str | None, revision: str | None, streaming: bool
) -> Any:  # fmt: skip
    """A split of a data set; "train" or the only one where none is named."""
    import datasets

    saved = path is not None and any((path / file).exists() for file in SAVED)
    part = split if split and "[" in split and not saved else None  # a part of a split is read by the library
    how = {"streaming": True} if streaming else {}
    try:
        if saved:
            data = datasets.load_from_disk(str(path))
        else:
            data = datasets.load_dataset(str(path or source), name, split=part, revision=revision, **how)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        at = f" at revision {revision!r}" if revision else ""
        raise InputError(f"{source}: no such file, and it cannot be loaded as a data set{at} ({reason})") from None
    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        chosen = split or ("train" if "train" in data else next(iter(data)) if len(data) == 1 else None)
        if chosen not in data:
            raise InputError(f"{source}: split {chosen!r} does not exist; it has {', '.join(map(str, data))}")
        data = data[chosen]
    elif split is not None and part is None:
        raise InputError(f"{source}: split {split!r} of a data set without splits")
    return data.with_format(None)


__all__ = ["READERS", "Row", "Rows", "locate", "open_rows", "read_rows"]
