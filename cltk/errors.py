"""The exceptions of cltk. The command line turns them into one line and an exit code; a traceback is a bug."""


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
