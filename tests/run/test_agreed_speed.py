"""`speed: auto` is measured once for an output folder: what another process would find does not part the cells."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cltk.cli import main
from cltk.run import agreed_speed, machine, records, speed
from cltk.run.records import read_json
from cltk.run.spec import SpeedSpec

GRID = "grid: {mitigators: {plain: [], low_lr: [low_lr: {factor: 0.5}]}}\nkeep_model: false\n"


@pytest.fixture
def two(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """two(first, second): the choices of two cells of one folder whose processes find (bfloat16, onednn, processor) so."""
    monkeypatch.chdir(experiment.parent)
    monkeypatch.setenv("CLTK_CACHE", str(experiment.parent / "cache"))
    head = experiment.read_text().split("grid:")[0].replace("max_steps: 6", "max_steps: 2")

    def run(*found: tuple[bool, bool, str], speed_section: str = "", exact: float = 0.0) -> list[dict[str, Any]]:
        experiment.write_text(head + speed_section + GRID)
        for method, (bfloat16, onednn, processor) in zip(("plain", "low_lr"), found, strict=True):
            monkeypatch.setattr(machine, "faster_in_bfloat16", lambda device, yes=bfloat16: yes)
            monkeypatch.setattr(machine, "onednn_error", lambda there=processor: exact if there == "other" else 0.0)
            monkeypatch.setattr(machine, "onednn_gain", lambda yes=onednn: 2.0 if yes else 1.0)
            monkeypatch.setattr(records, "processor", lambda device, name=processor: name)
            monkeypatch.setattr(speed, "_said", set())
            assert main(["run", "experiment.yaml", "--out", "out", "--only", f"method={method}"]) == 0
        notes = [read_json(next(Path("out").glob(f"{m}*/record.json")))["train"]["notes"]["speed"] for m in ("plain", "low_lr")]
        return [{one["what"]: (one["on"], one["why"]) for one in part} for part in notes]

    return run


@pytest.mark.parametrize("first", [True, False])
def test_the_first_training_decides_for_the_folder(first: bool, two: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plain, low_lr = two((first, first, "one"), (not first, not first, "one"))
    said = " ".join(capsys.readouterr().err.split())
    for what in machine.MEASURED:
        assert plain[what][0] is low_lr[what][0] is first, what
        assert "speed.json of this folder says" in low_lr[what][1]
        assert f"speed: {what}: {'on' if first else 'off'} ({low_lr[what][1]})" in said
    assert read_json(Path("out/speed.json"))["cpu"] == {"bfloat16": first, "onednn": first, "processor": "one"}


def test_another_processor_is_said(two: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, low_lr = two((True, True, "one"), (False, False, "other"))
    why = "on one, as speed.json of this folder says; this is other"
    assert low_lr["autocast"] == (True, f"bfloat16 products are faster {why}")
    assert low_lr["onednn"] == (True, f"a product is float32 and faster {why}")
    assert f"speed: autocast: on (bfloat16 products are faster {why})" in " ".join(capsys.readouterr().err.split())


def test_what_is_not_exact_there_is_off_and_said(two: Any) -> None:
    """A processor with tiles computes in bfloat16 what the other computed in float32: agreeing may not cost exactness."""
    plain, low_lr = two((False, True, "one"), (False, True, "other"), exact=4e-3)
    assert plain["onednn"][0]
    why = (
        "a product differs from float64 by 4e-03, and the folder's other cells have it on (on one, as speed.json of this folder"
    )
    assert low_lr["onednn"] == (False, f"{why} says; this is other)")


def test_what_the_yaml_says_is_not_measured(two: Any) -> None:
    plain, low_lr = two((True, True, "one"), (True, True, "other"), speed_section="speed: {autocast: false, onednn: false}\n")
    assert not plain["autocast"][0]
    assert not low_lr["onednn"][0]
    assert not Path("out/speed.json").exists()


def test_a_process_that_waited_takes_what_the_other_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def leased(file: Path) -> Any:
        kept = {"cpu": {"bfloat16": True, "onednn": False, "processor": "one"}}
        records.write_json(tmp_path / agreed_speed.FILE, kept)  # by another process, meanwhile
        yield

    monkeypatch.setattr(agreed_speed, "leased", leased)
    monkeypatch.setattr(machine, "faster_in_bfloat16", lambda device: pytest.fail("measured again"))
    found = agreed_speed.of_folder(tmp_path, SpeedSpec(), "cpu")
    assert found is not None
    assert (found.bfloat16, found.onednn, found.processor) == (True, False, "one")


def test_a_damaged_file_is_one_line(two: Any, tmp_path: Path, experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment.write_text(experiment.read_text().split("grid:")[0] + GRID)
    Path("out").mkdir()
    Path("out/speed.json").write_text(json.dumps({"cpu": {"bfloat16": True}}))
    assert main(["run", "experiment.yaml", "--out", "out", "--only", "method=plain"]) == 1
    said = capsys.readouterr().err
    assert "speed.json: damaged or edited by hand" in said
    assert "Traceback" not in said
