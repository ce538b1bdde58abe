"""Cells in parallel: one driver a folder, Ray against a serial run, a worker that is killed, processes under torchrun."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.files import locked
from cltk.run import cluster
from cltk.run.records import read_json
from cltk.run.reproduce import values_of


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


def found(out: str) -> dict[str, dict[str, Any]]:
    """Method -> every value of its record that a rerun must repeat."""
    read = [read_json(path) for path in Path(out).glob("*/record.json")]
    return {record["method"]: dict(values_of(record)) for record in read}


def test_a_second_run_in_the_same_folder_is_refused(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(Path("out")):
        before = sorted(Path("out").rglob("*"))
        assert main(["run", str(experiment), "--out", "out"]) == 2
        assert f"another run works in this folder (process {os.getpid()}" in capsys.readouterr().err
        assert sorted(Path("out").rglob("*")) == before
        with locked(Path("elsewhere")):
            pass
    with locked(Path("out")):  # given back
        pass


def test_ray_that_is_not_installed_is_said(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'cltk-forgetting\[ray\]'"):
        cltk.load(experiment, "out").run(ray="local")


class Task:
    """What `ray.remote` gives: remembers its calls; an answer is its own reference."""

    calls: list[tuple[int, bool]]

    def __init__(self, *_: Any, **__: Any) -> None:
        self.calls = []

    def options(self, **_: Any) -> Task:
        return self

    def remote(self, call: Any, order: int, base: bool, *_: Any) -> tuple[int, bool]:
        self.calls.append((order, base))
        return order, base


def test_the_start_model_is_scored_once_for_all_cells(experiment: Path) -> None:
    task = Task()
    ray = SimpleNamespace(
        cluster_resources=dict, remote=lambda _: task, wait=lambda waiting, num_returns: (waiting[:1], waiting[1:]),
        get=lambda one: "", exceptions=SimpleNamespace(RayError=ZeroDivisionError),
    )  # fmt: skip
    assert cluster._run(ray, cltk.load(experiment, "out"), [1, 2, 4], 1, lambda *_: None) == {}
    assert task.calls == [(1, True), (1, False), (2, False), (4, False)]


def cltk_run(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "cltk", "run", *arguments]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == code, output[-3000:]
    return output


def workers() -> list[int]:
    """Ray's processes that do a cell now."""
    busy = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(b"ray::cltk cell"):
                busy.append(int(place.name))
        except OSError:
            continue
    return busy


@pytest.mark.slow
def test_ray_gives_the_records_of_a_serial_run_even_when_a_worker_is_killed(experiment: Path) -> None:
    pytest.importorskip("ray")
    text = experiment.read_text().replace("max_steps: 6", "max_steps: 60")
    experiment.write_text(text)
    ended(cltk_run("experiment.yaml", "--out", "serial"))
    process = cltk_run("experiment.yaml", "--out", "parallel", "--ray")
    until = time.monotonic() + 300
    while not list(Path("parallel").glob("base-*/scores.json")) and time.monotonic() < until:
        time.sleep(0.05)
    while not (busy := workers()) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(busy[0], signal.SIGKILL)
    ended(process)
    assert found("parallel") == found("serial")
    assert len(found("serial")) == 5


@pytest.mark.slow
def test_ray_keeps_the_error_of_a_failed_cell(experiment: Path) -> None:
    pytest.importorskip("ray")
    head = experiment.read_text().split("grid:")[0]
    experiment.write_text(head + "grid: {train.learning_rate: [1.0e+30, 1.0e-3]}\nkeep_model: false\n")
    output = ended(cltk_run("experiment.yaml", "--out", "out", "--ray"), 1)
    assert "1 of 2 cells failed" in output
    assert read_json(next(Path("out").glob("*/failed.json")))["kind"] == "DivergedError"
    assert len(list(Path("out").glob("*/record.json"))) == 1


def torchrun(*arguments: str, ranks: int = 2, **environment: str) -> None:
    """What torchrun sets, without its elastic agent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [cltk_run(*arguments, **shared, **environment, RANK=str(r), LOCAL_RANK=str(r)) for r in range(ranks)]
    outputs = [process.communicate(timeout=500)[0] for process in started]
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(output[-3000:] for output in outputs)


ZERO = (
    "deepspeed: {zero_optimization: {stage: STAGE, stage3_param_persistence_threshold: 0}, zero_allow_untested_optimizer: true,"
    " gradient_clipping: auto, train_micro_batch_size_per_gpu: auto, gradient_accumulation_steps: auto}, per"
)
FSDP = "fsdp: true, fsdp_config: {version: 2, transformer_layer_cls_to_wrap: [LlamaDecoderLayer]}, per"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_two_processes_equal_one(experiment: Path, engine: str) -> None:
    """Same rows a step (2 x 2 for 4): scores and divergences agree to rounding. (An mc Fisher draws labels by rank.)"""
    text = experiment.read_text().replace("normalize: mean", "normalize: mean, kind: empirical")
    text = "speed: {autocast: false}\n" + text  # bfloat16, where a machine has it, rounds more than that
    added = {"ddp": "per", "fsdp2": FSDP}.get(engine, ZERO.replace("STAGE", engine[-1]))
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
        text = "\n".join(
            line for line in text.split("\n") if "early_stopping:" not in line
        )  # refused there: it acts after steps
    experiment.write_text(text)
    ended(cltk_run("experiment.yaml", "--out", "one"))
    halves = text.replace("per_device_train_batch_size: 4", "per_device_train_batch_size: 2")
    Path("two.yaml").write_text(halves.replace("per", added, 1))
    torchrun("two.yaml", "--out", "two", DS_ACCELERATOR="cpu", DS_BUILD_OPS="0")
    one, two = found("one"), found("two")
    assert set(one) == set(two)
    for method in one:
        for name, value in one[method].items():
            if name.startswith(("retain.rows", "learn.rows", "divergence")) and name.endswith((".pre", ".post", ".kl")):
                assert two[method][name] == pytest.approx(value, rel=1e-5, abs=1e-6), (method, name)
    base = [json.loads(path.read_text())["tasks"] for out in ("one", "two") for path in Path(out).glob("base-*/scores.json")]
    for task in base[0]:
        for metric, values in base[0][task]["values"].items():
            assert base[1][task]["values"][metric] == pytest.approx(values, rel=1e-5, abs=1e-5)
