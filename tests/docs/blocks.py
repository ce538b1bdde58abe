"""The code blocks of a Markdown file, and a reader who follows them.

    python blocks.py FILE.md...

writes every block with a title as a file of the current folder and runs the others in their order: Python as it stands, bash
line by line, where every line is a call of `cltk` or of lm-eval's command line in it. All in one process: importing torch,
transformers and lm-eval takes longer than most of these calls do.
"""

from __future__ import annotations

import glob
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

FENCED = re.compile(r'^(?P<ticks>`{3,})(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^(?P=ticks)$', re.S | re.M)


@dataclass(frozen=True)
class Block:
    """With a title it is a file, else something to run (bash, python) or to look at."""

    language: str
    title: str
    code: str


def blocks(text: str) -> list[Block]:
    """In their order; a block inside of another one is part of it."""
    return [Block(found["language"], found["title"] or "", found["code"]) for found in FENCED.finditer(text)]


def follow(block: Block) -> None:
    """As a reader would, in the current folder."""
    if block.title:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(block.code)
    elif block.language == "python":
        exec(compile(block.code, "block", "exec"), {"__name__": "__main__"})
    elif block.language == "bash":
        for line in block.code.replace("\\\n", " ").splitlines():
            call(shlex.split(line, comments=True))
    else:
        raise SystemExit(f"a block in {block.language or 'no language'} can only be looked at: give it a title\n{block.code}")


def call(words: list[str]) -> None:
    """One line of a shell, file name patterns and all."""
    from cltk.cli import main

    if words[:3] == ["python", "-m", "cltk.lm_eval"]:
        from cltk import lm_eval

        sys.argv = ["lm_eval", *words[3:]]
        assert lm_eval.main() == 0, shlex.join(words)
    elif words:
        assert words[0] == "cltk", words
        code = main([name for word in words[1:] for name in (sorted(glob.glob(word)) or [word])])
        assert code == 0, f"{shlex.join(words)}: exit code {code}"


if __name__ == "__main__":
    for file in sys.argv[1:]:
        for one in blocks(Path(file).read_text()):
            print(f"--- {Path(file).name}: {one.title or one.language}", flush=True)
            follow(one)
