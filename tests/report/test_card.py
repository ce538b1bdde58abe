"""Model cards, read back by huggingface_hub's own classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

import cltk
from cltk.cli import main
from cltk.run.records import read_json, write_json

QUICKSTART = Path(cltk.__file__).parent.parent / "experiments" / "quickstart" / "results"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One run's folder, whose base and one data set have ids on a hub."""
    record = read_json(QUICKSTART / "ewc.json")
    record["config"]["model"]["pretrained"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    folder = tmp_path / "runs" / "ewc"
    write_json(folder / "record.json", record)
    (folder / "lm_eval" / "tiny").mkdir(parents=True)
    configs = {"local_piqa": {"dataset_path": "ybisk/piqa"}, "local_sciq": {"dataset_path": "json"}}
    (folder / "lm_eval" / "tiny" / "results_2026-01-01T00-00-00.json").write_text(json.dumps({"configs": configs}))
    return tmp_path / "runs"


def test_a_card_of_one_run(run: Path, tmp_path: Path) -> None:
    """A card with results and no model name cannot be read back (huggingface_hub#2894, #3000)."""
    record = read_json(run / "ewc" / "record.json")
    out = tmp_path / "card"
    assert main(["report", str(run), "--model-card", str(out)]) == 0
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.model_name
    heads = {row["task"]: row for row in record["retain"]["rows"] if row["metric"] == record["retain"]["headline"][row["task"]]}
    assert {one.dataset_name: one.metric_value for one in card.data.eval_results} == {
        t: row["post"] for t, row in heads.items()
    }
    assert "cltk run experiments/quickstart/quickstart.yaml" in card.text
    assert "asset:medmcqa/train.jsonl" in card.text
    assert all(f"| {task} |" in card.text for task in heads)
    (file,) = (out / ".eval_results").glob("*.yaml")
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("ybisk/piqa", "local_piqa", heads["local_piqa"]["post"])


def test_several_runs_have_a_folder_each_and_an_asset_is_no_id(tmp_path: Path) -> None:
    shutil.copytree(QUICKSTART, tmp_path / "runs")
    cltk.report(tmp_path / "runs", model_card=tmp_path / "cards", show=False)
    cards = sorted((tmp_path / "cards").glob("*/README.md"))
    assert len(cards) == len(list((tmp_path / "runs").glob("*.scores.json"))) - 1
    assert ModelCard.load(cards[0]).data.base_model is None
    assert "asset:smollm2-135m-instruct" in cards[0].read_text()


def test_a_readme_of_somebody_else_stays(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "card"
    out.mkdir()
    (out / "README.md").write_text("mine\n")
    assert main(["report", str(run), "--model-card", str(out)]) == 2
    assert "is no card of cltk" in capsys.readouterr().err
    assert (out / "README.md").read_text() == "mine\n"
    (out / "README.md").unlink()
    for _ in range(2):
        assert main(["report", str(run), "--model-card", str(out)]) == 0
