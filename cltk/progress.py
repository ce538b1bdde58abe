"""One progress line for long work: what, how far, how long still."""

from __future__ import annotations

import logging
import os
import time
from types import TracebackType
from typing import Any

from cltk.secrets import hidden


def console(stderr: bool = False) -> Any:
    """Where tables are printed: a file or a pipe has no width of its own, and takes 140 columns unless COLUMNS says."""
    from rich.console import Console

    found = Console(stderr=stderr)
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(width=140, stderr=stderr)


class Bar:
    """A rich progress bar fed with (what, done, total, detail); a new `what` starts a new bar.

    Where the output is no terminal, a line is printed when a piece of work ends or every 30 seconds. Nothing is, where cltk's
    logs say errors alone (`-q`).
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.console = Console(stderr=True, quiet=not logging.getLogger("cltk").isEnabledFor(logging.WARNING))
        self.progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[detail]}", markup=False),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.tasks: dict[str, Any] = {}
        self.begun: dict[str, float] = {}
        self.said = time.monotonic()

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def __call__(self, what: str, done: int, total: int, detail: Any = "") -> None:
        if detail in ("cell", "failed"):
            self.console.print(hidden(f"[{done}/{total}] {what}"), markup=False, highlight=False)
            return
        now = time.monotonic()
        begun = self.begun.setdefault(what, now)
        detail = f"{detail / max(now - begun, 1e-9):.0f} tokens/s" if isinstance(detail, int) and detail else str(detail or "")
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=total, detail=detail)
        self.progress.update(self.tasks[what], completed=done, total=total, detail=detail)
        if not self.console.is_terminal and (done >= total or now - self.said > 30):
            left = "" if done >= total or not done else f", {(now - begun) / done * (total - done):.0f} s left"
            self.console.print(f"{what}: {done}/{total} in {now - begun:.0f} s{left} {detail}".rstrip(), markup=False)
            self.said = now
        if done >= total:
            self.begun.pop(what, None)
