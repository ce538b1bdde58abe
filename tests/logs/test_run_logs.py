"""Output folders of `cltk run` as logs: which start model belongs to which cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from cltk.cli import main
from cltk.errors import InputError
from cltk.logs.comparing import compare, compare_all
from cltk.measure.scores import Scores, TaskScores
from cltk.run.records import write_json


def scored(folder: Path, digest: str, right: int, start: str = "") -> None:
    """A model that has `right` of 40 documents right, and its record where it started from another."""
    hashes = [f"d{i}" for i in range(40)]
    task = TaskScores("arc", {"acc": [float(i < right) for i in range(40)]}, {"acc": True}, hashes, hashes)
    write_json(folder / "scores.json", Scores(digest, {"arc": task}).to_json())
    if start:
        write_json(folder / "record.json", {"method": "plain", "train": {}, "digests": {"start_model": start}, "format": 2})


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A grid over two start models, of which the second knows more."""
    for name, digest, right, start in (
        ("base-1", "A", 20, ""), ("base-2", "B", 36, ""), ("plain-a", "a", 18, "A"), ("plain-b", "b", 30, "B"),
    ):  # fmt: skip
        scored(tmp_path / "runs" / name, digest, right, start)
    return tmp_path / "runs"


def test_several_start_models_are_named(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What B forgot was held against A, which knew less, so that a gate let it pass."""
    for command in ("compare", "gate"):
        assert main([command, str(grid), *(["--budget", "acc=0.05"] if command == "gate" else [])]) == 2
        assert "2 start models (base-1, base-2)" in capsys.readouterr().err
    assert main(["power", "--log", str(grid)]) == 2
    assert "2 start models" in capsys.readouterr().err
    for base, cell, lost in (("base-1", "plain-a", 2 / 40), ("base-2", "plain-b", 6 / 40)):
        found = compare_all(grid, [grid], base_model=base)
        assert list(found) == [cell]
        assert found[cell].rows[0].forgetting == pytest.approx(lost)
        (other,) = {"plain-a", "plain-b"} - {cell}
        assert f"{cell}: {other}: started from other weights than {base}, and is left out" in found[cell].notes
    assert main(["gate", str(grid), "--base-model", "base-2", "--budget", "acc=0.05"]) in (3, 4)
    assert "plain-b" in capsys.readouterr().out


def test_what_is_named_is_compared_and_said(grid: Path) -> None:
    said = "plain-b started from other weights than base-1: the difference is not what training changed"
    assert said in compare(grid / "base-1", grid / "plain-b").notes
    assert said in compare_all(grid, [grid], base_model="base-1", tuned_models=["plain-b"])["plain-b"].notes
    assert not [note for note in compare(grid / "base-2", grid / "plain-b").notes if "weights" in note]
    for name in ("c", "d"):
        scored(grid.parent / "elsewhere" / name, name, 3, "C")
    with pytest.raises(InputError, match="no model there started from base-1"):
        compare_all(grid / "base-1", [grid.parent / "elsewhere"])


def test_one_start_model_is_the_base(grid: Path) -> None:
    for name in ("base-2", "plain-b"):
        for file in (grid / name).iterdir():
            file.unlink()
        (grid / name).rmdir()
    scored(grid / "old", "o", 10)  # without a record, as somebody copied it
    assert list(compare_all(grid, [grid])) == ["old", "plain-a"]
