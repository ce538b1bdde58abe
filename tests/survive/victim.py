"""A child process that runs `cltk` and is struck at a chosen moment. Forked from a parent that has imported everything.

A moment is the k-th thing that the process does to files below a folder: opening one for writing, renaming, removing, making
a folder, syncing, and every file that torch or safetensors write (which is then left half written).
"""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Striker:
    """Counts what is done to files below `root`, and strikes at the `at`-th: with a signal, or by a disk that is full.

    Args:
        blow: a key of SIGNALS, or "full": from then on nothing can be opened for writing.
    """

    def __init__(self, root: Path, at: int = 0, blow: str = "kill") -> None:
        self.root, self.at, self.blow = str(root), at, blow
        self.count, self.full = 0, False
        self.rng = random.Random(at)

    def install(self) -> None:
        """For the rest of this process."""
        import safetensors.torch
        import torch

        sys.addaudithook(self._audit)
        torch.save = self._tearing(torch.save)  # type: ignore[assignment]
        safetensors.torch.serialize_file = self._tearing(safetensors.torch.serialize_file)
        sync = os.fsync
        os.fsync = lambda descriptor: (self._event(self.root, False), sync(descriptor))[1]  # type: ignore[assignment]

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITING):
                self._event(path, True)
        elif event in CHANGES:
            self._event(args[0], event == "os.mkdir")

    def _event(self, path: Any, grows: bool) -> None:
        if isinstance(path, int) or not os.path.abspath(os.fsdecode(path)).startswith(self.root):
            return
        self.count += 1
        if self.count == self.at:
            self._strike()
        if self.full and grows:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))

    def _strike(self) -> None:
        if self.blow == "full":
            self.full = True
        else:
            os.kill(os.getpid(), SIGNALS[self.blow])

    def _tearing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def write(content: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            path = Path(target) if isinstance(target, str | os.PathLike) else None
            done = function(content, target, *args, **kwargs)
            self.count += 1
            if path is not None and (self.count == self.at or self.full):
                os.truncate(path, int(self.rng.random() * path.stat().st_size))
            if self.count == self.at:
                self._strike()
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return done

        return write


def start(arguments: list[str], log: Path, striker: Striker, env: dict[str, str], largest: int | None = None) -> int:
    """Fork a child that runs `cltk ARGUMENTS`; its process number. What it prints goes to `log`.

    Args:
        env: variables to set in it; CLTK_CACHE, and where `datasets` keeps its own cache (HF_DATASETS_CACHE).
        largest: bytes that a file may have.
    """
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = _run(arguments, log, striker, env, largest)
    except KeyboardInterrupt:  # before or behind the command itself
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(arguments: list[str], log: Path, striker: Striker, env: dict[str, str], largest: int | None) -> int:
    import datasets

    from cltk.cli import main

    os.environ.update(env)
    datasets.config.HF_DATASETS_CACHE = Path(env["HF_DATASETS_CACHE"])
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    striker.install()
    code = main(arguments)
    if not striker.full:
        log.with_suffix(".count").write_text(str(striker.count))
    return code


def ended(status: int) -> str:
    """How a process ended: "kill", "term" or "int" by a signal (or by cltk's own exit code for it), else its exit code."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return next((name for name, known in SIGNALS.items() if known == number), f"signal {number}")
    code = os.WEXITSTATUS(status)
    return {130: "int", 75: "term"}.get(code, str(code))
