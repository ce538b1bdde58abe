"""`cltk report --lm-eval`: after a real run, lm-eval's own tools read what is there."""

import json
from importlib import metadata
from pathlib import Path

import pytest
from lm_eval.utils import make_table
from study_cases import write_study

from cltk.cli import main
from cltk.run.records import read_json


@pytest.fixture
def out(experiment: Path, study: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    head = experiment.read_text().split("grid:")[0]
    experiment.write_text(head + "grid: {seed: [0, 1], mitigators: {plain: [], 'low / lr': [low_lr: {factor: 0.5}]}}\n")
    assert main(["run", str(experiment), "--out", "out"]) == 0
    return Path("out")


def test_lm_evals_tools_read_every_run(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(out), "--lm-eval", "exported", "--html", "new/page.html", "--latex", "tex"]) == 0
    runs = sorted(folder.name for folder in Path("exported").iterdir())
    assert [name for name in runs if not name.startswith("start-model-")] == [
        "low_lr-seed=0", "low_lr-seed=1", "plain-seed=0", "plain-seed=1"
    ]  # fmt: skip
    assert len(runs) == 5
    records = {f"{r['method'].replace(' / ', '_')}-seed={r['seed']}": r for r in map(read_json, out.glob("*/record.json"))}
    for name in runs:
        (results,) = Path("exported", name).glob("results_*.json")
        found = json.loads(results.read_text())
        assert "|toy|" in make_table(found).replace(" ", "")
        (samples,) = Path("exported", name).glob("samples_toy_*.jsonl")
        assert len(samples.read_text().splitlines()) == 8
        if name in records:
            record = records[name]
            row = next(r for r in record["retain"]["rows"] if (r["task"], r["metric"]) == ("toy", "acc"))
            assert found["results"]["toy"]["acc,none"] == pytest.approx(row["post"])
            assert found["config"]["weights_sha256"] == record["digests"]["tuned_model"]
        for library in ("transformers", "lm_eval", "torch"):  # at the top, where lm-eval's own writer has them
            assert found[f"{library}_version"] == metadata.version(library)
    assert "toy" in Path("new/page.html").read_text()
    assert Path("tex/main.tex").exists()


def test_what_is_missing_is_named_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, flat = write_study(tmp_path / "out", seeds=1), write_study(tmp_path / "flat", seeds=1, flat=True)
    for folder, said in ((runs, "base-*/lm_eval of the start model"), (flat, "plain-0.json has no lm_eval folder beside it")):
        assert main(["report", str(folder), "--lm-eval", str(tmp_path / "exported"), "--html", str(tmp_path / "x.html")]) == 2
        assert said in capsys.readouterr().err
    (runs / "base-0/lm_eval/tiny").mkdir(parents=True)
    (runs / "base-0/lm_eval/tiny/results_1.json").write_text('{"config": {"weights_sha256": "base"}}')
    assert main(["report", str(runs), "--lm-eval", str(tmp_path / "exported")]) == 2
    assert "plain-0/lm_eval holds no results_*.json" in capsys.readouterr().err
    (runs / "base-0/lm_eval/tiny/results_2.json").write_text("cut")
    assert main(["report", str(runs), "--lm-eval", str(tmp_path / "exported")]) == 2
    assert not (tmp_path / "exported").exists()
    assert not (tmp_path / "x.html").exists()
