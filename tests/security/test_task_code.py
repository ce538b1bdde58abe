"""Task folders from elsewhere: whatever way a YAML names Python, none of it runs unless the user says so."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.evaluate import Suite
from cltk.measure.trust import _dangerous, _stock
from tests.security.attacks import CODE, SECRET, edit, foiled

RUN = ["run", "experiment.yaml", "--out", "out", "--dry-run"]
TEXT = "doc_to_text: '{{q}}'"
METRICS = "metric_list: [{metric: acc}, {metric: acc_norm}]"


@pytest.fixture(autouse=True)
def _folder(study: Path, experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    Path("tasks/evil.py").write_text(CODE)
    experiment.write_text(experiment.read_text().split("grid:")[0])


def text(value: str, head: str = "") -> None:
    edit("tasks/toy.yaml", TEXT, f"doc_to_text: {value}")
    Path("tasks/toy.yaml").write_text(head + Path("tasks/toy.yaml").read_text())


def include(line: str, **others: str) -> None:
    edit("tasks/toy.yaml", TEXT, line)
    for name, content in others.items():
        Path("tasks", name.replace("__", ".")).write_text(content)


def metric(entry: str) -> None:
    for script in ("tasks/evilmetric/evilmetric.py", "metrics/evilmetric/evilmetric.py"):
        Path(script).parent.mkdir(parents=True, exist_ok=True)
        Path(script).write_text("import evaluate\n" + CODE)
    edit("tasks/toy.yaml", METRICS, f"metric_list: [{entry}]")


def group(body: str) -> None:
    Path("tasks/grp.yaml").write_text("group: grp\ntask:\n" + body)
    edit("experiment.yaml", "[toy,", "[grp,")


def key(line: str) -> None:
    Path("tasks/toy.yaml").write_text(Path("tasks/toy.yaml").read_text() + line + "\n")


def elsewhere() -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/evil.py").write_text(CODE)


def linked() -> None:
    elsewhere()
    text("!function evil.text")
    os.rename("tasks/toy.yaml", "elsewhere/toy.yaml")
    os.symlink(Path("elsewhere/toy.yaml").absolute(), "tasks/toy.yaml")


def utf16() -> None:
    text("!function evil.text")
    Path("tasks/toy.yaml").write_bytes(Path("tasks/toy.yaml").read_text().encode("utf-16"))


def builder(name: str) -> None:
    Path("evil.pkl").write_bytes(pickle.dumps({}))
    edit("tasks/toy.yaml", "dataset_path: json", f"dataset_path: {name}")


def script() -> None:
    Path("loader").mkdir()
    Path("loader/loader.py").write_text(CODE)
    builder("./loader")


def kwargs(extra: str) -> None:
    edit("tasks/toy.yaml", "dataset_kwargs: {", f"dataset_kwargs: {{{extra}, ")


OVERRIDE = "include: lm_eval:{}\ntask: toy\ndataset_path: json\nunsafe_code: false\n"


def stock(file: str) -> None:
    docs = Path("tasks/docs.jsonl").absolute()
    Path("tasks/toy.yaml").write_text(OVERRIDE.format(file) + f"dataset_kwargs: {{data_files: {docs}}}\n")


def generation(extra: str) -> None:
    Path("custom_generate").mkdir()
    Path("custom_generate/generate.py").write_text(CODE)
    edit("tasks/toy.yaml", "output_type: multiple_choice", "output_type: generate_until")
    edit("tasks/toy.yaml", "doc_to_choice: '{{choices}}'\n", f"generation_kwargs: {{{extra}}}\n")
    edit("tasks/toy.yaml", METRICS, "metric_list: [{metric: exact_match}]")


EVIL = "doc_to_text: !function evil.text\n"
ATTACKS: dict[str, tuple[Callable[[], Any], str]] = {
    "plain tag": (lambda: text("!function evil.text"), "--trust"),
    "percent-encoded tag": (lambda: text("!%66unction evil.text"), "--trust"),
    "every letter encoded": (lambda: text("!%66%75%6E%63%74%69%6F%6E evil.text"), "--trust"),
    "verbatim tag": (lambda: text("!<!function> evil.text"), "--trust"),
    "aliased tag": (lambda: text("!f!tion evil.text", "%TAG !f! !func\n---\n"), "--trust"),
    "tag on an anchor that is used elsewhere": (
        lambda: text("*f", "description: &f !function evil.text\n"), "--trust"),
    "quoted scalar": (lambda: text("!function 'evil.text'"), "--trust"),
    "folded scalar": (lambda: text("!function >-\n  evil.text"), "--trust"),
    "include of a .txt": (lambda: include("include: common.txt", common__txt=EVIL), "--trust"),
    "include without a suffix": (lambda: include("include: common", common=EVIL), "--trust"),
    "include of an include": (lambda: include("include: a.md", a__md="include: b.json\n", b__json=EVIL), "--trust"),
    "include in a list": (lambda: include("include: [a, b]", a="description: x\n", b=EVIL), "--trust"),
    "include from a merge key": (lambda: include("<<: {include: common}", common=EVIL), "--trust"),
    "the task's name from an include": (
        lambda: (edit("tasks/toy.yaml", "task: toy\n", ""), include("include: common", common="task: toy\n" + EVIL)),
        "--trust"),
    "UTF-16": (utf16, "--trust"),
    "a link to a YAML elsewhere": (linked, "--trust"),
    "an absolute module": (lambda: (elsewhere(), text(f"!function {Path('elsewhere/evil').absolute()}.text")), "--trust"),
    "a module of Python itself": (lambda: key("process_docs: !function os.system"), "--trust"),
    "a class": (lambda: key("class: !function evil.Evil"), "--trust"),
    "a filter": (
        lambda: key("filter_list: [{name: f, filter: [{function: custom, filter_fn: !function evil.text}]}]"), "--trust"),
    "a sampler": (lambda: key("fewshot_config: {sampler: !function evil.text}"), "--trust"),
    "an aggregation": (lambda: metric("{metric: acc, aggregation: !function evil.text}"), "--trust"),
    "a metric that is a script": (
        lambda: metric("{metric: tasks/evilmetric, aggregation: mean, higher_is_better: true}"), "--trust"),
    "a metric of a hub": (lambda: metric("{metric: evil/metric, aggregation: mean, higher_is_better: true}"), "--trust"),
    "a known metric of evaluate": (lambda: metric("{metric: acc, hf_evaluate: true}"), "--trust"),
    "a metric in a group's override": (
        lambda: (metric("{metric: acc}"), group("  - {task: toy, metric_list: [{metric: tasks/evilmetric}]}\n")), "--trust"),
    "a task inside of a group": (
        lambda: group("  - {task: inner, dataset_path: json, process_docs: !function evil.text}\n"), "--trust"),
    "lm-eval's task that runs answers": (lambda: stock("cruxeval/cruxeval_output_cot.yaml"), "--trust"),
    "lm-eval's task that loads a metric": (lambda: stock("humaneval/humaneval.yaml"), "--trust"),
    "data in pickles": (lambda: builder("pandas"), "--trust"),
    "data from a generator": (lambda: builder("generator"), "toy"),
    "data from a data base": (lambda: builder("sql"), "toy"),
    "a loading script": (script, "toy"),
    "a cache elsewhere": (lambda: kwargs(f"cache_dir: {Path('../stolen').absolute()}"), "--trust"),
    "a token for data": (lambda: kwargs(f"token: {SECRET}"), "secret"),
    "a password in an address": (lambda: kwargs("data_dir: 'https://me:pa55-of-nobody@host/x'"), "password"),
    "generation from a repository": (lambda: generation("custom_generate: ./, trust_remote_code: true"), "custom_generate"),
    "generation in the experiment": (
        lambda: edit("experiment.yaml", "limit: 8", "limit: 8\n  gen_kwargs: {custom_generate: ./, trust_remote_code: true}"),
        "custom_generate"),
    "a template with Python": (lambda: text(json.dumps("{{ cycler.__init__.__globals__.os.system('touch pwned') }}")), "toy"),
    "a description with Python": (lambda: key('description: "{{ q.__class__.__mro__ }}"\n'), ""),
    "choices that are an expression": (
        lambda: edit("tasks/toy.yaml", "'{{choices}}'", '"[open(\'pwned\', \'w\')]"'), "toy"),
    "Python's own tags": (lambda: key("metadata: !!python/object/apply:os.system ['touch pwned']"), "toy.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_a_task_folder_runs_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    act, word = ATTACKS[name]
    act()
    if name == "a description with Python":  # text to lm-eval, or refused
        foiled(RUN, capsys, (0, 2))
    else:
        foiled(RUN, capsys, words=[word])
        assert not Path("out").exists()


@pytest.mark.parametrize(
    "name", ["UTF-16", "include from a merge key", "a metric that is a script", "the task's name from an include"]
)
def test_with_trust_the_folder_s_own_python_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The attacks above are what they say: with --trust the same files run their code."""
    ATTACKS[name][0]()
    main([*RUN, "--trust"])
    assert Path("pwned").exists(), capsys.readouterr().err


