"""Cells in parallel: one driver a folder, Ray against a serial run, a worker that is killed, processes under torchrun."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.integrations import is_fsdp_enabled

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.files import locked
from cltk.models import load_model
from cltk.models.loading import LAZY
from cltk.run import cluster
from cltk.run.records import read_json
from cltk.run.reproduce import values_of
from tests import forks

ROOT = Path(cltk.__file__).parent.parent
SOURCES = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


def found(out: str) -> dict[str, dict[str, Any]]:
    """Method -> every value of its record that a rerun must repeat."""
    read = [read_json(path) for path in Path(out).glob("*/record.json")]
    return {record["method"]: dict(values_of(record)) for record in read}


def test_a_run_in_a_folder_that_is_being_tidied_is_refused(
    experiment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cltk.files.POLL", 0.01)
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
    assert cluster._run(ray, cltk.load(experiment, "out"), [1, 2, 4], 1, lambda *_: None, cltk.load) == {}
    assert task.calls == [(1, True), (1, False), (2, False), (4, False)]


def cltk_run(*arguments: str, module: str = "cltk", **environment: str) -> forks.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCES, **environment}
    command = [sys.executable, "-m", module, "run", *arguments]
    return forks.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process: forks.Popen, code: int = 0) -> str:
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
    """And keeps the error of a cell that fails, beside them."""
    pytest.importorskip("ray")
    text = experiment.read_text().replace("max_steps: 6", "max_steps: 60")
    experiment.write_text(text.replace("    plain: []", "    plain: []\n    diverges: [low_lr: {factor: 1.0e+33}]"))
    ended(cltk_run("experiment.yaml", "--out", "serial"), 1)
    process = cltk_run("experiment.yaml", "--out", "parallel", "--ray")
    until = time.monotonic() + 300
    while not list(Path("parallel").glob("base-*/scores.json")) and time.monotonic() < until:
        time.sleep(0.05)
    while not (busy := workers()) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(busy[0], signal.SIGKILL)
    assert "1 of 6 cells failed" in ended(process, 1)
    assert found("parallel") == found("serial")
    assert len(found("serial")) == 5
    assert read_json(next(Path("parallel").glob("*/failed.json")))["kind"] == "DivergedError"


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def ranks(*arguments: str, module: str = "cltk", **environment: str) -> list[tuple[int, str]]:
    """Exit code and output of two ranks that are started without an agent, as srun and mpirun do."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = [cltk_run(*arguments, module=module, **shared, **environment, RANK=str(r), LOCAL_RANK=str(r)) for r in range(2)]
    outputs = [process.communicate(timeout=500)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


ACCELERATE = (
    "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_transformer_layer_cls_to_wrap"
    " LlamaDecoderLayer --fsdp_cpu_ram_efficient_loading true --num_machines 1 --mixed_precision no --dynamo_backend no"
    " --num_processes 2 --main_process_port"
)


def launched(launcher: str, *arguments: str, module: str = "cltk", **environment: str) -> None:
    """As the README has it: torchrun, or accelerate's launcher with a configuration for FSDP2."""
    start = {
        "torchrun": f"torch.distributed.run --nproc-per-node 2 --master-port {free_port()}",
        "accelerate": f"accelerate.commands.launch {ACCELERATE} {free_port()}",
    }[launcher]
    command = [sys.executable, "-m", *start.split(), "-m", module, "run", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCES, **environment}
    done = forks.run(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=500)
    assert done.returncode == 0, done.stdout[-5000:]


ZERO = (
    "deepspeed: {zero_optimization: {stage: STAGE, stage3_param_persistence_threshold: 0}, zero_allow_untested_optimizer: true,"
    " gradient_clipping: auto, train_micro_batch_size_per_gpu: auto, gradient_accumulation_steps: auto}, per"
)
FSDP = "fsdp: true, fsdp_config: {version: 2, transformer_layer_cls_to_wrap: [LlamaDecoderLayer]}, per"
SHARDED = "tests.distributed.sharding"


def seen() -> list[list[dict[str, Any]]]:
    """What every rank noted of its trainings, rank by rank."""
    files = sorted(Path("seen").glob("*.json"))
    return [[json.loads(file.read_text()) for file in files if file.name.startswith(f"{rank}-")] for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """alone(text): what one process makes of `experiment.yaml`, which says `text`; run once."""
    kept = tmp_path_factory.mktemp("alone")
    known: dict[str, Path] = {}

    def run(text: str) -> Path:
        if text not in known:
            ended(cltk_run("experiment.yaml", "--out", "first"))
            known[text] = Path(shutil.move("first", kept / str(len(known))))
        return known[text]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "launcher"),
    [("ddp", "torchrun"), ("fsdp2", "torchrun"), ("fsdp2", "accelerate"), *((f"zero{n}", "torchrun") for n in (1, 2, 3))],
)
def test_two_processes_equal_one(experiment: Path, engine: str, launcher: str, alone: Callable[[str], Path]) -> None:
    """Same rows a step (2 x 2 for 4): scores and divergences agree to rounding. (An mc Fisher draws labels by rank.)

    Adam divides by sqrt(v) + eps: with eps 1e-3 a gradient's rounding, some 1e-7, moves a weight by at most
    6 steps x 3e-3 / 1e-3 x 1e-7 = 2e-6; with its 1e-8 the order of a sum would decide the sign of whole steps.
    """
    text = experiment.read_text().replace("normalize: mean", "normalize: mean, kind: empirical")
    text = text.replace("learning_rate: 3.0e-3", "learning_rate: 3.0e-3, adam_epsilon: 1.0e-3")
    text = "speed: {autocast: false, onednn: false}\n" + text  # what a machine has of these rounds more than that
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
        text = "\n".join(
            line for line in text.split("\n") if "early_stopping:" not in line
        )  # refused there: it acts after steps
    experiment.write_text(text)
    shutil.copytree(alone(text), "one")
    added = {"ddp": "per", "fsdp2": FSDP if launcher == "torchrun" else "per"}.get(engine, ZERO.replace("STAGE", engine[-1]))
    halves = text.replace("per_device_train_batch_size: 4", "per_device_train_batch_size: 2")
    Path("two.yaml").write_text(halves.replace("per", added, 1))
    Path("seen").mkdir()
    devices = {"CLTK_TEST_DEVICES": "1"} if engine == "fsdp2" else {}
    environment = {"CLTK_TEST_SEEN": "seen", "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", **devices}
    launched(launcher, "two.yaml", "--out", "two", module=SHARDED, **environment)
    wrapper, held, share = {
        "ddp": ("DistributedDataParallel", "Parameter", 1.0), "fsdp2": ("FSDPLlamaForCausalLM", "DTensor", 0.5),
    }.get(engine, ("DeepSpeedEngine", "Parameter", None))  # fmt: skip
    for rank in seen():
        assert len(rank) == len(found("one"))
        assert {(one["wrapper"], *one["held"]) for one in rank} == {(wrapper, held)}
        assert share is None or {one["share"] for one in rank} == {share}
    compare_outputs("one", "two")


