"""What every command's options share: the parser, and the types of arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from cltk import __version__
from cltk.secrets import hidden

TRUST = "let Python run that the file names (trust_remote_code, !function in its task folder), and let it upload"
Command = Callable[[str, Any, str], argparse.ArgumentParser]  # name, function, help


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a wrong call."""

    def error(self, message: str) -> Any:
        print(f"cltk: {hidden(message)}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(2)


class Versions(argparse.Action):
    """Prints the versions that a report of a fault should name; looked up only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import platform
        from importlib import metadata

        names = ("torch", "transformers", "lm-eval", "datasets", "accelerate", "numpy", "scipy")
        print(f"cltk {__version__}")
        print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {metadata.version(name)}" for name in names))
        parser.exit()


def number(text: str) -> int | float:
    """A whole number, or one with a point."""
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def names(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def margin(text: str) -> tuple[str, float]:
    """METRIC=LOSS."""
    metric, _, loss = text.rpartition("=")
    if not metric:
        raise ValueError(text)
    return metric, float(loss)
