"""`sample` in an experiment's YAML: for all measures, one task, one text and a suite; in records, exports and dry runs.

What people met: other random documents for the second model (UKGovernmentBEIS/inspect_ai#2118), single tasks' documents
(EleutherAI/lm-evaluation-harness#2520).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.sampling import choose
from cltk.run.config import load_config
from tests.conftest import TINY, write_jsonl

TRAIN = 'train: {learning_rate: 3.0e-3, max_steps: 2, per_device_train_batch_size: 4, save_strategy: "no"}\nkeep_model: false\n'


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    toy = Path("tasks/toy.yaml").read_text()
    for name in ("other", "third"):
        Path(f"tasks/{name}.yaml").write_text(toy.replace("task: toy", f"task: {name}"))


def write(evals: str, grid: str = "") -> Path:
    Path("x.yaml").write_text(TINY + TRAIN + f"evals:\n  include_path: tasks\n  {evals}\n{grid}")
    return Path("x.yaml")


def sizes(evals: str) -> dict[str, int]:
    experiment = cltk.load(write(evals), "out")
    found = experiment.inputs.suite(experiment.cells[0]).sizes()
    return {name: n for name, n in found.items() if name != "heldout"}


def test_of_all_measures_of_one_and_of_a_suite() -> None:
    old = "{text: old.jsonl, name: old}"
    assert sizes(f"retain: [toy, {old}]\n  sample: 5") == {"toy": 5, "old": 5}
    assert sizes(f"retain: [toy, {{task: other, sample: 0.25}}, {old}]\n  sample: 5") == {"toy": 5, "other": 3, "old": 5}
    assert sizes("retain: [toy, {task: other, sample: 4}]") == {"toy": 12, "other": 4}
    texts = "{text: old.jsonl, name: a, sample: 7}, {text: old.jsonl, name: b, limit: 9}, {text: old.jsonl, name: c}"
    assert sizes(f"retain: [{texts}]\n  sample: 5") == {"a": 7, "b": 9, "c": 5}
    Path("some.yaml").write_text("tasks: [toy, {task: other, sample: 2}]\nsample: 6\n")
    assert sizes("retain: [some.yaml, third]\n  sample: 5") == {"toy": 6, "other": 2, "third": 5}
    assert sizes("retain: [{task: some.yaml, sample: 3}]") == {"toy": 3, "other": 3}


def test_new_rows_are_not_sampled() -> None:
    experiment = cltk.load(write("retain: [toy]\n  sample: 2"), "out")
    suite, data = experiment.inputs.suite(experiment.cells[0]), experiment.inputs.data(experiment.cells[0])
    assert suite.sizes()["heldout"] == len(data.heldout) > 2


@pytest.mark.parametrize(
    ("evals", "line"),
    [
        (
            "retain: [toy]\n  limit: 3\n  sample: 3",
            r"x.yaml:\d+: evals: limit takes the first documents and sample random ones",
        ),
        ("retain: [{task: toy, sample: 3}]\n  limit: 3", "evals: .*limit takes the first documents and sample of toy random"),
        (
            "retain: [toy]\n  sample: 0",
            "x.yaml:12: evals.sample: expected a whole number of documents from 1, or a fraction .*, got 0$",
        ),
        ("retain: [toy]\n  sample: 1.5", "evals.sample: .*got 1.5"),
        ("retain: [{task: toy, sample: many}]", "x.yaml:11: evals.retain.0.sample: expected a whole number"),
        ("retain: [{task: toy, samples: 3}]", "x.yaml:11: evals.retain.0.samples: unknown key; did you mean 'sample'"),
        ("retain: [{text: old.jsonl, sample: 3, limit: 3}]", "evals.retain.0: .*limit takes evenly spread rows and sample"),
        ("retain: [{txt: old.jsonl}]", "evals.retain.0.text: this key is required"),
        ("retain: [5]", "evals.retain.0: input should be a valid string"),
        ("retain: [{task: toy, sample: 3}, toy]", "evals.retain.1: the name 'toy' is taken"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(evals: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        load_config(write(evals))


@pytest.mark.parametrize(
    "body", ["tasks: [toy]\nsample: 0\n", "tasks: [toy]\nsize: 3\n", "tasks: [{sample: 3}]\n", "tasks: 3\n"]
)
def test_a_suite_that_is_none_is_refused(body: str) -> None:
    Path("some.yaml").write_text(body)
    with pytest.raises(InputError, match=r"some\.yaml: a suite is a mapping with `tasks`"):
        sizes("retain: [some.yaml]")


def test_every_cell_has_the_same_documents_and_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    """In the record, the scores, lm-eval's own files, the report's copies of these, and before the run."""
    grid = "grid: {mitigators: {plain: [], low: [low_lr: {factor: 0.5}]}}\n"
    file = write("retain: [toy, {text: old.jsonl, name: old, cluster: document}]\n  sample: 6\n  sample_seed: 3", grid)
    assert main(["run", str(file), "--out", "out", "--dry-run"]) == 0
    assert "toy: 6 of 12 documents, drawn at random (sample 6, seed 3)" in capsys.readouterr().out
    records = cltk.load(file, "out").run()
    wanted = choose(12, 6, "3 toy")
    for record in records:
        assert record["config"]["evals"] | {"sample": 6, "sample_seed": 3} == record["config"]["evals"]
        (row,) = [row for row in record["retain"]["rows"] if (row["task"], row["metric"]) == ("toy", "acc")]
        assert row["n"] == 6
        assert "toy: 6 of 12 documents, drawn at random (sample 6, seed 3)" in record["retain"]["notes"]
    cltk.report("out", lm_eval="lm")
    results = list(Path("lm").rglob("results_*.json"))
    assert len(results) == 3
    for result in results:
        assert json.loads(result.read_text())["config"]["samples"] == {"toy": wanted}
    for samples in Path("lm").rglob("samples_toy_*.jsonl"):
        assert [json.loads(line)["doc_id"] for line in samples.read_text().splitlines()] == wanted


def test_a_grid_of_samples_measures_the_start_model_for_each() -> None:
    found = cltk.load(write("retain: [toy]", "grid: {evals.sample: [4, 6]}\n"), "out")
    assert [found.inputs.suite(cell).sizes()["toy"] for cell in found.cells] == [4, 6]
    assert len({found.inputs.measured(cell) for cell in found.cells}) == 2


def test_a_limit_over_the_sample_of_a_base() -> None:
    write("retain: [toy]\n  sample: 5")
    for evals, refused in (("{limit: 3}", True), ("{limit: 3, sample: null}", False)):
        Path("y.yaml").write_text(f"base: x.yaml\nevals: {evals}\n")
        if refused:
            with pytest.raises(InputError, match=r"y\.yaml:2: evals: limit .* give one of the two \(null undoes a base's\)$"):
                load_config("y.yaml")
        else:
            assert load_config("y.yaml").experiment.evals.sample is None


def test_rows_of_the_new_task_can_be_sampled(tokenizer: Any) -> None:
    """Another draw for each set, as its file stands; a faulty row is told as one of the sample."""
    from cltk.data import read_rows
    from cltk.run.spec_data import DataSpec
    from cltk.run.train import prepare_data

    rows, pair = read_rows("new.jsonl"), {"path": "new.jsonl", "prompt": "question", "completion": "answer"}
    some = {"train": {**pair, "sample": 12}, "validation": {**pair, "sample": 0.1}, "heldout": {**pair, "sample": 500}}
    found = prepare_data(DataSpec(**some), tokenizer, Path())
    texts = [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in found.train]
    assert [text.split(" what?")[0] for text in texts] == [
        rows[i]["question"].split(" what?")[0] for i in choose(90, 12, "0 data.train")
    ]
    assert (len(found.validation), len(found.heldout)) == (9, 90)
    write_jsonl(Path("bad.jsonl"), [{**row, "answer": ""} for row in rows])
    with pytest.raises(InputError, match=r"data\.heldout \(bad\.jsonl, sample 5\), row 0: the completion is empty"):
        prepare_data(DataSpec(**{**some, "heldout": {**pair, "path": "bad.jsonl", "sample": 5}}), tokenizer, Path())
    Path("x.yaml").write_text(TINY.replace("heldout: 0.2", "heldout: {path: new.jsonl, limit: 3, sample: 3}"))
    with pytest.raises(InputError, match=r"x\.yaml:5: data\.heldout: limit takes the first rows and sample random ones"):
        load_config("x.yaml")


def test_runs_on_other_samples_are_not_joined(capsys: pytest.CaptureFixture[str]) -> None:
    for sample, method in ((4, "plain: []"), (6, "low: [low_lr: {factor: 0.5}]")):
        grid = f"grid: {{mitigators: {{{method}}}}}\n"
        cltk.load(write(f"retain: [toy]\n  sample: {sample}", grid), f"out{sample}").run()
    assert main(["matched", "out4", "out6", "--old", "toy"]) == 2
    line = "low: its documents of 'toy' (sample 6) are not those of the other runs (sample 4)"
    assert line in capsys.readouterr().err
