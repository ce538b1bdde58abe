"""Files that are there whole or not at all, whatever is killed meanwhile, and a disk's troubles in words."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from cltk.errors import DiskError, InputError, LeaseLostError

HOST = re.sub(r"[^\w-]", "-", socket.gethostname())[:40]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
SILENCE = 180.0  # seconds without a heartbeat behind which a lease is free: NFS shows attributes up to a minute late
BEAT = 30.0  # seconds between heartbeats
POLL = 1.0  # seconds between two looks at what another process has
WHOLE, LEASES = ".lease", ".locks"  # of a folder, and of what lies in it
_leases: dict[str, SoftFileLease] = {}
_WORDS = {  # libraries in C++ and Rust raise no OSError; their texts, and what they mean
    "no space left": errno.ENOSPC, "file too large": errno.EFBIG, "quota exceeded": errno.EDQUOT,
    "read-only file system": errno.EROFS, "permission denied": errno.EACCES, "pytorchstreamwriter": errno.EIO,
    "unexpected pos": errno.EIO, "file write failed": errno.EIO,
}  # fmt: skip


def shipped(wing: str) -> Path:
    """The folder of tasks ("evals") or experiments that comes with cltk: in the package, or beside it in a clone."""
    here = Path(__file__).parent
    return here / wing if (here / wing).is_dir() else here.parent / wing


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, then rename: a reader sees the old file or the new one.

    What killed processes of this machine left beside `path` is removed. Missing folders are made.

    Raises:
        DiskError: the disk is full, or the folder cannot be written to; an older file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{HOST}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        write(temporary)
        sync(temporary)
        check_held()
        os.replace(temporary, path)
        sync(path.parent)
    except Exception as error:
        if trouble := disk_error(error, path):
            raise trouble from error
        raise
    finally:
        _unlink(temporary)


def write_text(path: Path, text: str) -> None:
    """`write_atomic` of a text in UTF-8."""
    write_atomic(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def seen(file: Path, seconds: float = 5.0) -> bool:
    """Whether a file of another process is there, or appears: a network file system shows it late."""
    end = time.monotonic() + seconds
    while not (there := file.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    return there


def sync(path: Path) -> None:
    """Have the system write a file or folder to disk now."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(path: Path) -> None:
    """Remove the temporary files that dead processes of this machine left for `path`; others may be in use."""
    start, end = f".{path.name}.{HOST}-", ".tmp"
    for name in os.listdir(path.parent):
        middle = name[len(start) : -len(end)]
        if name.startswith(start) and name.endswith(end) and middle.isdigit() and not _alive(int(middle)):
            _unlink(path.with_name(name))


def _alive(process: int) -> bool:
    import psutil  # os.kill(process, 0) would end it on Windows

    try:
        return psutil.pid_exists(process)
    except OverflowError:
        return True


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a folder that cannot be written to: nothing was written there
        return


def disk_error(error: BaseException, path: Path) -> DiskError | None:
    """`error` as one line about `path`, with what to do; None where the disk is not its cause."""
    if isinstance(error, DiskError):
        return error
    code = error.errno if isinstance(error, OSError) else None
    reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())[:200]
    if not isinstance(error, OSError):
        code = next((number for words, number in _WORDS.items() if words in reason.lower()), None)
        if code is None:
            return None
    if code in FULL:
        advice = "free some space there"
    elif code in CLOSED:
        advice = "make it writable, or choose another folder"
    else:
        advice = "mend that"
    return DiskError(
        f"{path}: cannot be written ({reason}); {advice} and run the same command again: what was finished is kept"
    )


def check_folder(folder: Path, name: str) -> None:
    """Early, without writing: that files can be made in `folder`, or in the folder in which it would be made.

    Raises:
        InputError: a file stands in its place, or it may not be written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{name} {folder}: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{name} {folder}: {there} may not be written to; make it writable, or choose another folder")


def sync_tree(folder: Path) -> None:
    """`sync` of every file and folder in `folder`, and of its own entry."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        sync(path)


def lease(file: Path) -> SoftFileLease:
    """This process's lease on `file`, held or not: one object a file, which nests and times the silence of others."""
    key = os.path.abspath(file)
    if key not in _leases:
        _leases[key] = SoftFileLease(key, lease_duration=SILENCE, heartbeat_interval=BEAT, thread_local=False)
    return _leases[key]


def take(file: Path) -> bool:
    """Take a lease if nobody has it, or who has it is dead, or was not heard of for SILENCE seconds.

    Raises:
        DiskError: it cannot be written.
    """
    for _ in range(3):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lease(file).acquire(blocking=False)
            return True
        except Timeout:
            if file.exists():
                return False
        except FileNotFoundError:  # the folder went, empty, with its last lease
            continue
        except OSError as error:
            raise disk_error(error, file) or error from error
    return False


def give(file: Path, wholly: bool = False) -> None:
    """Give a lease back, or `wholly` however often it was taken; one that was lost stays with whoever took it."""
    found = lease(file)
    found.release(force=wholly)
    if not found.is_locked:
        del _leases[os.path.abspath(file)]


def holder(file: Path) -> str:
    """Who has a lease, in words."""
    owner = lease(file).owner
    return f"process {owner.pid} on {owner.hostname.partition('?')[0]}" if owner else "it cannot be read which process"


def check_held() -> None:
    """Whether all that this process holds is still its own: it may have been stopped for so long that others took over.

    Raises:
        LeaseLostError: it is not; nothing may be written any more.
    """
    for file, held in list(_leases.items()):
        if held.is_locked and not any(_ours(held, tries) for tries in range(3)):
            raise LeaseLostError(
                f"{Path(file).stem}: {holder(Path(file))} took it over while this process was not heard of for {SILENCE:g} s"
            )


def _ours(held: SoftFileLease, tries: int) -> bool:
    """A network file system may fail to answer, and a contender's look moves the file aside for a moment."""
    time.sleep(0.2 * tries)
    return held.owner is not None and held.owner.token == held.token


@contextmanager
def leased(file: Path, refuse: str = "") -> Iterator[None]:
    """One process at a time, on any machine that shares the file system: by a file that exists, with a heartbeat, no flock.

    The others wait, or are refused with this line and the name of the holder. Inside, this process may come again, unless it is
    to be refused. Of several ranks the first takes it for all.

    Raises:
        InputError: another process has it, and there is a line to refuse with.
    """
    from cltk.ranks import first  # torch: what only reads and writes files needs none

    if not first():
        yield
        return
    while (refuse and lease(file).is_locked) or not take(file):
        if refuse:
            raise InputError(f"{refuse} ({holder(file)}); wait for it, or choose another --out")
        time.sleep(POLL)
    try:
        yield
    finally:
        give(file)


def locked(folder: Path, wait: bool = False) -> AbstractContextManager[None]:
    """Only one process at a time works in a folder.

    Raises:
        InputError: another process does, and `wait` is not set.
    """
    return leased(folder / WHOLE, "" if wait else f"{folder}: another run works in this folder")
