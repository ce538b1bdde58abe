"""What makes another cell and another base: every input, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cltk.cli import main
from cltk.run.experiment import ExperimentRun, load
from cltk.run.records import read_json
from tests.conftest import TINY

YAML = (
    TINY
    + """\
train: {learning_rate: 3.0e-3, max_steps: 2, per_device_train_batch_size: 4, save_strategy: "no"}
mitigators: [replay: {memory: memory.jsonl, fraction: 0.5}]
evals:
  retain: [suites/s, {text: old.jsonl, name: old_text, limit: 12, cluster: document}]
  include_path: tasks
  limit: 8
keep_model: false
"""
)


@pytest.fixture
def yaml(study: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment with a suite, a memory, a held-out text, task files and a chat template beside the model."""
    monkeypatch.chdir(study)
    Path("suites").mkdir()
    Path("suites/s.yaml").write_text("tasks: [toy]\n")
    Path("memory.jsonl").write_text(Path("old.jsonl").read_text())
    toy = Path("tasks/toy.yaml").read_text()
    Path("tasks/toy2.yaml").write_text(toy.replace("task: toy", "task: toy2"))
    Path("x.yaml").write_text(YAML)
    return Path("x.yaml")


def edit(file: str, change: Callable[[str], str]) -> Callable[[], None]:
    def do() -> None:
        text = Path(file).read_text()
        assert change(text) != text
        Path(file).write_text(change(text))

    return do


