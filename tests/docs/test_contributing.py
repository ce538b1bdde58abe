"""CONTRIBUTING's "Adding a method", followed to the letter in a copy of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import Block, blocks

import cltk

ROOT = Path(cltk.__file__).parent.parent
SECTION = (ROOT / "CONTRIBUTING.md").read_text().split("## Adding a method\n")[1].split("\n## ")[0]


def apply(block: Block, root: Path) -> None:
    """Write the file; or, of a block of changes, put the lines with + beside those shown, which must be there once."""
    file = root / block.title
    if block.language != "diff":
        assert not file.exists(), f"{block.title} exists already"
        file.write_text(block.code)
        return
    text = "\n" + file.read_text()
    for part in block.code.rstrip("\n").split("\n\n"):
        lines = part.split("\n")
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] != sign) for sign in "+-")
        assert text.count(f"\n{old}") == 1, f"{block.title}: these lines are not there, or not once:\n{old}"
        text = text.replace(f"\n{old}", f"\n{new}")
    file.write_text(text[1:])


def test_changes_go_where_they_are_shown(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("a\nb\n    c\nd\n")
    apply(Block("diff", "a.py", "+x\n a\n\n     c\n-d\n+e\n"), tmp_path)
    assert file.read_text() == "x\na\nb\n    c\ne\n"
    with pytest.raises(AssertionError, match="not there"):
        apply(Block("diff", "a.py", " c\n+y\n"), tmp_path)


def copy_of_the_repository(root: Path) -> Path:
    """Every file that git tracks or would track, as it is now."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    return root


@pytest.mark.slow
def test_a_method_is_added_by_the_recipe(tmp_path: Path) -> None:
    root, found = copy_of_the_repository(tmp_path / "copy"), blocks(SECTION)
    for block in found:
        if block.title:
            apply(block, root)
    (root / ".venv").symlink_to(sys.prefix)
    (commands,) = [block.code for block in found if not block.title]
    done = subprocess.run(["bash", "-exc", commands], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = sum(int(count) for count in re.findall(r"(\d+) passed", done.stdout))
    assert passed >= 13, done.stdout  # eight common tests, three of the card, two of the formula
