"""The GitHub action and the GitLab job of the guide, by running their commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import cltk
from cltk.measure.forgetting import compare
from cltk.measure.scores import Scores, TaskScores
from cltk.run.records import write_json

ROOT = Path(cltk.__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


def measured(lost: int, name: str) -> dict[str, Any]:
    """What `cltk measure --json` writes: a base that has all of 1,000 documents right."""
    hashes = [f"d{i}" for i in range(1000)]
    sides = [
        Scores(name, {"quiz": TaskScores("quiz", {"acc": [0.0] * n + [1.0] * (1000 - n)}, {"acc": True}, hashes, hashes)})
        for n in (0, lost)
    ]
    return {**compare(*sides, draws=50).to_json(), "settings": {"base": "base", "tuned": name}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A machine of a pipeline: `cltk` on the PATH, results, and GitHub's files."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "cltk"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cltk "$@"\n')
    program.chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "results").mkdir()
    write_json(tmp_path / "results" / "good.json", measured(2, "good"))
    write_json(tmp_path / "results" / "bad one.json", measured(90, "bad"))
    (tmp_path / "summary.md").write_text("before\n")
    (tmp_path / "output").write_text("")
    return tmp_path


def run(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """As GitHub does: bash -eo pipefail."""
    environment = {
        **os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "RUNNER_TEMP": str(folder / "temp"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"), "GITHUB_OUTPUT": str(folder / "output"), **variables,
    }  # fmt: skip
    (folder / "temp").mkdir(exist_ok=True)
    (folder / "step.sh").write_text(script)
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(folder / "step.sh")]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def step(**inputs: str) -> tuple[str, dict[str, str]]:
    """The gate's script, and its variables with the inputs put in as GitHub puts them in."""
    defaults = {name: one.get("default", "") for name, one in ACTION["inputs"].items()}
    known = defaults | {name.replace("_", "-"): value for name, value in inputs.items()}
    (gate,) = [one for one in ACTION["runs"]["steps"] if one.get("id") == "gate"]
    variables = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: known[found[1]], value)
        for name, value in gate["env"].items()
    }
    return gate["run"], variables


@pytest.mark.parametrize(
    ("inputs", "code", "answer"),
    [
        ({"base": "results/good.json", "budget": "acc=0.02\n\nmacro=0.02\n"}, 0, "within"),
        ({"base": "results/good.json", "tuned": "results/good.json\nresults/bad one.json", "budget": "acc=0.02"}, 3, "over"),
        ({"base": "results/good.json", "budget": "acc=0.003", "options": "--prompts=same"}, 4, "unknown"),
        ({"base": "results/good.json", "budget": "acc=0.003", "on_unknown": "pass"}, 0, "unknown"),
    ],
)
def test_the_action(inputs: dict[str, str], code: int, answer: str, folder: Path) -> None:
    script, variables = step(**inputs)
    done = run(script, folder, **variables)
    assert done.returncode == code, done.stdout + done.stderr
    assert (folder / "output").read_text() == f"answer={answer}\n"
    assert (folder / "summary.md").read_text().startswith("before\n### Forgetting: ")
    assert (folder / "cltk-gate.xml").read_text().startswith("<?xml")


def test_inputs_are_words_and_no_script(folder: Path) -> None:
    script, variables = step(
        base="results/good.json", budget="acc=0.02; touch owned\n$(touch owned)=0.1", tuned="`touch owned`"
    )
    done = run(script, folder, **variables)
    assert done.returncode == 2
    assert "is no number" in done.stderr
    assert not (folder / "owned").exists()
    assert (folder / "output").read_text() == ""
    assert not any("${{" in one.get("run", "") for one in ACTION["runs"]["steps"])


def guide(title: str) -> Any:
    text = (ROOT / "docs" / "guides" / "gate.md").read_text()
    return yaml.load(re.search(rf'```yaml title="{re.escape(title)}"\n(.*?)```', text, re.S)[1], yaml.BaseLoader)  # type: ignore[index]


def test_the_workflow_of_the_guide_gives_the_inputs_that_the_action_has() -> None:
    given = guide(".github/workflows/forgetting.yml")["jobs"]["forgetting"]["steps"][-1]["with"]
    assert set(given) <= set(ACTION["inputs"])
    assert {name for name, one in ACTION["inputs"].items() if one.get("required")} <= set(given)


def test_the_gitlab_job(folder: Path) -> None:
    job = guide(".gitlab-ci.yml")["forgetting"]
    install, *commands = job["script"]
    assert install == "pip install cltk-forgetting"
    files = {
        "results/base": "results/good.json",
        "results/tuned": "results/good.json",
        "--budget gsm8k=0.03": "--budget quiz=0.03",
    }
    for name, file in files.items():
        commands = [command.replace(name, file) for command in commands]
    assert run("\n".join(commands), folder).returncode == 0
    assert (folder / job["artifacts"]["reports"]["junit"]).is_file()
    assert job["allow_failure"]["exit_codes"] == ["4"]
