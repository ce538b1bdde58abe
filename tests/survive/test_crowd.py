"""Several processes on one folder, killed, stopped and asked to leave: every cell ends, with a serial run's bits."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests import forks
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
EXPERIMENT = (
    TINY
    + """\
train: {learning_rate: 3.0e-3, max_steps: 8, per_device_train_batch_size: 4, save_strategy: steps, save_steps: 3}
evals:
  retain: [toy, {text: old.jsonl, name: old_text, limit: 8, cluster: document}]
  include_path: tasks
  limit: 6
  kl_rows: 4
speed: {onednn: false, autocast: false}
grid:
  mitigators:
    plain: []
    early: [early_stopping: {patience: 1, every: 2, budget: 5.0, memory: old.jsonl, limit: 8}]
    ewc: [ewc: {strength: 1.0, importance: {memory: old.jsonl, samples: 8, block: 32}}]
    more: [ewc: {strength: 9.0, importance: {memory: old.jsonl, samples: 8, block: 32}}]
    half: [wise_ft: {alpha: 0.5}]
    third: [wise_ft: {alpha: 0.3}]
keep_model: false
"""
)


@pytest.mark.slow
def test_a_crowd_ends_with_a_serial_runs_bits(study: Path) -> None:
    (study / "crowd.yaml").write_text(EXPERIMENT)
    command = [sys.executable, "-m", "tests.survive.crowd", str(study), "7"]
    done = forks.run(
        [*command, "together", "shares", "killed", "stopped", "asked"], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(next(line for line in done.stdout.split("\n") if line.startswith("REPORT ")).removeprefix("REPORT "))
    assert not report["wrong"], "\n\n".join(report["wrong"])
    assert "kill" in report["ends"]["killed"]
    assert report["notes"]["three"]["fisher ewc"] == 1
