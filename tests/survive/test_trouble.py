"""Out of memory, not-a-number and full disks in a training: one line that says what to lower, the step in failed.json."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from cltk.cli import main
from cltk.errors import DiskError, InputError
from cltk.run.records import read_json
from cltk.run.trouble import OutOfMemoryError, advice, estimated, explained, out_of_memory
from tests.survive.test_checkpoints import EXPERIMENT

CPU = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 8 GiB"),
    "cpu": RuntimeError(CPU),
    "python": MemoryError(),
}


def test_what_is_out_of_memory() -> None:
    assert all(out_of_memory(error) for error in ERRORS.values())
    assert out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not out_of_memory(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55)
    assert out_of_memory(raised.value)


@pytest.fixture
def run(study: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))

    def run(text: str = EXPERIMENT) -> int:
        Path("x.yaml").write_text(text)
        return main(["run", "x.yaml", "--out", "out"])

    return run


@pytest.fixture
def config(study: Path) -> Any:
    from cltk.run.config import load_config

    (study / "x.yaml").write_text(EXPERIMENT)
    return load_config(study / "x.yaml").cells[0].config


def test_advice_names_what_is_not_lowered_yet(config: Any) -> None:
    said = advice(config, True)
    assert "per_device_train_batch_size (now 4)" in said
    assert "gradient_accumulation_steps (now 1)" in said
    assert "activation_checkpointing" in said
    assert "lora" in said
    assert "max_length (now 64)" in said
    train = {"per_device_train_batch_size": 1, "activation_checkpointing": True}
    lowered = config.model_copy(update={"train": train, "mitigators": [{"lora": {"r": 4}}]})
    assert advice(lowered, True) == "lower data.max_length (now 64)"
    assert "evals.batch_size" in advice(config, False)


def test_the_estimate_is_that_of_the_command(config: Any, tiny: Any, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cltk.run.estimates import estimate_yaml

    monkeypatch.chdir(study)
    model = tiny()
    said = estimated(config, model.config)
    assert f"expects {estimate_yaml(study / 'x.yaml')[0].training / 1e9:.2f} GB" in said
    assert all(parameter.requires_grad for parameter in model.parameters())
    odd = config.model_copy(update={"train": {"optim": "galore_adamw"}})
    assert "no estimate" in estimated(odd, model.config)


@pytest.mark.parametrize("kind", list(ERRORS))
def test_out_of_memory_is_explained(config: Any, tiny: Any, tmp_path: Path, kind: str) -> None:
    with pytest.raises(OutOfMemoryError) as raised, explained(config, tmp_path, tiny().config, lambda: 3):
        raise ERRORS[kind]
    message = str(raised.value)
    assert message.startswith("out of memory in training step 3 (")
    assert "`cltk estimate` expects" in message
    assert "\n" not in message
    assert raised.value.step == 3


def test_disks_are_explained_and_the_rest_passes(config: Any, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"x/a: cannot be written \(No space"), explained(config, tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", "x/a")
    with pytest.raises(DiskError, match="PytorchStreamWriter"), explained(config, tmp_path):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    for error in (RuntimeError("shapes differ"), FileNotFoundError(2, "no such file"), InputError("wrong"), KeyError("x")):
        with pytest.raises(type(error)) as raised, explained(config, tmp_path):
            raise error
        assert raised.value is error


@pytest.mark.slow
def test_a_training_out_of_memory(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import Trainer

    step = Trainer.training_step
    seen: list[int] = []

    def third(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        if len(seen) == 3:
            raise ERRORS["cpu"]
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", third)
        assert run() == 1
    said = capsys.readouterr().err
    assert "out of memory in training step 3" in said
    assert "Traceback" not in said
    failed = read_json(next(Path("out").glob("*/failed.json")))
    assert failed["kind"] == "OutOfMemoryError"
    assert failed["step"] == 3
    assert run() == 0  # memory was freed: on from step 2
    assert not list(Path("out").glob("*/failed.json"))


@pytest.mark.slow
def test_a_diverged_training_keeps_step_and_weights(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    diverging = EXPERIMENT.replace("3.0e-3", "1.0e+30").split("mitigators:")[0]
    assert run(diverging) == 1
    assert "not finite at step 2" in capsys.readouterr().err
    failed = read_json(next(Path("out").glob("*/failed.json")))
    assert failed["kind"] == "DivergedError"
    assert failed["step"] == 2
    model = AutoModelForCausalLM.from_pretrained(next(Path("out").glob("*/checkpoints/last_good")))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_an_output_folder_that_cannot_be_is_refused(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text(EXPERIMENT)
    Path("file").touch()
    before = sorted(Path().rglob("*"))
    assert main(["run", "x.yaml", "--out", "file/out"]) == 2
    said = capsys.readouterr().err
    assert "file is a file; choose another folder" in said
    assert sorted(Path().rglob("*")) == before
