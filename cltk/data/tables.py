"""Token rows as Arrow: in memory while they are few, beyond that in a file that is mapped, made once for all who read it.

The files lie in $CLTK_CACHE/tokens. One is known by all that its rows follow from: the bytes they were read from, how, and the
tokeniser; a file of the same name and time with other bytes is another. What has not been used for a month is removed when
the next is made, and all of it may be removed at any time that nobody reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from cltk.data.pinned import cache_dir
from cltk.data.readers import Row
from cltk.data.rows import BATCH, IGNORED
from cltk.errors import CltkError
from cltk.files import disk_error, write_atomic, write_text

LARGE = 32 * 2**20  # bytes of a source beyond which its token rows go to the disk
MONTH = 30 * 24 * 3600  # seconds
FORMAT = 1  # raised by hand when rows are made otherwise
LOOKED = 1_000  # rows that are looked at together
Facts = dict[str, Any]


class Table(Sequence[Row]):
    """Token rows: `input_ids`, and `labels` where not every token counts, as lists; read when they are asked for.

    Args:
        data: a `datasets.Dataset` of these two columns, and of others that rows do not show.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.shown = data.select_columns([name for name in ("input_ids", "labels") if name in data.column_names])

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Table:
        """Rows at hand, in memory."""
        import datasets
        import pyarrow

        found = list(_batches(rows))
        empty = _batch([{"input_ids": [], "labels": []}]).slice(0, 0)
        return cls(datasets.Dataset(datasets.table.InMemoryTable(pyarrow.Table.from_batches(found or [empty]))))

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return dict(self.shown[range(len(self))[index]])

    def __iter__(self) -> Iterator[Row]:
        for batch in self._arrow(BATCH):
            yield from batch.to_pylist()

    def _arrow(self, size: int) -> Iterator[Any]:
        return iter(self.shown.with_format("arrow").iter(size))

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Table:
        """These rows, in this order."""
        return Table(self.data.select(np.asarray(indices, np.int64)))

    def column(self, name: str) -> NDArray[Any]:
        """A column of numbers that rows do not show."""
        alone = self.data.select_columns([name]).with_format("numpy")
        return np.concatenate([np.asarray(one[name]) for one in alone.iter(LOOKED)] or [np.empty(0)])

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        parts = [np.diff(_flat(batch["input_ids"])[1]) for batch in self._arrow(LOOKED)]
        return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64)

    def counted(self, first: int = 1) -> NDArray[np.int64]:
        """Tokens of each row that count; nothing predicts its first, which counts with `first=0` only."""
        parts = []
        for batch in self._arrow(LOOKED):
            values, edges = _flat(batch["labels" if "labels" in batch.column_names else "input_ids"])
            counts = np.concatenate([[0], np.cumsum((values != IGNORED) | ("labels" not in batch.column_names))])
            parts.append(counts[edges[1:]] - counts[np.minimum(edges[:-1] + first, edges[1:])])
        return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64)


def joined(tables: Sequence[Table]) -> Table:
    """Tables one after the other."""
    import datasets

    return tables[0] if len(tables) == 1 else Table(datasets.concatenate_datasets([one.shown for one in tables]))


def lengths(rows: Any) -> NDArray[np.int64]:
    """Tokens of each row of any sequence of rows; of a table without reading them."""
    if hasattr(rows, "lengths"):
        found: NDArray[np.int64] = rows.lengths()
        return found
    return np.fromiter((len(row["input_ids"]) for row in rows), np.int64)


def _flat(column: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The values of a column of lists end to end, and where each list begins and ends."""
    whole = column.combine_chunks()
    edges = whole.offsets.to_numpy().astype(np.int64)
    return whole.values.to_numpy()[edges[0] : edges[-1]], edges - edges[0]


def _batch(rows: Sequence[Row]) -> Any:
    """A record batch: lists of token ids in 32 bits, other numbers in 64 without sign."""
    import pyarrow

    columns = {}
    for name, value in rows[0].items():
        cells = [row[name] for row in rows]
        kind = pyarrow.list_(pyarrow.int32()) if isinstance(value, list) else pyarrow.uint64()
        columns[name] = pyarrow.array(cells, kind)
    return pyarrow.RecordBatch.from_pydict(columns)


def _batches(rows: Iterable[Row]) -> Iterator[Any]:
    waiting = iter(rows)
    while some := list(islice(waiting, BATCH)):
        yield _batch(some)


def table_of(size: int, key: Callable[[], Any], rows: Callable[[Facts], Iterable[Row]]) -> tuple[Table, Facts]:
    """The table of `rows`, and the facts that they put down while they are made.

    From `LARGE` bytes on it is a file in the cache, made by whoever comes first (a cell, a rank, another run); others wait.

    Args:
        size: bytes of what is read.
        key: all that the rows follow from, as plain data.
        rows: makes them.

    Raises:
        DiskError: the cache cannot be written.
    """
    facts: Facts = {}
    if size < LARGE:
        return Table.of(rows(facts)), facts
    from filelock import FileLock

    name = hashlib.sha256(json.dumps([FORMAT, key()], sort_keys=True, default=str).encode()).hexdigest()[:32]
    folder = cache_dir() / "tokens"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            found = _intact(folder / name)
            if found is None:
                _prune(folder)
                _make(folder / name, rows)
                found = _intact(folder / name)
    except CltkError:
        raise
    except OSError as error:
        raise disk_error(error, folder) or error from error
    if found is None:
        raise RuntimeError(f"{folder / name}: what was just written reads otherwise")
    return found


def _make(stem: Path, rows: Callable[[Facts], Iterable[Row]]) -> None:
    import pyarrow

    facts: Facts = {}

    def write(path: Path) -> None:
        writer = None
        with pyarrow.OSFile(str(path), "wb") as sink:
            for batch in _batches(rows(facts)):
                writer = writer or pyarrow.ipc.new_stream(sink, batch.schema)
                writer.write_batch(batch)
            if writer is not None:
                writer.close()

    arrow = stem.with_suffix(".arrow")
    write_atomic(arrow, write)
    write_text(stem.with_suffix(".json"), json.dumps({"sha256": _digest(arrow), "facts": facts}))


_known: set[tuple[Path, int, int]] = set()  # files whose bytes this process has checked


def _intact(stem: Path) -> tuple[Table, Facts] | None:
    """The table; None where there is none, or it is damaged (it is then made again)."""
    import datasets

    arrow, about = stem.with_suffix(".arrow"), stem.with_suffix(".json")
    try:
        said = json.loads(about.read_text(encoding="utf-8"))
        now = arrow.stat()
        seen = (arrow, now.st_ino, now.st_mtime_ns)
        if seen not in _known and _digest(arrow) != said["sha256"]:
            return None
        _known.add(seen)
        with suppress(OSError):  # what was used is not removed
            os.utime(about)
        return Table(datasets.Dataset.from_file(str(arrow))), dict(said["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prune(folder: Path) -> None:
    for about in folder.glob("*.json"):
        with suppress(OSError):  # another process was faster, or has it open (Windows)
            if time.time() - about.stat().st_mtime > MONTH:
                about.unlink()
                for end in (".arrow", ".lock"):
                    about.with_suffix(end).unlink(missing_ok=True)


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 (hex) of all that a tokeniser saves: vocabulary, merges, normalisers, special tokens, chat template."""
    sha = hashlib.sha256(type(tokenizer).__name__.encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            sha.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()