def compare_outputs(one: str, two: str) -> None:
    """Effects, divergences and the start model's scores of two output folders agree to rounding."""
    first, second = found(one), found(two)
    assert set(first) == set(second)
    for method in first:
        names = [
            name for name in first[method]
            if name.startswith(("retain.rows", "learn.rows", "divergence")) and name.endswith((".pre", ".post", ".kl"))
        ]  # fmt: skip
        assert len(names) > 10
        for name in names:
            assert second[method][name] == pytest.approx(first[method][name], rel=1e-5, abs=1e-6), (method, name)
    base = [json.loads(path.read_text())["tasks"] for out in (one, two) for path in Path(out).glob("base-*/scores.json")]
    assert base[0].keys() == base[1].keys()
    for task in base[0]:
        for metric, values in base[0][task]["values"].items():
            assert base[1][task]["values"][metric] == pytest.approx(values, rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_ranks_that_find_different_speeds_train_alike(experiment: Path, engine: str) -> None:
    """Rank 0's word holds: else DDP would average gradients of two precisions, and FSDP2 gather pieces of two sizes."""
    head = experiment.read_text().split("grid:")[0]
    experiment.write_text(head.replace("per", FSDP if engine == "fsdp2" else "per", 1))
    Path("seen").mkdir()
    environment = {"CLTK_TEST_SEEN": "seen", "CLTK_TEST_APART": "faster_in_bfloat16"}
    devices = {"CLTK_TEST_DEVICES": "1"} if engine == "fsdp2" else {}
    done = ranks("experiment.yaml", "--out", "out", module=SHARDED, **environment, **devices)
    assert [code for code, _ in done] == [0, 0], done
    (first,), (second,) = seen()
    assert first == second
    assert first["bf16"] is True
    assert first["wrapper"] == ("FSDPLlamaForCausalLM" if engine == "fsdp2" else "DistributedDataParallel")
    record = read_json(next(Path("out").glob("plain*/record.json")))
    assert record["train"]["notes"]["speed"] == first["speed"]
    assert ["speed: autocast" in output for _, output in done] == [True, False]  # said once


@pytest.mark.slow
def test_what_one_rank_refuses_all_refuse(experiment: Path) -> None:
    """Rank 0 finds that oneDNN is not exact, the others that it is; nobody waits for ever."""
    experiment.write_text("speed: {onednn: true}\n" + experiment.read_text().split("grid:")[0])
    environment = {"CLTK_TEST_SEEN": "seen", "CLTK_TEST_APART": "onednn_error"}
    for code, output in ranks("experiment.yaml", "--out", "out", module=SHARDED, **environment):
        assert code == 1, output
        assert "speed.onednn: true, but a product differs from float64 by 1e+00" in " ".join(output.split())
        assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["yaml", "launcher"])
