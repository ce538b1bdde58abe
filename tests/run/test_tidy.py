"""What a run leaves: no caches, no checkpoints; curves, records and the models it started from as they were."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.cli import main
from cltk.files import locked
from cltk.models import tree_digest
from cltk.run import cells
from cltk.run.train import training_arguments


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


def write(experiment: Path, grid: str, train: str = "save_strategy: steps, save_steps: 1") -> Path:
    """The study with this grid; a checkpoint a step."""
    head = experiment.read_text().split("grid:")[0].replace('save_strategy: "no"', train)
    experiment.write_text(head + f"grid: {{mitigators: {grid}}}\nkeep_model: false\n")
    return experiment


EWC = "ewc: [ewc: {strength: 1.0, importance: {memory: old.jsonl, samples: 4, block: 32}}]"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_behind_the_last_record_no_cache_and_no_checkpoint_is_left(experiment: Path) -> None:
    file, most, cached = write(experiment, f"{{plain: [], {EWC}}}"), 0, set()

    def look(*_: object) -> None:
        nonlocal most
        most = max([most, *(len(list(one.glob("checkpoint-*"))) for one in Path("out").glob("*/checkpoints"))])
        cached.update(path.name.split("-")[0] for path in Path("out/cache").glob("*"))

    cltk.load(file, "out").run(look)
    assert most == 2
    assert {"ewc", "journal"} <= cached
    assert {name.split("-")[0] for name in names(Path("out"))} == {"base", "plain_seed=0", "ewc_seed=0", "speed.json"}
    assert names(next(Path("out").glob("plain*"))) == {"record.json", "scores.json", "lm_eval"}

    Path("out/cache").mkdir()  # as of a run that was killed behind its last record
    Path("out/cache/ewc-0.safetensors").write_bytes(b"0")
    cltk.load(file, "out").run()
    assert not Path("out/cache").exists()


def test_how_many_checkpoints_are_kept() -> None:
    assert training_arguments({}, 0, Path("out")).save_total_limit == 2
    assert training_arguments({"save_total_limit": 5}, 0, Path("out")).save_total_limit == 5
    assert training_arguments({"save_total_limit": None}, 0, Path("out")).save_total_limit is None


@pytest.fixture
def half(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder with a finished cell and one that failed behind its training."""
    measured = cells.record

    def failing(inputs: Any, cell: Any, *arguments: Any) -> Any:
        if cell.method == "ewc":
            raise ValueError("late")
        return measured(inputs, cell, *arguments)

    monkeypatch.setattr(cells, "record", failing)
    assert main(["run", str(write(experiment, f"{{plain: [], {EWC}}}")), "--out", "out"]) == 1
    monkeypatch.setattr(cells, "record", measured)
    return Path("out")


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_clean_lists_then_removes_what_nobody_reads(half: Path, experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (done,), (failed,) = half.glob("plain*"), half.glob("ewc*")
    kept = {
        path: path.read_bytes()
        for path in half.rglob("*.json*")
        if "checkpoints" not in path.parts and "cache" not in path.parts
    }
    (done / "checkpoints").mkdir()
    (done / "checkpoints/left").write_bytes(bytes(3_000_000))
    (done / "model").mkdir()
    (done / "model/weights").write_bytes(bytes(2_000_000))
    capsys.readouterr()
    assert main(["clean", "out"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"       3.0 MB  {done / 'checkpoints'}: of a finished training", "3.0 MB can go; --yes removes it",
    ]  # fmt: skip
    assert (done / "checkpoints").exists()
    assert main(["clean", "out", "--yes"]) == 0
    assert not (done / "checkpoints").exists()
    assert (half / "cache").exists()  # the failed cell reads it

    expected = (size(half / "cache") + size(failed / "checkpoints") + 2_000_000) / 1e6
    assert main(["clean", "out", "--unfinished", "--models", "--yes"]) == 0
    out = capsys.readouterr().out
    assert f"{expected:.1f} MB removed" in out
    assert out.count("\n") == 6
    assert {path: path.read_bytes() for path in kept} == kept
    assert not (half / "cache").exists()
    assert names(failed) == {"failed.json"}
    assert main(["clean", "out", "--unfinished", "--models"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"
    assert main(["run", str(experiment), "--out", "out"]) == 0
    assert not (half / "cache").exists()


def test_clean_keeps_off_what_is_not_its_own(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(half):
        assert main(["clean", "out", "--yes"]) == 2
        assert "another run works in this folder" in capsys.readouterr().err
    shutil.move(half / "cache", "elsewhere")
    (half / "cache").symlink_to(Path("elsewhere").absolute())
    before = names(Path("elsewhere"))
    assert main(["clean", "out", "--unfinished", "--yes"]) == 0
    assert names(Path("elsewhere")) == before
    for other in ("tiny-llama", "nowhere", "experiment.yaml", "."):
        assert main(["clean", other, "--yes"]) == 2
        assert "not a folder that `cltk run` wrote" in capsys.readouterr().err


# ---- curves


def scalars(folder: Path, name: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [event.value for event in found.Scalars(name)]


def test_curves_stay_in_the_cells_folder(experiment: Path) -> None:
    pytest.importorskip("tensorboard")
    grid = "{plain: [], half: [wise_ft: {alpha: 0.5}], third: [wise_ft: {alpha: 0.3}]}"
    file = write(experiment, grid, "save_strategy: steps, save_steps: 3, report_to: tensorboard")
    for record in cltk.load(file, "out").run():
        (folder,) = Path("out").glob(f"{record['method']}_*/curves")
        losses = [line["loss"] for line in record["train"]["history"] if "loss" in line]
        assert len(losses) == 3
        assert scalars(folder, "train/loss") == pytest.approx(losses, abs=1e-6)


def test_curves_of_a_stream_by_its_stages(experiment: Path) -> None:
    pytest.importorskip("tensorboard")
    text = experiment.read_text().split("grid:")[0].replace("logging_steps: 2", "logging_steps: 2, report_to: [tensorboard]")
    text = text.replace("data:\n", "stages:\n  - name: first\n    data: &data\n").replace("\n  train:", "\n      train:")
    text = text.replace("\n  validation:", "\n      validation:").replace("\n  heldout:", "\n      heldout:")
    text = text.replace("\n  max_length: 64\n", "\n      max_length: 64\n  - {name: second, data: *data}\n")
    experiment.write_text(f"{text}keep_model: false\n")
    (record,) = cltk.load(experiment, "out").run()
    (cell,) = (path.parent for path in Path("out").glob("*/record.json"))
    assert names(cell / "curves") == {"1-first", "2-second"}
    assert not (cell / "stages").exists()
    for stage in ("1-first", "2-second"):
        losses = [line["loss"] for line in record["train"]["history"] if "loss" in line and line["stage"] == stage[2:]]
        assert scalars(cell / "curves" / stage, "train/loss") == pytest.approx(losses, abs=1e-6)


# ---- the start model


@pytest.mark.parametrize(
    "out", ["W/tiny-llama", "W/tiny-llama/runs", "link", "link/runs", "W/other", "W/tasks/../tiny-llama/."]
)
@pytest.mark.parametrize("how", ["grid", "pretrained"])
def test_no_model_is_written_to_from_any_folder(
    out: str, how: str, experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("tiny-llama", "other")
    text = write(experiment, "{plain: [], soup: [lm_cocktail: {models: [other]}]}").read_text()
    if how == "grid":
        text = text.replace("pretrained: tiny-llama", "pretrained: other").replace(
            "grid: {", "grid: {model: {one: {pretrained: tiny-llama}, two: {pretrained: other}}, "
        )
    experiment.write_text(text)
    home, elsewhere = Path.cwd(), Path("elsewhere").absolute()
    elsewhere.mkdir()
    (elsewhere / "W").symlink_to(home)
    (elsewhere / "link").symlink_to(home / "tiny-llama")
    monkeypatch.chdir(elsewhere)
    before = tree_digest(home / "tiny-llama"), tree_digest(home / "other"), os.listdir(home)
    assert main(["run", "W/experiment.yaml", "--out", out]) == 2
    assert "start model" in capsys.readouterr().err
    assert (tree_digest(home / "tiny-llama"), tree_digest(home / "other"), os.listdir(home)) == before


def test_a_run_beside_the_model_leaves_it_as_it_was(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree_digest(Path("tiny-llama"))
    cltk.load(write(experiment, "{plain: []}"), "tiny-llama-out").run()
    assert tree_digest(Path("tiny-llama")) == before
    (record,) = map(str, Path("tiny-llama-out").glob("*/record.json"))
    assert main(["reproduce", record, "--out", "tiny-llama"]) == 2
    assert "start model" in capsys.readouterr().err
    assert main(["reproduce", record, "--out", "again"]) == 0
    assert not Path("again/cache").exists()
    assert tree_digest(Path("tiny-llama")) == before
