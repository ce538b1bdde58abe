"""SIGUSR1 and SIGTERM: a checkpoint, exit code 75, and the same bits when the same command is run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import model_serializer

import cltk
from cltk.cli import main
from cltk.errors import Leave
from cltk.run import cells, leaving
from cltk.run.checkpoints import Keeper
from cltk.run.records import read_json
from cltk.run.reproduce import values_of
from cltk.run.spec_data import Section
from tests.conftest import TINY

ROOT = Path(cltk.__file__).parent.parent
TEXT = (
    TINY
    + """\
train: {learning_rate: 3.0e-3, num_train_epochs: 2, per_device_train_batch_size: 10, logging_steps: 4, save_strategy: "no"}
mitigators: [ewc: {strength: 1.0, importance: {memory: old.jsonl, samples: 8, block: 32}}, ema: {decay: 0.5}]
evals: {retain: [toy, {text: old.jsonl, name: old_text, limit: 8}], include_path: tasks, limit: 6, kl_rows: 4}
speed: {onednn: false, autocast: false}
keep_model: false
"""
)  # 12 steps, of which 6 end the first epoch


@pytest.fixture
def run(study: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    Path("x.yaml").write_text(TEXT)

    def run(out: str, *more: str) -> int:
        return main(["run", "x.yaml", "--out", out, *more])

    return run


def values(out: str) -> dict[str, Any]:
    (file,) = Path(out).glob("*/record.json")
    return dict(values_of(read_json(file)))


@pytest.fixture
def struck(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[int]]:
    """A signal comes at the end of a step; the steps that were done since."""

    def strike(step: int, number: int = signal.SIGUSR1) -> list[int]:
        done: list[int] = []
        end = Keeper.on_step_end

        def ended(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            done.append(state.global_step)
            if state.global_step == step and len(done) == step:
                os.kill(os.getpid(), number)
            end(self, args, state, control, **more)

        monkeypatch.setattr(Keeper, "on_step_end", ended)
        return done

    return strike


@pytest.mark.parametrize(("step", "number", "more"), [
    (3, "SIGUSR1", []), (6, "SIGTERM", []), (12, "SIGUSR1", []),
    (4, "SIGUSR1", ["train.save_strategy=steps", "train.save_steps=3"]),
    (7, "SIGTERM", ["train.save_strategy=epoch"]), (3, "SIGUSR1", ["train.save_only_model=true"]),
], ids=str)  # fmt: skip
def test_a_training_leaves_with_a_checkpoint_and_goes_on_from_it(
    step: int, number: str, more: list[str], run: Any, struck: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning#4265, #21406: what a signal saves must be whole, and taken up."""
    assert run("peace", *more) == 0
    done = struck(step, getattr(signal, number))
    assert run("out", *more) == 75
    assert capsys.readouterr().err.rstrip().endswith(f"cltk: {number}: left; the same command continues from here")
    assert not list(Path("out").glob("*/record.json"))
    assert not list(Path("out").glob("*/failed.json"))
    assert not list(Path("out").rglob("*.lease"))
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert run("out", *more) == 0
    assert done == list(range(1, 13))  # no step is done twice
    assert values("out") == values("peace")


@pytest.mark.parametrize("moment", ["start model", "tuned model"])
def test_scoring_leaves_at_once(moment: str, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("peace") == 0
    evaluate, asked = cells.Work._evaluate, []

    def struck(self: Any, cell: Any, model: Any, tokenizer: Any, who: str, *more: Any) -> Any:
        if (who == "start model") == (moment == "start model") and not asked:
            asked.append(who)
            os.kill(os.getpid(), signal.SIGUSR1)
            pytest.fail("it went on")
        return evaluate(self, cell, model, tokenizer, who, *more)

    monkeypatch.setattr(cells.Work, "_evaluate", struck)
    assert run("out") == 75
    assert not list(Path("out").glob("*/failed.json"))
    assert run("out") == 0
    assert values("out") == values("peace")


def test_a_second_signal_does_not_wait_for_the_step() -> None:
    with leaving.heeding(), suppress(Leave), leaving.steady():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert leaving.asked()
        with pytest.raises(Leave, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert not leaving.asked()


def _asked_in_a_step(done: list[int]) -> None:
    with leaving.steady():
        os.kill(os.getpid(), signal.SIGUSR1)
        done.append(1)


def test_a_step_is_waited_for_and_then_left() -> None:
    done: list[int] = []
    with leaving.heeding(), pytest.raises(Leave, match="SIGUSR1"):
        _asked_in_a_step(done)
    assert done


def test_handlers_of_others_stay() -> None:
    """submitit and schedulers' own wrappers set theirs."""
    came: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        with leaving.heeding():
            os.kill(os.getpid(), signal.SIGUSR1)
        assert came == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_a_forked_worker_ends_by_the_signal() -> None:
    with leaving.heeding():
        child = os.fork()
        if not child:
            time.sleep(20)
            os._exit(0)
        time.sleep(0.3)  # a signal that comes within the fork is lost with Python's state
        os.kill(child, signal.SIGTERM)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
        assert not leaving.asked()


JOB = """
import sys, time
from cltk.run import leaving
from cltk.errors import Leave
try:
    with leaving.heeding():
        print("ready", flush=True)
        time.sleep(20)
except Leave as left:
    sys.exit(left.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_job_script_passes_signals_on_and_asks_for_its_place_again(number: int, tmp_path: Path) -> None:
    """`--signal=B:` reaches the shell alone, which passes nothing on; an array's task is ID_TASK (Lightning#15022)."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "cltk": f"#!{sys.executable}\n{JOB}",
        "scontrol": f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    env = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "13", "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "3", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    job = subprocess.Popen(
        ["bash", str(ROOT / "experiments/examples/slurm.sh"), "x.yaml"],
        env=env,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    job.send_signal(number)
    assert job.wait(30) == 75
    job.stdout.close()
    assert (tmp_path / "asked").read_text() == "requeue 12_3\n"


@pytest.mark.parametrize("struck", [KeyboardInterrupt(), Leave("SIGTERM")])
def test_an_interrupt_while_a_configuration_is_written_down_stays_one(struck: BaseException) -> None:
    """Found by a blow: pydantic makes an error of its own of whatever is raised inside of a serializer."""

    class Inner(Section):
        @model_serializer(mode="wrap")
        def _dumped(self, dump: Any) -> dict[str, Any]:
            raise struck

    class Outer(Section):
        inner: Inner = Inner()

    with pytest.raises(type(struck)) as caught:
        Outer().model_dump()
    assert str(caught.value) == str(struck)
