"""lighteval's and inspect-ai's logs: files that their own writers made (lighteval 0.13.0, inspect-ai 0.3.285).

What people met: scripts of their own to match samples and test them paired (UKGovernmentBEIS/inspect_ai#2176), a format that
is stable through its reader only (#5066), several epochs a sample (evaleval/every_eval_ever#59, #89), details that nobody could
read (huggingface/lighteval#594) and runs of several revisions in one folder (#56).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from scipy import stats

from cltk.cli import main
from cltk.errors import InputError
from cltk.logs import inspect_ai
from cltk.logs.comparing import compare, compare_all
from cltk.logs.reading import read
from tests.logs.conftest import edit

HERE = Path(__file__).parent
DATES = {"base": "2026-11-28T09-51-55.338253", "tuned": "2026-11-28T09-51-55.483869"}


@pytest.fixture
def light(tmp_path: Path) -> Path:
    """An output folder as lighteval lays it out (names with | are not for every file system, so they are made here)."""
    for model, date in DATES.items():
        kept = HERE / "lighteval_0_13_0" / model
        details, results = tmp_path / "out" / "details" / "org" / model / date, tmp_path / "out" / "results" / "org" / model
        for folder in (details, results):
            folder.mkdir(parents=True)
        shutil.copy(kept / "results.json", results / f"results_{date}.json")
        for task in ("toy|0", "gen|2"):
            shutil.copy(kept / f"{task[:3]}.parquet", details / f"details_{task}_{date}.parquet")
    return tmp_path / "out"


def details(folder: Path, model: str, task: str) -> list[dict[str, Any]]:
    (file,) = (folder / "details" / "org" / model).rglob(f"details_{task}*.parquet")
    return parquet.read_table(file).to_pylist()


def test_lighteval_numbers_are_its_own(light: Path) -> None:
    result = compare(light, light, base_model="base")
    rows = {(row.task, row.metric): row for row in result.rows}
    for model, end in (("base", "pre"), ("tuned", "post")):
        own = json.loads(next((light / "results" / "org" / model).glob("*.json")).read_text())["results"]
        assert getattr(rows["toy|0", "acc"], end) == own["toy|0"]["acc"]
        assert getattr(rows["gen|2", "em"], end) == own["gen|2"]["em"]
    before, after = ([row["metric"]["em"] for row in details(light, model, "gen")] for model in DATES)
    lost, gained = (sum(a == x != b for a, b in zip(before, after, strict=True)) for x in (1.0, 0.0))
    assert (rows["gen|2", "em"].lost, rows["gen|2", "em"].gained) == (lost, gained) == (4, 4)
    assert rows["gen|2", "em"].p == stats.binomtest(lost, lost + gained).pvalue
    first = details(light, "base", "toy")[0]
    scores, gold = first["model_response"]["logprobs"], first["doc"]["gold_index"]
    gold = gold[0] if isinstance(gold, list) else gold
    side = read(light, "org/base").scores.tasks["toy|0"]
    assert side.values["logprob"][0] == scores[gold]
    assert side.values["margin"][0] == scores[gold] - max(score for i, score in enumerate(scores) if i != gold)
    assert side.choices == [3] * 16


def test_lighteval_of_other_runs_and_without_details(light: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = light / "results" / "org" / "tuned"
    edit(results, "*.json", lambda data: data["versions"].update({"toy|0": 2}))
    result = compare(light, light, base_model="base")
    assert "version 1 and 2" in result.left_out["toy|0"]
    edit(results, "*.json", lambda data: data["results"]["gen|2"].update(em=0.1))
    assert main(["compare", str(light), "--base-model", "base"]) == 2
    assert "is not of the run of results_" in capsys.readouterr().err
    for file in light.rglob("*.parquet"):
        file.unlink()
    with pytest.raises(InputError, match="run lighteval again with --save-details"):
        read(light, "base")


def test_lighteval_columns_of_before(light: Path) -> None:
    now = read(light, "base").scores
    for file in light.rglob("*.parquet"):
        table = parquet.read_table(file)
        parquet.write_table(table.rename_columns([f"__{name}__" for name in table.column_names]), file)
    assert read(light, "base").scores == now
    for file in light.rglob("*.parquet"):
        parquet.write_table(pa.table({"example": ["a"]}), file)
    with pytest.raises(InputError, match="columns example"):
        read(light, "base")


def test_inspect_logs_by_their_own_reader() -> None:
    pytest.importorskip("inspect_ai")
    folder = HERE / "inspect_ai_0_3_285"
    found = compare_all(folder / "base", [folder / "tuned" / "tuned.eval"])
    (row,) = found["mockllm/model"].rows
    assert (row.task, row.metric, row.n, row.pre, row.post) == ("toy", "acc", 12, 1.0, 0.5)
    assert (row.lost, row.gained, row.p) == (6, 0, stats.binomtest(6, 6).pvalue)
    assert any("f1 is left out: whether higher is better is not declared" in note for note in found["mockllm/model"].notes)
    both = compare(folder / "base", folder / "tuned", directions={"f1": True})
    assert {row.metric for row in both.rows} == {"acc", "f1"}


def test_inspect_without_its_reader_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "inspect_ai.log", None)
    folder = HERE / "inspect_ai_0_3_285"
    assert main(["compare", str(folder / "base"), str(folder / "tuned")]) == 2
    assert "pip install 'cltk-forgetting[inspect]'" in capsys.readouterr().err


def test_epochs_of_a_sample_are_one_document() -> None:
    """inspect-ai's own reduction where there is one, else the letters of the only epoch; a sample without a score has none."""
    reduced = SimpleNamespace(
        scorer="match", samples=[SimpleNamespace(sample_id=2, value=0.5), SimpleNamespace(sample_id=1, value=1.0)]
    )
    assert inspect_ai._values(SimpleNamespace(reductions=[reduced], samples=[]), [1, 2]) == {"match": [1.0, 0.5]}
    samples = [SimpleNamespace(id=i, scores={"match": SimpleNamespace(value=letter)}) for i, letter in enumerate("CIPN")]
    lost = SimpleNamespace(id=4, scores=None)
    values = inspect_ai._values(SimpleNamespace(reductions=None, samples=[*samples, lost]), [0, 1, 2, 3, 4])["match"]
    assert values == [1.0, 0.0, 0.5, 0.0, inspect_ai.MISSING]
