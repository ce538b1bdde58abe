"""`cltk run`, killed, interrupted and on a full disk, ends with the same bits as in peace."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.survive.trials import TRAINED

ROOT = Path(__file__).parents[2]
STREAM = """\
model: {pretrained: tiny-llama}
stages:
  - name: first
    data: {train: {path: new.jsonl, prompt: question, completion: answer}, validation: 0.15, heldout: 0.2}
  - name: second
    data: {train: {path: old.jsonl, prompt: "{document}", completion: " {text}"}, validation: 0.15, heldout: 0.2}
    train: {max_steps: 3}
"""
EXPERIMENT = (
    f"{STREAM}{TRAINED}  save_total_limit: 1\n"
    + """\
evals:
  retain: [toy, {text: old.jsonl, name: old_text, limit: 8, cluster: document}]
  include_path: tasks
  limit: 6
  kl_rows: 4
speed: {onednn: false, autocast: false}
grid:
  mitigators:
    anchored: [ewc: {strength: 1.0, importance: {memory: "asset:toy/old.jsonl", samples: 8, block: 32}}, ema: {decay: 0.5}]
    rehearsed:
      - reservoir: {size: 8, fraction: 0.25, memory: old.jsonl, length: 32}
      - early_stopping: {patience: 1, every: 2, budget: 5.0, memory: old.jsonl, limit: 8}
"""
)


def struck(kind: str, study: Path, trials: int) -> dict[str, Any]:
    """The report of tests/survive/trials.py in this folder."""
    (study / "kill.yaml").write_text(EXPERIMENT)
    with zipfile.ZipFile(study / "toy-1.0-py3-none-any.whl", "w") as archive:
        archive.write(study / "old.jsonl", "data/old.jsonl")
    done = forks.run(
        [sys.executable, "-m", "tests.survive.trials", kind, str(study), "7", str(trials)], cwd=ROOT, capture_output=True,
        text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.split("\n") if line.startswith("REPORT ")).removeprefix("REPORT "))


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(study: Path) -> None:
    report = struck("kill", study, 20)
    assert not report["wrong"], "\n\n".join(report["wrong"])
    assert len(report["blows"]) >= 20
    kinds = Counter(blow for _, blow, _ in report["blows"])
    assert set(kinds) == {"kill", "term", "int"}
    assert len({moment for _, _, moment in report["blows"] if "operation" in moment}) >= 7


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_with_room_it_ends_with_the_same_bits(study: Path) -> None:
    report = struck("full", study, 10)
    assert not report["wrong"], "\n\n".join(report["wrong"])
    stopped = [last for _, _, end, last in report["blows"] if end != "0"]
    assert len(stopped) >= 6
