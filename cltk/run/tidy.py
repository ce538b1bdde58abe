"""What an output folder holds that nobody reads any more, and removing it. Records, scores and bases are never touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cltk.errors import InputError
from cltk.run.claims import alone
from cltk.run.kept import FAILED, KEPT, clean
from cltk.run.records import RECORD, STUDIES, TRIALS

CACHE = "cache"
UNDER_WAY = ("checkpoints", "stages")


@dataclass(frozen=True)
class Left:
    """A folder that can go: what it is, and its size in bytes."""

    path: Path
    what: str
    size: int


def sweep(out: Path) -> None:
    """Behind the last record: the cache goes, unless another experiment in this folder is not finished."""
    if not (out / CACHE).is_symlink() and not _needed(out):
        shutil.rmtree(out / CACHE, ignore_errors=True)


def leftovers(out: Path, *, unfinished: bool = False, models: bool = False) -> list[Left]:
    """What can go from the output folder of `cltk run`, and from that of its search's trials; links are left alone.

    Args:
        out: the folder.
        unfinished: also what cells without a record would go on from: their trainings begin anew.
        models: also the tuned weights of cells that have a record.

    Raises:
        InputError: it is no output folder of `cltk run`.
    """
    places = [place for place in _places(out) if _is_output(place)]
    if not places:
        raise InputError(f"{out}: not a folder that `cltk run` wrote: no cell in it has a record, an error or a checkpoint")
    return [left for place in places for left in _leftovers(place, unfinished, models)]


def _places(out: Path) -> list[Path]:
    """The folder, and that of its search's trials; a folder of runs may hold one of the name too."""
    return [out, *([out / TRIALS] if (out / TRIALS / STUDIES).is_dir() else [])]


def _is_output(out: Path) -> bool:
    return out.is_dir() and any((one / name).exists() for one in out.iterdir() for name in (RECORD, FAILED, *UNDER_WAY))


def _leftovers(out: Path, unfinished: bool, models: bool) -> list[Left]:
    found = []
    if unfinished or not _needed(out):
        found.append((out / CACHE, "importance, scores and trainings that cells shared"))
    for cell in sorted(one.parent for one in out.glob(f"*/{RECORD}")):
        found += [(cell / name, "of a finished training") for name in UNDER_WAY]
        found += [(cell / "model", "the tuned weights")] if models else []
    for cell in _unfinished(out) if unfinished else ():
        found += [(cell / name, "of a training without a record: it begins anew") for name in UNDER_WAY]
    return [Left(path, what, size_of(path)) for path, what in found if path.is_dir() and not path.is_symlink()]


def remove(out: Path, found: list[Left]) -> None:
    """Remove them, while no run works in `out`.

    Raises:
        InputError: one does.
    """
    with ExitStack() as held:
        for place in _places(out):
            held.enter_context(alone(place))
        for cell in {left.path.parent for left in found if (left.path.parent / RECORD).exists()}:
            clean(cell)
        for left in found:
            shutil.rmtree(left.path, ignore_errors=True)


def _needed(out: Path) -> bool:
    """Whether a run goes on from the cache: a cell has no record, or a training still waits for cells that share it."""
    return any(_unfinished(out)) or any(path.is_dir() for path in (out / CACHE).glob(f"{KEPT}*"))


def _unfinished(out: Path) -> Iterator[Path]:
    """The folders of cells that a run left without a record."""
    for cell in sorted(out.iterdir()) if out.is_dir() else ():
        if not (cell / RECORD).exists() and cell.name != CACHE and any((cell / name).exists() for name in (FAILED, *UNDER_WAY)):
            yield cell


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder; links count for themselves."""
    return sum(os.lstat(Path(where) / name).st_size for where, _, names in os.walk(folder) for name in names)
