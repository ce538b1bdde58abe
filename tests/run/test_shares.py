"""Which cells a run takes, what `key=value` changes, and axes that go together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.cli import main, running
from cltk.errors import InputError
from cltk.run.config import load_config
from cltk.run.shares import _same, chosen

GRID = """grid:
  seed: [0, 1]
  train.learning_rate: [1.0e-3, 1.0e-4]
  mitigators: {plain: [], "low, slow": [low_lr: {factor: 0.5}]}
keep_model: false
"""


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    for key in ("ID", "MIN", "MAX", "COUNT", "STEP"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{key}", raising=False)


@pytest.fixture
def eight(experiment: Path) -> Path:
    experiment.write_text(experiment.read_text().split("grid:")[0] + GRID)
    return experiment


def cells(file: Path, *overrides: str) -> list[Any]:
    return load_config(file, overrides).cells


@pytest.mark.parametrize(("only", "expected"), [
    (["method=plain"], [0, 2, 4, 6]), (["method=plain,seed=1"], [4, 6]), (["learning_rate=1e-4"], [2, 3, 6, 7]),
    (["train.learning_rate=0.001", "seed=1"], [0, 1, 4, 5, 6, 7]), (["method=low, slow,seed=0"], [1, 3]),
    (["cell=plain_seed=0_learning_rate=0.001"], [0]),
])  # fmt: skip
def test_only(only: list[str], expected: list[int], eight: Path) -> None:
    assert chosen(cells(eight), only) == (expected, "")


@pytest.mark.parametrize(("text", "value", "same"), [
    ("true", True, True), ("True", True, True), ("no", False, True), ("1", True, False), ("true", False, False),
    ("true", 1, False),
    ("1e-5", 0.00001, True), ("null", None, True), ("[1, 2]", [1, 2], True), ("1", "1", True), ("0", False, False),
])  # fmt: skip
def test_values_are_meant_as_text_or_as_yaml(text: str, value: Any, same: bool) -> None:
    assert _same(text, value) is same


@pytest.mark.parametrize(("only", "said"), [
    ("metod=plain", "--only metod=plain: no axis 'metod'; did you mean 'method'?"),
    ("mode=plain", "valid keys are|did you mean"), ("method=ewc", "no cell has method=ewc; there is plain, low, slow"),
    ("seed=7", "no cell has seed=7; there is 0, 1"), ("plain", "expected AXIS=VALUE"), ("seed=0,", "no cell has seed=0,"),
    ("=3", "expected AXIS=VALUE"), ("seed=true", "no cell has seed=true"),
    ("cell=plain_seed=0_learning_rate=0.001,seed=1", "no cell has all of it"),
])  # fmt: skip
def test_only_refuses_what_is_not_there(only: str, said: str, eight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(eight), "--out", "out", "--only", only]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert any(part in line for part in said.split("|")), line
    assert not Path("out").exists()


@pytest.mark.parametrize("of", [1, 2, 3, 5, 8, 11])
@pytest.mark.parametrize("first", [0, 1])
def test_shares_are_a_partition_counted_from_0_or_from_1(of: int, first: int, eight: Path) -> None:
    found = [chosen(cells(eight), share=f"{i}/{of}")[0] for i in range(first, first + of)]
    assert sorted(at for one in found for at in one) == list(range(8))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def array(monkeypatch: pytest.MonkeyPatch, tasks: list[int], task: int) -> None:
    """What Slurm sets in a task of `--array`."""
    for key, value in {"ID": task, "MIN": min(tasks), "MAX": max(tasks), "COUNT": len(tasks)}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", str(value))


@pytest.mark.parametrize("tasks", [[0, 1, 2], [1, 2, 3], [10, 12, 14, 16], [4], list(range(7, 20))], ids=str)
def test_slurms_array_is_a_partition(tasks: list[int], eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for task in tasks:
        array(monkeypatch, tasks, task)
        places, said = chosen(cells(eight), ["method=plain"], "slurm")
        assert f"SLURM_ARRAY_TASK_ID={task}): share {tasks.index(task) + 1} of {len(tasks)} of 4 cells: " in said
        found += places
    assert sorted(found) == [0, 2, 4, 6]


@pytest.mark.parametrize(("share", "said"), [
    ("3/2", "no such share"), ("0/0", "no such share"), ("-1/2", "expected i/N"), ("1", "expected i/N"),
    ("1/2/3", "expected i/N"),
    ("a/b", "expected i/N"), ("slurm", "SLURM_ARRAY_TASK_ID is not set"), ("1.5/3", "expected i/N"),
])  # fmt: skip
def test_shares_that_are_none(share: str, said: str, eight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(eight), "--out", "out", f"--cells={share}"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_an_array_with_holes_does_not_say_whose_share_it_is(eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--array=1,5,9,10`, or the failed tasks of an array once more."""
    array(monkeypatch, [1, 5, 9, 10], 5)
    with pytest.raises(InputError, match=r"not evenly spaced.*ID/N"):
        chosen(cells(eight), share="slurm")


