"""The exceptions of cltk. The command line turns them into one line and an exit code; a traceback is a bug."""

from errno import ENOMEM

OUT_OF_MEMORY = (  # in what torch and CUDA raise as plain RuntimeErrors
    "not enough memory", "defaultcpuallocator", "out of memory", "alloc_failed",
)  # fmt: skip


class CltkError(Exception):
    """Base class. `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(CltkError):
    """The input is wrong: nothing was started and nothing was written.

    The message is one line that says what is wrong, where (file, line, key) and what to do.
    """

    exit_code = 2


class RunError(CltkError):
    """Work was started and could not be finished; the message says where it stopped and what was kept.

    `step` is the training step it stopped in, where there was one.
    """

    step: int | None = None


class DiskError(RunError, OSError):
    """Something could not be written: the disk is full, the folder read-only. What was there before is as it was."""


class LeaseLostError(RunError):
    """Another process took over what this one was doing: it had not been heard of for too long. It must not write any more."""


class Leave(KeyboardInterrupt):
    """The process was asked to make room; the same command goes on from what was kept."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


def out_of_memory(error: Exception) -> bool:
    """Whether memory, of whatever kind, was not enough."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY)


def reason(error: BaseException) -> str:
    """An error's type and first line."""
    first = next((line.strip() for line in str(error).split("\n") if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__


def shown(value: object, size: int = 100) -> str:
    """A user's value in a line: its repr, cut to `size` characters."""
    text = repr(value)
    return text if len(text) <= size else f"{text[: size - 1]}…"
