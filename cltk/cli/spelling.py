"""lm-eval's spellings beside ours: what a user of `lm_eval` types means the same here, or is refused in one line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

INSTEAD = {  # options of lm-eval's that have no meaning here, and what has
    "--model": "the two models are named without an option: cltk measure BASE TUNED (--backend NAME: lm-eval's class of them)",
    "--config": "an experiment in YAML is run by `cltk run FILE`",
    "--max-batch-size": "the tokens of a batch decide, not its rows",
    "--use-cache": "finished answers are kept without being asked",
    "--cache-requests": "finished answers are kept without being asked",
    "--samples": "--sample N draws documents at random, the same for every model",
    "--check-integrity": "`cltk tasks NAME` checks a task",
    "--trust-remote-code": "--model-args trust_remote_code=true lets the Python that comes with the models run",
    "--write-out": "`cltk tasks NAME` shows a task's prompts",
    "--show-config": "`cltk tasks NAME --json` shows a task's settings",
    "--predict-only": "answers without metrics cannot be compared",
    "--wandb-args": "--json FILE holds all that could be logged",
    "--wandb-config-args": "--json FILE holds all that could be logged",
    "--trackio-args": "--json FILE holds all that could be logged",
    "--hf-hub-log-args": "nothing is uploaded; --output-path DIR holds lm-eval's own files",
    "--metadata": "such settings belong into the task's own file",
}
YES, NO = ("true", "1", "yes"), ("false", "0", "no")


def plain(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """The words of a command line in our own spelling.

    `--num_fewshot` is `--num-fewshot`; a truth value behind `--fewshot_as_multiturn`, as lm-eval takes one, chooses between the
    option and its `--no-` form; `--json` without a file is `--json -`, the standard output.
    """
    known = parser._option_string_actions
    found: list[str] = []
    for i, word in enumerate(words):
        if word == "--":
            return [*found, *words[i:]]
        name, mark, value = word.partition("=")
        dashed = name.replace("_", "-")
        if not word.startswith("--") or dashed not in known:
            found += [word] if not _taken(found, word, known) else []
            continue
        following = words[i + 1] if i + 1 < len(words) else ""
        if isinstance(known[dashed], argparse.BooleanOptionalAction):
            said = (value if mark else following).lower()
            found.append(f"--no-{dashed[2:]}" if said in NO and not dashed.startswith("--no-") else dashed)
        elif dashed == "--json" and not mark and not _file(following, known[dashed]):
            found.append("--json=-")
        else:
            found.append(dashed + mark + value)
    return found


def _taken(found: Sequence[str], word: str, known: dict[str, argparse.Action]) -> bool:
    """Whether a word is the truth value of the option before it."""
    before = known.get(found[-1]) if found else None
    return isinstance(before, argparse.BooleanOptionalAction) and word.lower() in YES + NO


def _file(word: str, action: argparse.Action) -> bool:
    """Whether the word behind --json is its file: one that ends in .json, or any, where the command always took one."""
    return word == "-" or (bool(word) and not word.startswith("-") and (word.endswith(".json") or action.metavar == "FILE"))


def models_first(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """`--tasks a,b BASE TUNED` as `BASE TUNED --tasks a,b`: in front of the models, --tasks takes one word."""
    greedy = [i for i, word in enumerate(words) if getattr(parser._option_string_actions.get(word), "nargs", None) == "+"]
    for i in greedy:
        end = next((k for k in range(i + 1, len(words)) if words[k].startswith("-") and words[k] != "-"), len(words))
        if end - i > 2:
            return [*words[:i], *words[i + 2 : end], *words[i : i + 2], *words[end:]]
    return list(words)


def unknown(parser: argparse.ArgumentParser, extras: Sequence[str]) -> str:
    """The line about words that no option or argument takes."""
    line = f"unrecognized arguments: {' '.join(extras)}"
    name = next((word.partition("=")[0].replace("_", "-") for word in extras if word.startswith("--")), "")
    if name in INSTEAD:
        return f"{line}: {INSTEAD[name]}"
    near = difflib.get_close_matches(name, [one for one in parser._option_string_actions if one.startswith("--")], 1)
    return f"{line}; did you mean {near[0]}?" if near else line


def bare(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """An option of few values that may stand alone takes the next word only if that is one of them, never a model's name."""
    alone = [action for action in parser._actions if action.nargs == "?" and action.choices]
    known = {name: action for action in alone for name in action.option_strings}
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word in known:
            value = rest.pop(0) if rest and rest[0] in (known[word].choices or ()) else known[word].const
            word = f"{word}={value}"
        found.append(word)
    return found