def test_a_dry_run_says_whose_the_cells_are(eight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(eight), "--out", "out", "--dry-run", "--cells", "1/4", "--only", "seed=0"]) == 0
    said = capsys.readouterr()
    assert "--cells 1/4: share 1 of 4 of 4 cells: plain_seed=0_learning_rate=0.001" in said.err
    assert "plain_seed=0_learning_rate=0.001 (to run)" in said.out
    assert said.out.count("(not of this run)") == 7


# ---- key=value


def test_overrides_are_what_the_file_would_say(eight: Path) -> None:
    changes = ["train.max_steps=3", "grid.seed=[5]", "evals.limit=null", "evals.sample=4", "grid.train.learning_rate=[2.0e-4]"]
    text = eight.read_text().replace("max_steps: 6", "max_steps: 3").replace("  limit: 8\n", "  sample: 4\n")
    text = text.replace("seed: [0, 1]", "seed: [5]").replace("[1.0e-3, 1.0e-4]", "[2.0e-4]")
    Path("by_hand.yaml").write_text(text)
    ours, theirs = cells(eight, *changes), cells(Path("by_hand.yaml"))
    assert [cell.config.model_dump() for cell in ours] == [cell.config.model_dump() for cell in theirs]
    assert [cell.name for cell in ours] == [cell.name for cell in theirs]
    one, other = cltk.load(eight, "out", overrides=changes), cltk.load("by_hand.yaml", "out")
    assert [one.folder(cell) for cell in one.cells] == [other.folder(cell) for cell in other.cells]


def test_overrides_of_entries_of_lists(eight: Path) -> None:
    (cell, *_) = cells(eight, "grid={}", "mitigators=[ewc: {strength: 1.0, importance: {memory: old.jsonl}}]",
                       "mitigators.0.ewc.strength=2.5", "evals.retain.1.limit=3")  # fmt: skip
    assert cell.config.mitigators[0]["ewc"]["strength"] == 2.5
    assert cell.config.evals.retain[1].limit == 3


@pytest.mark.parametrize(("text", "said"), [
    ("train.learning_rat=1", "train.learning_rat=1: train.learning_rat: unknown training argument; did you"),
    ("train.lr=1e-5", "train.lr=1e-5: unknown key; did you mean 'train.learning_rate'?"),
    ("seeds=[0,1]", "did you mean 'grid.seed'?"), ("train.max_steps=many", "train.max_steps=many: train.max_steps: "),
    ("modl.dtype=float16", "modl.dtype=float16: modl: unknown key; did you mean 'model'?"),
    ("seed=1", "seed=1: the grid sets seed in every cell; give grid.seed=[...], or --only"),
    ("mitigators=[]", "the grid sets mitigators in every cell"), ("train.max_steps=[1", "train.max_steps=[1: "),
    ("model.dtype=!!python/name:os.system", "could not determine a constructor"),
    ("evals.retain.7=toy", "no place in a list of 2"),
    ("evals.limit.x=1", "limit is '8' and has no keys"), ("base=other.yaml", "another base is another file"),
    ("data.train.path=none.jsonl", "data.train.path=none.jsonl: "), ("=1", "expected KEY=VALUE"),
    ("evals.margins={acc: 1, acc: 2}", "stands twice"), ("train.hub_token=hf_ABCDEFGHIJKLMNOP", "a secret does not belong"),
    ("grid.seed=[]", "grid.seed=[]: grid.seed: give at least one value"),
])  # fmt: skip
def test_wrong_overrides_are_a_line_that_names_them(
    text: str, said: str, eight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(eight), text, "--out", "out"]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert "ABCDEFGHIJKLMNOP" not in line
    assert not Path("out").exists()


