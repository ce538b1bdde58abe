"""lm-eval's folders, read and compared, against lm-eval's own numbers, scipy and `measure`.

What people met: two runs compared as if unpaired (EleutherAI/lm-evaluation-harness#3831, #3835, #3868), two lines a document
where a task has two filters (#1687), the model's name as a folder of its own (#1842, #3646), a second run beside the first and
two models below one path (#1918), an output path that ends in .json (#2927), arguments as lists and as gen_args_0 (#2224).
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from cltk.cli import main
from cltk.logs.comparing import compare
from cltk.logs.reading import read
from cltk.measure import forgetting
from cltk.measure.evaluate import Suite
from tests.logs.conftest import edit, written


def test_every_number_is_lm_evals_own(runs: Any, results: Any) -> None:
    result = compare(*runs, members=True)
    rows = {(row.task, row.metric): row for row in result.rows}
    checked = 0
    for task, own in results["base"]["results"].items():
        first = next((s["filter"] for s in results["base"]["samples"].get(task, [])), "none")
        for key, value in own.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or metric == "sample_count":
                continue
            row = rows[task, metric if chosen == first else f"{metric},{chosen}"]
            assert math.isclose(row.pre, value, rel_tol=1e-12), key
            assert math.isclose(row.post, results["tuned"]["results"][task][key], rel_tol=1e-12), key
            checked += 1
    assert checked == 16
    assert rows["words", "nll"].pre == pytest.approx(math.log(results["base"]["results"]["words"]["perplexity,none"]))


def test_an_error_rate_falls_whatever_the_log_says(runs: Any) -> None:
    """lm-eval before 0.4.13 declares of TER that higher is better."""
    for folder in runs:
        edit(folder, "results_*.json", lambda one: one["higher_is_better"]["translated"].update(ter=True))
    rows = {(row.task, row.metric): row for row in compare(*runs).rows}
    assert not rows["translated", "ter"].higher_is_better
    assert rows["translated", "bleu"].higher_is_better


def test_p_is_mcnemars_and_flips_are_the_documents(runs: Any, results: Any) -> None:
    row = next(row for row in compare(*runs).rows if (row.task, row.metric) == ("digits", "acc"))
    before, after = ([s["acc"] for s in results[side]["samples"]["digits"]] for side in ("base", "tuned"))
    lost, gained = (sum(a == x and b == 1 - x for a, b in zip(before, after, strict=True)) for x in (1, 0))
    assert (row.lost, row.gained) == (lost, gained)
    assert lost + gained > 0
    assert row.p == stats.binomtest(lost, lost + gained).pvalue


def test_equal_to_measure_to_the_last_bit(tiny: Any, tokenizer: Any, task_folder: Path, tmp_path: Path) -> None:
    """The same scores as the instrument's own, from lm-eval's files of them: rows, macro, documents, choices, clusters."""
    suite = Suite(["both", "digits", "blank", "words", "rolling", "written", "translated"], include_path=task_folder)
    pre, post = (suite.evaluate(tiny(seed=seed), tokenizer, scorer="stock") for seed in (0, 1))
    folders = [written(one.lm_eval, tmp_path / name) for one, name in ((pre, "a"), (post, "b"))]
    there, here = forgetting.compare(pre, post), compare(*folders)
    assert {(r.task, r.metric): r for r in here.rows} == {(r.task, r.metric): r for r in there.rows}
    assert here.macro == there.macro
    assert here.samples == there.samples
    assert here.headline == there.headline


def test_neither_torch_nor_lm_eval_is_loaded(runs: Any) -> None:
    code = (
        "import sys; from cltk.cli import main; code = main(['compare', *sys.argv[1:]]);"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'datasets') if m in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, runs)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[] 0"
    assert "toy" not in done.stdout
    assert "both" in done.stdout


def test_command_writes_json_that_reads_back(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *map(str, runs), "--json", str(tmp_path / "r.json"), "--margin", "acc=0.05"]) == 0
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["settings"]["logs"]["base"]["harness"] == "lm-eval"
    assert next(row for row in data["rows"] if row["metric"] == "acc")["margin"] == 0.05
    assert "Forgetting: Perf_pre - Perf_ft" in capsys.readouterr().out


def test_layouts(results: Any, tmp_path: Path) -> None:
    """Below the model's own folder, at the folder itself, a file of results, a file of samples, a path that ends in .json."""
    base = written(results["base"], tmp_path / "base", model="org/base")
    assert base.name == "org__base"
    file = next(base.glob("results_*.json"))
    whole = read(tmp_path / "base")
    assert whole.name == "org/base"
    assert read(base).scores == read(file).scores == whole.scores
    one = read(next(base.glob("samples_words_*.jsonl")))
    assert list(one.scores.tasks) == ["words"]
    assert one.scores.tasks["words"] == whole.scores.tasks["words"]
    flat = written(results["base"], tmp_path / "flat" / "out.json", model="org/base")
    assert read(flat.parent).scores == whole.scores


def test_old_files_without_hashes_and_with_lists(runs: Any) -> None:
    """0.4.2 and before: results.json, NAME_TASK.jsonl, no hashes, no names of metrics, arguments as lists."""
    now = read(runs[0])
    for file in list(runs[0].glob("samples_*")):
        file.rename(file.with_name(f"out_{file.name.removeprefix('samples_').rpartition('_')[0]}.jsonl"))
    next(runs[0].glob("results_*.json")).rename(runs[0] / "results.json")

    def older(sample: dict[str, Any]) -> None:
        for key in ("doc_hash", "prompt_hash", "target_hash", "metrics"):
            del sample[key]
        sample["arguments"] = [list(one.values()) for one in sample["arguments"].values()]

    edit(runs[0], "out_*.jsonl", older)
    edit(runs[0], "results.json", lambda data: data.pop("task_hashes"))
    old = read(runs[0])
    assert old.scores.tasks == now.scores.tasks
    assert old.targets == now.targets
