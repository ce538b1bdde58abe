"""The wheel alone, in a folder that knows no clone: it carries the tasks, suites and experiments that the README names."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import cltk
from tests import forks

CLONE = Path(cltk.__file__).parent.parent


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed; the libraries are those of this environment."""
    made = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(made), str(CLONE)], check=True)
    (wheel,) = made.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", str(made / "site"), str(wheel)], check=True)
    return made / "site"


@pytest.fixture
def command(installed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """cltk of the wheel, run in an empty folder."""

    def call(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}
        line = [sys.executable, "-P", "-m", "cltk", *arguments]
        done = forks.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == code, done.stderr + done.stdout
        return done

    return call


def test_every_package_is_listed() -> None:
    config = configparser.ConfigParser()
    config.read(CLONE / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    mapped = {line.split("=")[0].strip() for line in config["options"]["package_dir"].strip().split("\n")}
    found = {".".join(file.parent.relative_to(CLONE).parts) for file in (CLONE / "cltk").rglob("__init__.py")}
    assert listed == found | mapped


@pytest.mark.slow
def test_the_wheel_has_all_that_is_committed_but_results(installed: Path) -> None:
    (wheel,) = installed.parent.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = subprocess.run(["git", "ls-files", "cltk", "evals", "experiments"], cwd=CLONE, capture_output=True, text=True)
    wanted = {
        name if name.startswith("cltk/") else f"cltk/{name}"
        for name in files.stdout.split()
        if not name.startswith("evals/examples/")  # logs to try `compare` on: of the clone, not of an installation
        and (name.startswith(("cltk/", "evals/")) or (name.endswith(".yaml") and name.count("/") == 2))
    }
    assert wanted
    assert wanted <= names
    assert not [name for name in names if "/results/" in name]


@pytest.mark.slow
def test_commands_of_the_wheel(command: Any, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    where = f"import cltk; assert not cltk.__file__.startswith({str(CLONE)!r})"
    env = {**os.environ, "PYTHONPATH": str(Path(command.__closure__[0].cell_contents))}
    forks.run([sys.executable, "-P", "-c", where], check=True, env=env, cwd=tmp_path)
    assert "transformers" in command("--version").stdout
    assert "ewc" in command("methods").stdout

    for name, seed in (("base", 0), ("tuned", 1)):
        tiny(seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    command("measure", "base", "tuned", "--tasks", "local_sciq", "--limit", "3", "--json", "found.json")
    assert {row["task"] for row in json.loads((tmp_path / "found.json").read_text())["rows"]} == {"local_sciq"}
    said = command("run", "quickstart", "--dry-run").stdout
    assert "5 cells -> runs/quickstart" in said

    (tmp_path / "small.yaml").write_text(
        yaml.safe_dump(
            {
                "base": str(Path(env["PYTHONPATH"]) / "cltk/experiments/quickstart/quickstart.yaml"),
                "model": {"pretrained": str(tmp_path / "base")},
                "data": {"max_length": 64, "drop_long": True},
                "train": {"max_steps": 1},
                "evals": {"documents": None, "limit": 2, "kl_rows": 0, "retain": ["suites/general"]},
                "grid": {"mitigators": {"plain": []}},
            }
        )
    )
    command("run", "small.yaml", "--dry-run")
    small = (tmp_path / "small.yaml").read_text().replace("suites/general", "local_sciq")
    (tmp_path / "small.yaml").write_text(small)
    command("run", "small.yaml")
    assert list((tmp_path / "runs/small").glob("plain*/record.json"))

    assert command("run", "quickstarts", code=2).stderr.strip() == "cltk: quickstarts: no such file"
    assert "no such file" in command("run", "llama2-7", code=2).stderr
