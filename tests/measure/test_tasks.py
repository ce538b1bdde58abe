import os
from pathlib import Path

import lm_eval
import pytest
import yaml

from cltk.data import assets
from cltk.errors import InputError
from cltk.measure.tasks import prepare

TASKS = Path(lm_eval.__file__).parent / "tasks"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A task folder and a cache folder; `resolved` lists the assets asked for."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    return tmp_path / "in"


@pytest.fixture
def resolved(tmp_path, monkeypatch):
    asked = []

    def resolve(spec):
        asked.append(spec)
        return tmp_path / "cache" / spec.removeprefix("asset:")

    monkeypatch.setattr(assets, "resolve", resolve)
    return asked


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_a_folder_without_such_values_is_returned_as_it_is(folder, tmp_path):
    write(folder / "a.yaml", "task: a\ndoc_to_text: !function utils.f\ninclude: other_yaml\n# asset:toy/x\n")
    assert prepare(folder, tmp_path / "out") == folder
    assert not (tmp_path / "out").exists()


def test_values_become_paths_and_every_other_character_stays(folder, tmp_path, resolved):
    text = """# asset:toy/comment stays
include: [lm_eval:piqa/piqa.yaml, base_yaml]
task: a
doc_to_text: !function utils.f   # a tag
dataset_kwargs: {data_files: {validation: 'asset:toy/x.arrow', test: "asset:toy/é y.arrow"}}
description: see asset:toy/z
"""
    write(folder / "a.yaml", text)
    write(folder / "base_yaml", "dataset_path: json\n")
    write(folder / "utils.py", "f = 1\n")
    (folder / "__pycache__").mkdir()
    out = prepare(folder, tmp_path / "out")
    assert resolved == ["asset:toy/é y.arrow", "asset:toy/x.arrow"]
    expected = text.replace("lm_eval:piqa/piqa.yaml", f'"{TASKS / "piqa" / "piqa.yaml"}"')
    expected = expected.replace("'asset:toy/x.arrow'", f'"{tmp_path}/cache/toy/x.arrow"')
    expected = expected.replace('"asset:toy/é y.arrow"', f'"{tmp_path}/cache/toy/\\u00e9 y.arrow"')
    assert (out / "a.yaml").read_text(encoding="utf-8") == expected
    assert yaml.load(expected.replace("!function", ""), yaml.SafeLoader)["dataset_kwargs"]["data_files"] == {
        "validation": f"{tmp_path}/cache/toy/x.arrow",
        "test": f"{tmp_path}/cache/toy/é y.arrow",
    }
    assert sorted(path.name for path in out.iterdir()) == ["a.yaml", "base_yaml", "sub", "utils.py"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a"], {"a"}),
        (["b*"], {"b1", "b2"}),
        (["tagged"], {"a", "b1"}),
        (["group"], {"b2", "a"}),
        (["outer"], {"b2", "a"}),
        (["child"], {"base"}),
        (["elsewhere"], set()),
        (None, {"a", "b1", "b2", "base"}),
    ],
)
def test_only_the_tasks_asked_for_fetch(folder, tmp_path, resolved, names, expected):
    for name, tag in (("a", "tag: tagged"), ("b1", "tag: [tagged, other]"), ("b2", "")):
        write(folder / f"{name}.yaml", f"task: {name}\n{tag}\ndataset_kwargs: {{data_files: asset:{name}/x}}\n")
    write(folder / "group.yaml", "group: group\ntask: [a, b2]\n")
    write(folder / "outer.yaml", "group: outer\ntask:\n  - group\n")
    write(folder / "base_yaml", "dataset_kwargs: {data_files: asset:base/x}\n")
    write(folder / "sub" / "child.yaml", "include: ../base_yaml\ntask: child\n")
    out = prepare(folder, tmp_path / "out", names)
    assert {spec.removeprefix("asset:").split("/")[0] for spec in resolved} == expected
    if "a" not in expected:
        assert load(out / "a.yaml")["dataset_kwargs"]["data_files"] == "asset:a/x"


def test_an_alias_is_resolved_once(folder, tmp_path, resolved):
    write(folder / "a.yaml", "task: a\ndataset_kwargs: {data_files: {x: &x asset:toy/x, y: *x}}\n")
    files = load(prepare(folder, tmp_path / "out") / "a.yaml")["dataset_kwargs"]["data_files"]
    assert files == dict.fromkeys("xy", f"{tmp_path}/cache/toy/x")
    assert resolved == ["asset:toy/x"]


def test_a_list_that_holds_itself_is_read_once(folder, tmp_path, resolved):
    write(folder / "a.yaml", "task: a\nx: &x [asset:toy/x, *x, asset:toy/y]\n")
    prepare(folder, tmp_path / "out", ["nothing"])
    assert prepare(folder, tmp_path / "other") == tmp_path / "other"
    assert sorted(resolved) == ["asset:toy/x", "asset:toy/y"]


def test_errors_name_the_file_and_line(folder, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such task folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    write(folder / "a.yaml", "task: a\ninclude: lm_eval:nothing/here.yaml\n")
    with pytest.raises(InputError, match=r"a\.yaml:2: lm-eval has no nothing/here\.yaml"):
        prepare(folder, tmp_path / "out")
    write(folder / "a.yaml", "task: a\nx: [1\n")
    with pytest.raises(InputError, match=r"a\.yaml:3: not YAML"):
        prepare(folder, tmp_path / "out")


def test_lm_eval_runs_a_prepared_task_with_its_own_functions(folder, tmp_path, monkeypatch):
    """Included from lm-eval, data from an asset, a function beside the YAML."""
    from lm_eval.tasks import TaskManager

    data = tmp_path / "rows.jsonl"
    write(data, '{"question_stem": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B", "book": 3}\n')
    monkeypatch.setattr(assets, "resolve", lambda spec: data)
    write(folder / "functions.py", "def prompt(doc):\n    return 'P ' + doc['question_stem']\n")
    text = """include: lm_eval:openbookqa/openbookqa.yaml
task: mine
dataset_path: json
dataset_name: null
dataset_kwargs: {data_files: {test: asset:toy/rows.jsonl}}
training_split: null
validation_split: null
fewshot_split: test
doc_to_text: !function functions.prompt
metadata: {version: 1.0, cluster: book}
"""
    write(folder / "mine.yaml", text)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    manager = TaskManager(include_defaults=False, include_path=os.fspath(prepare(folder, tmp_path / "out", ["mine"])))
    task = manager.load(["mine"])["tasks"]["mine"]
    (document,) = task.eval_docs
    assert task.doc_to_text(document) == "P Q"
    assert task.doc_to_choice(document) == ["x", "y"]
    assert task.doc_to_target(document) == 1
    assert task.config.metadata["cluster"] == "book"
