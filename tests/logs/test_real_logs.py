"""Files that lm-eval's command line wrote, of two of its versions: SmolLM2-135M-Instruct and its fine-tune of 20 steps."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scipy import stats

import cltk
from cltk.logs.comparing import compare
from cltk.logs.reading import read

ROOT = Path(cltk.__file__).parent.parent
LOGS = {"0.4.13": ROOT / "evals" / "examples" / "lm_eval", "0.4.11": Path(__file__).parent / "lm_eval_0_4_11"}
BASE, TUNED = "SmolLM2-135M-Instruct", "SmolLM2-135M-medical"


@pytest.mark.parametrize("version", LOGS)
def test_every_number_is_lm_evals_own(version: str) -> None:
    result = compare(LOGS[version] / BASE, LOGS[version] / TUNED, members=True)
    rows = {(row.task, row.metric): row for row in result.rows}
    checked = 0
    for model, end in ((BASE, "pre"), (TUNED, "post")):
        for file in (LOGS[version] / model).glob("results_*.json"):
            data = json.loads(file.read_text())
            assert data["lm_eval_version"] == version
            for task, own in data["results"].items():
                for key, value in own.items():
                    metric, _, chosen = key.partition(",")
                    if chosen and not metric.endswith("_stderr") and isinstance(value, float):
                        assert math.isclose(getattr(rows[task, metric], end), value, rel_tol=1e-12), (task, key)
                        checked += 1
    assert checked == {"0.4.13": 6, "0.4.11": 10}[version]


def test_mcnemar_of_the_files_alone() -> None:
    right = []
    for model in (BASE, TUNED):
        (file,) = (LOGS["0.4.13"] / model).glob("samples_local_copa_*")
        right.append([json.loads(line)["acc"] for line in file.read_text().splitlines()])
    lost, gained = (sum(a == x != b for a, b in zip(*right, strict=True)) for x in (1.0, 0.0))
    row = next(row for row in compare(LOGS["0.4.13"] / BASE, LOGS["0.4.13"] / TUNED).rows if row.task == "local_copa")
    assert (row.metric, row.lost, row.gained) == ("acc", lost, gained) == ("acc", 8, 3)
    assert row.p == stats.binomtest(lost, lost + gained).pvalue


def test_two_versions_of_lm_eval_meet_on_documents() -> None:
    """The first eight documents of a task in both: the same hashes, and a line that says what differs."""
    result = compare(LOGS["0.4.11"] / BASE, LOGS["0.4.13"] / BASE, prompts="differ", members=True)
    (row,) = (row for row in result.rows if (row.task, row.metric) == ("local_copa", "acc"))
    assert (row.n, row.forgetting) == (8, 0)
    assert any("lm_eval_version 0.4.11 and 0.4.13" in note for note in result.notes)
    assert any("8 are in both, of 8 and 100" in note for note in result.notes)


def test_names_of_the_models_and_what_scored_them() -> None:
    side = read(LOGS["0.4.13"], TUNED)
    assert side.name == TUNED
    assert side.about["backend"] == "hf"
    assert side.about["dtype"] == "torch.float32"
    assert not side.notes
    assert {task: len(found) for task, found in side.scores.tasks.items()} == {"local_copa": 100, "local_arc_easy": 20}


def test_the_example_takes_seconds() -> None:
    command = [sys.executable, "-m", "cltk", "compare", "evals/examples/lm_eval", "--base-model", BASE]
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "SmolLM2-135M-medical" in done.stdout
    assert time.perf_counter() - begin < 60  # 2 s alone; other tests may run beside it


def test_the_example_is_small() -> None:
    assert sum(file.stat().st_size for file in LOGS["0.4.13"].rglob("*.*") if file.is_file()) < 300_000