def test_overrides_stand_anywhere_on_the_line(eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(running, "dry_run", lambda experiment, mine: seen.append(experiment.plan) or 0)
    assert main(["run", str(eight), "train.max_steps=3", "--out", "out", "--dry-run", "grid.seed=[4]"]) == 0
    assert seen[0].overrides == ("train.max_steps=3", "grid.seed=[4]")
    assert {(cell.config.seed, cell.config.train["max_steps"]) for cell in seen[0].cells} == {(4, 3)}


def test_an_override_is_no_address_of_ray(eight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(eight), "--ray", "train.max_steps=3"]) == 2
    assert "is no address; give KEY=VALUE before --ray" in capsys.readouterr().err


# ---- zip


def test_zipped_axes_go_together(eight: Path) -> None:
    """hydra#1918, hydra#1258: pairs instead of a product, and they compose with other axes."""
    zipped = "{train.learning_rate: [1.0e-3, 1.0e-4], train.max_steps: [4, 9]}"
    found = cells(eight, f"grid={{seed: [0, 1], zip: {zipped}}}")
    seen = [(c.config.seed, c.config.train["learning_rate"], c.config.train["max_steps"]) for c in found]
    assert seen == [(0, 1e-3, 4), (0, 1e-4, 9), (1, 1e-3, 4), (1, 1e-4, 9)]
    assert found[1].name == "plain_seed=0_learning_rate=0.0001_max_steps=9"
    assert chosen(found, ["max_steps=9,seed=1"])[0] == [3]


def test_methods_are_zipped_with_their_names_and_several_zips_are_axes_each(eight: Path) -> None:
    one = "{mitigators: {a: [], b: [low_lr: {factor: 0.5}]}, train.max_steps: [3, 4]}"
    found = cells(eight, f"grid={{zip: [{one}, {{seed: [5, 6], train.learning_rate: [1.0e-3, 1.0e-4]}}]}}")
    assert [(c.method, c.config.train["max_steps"], c.config.seed) for c in found] == [
        ("a", 3, 5), ("a", 3, 6), ("b", 4, 5), ("b", 4, 6),
    ]  # fmt: skip


@pytest.mark.parametrize(("grid", "said"), [
    ("{zip: {seed: [0, 1], train.max_steps: [1, 2, 3]}}",
     "as many values each: seed has 2, train.max_steps has 3"), ("{zip: {seed: 1}}", "grid.zip: expected keys"),
    ("{zip: {}}", "grid.zip: expected keys"), ("{zip: [1]}", "grid.zip: expected keys"), ("{zip: []}", ""),
    ("{seed: [1], zip: {seed: [0]}}", "seed stands on two axes"), ("{zip: {seed: []}}", "grid.seed: give at least one value"),
    ("{zip: {zip: {seed: [1]}}}", "grid.zip"),
])  # fmt: skip
def test_wrong_zips(grid: str, said: str, eight: Path) -> None:
    eight.write_text(eight.read_text().split("grid:")[0] + f"grid: {grid}\n")
    if not said:
        assert len(cells(eight)) == 1
        return
    with pytest.raises(InputError, match=r"experiment\.yaml:\d+: ") as raised:
        cells(eight)
    assert said in str(raised.value)


@pytest.mark.parametrize(("override", "said"), [
    ("evals.retain.0.limit=5", "evals.retain.0.limit.*'toy' is a name without keys"),
    ("mitigators.0.factor=0.1", "mitigators.0.factor.*'low_lr' is a name without keys"),
])  # fmt: skip
def test_a_name_has_no_keys_to_set(override: str, said: str, experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = experiment.read_text().split("grid:")[0].replace("retain: [", "retain: [toy, ")
    experiment.write_text(text + "mitigators: [low_lr]\n")
    assert main(["run", str(experiment), "--out", "out", override]) == 2
    assert re.search(said, capsys.readouterr().err)
