"""The command line. Heavy imports happen inside commands, so that --help is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from cltk.cli import comparing, judging, lookup, measuring, merging, reporting, running, speech, tasks, training
from cltk.cli.options import Parser, Versions
from cltk.errors import CltkError, Leave
from cltk.secrets import hidden


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done; 1 ran but something failed or did not reproduce; 2 the input is wrong, nothing was written.

    Of a gate: 3 over the budget, 4 cannot tell. Of a run: 75 (EX_TEMPFAIL) left when SIGUSR1 or SIGTERM asked for it.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries below draw bars of their own; one progress line is enough
    options = parser().parse_args(arguments)
    code = _work(options)
    if "cltk.ranks" in sys.modules:
        sys.modules["cltk.ranks"].leave(code)
    return code


def _work(options: argparse.Namespace) -> int:
    try:
        with speech.heard(speech.level(options)):
            return options.command(options) or 0
    except CltkError as error:
        print(f"cltk: {hidden(' '.join(str(error).split()))}", file=sys.stderr)
        return error.exit_code
    except Leave as signal:
        print(f"cltk: {signal}: left; the same command continues from here", file=sys.stderr)
        return signal.exit_code
    except KeyboardInterrupt:
        print("cltk: interrupted; the same command continues from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:
        what = f"{error.filename or 'the disk'}: {error.strerror or error}"
        print(f"cltk: {hidden(what)}; what was finished is kept", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """All commands; each one is a function of a room beside this file."""
    top = Parser(prog="cltk", description="Measure what a language model forgets when it is fine-tuned, and prevent it.")
    top.add_argument(
        "--version", action=Versions, help="show cltk's version and those of the libraries that numbers follow from"
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        speech.add(sub)
        return sub

    for room in (running, training, measuring, judging, comparing, merging, tasks, reporting, lookup):
        room.add(command)
    return top
