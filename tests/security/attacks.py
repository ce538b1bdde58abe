"""What every attack is held to: no code ran, nothing was written outside of the output folder, no secret came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cltk.cli import main

SECRET = "hf_Q7secretQ7secretQ7secret"
PASSWORD = "pa55-of-nobody"
CODE = """\
import pathlib
pathlib.Path("pwned").touch()
def text(doc=None, *_, **__):
    return doc["q"] if doc else ""
class Evil:
    pass
"""


def around() -> set[Path]:
    """All files of this folder, and what lies in the two above it."""
    here = Path.cwd()
    return {
        *here.rglob("*"),
        *here.parent.glob("*"),
        *(p for p in here.parent.parent.glob("*") if "pytest-" not in p.name and "garbage" not in p.name),
    }


def foiled(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str], codes: Sequence[int] = (2,), words: Sequence[str] = (),
    own: Sequence[str] = ("out", "cache"),
) -> str:  # fmt: skip
    """Run a command in the attacked folder; its last line of complaint, after all checks.

    Args:
        codes: exit codes that are right.
        words: what the line must say.
        own: files and folders that the command may write.
    """
    capsys.readouterr()
    before = around()
    code = main(list(arguments))
    seen = capsys.readouterr()
    said = seen.err.strip().split("\n")[-1]
    assert code in codes, (code, seen.err)
    assert "Traceback" not in seen.err
    assert code != 2 or said.startswith("cltk: "), seen.err
    new = {path for path in around() - before if not any(path.is_relative_to(Path.cwd() / name) for name in own)}
    assert not [path for path in new if path.name == "pwned"], "code ran"
    assert not [path for path in new if "__pycache__" not in path.parts], new
    kept = [path for name in own for path in [Path(name), *Path(name).rglob("*")] if path.is_file()]
    texts = {"output": seen.out + seen.err} | {str(path): path.read_bytes().decode(errors="replace") for path in kept}
    for where, text in texts.items():
        assert SECRET not in text, f"a secret in {where}"
        assert PASSWORD not in text, f"a password in {where}"
    for word in words:
        assert word in said, said
    return said


def edit(path: str | Path, old: str, new: str) -> None:
    """Replace a text that must be there."""
    text = Path(path).read_text()
    assert old in text, old
    Path(path).write_text(text.replace(old, new))


def change(path: str | Path, **keys: Any) -> None:
    """Set keys of a JSON file."""
    data = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps(data | keys))