def test_sharding_that_would_not_happen_is_refused(experiment: Path, asked: str) -> None:
    """Without accelerators accelerate makes whole replicas of what is to be sharded, without a word."""
    if asked == "yaml":
        experiment.write_text(experiment.read_text().replace("per", FSDP, 1))
    for code, output in ranks(
        "experiment.yaml", "--out", "out", **({"ACCELERATE_USE_FSDP": "true"} if asked == "launcher" else {})
    ):
        assert code == 2, output
        assert ("train.fsdp" if asked == "yaml" else "FSDP in the launcher's configuration") in output
        assert "there is no GPU, and without one every rank would hold the whole model" in output
    assert not list(Path("out").glob("base-*"))


def test_every_rank_reads_the_weights(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's usual FSDP settings let transformers leave other ranks than the first without weights; all of them score."""
    for key, value in {"ACCELERATE_USE_FSDP": "true", LAZY: "true", "LOCAL_RANK": "1", "RANK": "1"}.items():
        monkeypatch.setenv(key, value)
    asked: list[bool] = []
    stock = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *a, **k: asked.append(is_fsdp_enabled()) or stock(*a, **k)
    )
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        found = load_model(tiny_folder)[0].state_dict()
        assert is_fsdp_enabled()  # as the launcher has it, for what comes after
    finally:
        dist.destroy_process_group()
    assert asked == [False]
    for name, value in load_file(tiny_folder / "model.safetensors").items():
        assert torch.equal(found[name], value), name


def test_sharding_over_one_process_is_refused(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment.write_text(experiment.read_text().replace("per", FSDP, 1))
    assert main(["run", "experiment.yaml", "--out", "out", "--dry-run"]) == 0  # may be planned where it cannot run
    capsys.readouterr()
    assert main(["run", "experiment.yaml", "--out", "out"]) == 2
    assert capsys.readouterr().err.startswith("cltk: experiment.yaml: train.fsdp: there is one process, nothing to shard over")
    assert not Path("out").exists()
