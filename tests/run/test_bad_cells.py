"""A bad cell stops nobody, and what can be known to go wrong is known before weights are loaded."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.run import cells
from cltk.run.records import read_json
from tests import forks
from tests.run.test_parallel import ZERO, ranks

GRID = "grid: {mitigators: {one: [], two: [low_lr: {factor: 0.5}], three: [l2_sp: {strength: 0.1}]}}\nkeep_model: false\n"


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


@pytest.fixture
def three(experiment: Path) -> Path:
    """Three cells of two steps each, measured on a few documents."""
    head = experiment.read_text().split("grid:")[0].replace("max_steps: 6", "max_steps: 2")
    experiment.write_text(head + GRID)
    return experiment


@pytest.mark.parametrize("error", [
    KeyError("eval_acc"), RuntimeError("first line\n  middle\nlast line"), ImportError("no such kernel"), TypeError(""),
    ValueError("x" * 5000 + "end"), AssertionError("an invariant"), StopIteration("odd"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_any_exception_of_a_cell_is_kept_and_the_others_run(
    error: Exception, three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = cells.train_cell

    def failing(cell: Any, *arguments: Any, **more: Any) -> Any:
        if cell.method == "two":
            raise error
        return train(cell, *arguments, **more)

    monkeypatch.setattr(cells, "train_cell", failing)
    assert main(["run", str(three), "--out", "out"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    last = said.strip().split("\n")[-1]
    assert last.startswith("cltk: 1 of 3 cells failed (two_seed=0); the first: two_seed=0: ")
    assert type(error).__name__ in last
    assert len(last) < 700
    assert len(list(Path("out").glob("*/record.json"))) == 2
    (file,) = Path("out").glob("*/failed.json")
    kept = read_json(file)
    assert (kept["cell"], kept["method"], kept["kind"]) == ("two_seed=0", "two", type(error).__name__)
    assert (str(error).split() or [""])[-1][-20:] in kept["error"]
    assert "in failing" in "".join(kept["traceback"])

    monkeypatch.setattr(cells, "train_cell", train)
    assert main(["run", str(three), "--out", "out"]) == 0
    assert len(list(Path("out").glob("*/record.json"))) == 3
    assert not list(Path("out").glob("*/failed.json"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, BrokenPipeError])
def test_what_ends_the_process_is_no_failure_of_a_cell(
    error: type[BaseException], three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(cells, "train_cell", stopping)
    with pytest.raises(error):
        cltk.load(three, "out").run()
    assert not list(Path("out").glob("*/failed.json"))


# ---- margins


def test_a_margin_of_a_metric_that_only_old_tasks_have(three: Path) -> None:
    text = three.read_text().split("grid:")[0].replace("evals:\n", "evals:\n  margins: {acc: 0.02, nll: 0.5}\n")
    three.write_text(text + "keep_model: false\n")
    (record,) = cltk.load(three, "out").run()
    margins = {(row["task"], row["metric"]): row["margin"] for role in ("retain", "learn") for row in record[role]["rows"]}
    assert margins["toy", "acc"] == 0.02
    assert margins["toy", "acc_norm"] == 0.01
    assert margins["old_text", "nll"] == margins["heldout", "nll"] == 0.5


@pytest.mark.parametrize(("margins", "said"), [
    ("{acx: 0.02}", "evals.margins.acx: nothing that is measured has this metric; did you mean 'acc'?"),
    ("{acc: 0}", "evals.margins.acc: must be above 0, got 0"), ("{nll: -1}", "evals.margins.nll: must be above 0"),
    ("{acc: .nan}", "evals.margins.acc: must be above 0"),
])  # fmt: skip
def test_a_margin_that_nothing_can_have(margins: str, said: str, three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three.write_text(three.read_text().replace("evals:\n", f"evals:\n  margins: {margins}\n"))
    for more in ([], ["--dry-run"]):
        assert main(["run", str(three), "--out", "out", *more]) == 2
        assert said in capsys.readouterr().err
    assert not Path("out").exists()


# ---- known before training

MISSING = [
    ("optim: adamw_bnb_8bit", "train.optim: adamw_bnb_8bit cannot be used here (You need to install `bitsandbytes`"),
    ("optim: galore_adamw, optim_target_modules: [q_proj]", "train.optim: galore_adamw cannot be used here"),
    ("optim: adamw_torch_npu_fused", "train.optim: adamw_torch_npu_fused cannot"),
    ("adam_beta1: 1.5", "train.optim: adamw_torch"),
    ("report_to: wandb", "train.report_to: wandb cannot be used here (WandbCallback requires wandb"),
    ("report_to: [none_such]", "train.report_to: none_such cannot be used here"),
    ("use_liger_kernel: true", "train.use_liger_kernel: the package liger-kernel is not installed"),
    ("lr_scheduler_type: warmup_stable_decay", "train.lr_scheduler_type: warmup_stable_decay cannot be made"),
    ("lr_scheduler_type: cosine, lr_scheduler_kwargs: {cycles: 2}", "lr_scheduler_kwargs {'cycles': 2}"),
    ("metric_for_best_model: acc, eval_strategy: steps, eval_steps: 1", "no evaluation gives 'acc'"),
    ("metric_for_best_model: eval_los, eval_strategy: epoch", "did you mean 'eval_loss'?"),
    ("batch_eval_metrics: true", "train.batch_eval_metrics"),
]


@pytest.mark.parametrize(("setting", "said"), MISSING, ids=[setting for setting, _ in MISSING])
def test_a_training_that_cannot_be_is_refused_before_weights_are_loaded(
    setting: str, said: str, three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bitsandbytes", "galore_torch"):
        monkeypatch.setattr(f"transformers.trainer_optimizer.is_{name}_available", lambda: False)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    monkeypatch.setattr("cltk.run.ahead.find_spec", lambda name: None)
    monkeypatch.setattr("cltk.models.load_model", None)  # would be called
    three.write_text(three.read_text().replace("logging_steps: 2", setting))
    assert main(["run", str(three), "--out", "out"]) == 2
    seen = capsys.readouterr().err
    assert said in seen
    assert "experiment.yaml: train" in seen
    assert len(seen.strip().split("\n")) == 1
    assert not Path("out").exists()


@pytest.mark.parametrize("setting", [
    "optim: sgd", "optim: adafactor", "optim: rmsprop", "optim: adagrad", "optim: adamw_torch", "lr_scheduler_type: cosine",
    "lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: 2}", "metric_for_best_model: acc",
    "metric_for_best_model: loss, eval_strategy: steps, eval_steps: 1", "lr_scheduler_type: polynomial, warmup_steps: 1",
    "lr_scheduler_type: reduce_lr_on_plateau, eval_strategy: steps, eval_steps: 1", "report_to: none",
])  # fmt: skip
def test_what_trainer_takes_is_not_refused(setting: str, three: Path) -> None:
    three.write_text(three.read_text().replace("logging_steps: 2", setting))
    cltk.load(three, "out").check()


def test_lora_without_its_package(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cltk.run.ahead.find_spec", lambda name: None)
    three.write_text(three.read_text().replace("l2_sp: {strength: 0.1}", "lora: {r: 4}"))
    with pytest.raises(InputError, match=r"experiment\.yaml: lora: needs the package peft"):
        cltk.load(three, "out").check()


# ---- several ranks

RANK = """
import sys
from cltk.cli import main
from cltk.ranks import ranks
from cltk.run import cells
from transformers import Trainer

