"""W&B, MLflow and trackio themselves, offline: every cell is a run of its own, with the watch's curve and the last numbers.

Each is skipped where its package is missing; none is a dependency.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY

pytestmark = pytest.mark.slow
YAML = (
    TINY
    + """\
train: {max_steps: 4, per_device_train_batch_size: 4, save_strategy: "no", logging_steps: 2, report_to: REPORTER}
evals:
  retain: [{text: old.jsonl, name: old_text, limit: 12}]
  kl_rows: 0
  during: {every: 2, sample: 6}
grid: {seed: [0, 1]}
keep_model: false
"""
)
CELLS = ["plain_seed=0", "plain_seed=1"]


def run(study: Path, reporter: str, **environment: str) -> None:
    """`cltk run` in a process of its own: these packages leave threads and servers behind."""
    (study / "loggers.yaml").write_text(YAML.replace("REPORTER", reporter))
    code = f"import sys; sys.path[:] = {sys.path!r}; from cltk.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "loggers.yaml", "--out", "out"],
        cwd=study, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [json.loads(file.read_text())["cell"] for file in sorted((study / "out").glob("*/record.json"))]
    assert cells == CELLS


def test_wandb(study: Path) -> None:
    pytest.importorskip("wandb")
    run(study, "wandb", WANDB_MODE="offline", WANDB_DIR=str(study), WANDB_SILENT="true")
    runs = sorted((study / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    for cell in CELLS:
        (raw,) = [text for one in runs if cell.encode() in (text := next(one.glob("*.wandb")).read_bytes())]
        for key in (b"eval/forgetting_old_text", b"eval/final_forgetting_old_text", b"eval/final_verdict_old_text"):
            assert key in raw, key


def test_mlflow(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = f"file://{study / 'mlruns'}"
    run(study, "mlflow", MLFLOW_TRACKING_URI=place)
    client = mlflow.MlflowClient(place)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert sorted(one.info.run_name for one in runs) == CELLS
    for one in runs:
        assert one.info.status == "FINISHED"
        assert {"eval_forgetting_old_text", "eval_final_forgetting_old_text", "loss"} <= set(one.data.metrics)
        assert "eval_final_verdict_old_text" in one.data.tags
        steps = [point.step for point in client.get_metric_history(one.info.run_id, "eval_forgetting_old_text")]
        assert steps[-1] == 4


def test_trackio(study: Path) -> None:
    pytest.importorskip("trackio")
    run(study, "trackio", TRACKIO_DIR=str(study / "trackio"))
    found: dict[str, set[str]] = {}
    for file in (study / "trackio").rglob("*.db"):
        for name, metrics in sqlite3.connect(file).execute("select run_name, metrics from metrics"):
            found.setdefault(name, set()).update(json.loads(metrics))
    assert sorted(found) == CELLS
    for keys in found.values():
        assert any("final_forgetting_old_text" in key for key in keys), keys
        assert any("final_verdict_old_text" in key for key in keys), keys
