"""Provenance: commands that can be typed, and the commit of cltk's own source."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

import cltk
from cltk.run import records

MODULE = str(Path(cltk.__file__).parent / "__main__.py")
RANKS = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4"}
LAUNCHED = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_DYNAMO_USE_FULLGRAPH")


@pytest.mark.parametrize(
    ("argv", "environment", "expected"),
    [
        (["/x/bin/cltk", "run", "my study.yaml"], {}, "cltk run 'my study.yaml'"),
        ([MODULE, "run", "x.yaml", "--out", "out sp"], {}, "python -m cltk run x.yaml --out 'out sp'"),
        (["train it.py", "--lr", "$(rm)"], {}, "python 'train it.py' --lr '$(rm)'"),
        ([MODULE, "run", "x.yaml"], {**RANKS, "LOCAL_WORLD_SIZE": "4"}, "torchrun --nproc-per-node 4 -m cltk run x.yaml"),
        (
            [MODULE, "run", "x.yaml"],
            {**RANKS, "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nnodes 2 --nproc-per-node 2 -m cltk run x.yaml",
        ),
        (
            [MODULE, "run", "x.yaml"],
            {**RANKS, "LOCAL_WORLD_SIZE": "4", "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False"},
            "accelerate launch --num_processes 4 -m cltk run x.yaml",
        ),
    ],
)
def test_a_command_can_be_typed(
    argv: list[str], environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", argv)
    assert records.command() == expected
    assert shlex.split(records.command())[-1] == argv[-1]


def test_the_commit_is_that_of_cltks_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a repository in whose ignored .venv it is installed."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    package = tmp_path / ".venv" / "cltk"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / ".gitignore").write_text(".venv\n")
    git("init", "-q")
    git("add", ".gitignore")
    git("commit", "-qm", "theirs")
    monkeypatch.setattr(cltk, "__file__", str(package / "__init__.py"))
    assert records._commit() is None
    git("add", "-f", ".venv/cltk/__init__.py")
    git("commit", "-qm", "ours")
    head = git("rev-parse", "HEAD").strip()
    assert records._commit() == head
    (package / "__init__.py").write_text("changed")
    assert records._commit() == f"{head}-dirty"
