"""benchmarks/experiment.py on a random model: the script's commands, its trainings and scores against `cltk run`'s."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cltk
from cltk.cli import main

BENCHMARKS = Path(cltk.__file__).parent.parent / "benchmarks"
STUB = '#!/bin/sh\ncase "$1" in -c) exec "$REAL" "$@" ;; esac\necho "$@" >>"$CALLS"\nmkdir -p "$FOLDER/plain/model"\n'


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The benchmark's modules, and its study of a random model handed over to the script."""
    for folder in (BENCHMARKS, BENCHMARKS / "by_hand"):
        monkeypatch.syspath_prepend(str(folder))
    names = ("experiment", "experiment_sides", "nll", "train", "quick")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLTK_CACHE", str(tmp_path / "cache"))
    found.folder = tmp_path / "script"
    found.folder.mkdir()
    found.job = found.experiment_sides.Job(found.quick.study(tmp_path), 99, "float32")
    found.methods = found.experiment_sides.hand_over(found.job, found.folder, 8)
    return found


def test_the_script_calls_what_one_would_type(bench: Any, tmp_path: Path) -> None:
    (stub := tmp_path / "python").write_text(STUB)
    stub.chmod(0o755)
    seen = {"PYTHON": str(stub), "REAL": sys.executable, "CALLS": str(tmp_path / "calls"), "FOLDER": str(bench.folder)}
    script = BENCHMARKS / "by_hand" / "experiment.sh"
    subprocess.run(["bash", str(script), str(bench.folder), "plain"], env={**os.environ, **seen}, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    model = tmp_path / "model"
    evaluated = [
        line for line in calls if line.startswith(f"-m lm_eval --model hf --model_args pretrained={model},dtype=float32")
    ]
    assert len(evaluated) == 1
    assert "--tasks toy" in evaluated[0] and "--limit 8 --batch_size 8" in evaluated[0]  # noqa: PT018
    assert [Path(line.split()[0]).name for line in calls] == ["-m", "nll.py", "train.py", "-m", "nll.py"]
    assert [line.split()[:2] for line in (bench.folder / "clock").read_text().splitlines()] == [
        ["begin", "-"], ["tasks", "base"], ["texts", "base"], ["training", "plain"], ["tasks", "plain"], ["texts", "plain"],
    ]  # fmt: skip
    assert not (bench.folder / "plain" / "model").exists()


def test_documents_drawn_at_random_are_the_scripts_too(bench: Any, tmp_path: Path) -> None:
    """lm_eval takes them by `--samples`; of a two-phase experiment both sides score all."""
    file = tmp_path / "drawn.yaml"
    file.write_text(bench.job.yaml.read_text().replace("\n  limit: 8\n", "\n  documents: {total: 6, scored: 4}\n"))
    job, folder = bench.experiment_sides.Job(file, 1, "float32"), tmp_path / "drawn"
    assert job.run(tmp_path / "unused").cells[0].config.evals.documents is None
    folder.mkdir()
    bench.experiment_sides.hand_over(job, folder, 8)
    (stub := tmp_path / "python").write_text(STUB)
    stub.chmod(0o755)
    seen = {"PYTHON": str(stub), "REAL": sys.executable, "CALLS": str(tmp_path / "calls"), "FOLDER": str(folder)}
    script = BENCHMARKS / "by_hand" / "experiment.sh"
    subprocess.run(["bash", str(script), str(folder), "plain"], env={**os.environ, **seen}, check=True)
    line = next(line for line in (tmp_path / "calls").read_text().splitlines() if "lm_eval" in line)
    assert "--limit" not in line
    drawn = json.loads(line.split("--samples ")[1].split(" --batch_size")[0])
    assert len(set(drawn["toy"])) == 6
    assert drawn["toy"] == sorted(drawn["toy"]) != list(range(6))


@pytest.mark.slow
def test_both_sides_train_and_score_the_same(bench: Any, tmp_path: Path) -> None:
    """In this process, where the benchmark starts one for every command; answers by lm_eval's own evaluation."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    settings = json.loads((bench.folder / "settings.json").read_text())
    assert bench.methods == ["plain", "low_lr", "early_stopping", "replay", "ewc"]
    assert main(["run", str(bench.job.yaml), *bench.job.overrides, "--out", str(tmp_path / "ours" / "out")]) == 0
    lm = HFLM(pretrained=settings["model"], dtype="float32", batch_size=8, device="cpu")
    tasks = TaskManager(include_path=settings["include"], include_defaults=False)
    stock = simple_evaluate(lm, tasks=["toy"], limit=8, task_manager=tasks, bootstrap_iters=0)
    assert stock is not None
    bench.nll.main(bench.folder, settings["model"], bench.folder / "base" / "nll.json")
    for method in bench.methods:
        bench.train.main(bench.folder, method, bench.folder / method / "model")
        bench.nll.main(bench.folder, str(bench.folder / method / "model"), bench.folder / method / "nll.json")
    for name in ("base", *bench.methods):
        ours = bench.experiment_sides and bench.experiment.ours_of(bench.job, tmp_path / "ours", name)
        theirs = {**ours, "nll": json.loads((bench.folder / name / "nll.json").read_text())}
        if name == "base":
            rows = {f"toy {row['doc_id']}": row for row in stock["samples"]["toy"]}
            theirs["answers"] = {key: [float(one[0][0]) for one in row["resps"]] for key, row in rows.items()}
            theirs["right"] = {f"toy {m}": [float(row[m]) for row in rows.values()] for m in ("acc", "acc_norm")}
        found = bench.experiment.compared(name, theirs, ours, "float32")
        assert found["documents"] == 8
        assert found["equal"] is (None if name in ("replay", "ewc") else True), found
        if name in bench.experiment.SAME_BATCHES:
            assert found["rows_apart"] < 1e-3, found  # four steps of 1e-3: a wrong batch moves 1e-1
    odd = {**ours, "nll": {key: [value + 0.02 for value in values] for key, values in ours["nll"].items()}}
    assert bench.experiment.compared("plain", ours, odd, "float32")["equal"] is False
    assert bench.experiment.compared("base", ours, odd, "float32")["equal"] is False