train, stock = cells.train_cell, Trainer.training_step

def step(*_):
    raise KeyError(f"rank {ranks()[0]}")

def failing(cell, *arguments, **more):
    Trainer.training_step = stock
    if cell.method == "two" and str(ranks()[0]) in sys.argv[1]:
        if sys.argv[2] == "before":
            step()
        Trainer.training_step = step
    return train(cell, *arguments, **more)

cells.train_cell = failing
raise SystemExit(main(["run", "experiment.yaml", "--out", "out"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("bad", "when", "engine"), [
    ("1", "before", "ddp"), ("0", "step", "ddp"), ("01", "before", "ddp"), ("1", "before", "zero2"), ("1", "before", "zero3"),
])  # fmt: skip
def test_ranks_fail_together_and_go_on_together(bad: str, when: str, engine: str, three: Path) -> None:
    """A rank that fails alone leaves the other in a collective for ever, if anything of a training holds the group.

    DeepSpeed's engines do, which nothing ends (transformers#28178, DeepSpeed#5143, #7204); its own groups are those of the
    group that was.
    """
    if engine != "ddp":
        pytest.importorskip("deepspeed")
        text = three.read_text().replace("l2_sp: {strength: 0.1}", "l2_sp: {strength: 0.1, form: gradient}")
        three.write_text(text.replace("per", ZERO.replace("STAGE", engine[-1]), 1))
    Path("rank.py").write_text(RANK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "DS_BUILD_OPS": "0",
    }
    started = [
        forks.Popen(
            [sys.executable, "rank.py", bad, when], env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [1, 1], "\n".join(output[-3000:] for output in outputs)
    assert sorted(path.parent.name.split("_")[0] for path in Path("out").glob("*/record.json")) == ["one", "three"]
    (file,) = Path("out").glob("*/failed.json")
    kept = read_json(file)
    assert kept["kind"] == "KeyError"
    assert "rank" in kept["error"]
    for output in outputs:
        assert "1 of 3 cells failed (two_seed=0); the first: two_seed=0: KeyError: 'rank" in output


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_a_training_that_diverges_under_deepspeed(engine: str, three: Path) -> None:
    """It steps inside backward, and has its own words for a norm that is not finite: -1, and inf where it skipped the step."""
    pytest.importorskip("deepspeed")
    text = (
        three.read_text().replace("low_lr: {factor: 0.5}", "low_lr: {factor: 1.0e+33}").replace("max_steps: 2", "max_steps: 4")
    )
    three.write_text(text.replace(", three: [l2_sp: {strength: 0.1}]", "").replace("per", ZERO.replace("STAGE", engine[-1]), 1))
    for code, output in ranks("experiment.yaml", "--out", "out", DS_ACCELERATOR="cpu", DS_BUILD_OPS="0"):
        assert code == 1, output[-3000:]
        assert "1 of 2 cells failed (two_seed=0); the first: two_seed=0: the loss or a gradient is not finite" in output
    assert len(list(Path("out").glob("*/record.json"))) == 1
    (file,) = Path("out").glob("*/failed.json")
    assert read_json(file)["kind"] == "DivergedError"
