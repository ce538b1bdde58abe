"""The script of the GPU checks runs on a processor, with tiny shapes, so that it does not rot until there is a GPU again."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forks

ROOT = Path(__file__).parents[2]
PARTS = ("importance", "ewc_step", "scoring", "generation", "training", "estimate")


def numbers(value: Any) -> list[float]:
    """Every number in nested JSON."""
    if isinstance(value, dict | list):
        return [one for inner in (value.values() if isinstance(value, dict) else value) for one in numbers(inner)]
    return [float(value)] if isinstance(value, int | float) else []


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *arguments]
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.slow
def test_every_part_runs_on_a_processor_and_writes_its_numbers(tmp_path: Path) -> None:
    done = script("--cpu", str(tmp_path), PYTHON=str(forks.shims() / "python"))
    assert done.returncode == 0, done.stderr[-2000:]
    for part in PARTS:
        found = json.loads((tmp_path / f"cpu-{part}.json").read_text())
        rows = found.get("results") or found["rows"]
        assert rows, part
        assert all(map(math.isfinite, numbers(rows))), part
    sides = {row["side"] for row in json.loads((tmp_path / "cpu-importance.json").read_text())["results"]}
    assert sides == {"plain", "mc"}


def test_the_parts_of_a_gpu_fit_eight_minutes_and_run_what_the_processor_runs() -> None:
    lines = script("--list").stdout.splitlines()
    assert sum(int(line.split("(")[1].split(" s)")[0]) for line in lines) <= 8 * 60  # of the limits
    names = {line.split(" (")[0] for line in lines}
    assert {"tests", "importance-random-135m", "importance-random-1b", "ewc_step-random-135m", "ewc_step-random-1b"} <= names
    assert {"scoring", "generation", "training", "estimate"} <= names
    assert any("--stock-batch auto" in line for line in lines)


def test_a_part_that_fails_is_said_and_the_others_run(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text('#!/bin/sh\ncase "$*" in *scoring*) exit 3 ;; esac\nexit 0\n')
    broken.chmod(0o755)
    done = script("--cpu", str(tmp_path / "out"), PYTHON=str(broken))
    assert done.returncode == 1
    assert "failed: scoring generation" in done.stderr
    assert "== estimate" in done.stdout