def test_a_named_folder_runs_its_own_python_only(capsys: pytest.CaptureFixture[str]) -> None:
    """`--include-path` consents to the folder, not to what it links to, includes or names elsewhere."""
    measure = ["measure", "tiny-llama", "tiny-llama", "--tasks", "toy", "--include-path", "tasks", "--limit", "2"]
    power = ["power", "--tasks", "toy", "--include-path", "tasks"]
    kept = Path("tasks/toy.yaml").read_text()
    linked()
    foiled(measure, capsys, words=["is not in"])
    foiled(power, capsys, words=["is not in"])
    os.unlink("tasks/toy.yaml")
    Path("tasks/toy.yaml").write_text(kept)
    text(f"!function {Path('elsewhere/evil').absolute()}.text")
    foiled(power, capsys, words=["is not in"])
    Path("tasks/toy.yaml").write_text(kept)
    metric("{metric: metrics/evilmetric, aggregation: mean, higher_is_better: true}")
    foiled(power, capsys, words=["not in the task folder"])
    Path("tasks/toy.yaml").write_text(kept)
    text("!function evil.text")
    assert main(power) == 0, capsys.readouterr().err
    assert Path("pwned").exists()


def test_lm_eval_s_own_code_runs_where_it_only_reads() -> None:
    """The offline tasks need no --trust; what runs a model's answers, or a metric of a hub, does."""
    folder = Path(__file__).parents[2] / "evals/tasks"
    files = [file for file in folder.glob("*") if file.is_file()]
    named = {name for file in files for name in re.findall(r"lm_eval:([\w/.]+)", file.read_text())}
    assert len(named) > 10
    assert not [name for name in named if _dangerous((_stock() / name).parent)]
    assert all(_dangerous(_stock() / name) for name in ("humaneval", "cruxeval", "longproc", "squadv2"))


def test_a_suite_of_code_without_trust_is_refused_when_it_is_loaded() -> None:
    text("!%66unction evil.text")
    with pytest.raises(InputError, match="runs Python"):
        Suite(["toy"], include_path="tasks", trust=False).load()
    assert not Path("pwned").exists()
