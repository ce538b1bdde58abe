"""Which process does which cell: a lease a cell, in `.locks` of the output folder, so that any number of runs share it.

A run takes cells that nobody has, one after the other. Where all that is left is under way elsewhere it waits, and takes over
what a dead process, or one that was not heard of for `cltk.files.SILENCE` seconds, had begun.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cltk import files
from cltk.errors import InputError, LeaseLostError
from cltk.files import give, holder, leased, locked, take
from cltk.ranks import agreed, first, gathered, ranks
from cltk.run import leaving, records
from cltk.run.kept import FAILED

if TYPE_CHECKING:
    from cltk.run.experiment import ExperimentRun

PLACE = files.LEASES
TRIES = 5  # of files.POLL seconds
Tell = Callable[[str, int, int, str], None]
Step = tuple[str, int, str]  # what became of a cell that waits: "mine", "done", "failed" (and why); or "wait"


def lease_of(folder: Path) -> Path:
    """The lease on a folder of an output folder."""
    return folder.parent / PLACE / f"{folder.name}.lease"


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Inside, no cell of the output folder is under way, and none is begun.

    Raises:
        InputError: one is under way.
    """
    with locked(out):
        if first():
            for file in sorted((out / PLACE).glob("*.lease")):
                with leased(file, f"{out}: another run works in this folder"):
                    pass  # a run looks at the folder's own behind its cell's
            with suppress(OSError):
                (out / PLACE).rmdir()
        yield


def claimed(folders: Iterable[Path]) -> list[Path]:
    """Leases on all of these folders of one output folder; none, where one of them, or all of it, is somebody else's."""
    held: list[Path] = []
    for folder in folders:
        if take(lease_of(folder)):
            held.append(lease_of(folder))
            if _free(folder.parent):
                continue
        release(held)
        return []
    return held


def check_free(out: Path) -> None:
    """Raises InputError where somebody has all of the output folder (`alone`) for longer than tidying it takes."""
    for _ in range(TRIES):
        if _free(out):
            return
        time.sleep(files.POLL)
    raise InputError(
        f"{out}: another run works in this folder ({holder(out / files.WHOLE)}); wait for it, or choose another --out"
    )


def check_shared(out: Path) -> None:
    """Raises InputError, on every rank, where one of them looks at another folder of this name: of another machine.

    Each would write its own part of a checkpoint there, and a resumed training would miss the others'.
    """
    if ranks()[1] == 1:
        return
    file = out / PLACE / f"seen-{agreed(f'{files.HOST}-{os.getpid()}')}"
    if first():
        files.write_text(file, "")
    agreed(None)
    blind = [rank for rank, there in enumerate(gathered(files.seen(file))) if not there]
    if first():
        file.unlink(missing_ok=True)
    if blind:
        raise InputError(f"--out {out}: rank {blind[0]} does not see what the first writes there; all machines must share it")


def _free(out: Path) -> bool:
    whole = out / files.WHOLE
    if not whole.exists():
        return True
    if files.lease(whole).is_locked or not take(whole):
        return False
    give(whole)
    return True


def release(held: Iterable[Path]) -> None:
    """Gives back what was taken; others may take it from here on."""
    for file in held:
        give(file)


def under_way(run: ExperimentRun, order: int) -> str:
    """Who works on a cell, in words, as far as a look tells; or ""."""
    file = lease_of(run.folder(run.cells[order]))
    return holder(file) if file.exists() else ""


class Queue:
    """The cells that this process is to see done, by itself or by others.

    Args:
        todo: places in `run.cells`; references of cells among them.
        wait: whether to wait for what others do; else it is left to them.
    """

    def __init__(self, run: ExperimentRun, todo: Iterable[int], say: Tell, wait: bool = True) -> None:
        self.run, self.wait, self.said = run, wait, ""
        self.say = leaving.heeded(say)
        work = run.work()
        self.waiting = {order: work.folder(run.cells[order]) for order in todo}
        self.bases = {order: work.base_folder(run.cells[order]) for order in self.waiting}
        places = {work.folder(cell): order for order, cell in enumerate(run.cells)}
        self.after = {
            order: [places[work.folder(one)] for one in run.inputs.references(run.cells[order])] for order in self.waiting
        }
        self.failures = {order: _stamp(folder) for order, folder in self.waiting.items()}
        self.held: list[Path] = []

    def work(self) -> dict[int, str]:
        """Until nothing waits any more. What went wrong, by the cell's place."""
        failed: dict[int, str] = {}
        while self.waiting:
            what, order, why = agreed(self._next() if first() else None)
            if what == "mine":
                what, why = self._do(order)
            if what == "leave":
                break
            if what in ("done", "failed"):
                del self.waiting[order]
            if what == "failed":
                failed[order] = why
        return dict(sorted(failed.items()))

    def _next(self) -> Step:
        for order, folder in self.waiting.items():
            if (folder / records.RECORD).exists():
                return "done", order, ""
            if (folder / FAILED).exists() and _stamp(folder) != self.failures[order]:
                return "failed", order, f"{self.run.cells[order].name}: {records.read_json(folder / FAILED)['error']}"
        for order, folder in self.waiting.items():
            base = self.bases[order]
            if not any(one in self.waiting for one in self.after[order]):
                self.held = claimed([folder, *([] if (base / records.SCORES).exists() else [base])])
            if self.held:
                return "mine", order, ""
        return self._wait()

    def _wait(self) -> Step:
        names = ", ".join(self.run.cells[order].name for order in self.waiting)
        total = len(self.run.cells)
        whose = sorted({who for order in self.waiting if (who := under_way(self.run, order))})
        text = f"{names}: under way in {'; '.join(whose) or 'another process'}"
        if not self.wait:
            self.say(f"{text}; left to it", total - len(self.waiting), total, "cell")
            return "leave", -1, ""
        if text != self.said:
            self.say(f"{text}; waiting", total - len(self.waiting), total, "cell")
            self.said = text
        time.sleep(files.POLL)
        return "wait", -1, ""

    def _do(self, order: int) -> tuple[str, str]:
        folder = self.waiting[order]
        try:
            if agreed((folder / records.RECORD).exists()):  # written between the look and the lease
                return "done", ""
            error = self.run.attempt(order, self.say)
            return ("failed", error) if error else ("done", "")
        except LeaseLostError as lost:
            self.say(str(lost), order + 1, len(self.run.cells), "failed")
            return "wait", ""
        finally:
            release(self.held)
            self.held = []


def _stamp(folder: Path) -> tuple[int, int]:
    """Which `failed.json` it is; a run before this one may have left one."""
    with suppress(OSError):
        found = os.stat(folder / FAILED)
        return found.st_ino, found.st_mtime_ns
    return 0, 0
