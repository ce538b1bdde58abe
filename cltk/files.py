"""Files that are there whole or not at all, whatever is killed meanwhile, and a disk's troubles in words."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from filelock import lock_descriptor

from cltk.errors import DiskError, InputError

HOST = re.sub(r"[^\w-]", "-", socket.gethostname())[:40]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
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


def check_json(folder: Path) -> None:
    """Whether every .json and .jsonl file below `folder` is whole: for writers that keep a full disk to themselves.

    Raises:
        DiskError: one is not, or there is none.
    """
    found = [file for file in sorted(folder.rglob("*")) if file.suffix in (".json", ".jsonl")]
    if not found:
        raise DiskError(f"{folder}: nothing was written; is the disk full? Free some space and run the same command again")
    for file in found:
        try:
            text = file.read_text(encoding="utf-8")
            parts = text.split("\n") if file.suffix == ".jsonl" else [text]
            for part in filter(None, parts):
                json.loads(part)
        except (OSError, ValueError):
            raise DiskError(f"{file}: not whole; is the disk full? Free some space and run the same command again") from None


def sync_tree(folder: Path) -> None:
    """`sync` of every file and folder in `folder`, and of its own entry."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        sync(path)


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Only one process at a time works in a folder; the system gives the lock back however it ends.

    Of several ranks that work together the first takes it for all.

    Raises:
        InputError: another process holds it, and `wait` is not set; or the file system has no locks.
    """
    from cltk.ranks import first  # torch: what only reads and writes files needs none

    if not first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            held = lock_descriptor(file.fileno(), blocking=wait)
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be locked ({error.strerror or error}), as on some network file systems; choose another --out"
            ) from None
        if not held:
            raise InputError(
                f"{folder}: another run works in this folder ({_holder(file)}); wait for it, or choose another --out"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _holder(file: TextIO) -> str:
    file.seek(0)
    try:
        return file.read().strip()
    except OSError:  # a locked file cannot be read on Windows
        return "it cannot be read which"