def swap(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


def labels(text: str) -> str:
    """The same questions and choices with another right answer: nothing that a model is asked changes."""
    return text.replace('"label": 0', '"label": 1', 1)


def known(file: Path, out: str = "out") -> tuple[str, str]:
    """The folders of the only cell and of its base, from a fresh look at the files."""
    run = load(file, out)
    return run.folder(run.cells[0]).name, run.work().base_folder(run.cells[0]).name


CHANGES = {  # what is changed: whether the start model's scores may be others too
    "a task more in the suite": (edit("suites/s.yaml", swap("[toy]", "[toy, toy2]")), True),
    "a task document": (edit("tasks/docs.jsonl", swap("cat", "cow")), True),
    "a right answer": (edit("tasks/docs.jsonl", labels), True),
    "a metric": (edit("tasks/toy.yaml", swap("{metric: acc}, ", "")), True),
    "a prompt": (edit("tasks/toy.yaml", swap("'{{q}}'", "'Q: {{q}}'")), True),
    "a held-out text": (edit("old.jsonl", swap("cat", "cow")), True),
    "rows of the new task": (edit("new.jsonl", swap("cat", "cow")), True),
    "the model's config": (edit("tiny-llama/config.json", swap('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')), True),
    "the tokeniser": (edit("tiny-llama/tokenizer_config.json", swap("{", '{"split_special_tokens": false, ')), True),
    "a chat template": (lambda: Path("tiny-llama/chat_template.jinja").write_text("{{ messages }}"), True),
    "a limit": (edit("x.yaml", swap("limit: 8", "limit: 7")), True),
    "examples": (edit("x.yaml", swap("limit: 8", "limit: 8\n  num_fewshot: 1")), True),
    "a memory": (edit("memory.jsonl", swap("cat", "cow")), False),
    "a margin": (edit("x.yaml", swap("limit: 8", "limit: 8\n  margins: {nll: 0.1}")), False),
    "a learning rate": (edit("x.yaml", swap("3.0e-3", "1.0e-3")), False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_input_is_another_cell(what: str, yaml: Path) -> None:
    change, measured = CHANGES[what]
    before = known(yaml)
    assert known(yaml) == before
    change()
    cell, base = known(yaml)
    assert cell != before[0]
    assert (base != before[1]) == measured


def test_what_changes_no_number_is_the_same_cell(yaml: Path) -> None:
    before = known(yaml)
    Path("tasks/notes.md").write_text("nothing")
    edit("tasks/toy2.yaml", swap("label", "label "))()  # a task that nobody asks for
    edit("tasks/toy.yaml", swap("task: toy\n", "# which is\ntask: toy\n"))()
    edit("x.yaml", swap("keep_model: false", "keep_model: true"))()
    assert known(yaml) == before


def test_names_of_stages_are_names_of_measures(yaml: Path) -> None:
    data = "{train: {path: new.jsonl, prompt: question, completion: answer}}"
    head = YAML.replace(TINY, "model: {pretrained: tiny-llama}\n")
    yaml.write_text(head + f"stages:\n  - {{name: one, data: {data}}}\n")
    before = known(yaml)
    yaml.write_text(head + f"stages:\n  - {{name: two, data: {data}}}\n")
    assert known(yaml)[1] != before[1]


def test_python_of_a_task_counts(yaml: Path) -> None:
    Path("tasks/utils.py").write_text(
        "def text(doc):\n    return doc['q']\n\n\ndef results(doc, results):\n    return {'acc': 1}\n"
    )
    edit("tasks/toy.yaml", swap("metric_list: [{metric: acc}, {metric: acc_norm}]", "metric_list: [{metric: acc}]"))()
    edit("tasks/toy.yaml", lambda text: text + "process_results: !function utils.results\n")()

    def folder() -> str:
        run = load(yaml, "out", trust=True)
        return run.folder(run.cells[0]).name

    before = folder()
    assert folder() == before
    edit("tasks/utils.py", swap("1}", "0}"))()
    assert folder() != before


def test_a_set_on_the_hub_counts_by_its_rows(yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"question": f"what {i}?", "answer": f" it {i}"} for i in range(30)]
    load_dataset = datasets.load_dataset  # lm-eval reads its own with it

    def hub(*args: Any, **kwargs: Any) -> Any:
        mine = args[:1] == ("some/set",)
        return datasets.DatasetDict(train=datasets.Dataset.from_list(rows)) if mine else load_dataset(*args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    edit("x.yaml", swap("path: new.jsonl", "path: some/set, split: train"))()
    before = known(yaml)
    assert known(yaml) == before
    rows[3]["answer"] = " other"
    assert known(yaml)[0] != before[0]


def test_a_second_run_after_a_change_ends_with_new_numbers(
    yaml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never "nothing to do" with the old ones, never a failure that comes back for ever; finished work loads nothing."""
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    (first,) = Path("out").glob("*/record.json")
    edit("old.jsonl", swap("cat", "red"))()
    edit("tasks/docs.jsonl", labels)()
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    assert "nothing to do" not in capsys.readouterr().out
    (second,) = set(Path("out").glob("*/record.json")) - {first}
    rows = [{(r["task"], r["metric"]): r["pre"] for r in read_json(file)["retain"]["rows"]} for file in (first, second)]
    assert rows[0]["old_text", "nll"] != rows[1]["old_text", "nll"]
    assert rows[0]["toy", "acc"] != rows[1]["toy", "acc"]
    assert rows[0].keys() == rows[1].keys()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to do")

    monkeypatch.setattr("cltk.models.load_model", never)
    monkeypatch.setattr("cltk.run.inputs.prepare_data", never)
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    assert "1 of 1 cells have a record in out: nothing to do" in capsys.readouterr().out


def test_answers_of_another_config_are_not_taken(yaml: Path) -> None:
    """The journal knows answers by weights and tokens; the same weights under another config answer otherwise."""
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    edit("tiny-llama/config.json", swap('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.5'))()
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    assert main(["run", "x.yaml", "--out", "alone"]) == 0
    fresh = read_json(next(Path("alone").glob("base-*/scores.json")))["tasks"]
    bases = [read_json(file)["tasks"] for file in Path("out").glob("base-*/scores.json")]
    assert len(bases) == 2
    assert fresh in bases


def test_a_cell_that_was_done_meanwhile_is_not_done_again(yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between another run's end and our lock: what is missing is looked up under the lock."""
    other = load(yaml, "out")
    looked: list[int] = []
    missing = ExperimentRun.missing

    def first_look(self: ExperimentRun) -> list[int]:
        found = missing(self)
        looked.append(len(found))
        if len(looked) == 1:
            monkeypatch.setattr(ExperimentRun, "missing", missing)
            other.run()
            monkeypatch.setattr("cltk.run.cells.train_cell", lambda *_, **__: pytest.fail("trained a second time"))
        return found

    monkeypatch.setattr(ExperimentRun, "missing", first_look)
    assert len(load(yaml, "out").run()) == 1
    assert looked == [1]


def test_two_files_in_one_folder_leave_each_others_trainings(yaml: Path) -> None:
    """A training that several cells of one YAML share waits for them, whatever another YAML of that folder has done."""
    grid = "grid: {mitigators: {a: [wise_ft: {alpha: 0.5}], b: [wise_ft: {alpha: 0.6}]}}\n"
    Path("y.yaml").write_text(YAML.replace("mitigators:", "#") + grid)
    Path("z.yaml").write_text(YAML.replace("mitigators:", "#").replace("3.0e-3", "1.0e-3") + grid)
    (key,) = load("y.yaml", "out").inputs.shared()
    waits = load("y.yaml", "out").work().kept(key)
    waits.mkdir(parents=True)
    assert main(["run", "z.yaml", "--out", "out"]) == 0
    assert waits.is_dir()
    assert [path for path in Path("out/cache").glob("trained-*") if path.is_dir()] == [waits]


def test_documents_of_any_kind_have_a_digest_of_their_own() -> None:
    from datetime import date

    import numpy as np

    from cltk.measure.rules import rules_digest

    def digest(*docs: object, **fields: object) -> str:
        return rules_digest(SimpleNamespace(config=SimpleNamespace(**fields)), list(docs), None)

    assert digest({"a": date(2020, 1, 1)}) != digest({"a": date(2020, 1, 2)})
    assert digest({"a": np.float64(1)}) != digest({"a": np.float64(2)})
    assert digest({"a": object()}) == digest({"a": object()})  # no address
    assert digest({"a": "\ud800"}) != digest({"a": "x"})
    assert digest({"a": 1}, repeats=1) != digest({"a": 1}, repeats=2)


def test_an_old_layout_is_read(tmp_path: Path) -> None:
    from cltk.run.records import read_record, write_json

    digests = {"cell": "c", "start_model": "a", "tuned_model": "b", "model_files": "m", "new.jsonl": "n", "base": "x"}
    old = {"format": 1, "method": "plain", "train": {}, "config": {}, "digests": digests}
    write_json(tmp_path / "record.json", old)
    assert read_record(tmp_path / "record.json")["digests"] == {
        "cell": "c", "start_model": "a", "tuned_model": "b", "model_files": "m", "files": {"new.jsonl": "n", "base": "x"},
    }  # fmt: skip
    committed = next(Path(__file__).parents[2].glob("experiments/ewc-path/results/plain_seed=0.json"))
    assert "asset:brown/heldout.jsonl" in read_record(committed)["digests"]["files"]


def test_a_later_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cltk.run.records import FORMAT, write_json

    record = {"format": FORMAT + 1, "method": "plain", "train": {}, "config": {}, "digests": {}}
    write_json(tmp_path / "plain" / "record.json", record)
    for command in ("report", "reproduce", "matched"):
        assert main([command, str(tmp_path)]) == 2
        message = capsys.readouterr().err.strip()
        assert f"has format {FORMAT + 1}" in message
        assert "\n" not in message


def test_a_file_may_be_called_as_a_digest_is(yaml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights in a folder `tuned_model`, rows in a file `cell`: each has its digest."""
    Path("tiny-llama").rename("tuned_model")
    Path("start_model.jsonl").write_text(Path("memory.jsonl").read_text())
    edit("x.yaml", swap("tiny-llama", "tuned_model"))()
    edit("x.yaml", swap("memory.jsonl", "start_model.jsonl"))()
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    record = read_json(next(Path("out").glob("*/record.json")))
    assert record["digests"]["files"].keys() >= {"tuned_model", "start_model.jsonl", "new.jsonl"}
    assert record["digests"]["tuned_model"] == read_json(next(Path("out").glob("replay*/scores.json")))["digest"]
    capsys.readouterr()
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    assert main(["report", "out"]) == 0
    assert main(["reproduce", "out", "--out", "again"]) == 0
    assert "bit for bit" in capsys.readouterr().out


def test_other_json_beside_records_is_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "package.json").write_text(json.dumps({"name": "x"}))
    (tmp_path / "list.json").write_text("[1, 2]")
    assert main(["report", str(tmp_path)]) == 2
    assert "no records here" in capsys.readouterr().err
    for file in Path(__file__).parents[2].glob("experiments/ewc-path/results/plain_seed=0*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert main(["report", str(tmp_path)]) == 0
    (tmp_path / "cut.json").write_text('{"sha256": "a", "meth')
    assert main(["report", str(tmp_path)]) == 2
    assert "cut.json: damaged" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "package.json")]) == 2
