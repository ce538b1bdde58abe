"""Leaving when asked, by SIGUSR1 or SIGTERM: what a cluster sends some time before it kills.

In training the step under way is finished and a checkpoint is written; anywhere else whatever was kept is enough to go on from,
as after Ctrl-C. The process ends with exit code 75 (EX_TEMPFAIL: try again), and the same command goes on with the same bits.
A second signal does not wait for the step.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cltk.errors import Leave
from cltk.ranks import gathered

SIGNALS = ("SIGUSR1", "SIGTERM")  # Windows has the second only
Tell = Callable[[str, int, int, str], None]
_asked: list[str] = []  # the signals that came
_steady: list[bool] = []  # not empty while a training looks at every step whether it was asked


@contextmanager
def heeding() -> Iterator[None]:
    """Inside, the two signals ask this process to leave. A handler that somebody else has set stays."""
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    free = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    process = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() != process:  # a worker of the data loader, forked with this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _asked.append(signal.Signals(number).name)
        if len(_asked) > 1 or not _steady:
            raise Leave(_asked[-1])

    try:
        for number in free:
            signal.signal(number, handle)
        yield
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)
        _asked.clear()


@contextmanager
def steady() -> Iterator[None]:
    """Inside, a signal waits for `asked`."""
    _steady.append(True)
    try:
        yield
    finally:
        _steady.pop()
    heed()


def asked() -> bool:
    """Whether any rank was asked to leave. Every rank must call it."""
    return any(gathered(bool(_asked)))


def heed() -> None:
    """Raises Leave where this process was asked to."""
    if _asked:
        raise Leave(_asked[0])


def heeded(say: Tell) -> Tell:
    """`say`, leaving when asked: the handler's own exception may have been lost in a place that lets none through."""

    def told(what: str, done: int, total: int, detail: str) -> None:
        if not _steady:
            heed()
        say(what, done, total, detail)

    return told
