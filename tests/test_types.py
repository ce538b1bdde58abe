"""What type checkers know of the public names."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import cltk

ROOT = Path(cltk.__file__).parent.parent
STRICT = """\
disallow_any_generics = True
disallow_subclassing_any = True
disallow_untyped_calls = True
disallow_untyped_defs = True
disallow_incomplete_defs = True
check_untyped_defs = True
disallow_untyped_decorators = True
warn_return_any = True
warn_unused_ignores = True
implicit_reexport = False
strict_equality = True
extra_checks = True
ignore_missing_imports = False
"""  # what --strict means, of a module
SCRIPT = """\
import cltk
from cltk.measure.evaluate import Suite, TextTask
from transformers import Trainer


def forgotten(base: str, tuned: str) -> dict[str, float]:
    result = cltk.measure(base, tuned, tasks=["arc_easy"], limit=20)
    return {row.task: row.forgetting for row in result.rows}


def prepare(trainer: Trainer, old: list[str]) -> None:
    methods: list[cltk.Mitigator] = [cltk.LowLR(0.5), cltk.EWC(1.0, {"memory": old, "samples": 2}), cltk.KL(0.5)]
    cltk.attach(trainer, methods)


def main() -> None:
    try:
        records = cltk.load("x.yaml", out="runs/x").run()
    except cltk.InputError as error:
        print(error)
    suite = Suite(["arc_easy"], texts=[TextTask("old", [{"text": "a"}])])
    importance = cltk.fisher
    print(cltk.__version__, suite, importance)


reveal_type(cltk.EWC)
reveal_type(cltk.measure)
cltk.EWCC
cltk.LowLR("much")
"""


def test_the_names_are_listed_once_more_for_type_checkers() -> None:
    tree = ast.parse(Path(cltk.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    listed = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert listed == set(cltk.__all__) - {"__version__"}


@pytest.mark.slow
def test_a_users_script_under_mypy_strict(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    # what `make check` keeps of torch and transformers serves here, too, where their options are the same: two minutes less
    ours = configparser.ConfigParser()
    ours.read(ROOT / "setup.cfg")
    lines = [f"{key} = {value}" for key, value in ours["mypy"].items() if key != "packages"]
    for module in ("script", "cltk", "cltk.*"):
        lines += [f"[mypy-{module}]", STRICT]
    (tmp_path / "mypy.ini").write_text("\n".join(["[mypy]", *lines]))
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache")]
    environment = {"MYPYPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([*command, "script.py"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    said = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if line.startswith("script.py")]
    assert not done.stderr
    assert said[0].startswith('note: Revealed type is "def (strength: float')
    assert "cltk.mitigate.quadratic.EWC" in said[0]
    assert "cltk.measure.results.Result" in said[1]
    assert 'Module has no attribute "EWCC"' in said[2]
    assert 'Argument 1 to "LowLR" has incompatible type "str"' in said[3]
    assert len(said) == 4, said
