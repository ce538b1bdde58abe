"""The code blocks of a Markdown file."""

from __future__ import annotations

import os
import re
import subprocess
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


def run(block: Block, folder: Path) -> None:
    """As a reader would: write the file, or run the code in the folder; `cltk` and `python` are those of this test."""
    if block.title:
        (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
        (folder / block.title).write_text(block.code)
        return
    command = [sys.executable, "-c", block.code] if block.language == "python" else ["bash", "-ec", block.code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CLTK_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
