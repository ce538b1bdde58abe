"""The main job on the real model and data: what the README promises of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import cltk
from cltk.run.records import read_json
from cltk.run.reproduce import differences, values_of

ROOT = Path(cltk.__file__).parent.parent
RESULTS = ROOT / "experiments/quickstart/results"


def nll(rows: list[dict], task: str) -> dict:
    """The task's NLL row: old text is measured in nats and in bits per byte."""
    (row,) = [row for row in rows if (row["task"], row["metric"]) == (task, "nll")]
    return row


LESS = """\
base: {quickstart}
evals:
  retain: [local_piqa, {{text: asset:brown/heldout.jsonl, name: old_text, limit: 80, cluster: document}}]
"""  # one of four tasks: three minutes less on a slow processor
OMITTED = ("arc_easy", "social_iqa", "winogrande")
WHOLE = ("config", "retain.macro", "retain.headline", "retain.notes", "retain.settings")  # what speaks of all tasks


@pytest.mark.slow
def test_quickstart_learns_and_forgets_measurably(tmp_path: Path) -> None:
    whole = cltk.load(ROOT / "experiments/quickstart/quickstart.yaml", tmp_path)
    assert [cell.method for cell in whole.cells] == ["plain", "low_lr", "early_stopping", "replay", "ewc"]
    (less := tmp_path / "less.yaml").write_text(LESS.format(quickstart=ROOT / "experiments/quickstart/quickstart.yaml"))
    run = cltk.load(less, tmp_path)
    some = [order for order, cell in enumerate(run.cells) if cell.method in ("plain", "ewc")]  # four minutes a cell
    records = {record["method"]: record for record in run.run(only=some)}
    plain = records["plain"]
    learned, old = nll(plain["learn"]["rows"], "heldout"), nll(plain["retain"]["rows"], "old_text")
    assert learned["ci"][1] < 0, "plain fine-tuning must learn: held-out NLL falls, the interval excludes 0"
    assert old["ci"][0] > 0, "plain fine-tuning must forget: old-text NLL rises, the interval excludes 0"
    assert {row["task"] for row in plain["retain"]["rows"]} == {"local_piqa", "old_text"}
    committed = {cell.method: read_json(RESULTS / f"{cell.method}.json") for cell in whole.cells}
    for found in (records, committed):
        rises = {method: nll(record["retain"]["rows"], "old_text")["forgetting"] for method, record in found.items()}
        assert all(rises[method] < rises["plain"] for method in {"replay", "ewc"} & set(rises))
    for record in records.values():
        as_committed(record, tmp_path)


def as_committed(record: dict, out: Path) -> None:
    """The committed record's numbers, to the last bit where this machine scores the start model so; else nearly.

    A machine with other vector units, threads or packages rounds otherwise from the first product on; so does one that
    measured another way of multiplying to be faster (`speed`).
    """
    committed = read_json(RESULTS / f"{record['method']}.json")
    old, new = (
        {
            name: value
            for name, value in values_of(one).items()
            if not name.startswith(WHOLE) and name not in ("cell", "experiment")
        }
        for one in (committed, record)
    )
    assert set(new) <= set(old)
    assert {name for name in set(old) - set(new) if not any(f"local_{task}" in name for task in OMITTED)} == set()
    theirs, ours = scores(next(RESULTS.glob("base-*.scores.json"))), scores(next(out.glob("base-*/scores.json")))
    if choices(committed) == choices(record) and all(theirs[task] == values for task, values in ours.items()):
        assert not [str(found) for found in differences({name: old[name] for name in new}, new)]
    for name, value in new.items():
        if name.endswith(".nll.post"):
            assert value == pytest.approx(old[name], abs=0.03), name  # 0.009 measured, from a Zen 3 to a Zen 5 with oneDNN


def scores(file: Path) -> dict:
    return {name: task["values"] for name, task in read_json(file)["tasks"].items()}


def choices(record: dict) -> dict:
    return {choice["what"]: choice["on"] for choice in record["train"]["notes"]["speed"] if choice["what"] != "allocator"}
