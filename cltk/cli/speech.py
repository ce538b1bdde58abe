"""What a command says beside its result, on the standard error: -v, -q, --log-level."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LEVELS = ("debug", "info", "warning", "error")
HEARD = ("cltk",)
LIBRARIES = ("lm_eval", "datasets", "transformers", "accelerate", "huggingface_hub")  # with -vv


def add(sub: argparse.ArgumentParser) -> None:
    """The options that every command has."""
    group = sub.add_argument_group("what is said on the standard error")
    group.add_argument("-v", "--verbose", action="count", default=0, help="what is being done; -vv: the libraries' logs too")
    group.add_argument("-q", "--quiet", action="store_true", help="errors alone: no progress, no warnings")
    group.add_argument(
        "--log-level", "--verbosity", type=str.lower, choices=LEVELS, metavar="LEVEL",
        help=f"{', '.join(LEVELS)} instead of -v and -q (default: warning)",
    )  # fmt: skip


def level(options: argparse.Namespace) -> int:
    """The lowest level that is said, as `logging` numbers them."""
    if options.log_level:
        return int(getattr(logging, options.log_level.upper()))
    if options.quiet:
        return logging.ERROR
    return max(logging.DEBUG, logging.WARNING - 10 * options.verbose)


@contextmanager
def heard(lowest: int) -> Iterator[None]:
    """Inside, what cltk logs from this level on goes to the standard error; with DEBUG what the libraries log too.

    Above WARNING, warnings are silent and `Bar` draws nothing. Afterwards every logger is as before.
    """
    loggers = [logging.getLogger(name) for name in HEARD + (LIBRARIES if lowest <= logging.DEBUG else ())]
    before = [logger.level for logger in loggers]
    handler = logging.StreamHandler(sys.stderr)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(lowest)
    try:
        with warnings.catch_warnings():
            if lowest > logging.WARNING:
                warnings.simplefilter("ignore")
            yield
    finally:
        for logger, kept in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(kept)
