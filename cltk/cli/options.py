"""What every command's options share: the parser, and the types of arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from cltk import __version__
from cltk.cli.spelling import bare, models_first, plain, unknown
from cltk.secrets import hidden

TRUST = "let Python run that the file names (trust_remote_code, !function in its task folder), and let it upload"
Command = Callable[[str, Any, str], argparse.ArgumentParser]  # name, function, help


class MissingError(Exception):
    """argparse's message about arguments that were not given."""


class Parser(argparse.ArgumentParser):
    """argparse, with lm-eval's spellings beside ours and one line for a wrong call."""

    once_more = False  # whether missing arguments may stand elsewhere

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "allow_abbrev": False})  # lm-eval's `--model` is not our `--model-args`

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = bare(self, plain(self, sys.argv[1:] if args is None else list(args)))
        moved = models_first(self, words)
        self.once_more = moved != words
        try:
            found, extras = super().parse_known_args(words, namespace)
        except MissingError:
            self.once_more = False
            found, extras = super().parse_known_args(moved, namespace)
        if "overrides" in found and all("=" in word and not word.startswith("-") for word in extras):
            found.overrides, extras = [*found.overrides, *extras], []  # behind an option
        if extras:
            self.error(unknown(self, extras))
        return found, []

    def error(self, message: str) -> Any:
        if self.once_more and "required:" in message:
            raise MissingError(message)
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


class Names(argparse.Action):
    """Words separated by spaces or commas, also of an option that is given twice, as one list; no name at all empties it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        found = [name.strip() for word in values for name in word.split(",") if name.strip()]
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *found] if found else [])


def task_options(sub: argparse.ArgumentParser) -> None:
    """Which tasks, and how their prompts are made; spelled as ours and as lm-eval's."""
    sub.add_argument("--include-path", type=Path, metavar="DIR", help="folder of task YAML, such as evals/tasks")
    sub.add_argument("-f", "--num-fewshot", type=int, metavar="N", help="examples in the prompt (default: the task's own)")
    sub.add_argument("--system-instruction", metavar="TEXT", help="text before every prompt")
    sub.add_argument(
        "--fewshot-as-multiturn", action=argparse.BooleanOptionalAction, default=True,
        help="examples are turns of the conversation in a chat template (default), or part of the question",
    )  # fmt: skip
    sub.add_argument(
        "--confirm-run-unsafe-code", action="store_true", help="consent to tasks that run code which the model writes"
    )
    sub.add_argument(
        "--seed",
        metavar="SEED",
        help="of Python, numpy, torch, examples: one number or four (default: 0,1234,1234,1234)",
    )


def names_option(sub: argparse.ArgumentParser, required: bool = False) -> None:
    """--tasks."""
    sub.add_argument(
        "-t", "--tasks", nargs="+", action=Names, default=[], required=required, metavar="TASK",
        help="lm-eval tasks, groups, tags, patterns ('mmlu_*') or files, separated by spaces or commas",
    )  # fmt: skip


def selection_options(sub: argparse.ArgumentParser) -> None:
    """Which documents."""
    sub.add_argument("-L", "--limit", type=number, metavar="N", help="the first documents of each task, or a fraction of them")
    sub.add_argument("--sample", type=number, metavar="N", help="random documents of each task and text, or a fraction of them")
    sub.add_argument("--sample-seed", type=int, default=0, metavar="SEED", help="of the sample (default: 0)")


def device_option(sub: argparse.ArgumentParser) -> None:
    """--device."""
    sub.add_argument("--device", help="of the models: cpu, cuda, cuda:1, mps (default: the GPU where there is one)")


def json_option(sub: argparse.ArgumentParser, any_name: bool = False) -> None:
    """--json, the same in every command. `any_name`: the word that follows is the file whatever its name ends in."""
    sub.add_argument(
        "--json", type=Path, metavar="FILE" if any_name else "FILE.json",
        help="write the result here as JSON; - (or no file): on the standard output, and nothing else there",
    )  # fmt: skip


def to_stdout(where: Path | None) -> bool:
    """Whether the JSON is what the standard output is for."""
    return where is not None and str(where) == "-"


def out(where: Path | None) -> Any:
    """The console of tables and notes: the standard error where the standard output is JSON."""
    from cltk.progress import console

    return console(stderr=to_stdout(where))


@contextmanager
def apart(where: Path | None) -> Iterator[None]:
    """Whatever is printed inside goes to the standard error where the standard output is JSON."""
    with redirect_stdout(sys.stderr if to_stdout(where) else sys.stdout):
        yield


def say(shown: Any, line: str) -> None:
    """A line as it is, however long."""
    shown.print(line, markup=False, highlight=False, soft_wrap=True)


def put_json(where: Path | None, data: Any) -> None:
    """The result of a command, in the file that --json names or on the standard output; nothing without --json.

    A mapping carries its checksum, as records do.
    """
    if where is None:
        return
    import json

    from cltk.files import write_text
    from cltk.run.records import json_text
    from cltk.secrets import without_secrets

    listed = isinstance(data, list)
    text = json.dumps(without_secrets(data), indent=1, ensure_ascii=False) + "\n" if listed else json_text(data)
    if to_stdout(where):
        print(text, end="")
    else:
        write_text(where, text)


def number(text: str) -> int | float:
    """A whole number, or one with a point."""
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def margin(text: str) -> tuple[str, float]:
    """METRIC=LOSS."""
    metric, _, loss = text.rpartition("=")
    if not metric:
        raise ValueError(text)
    return metric, float(loss)
