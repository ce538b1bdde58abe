"""Groups, tags, patterns and task files: what was named has a row each, weighted as lm-eval weighs it.

What people met: a group's score is no average of its tasks' (EleutherAI/lm-evaluation-harness#1352, #1521), groups of own and
built-in tasks (#1301), one task in two groups (#3401), several settings of one task (#2158).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.evaluate import Suite
from cltk.measure.groups import Group, pool
from cltk.measure.scores import TaskScores
from tests.conftest import TINY, WORDS, sentences, write_jsonl

SIZES = {"one": 3, "two": 12, "three": 7}


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    toy = Path("tasks/toy.yaml").read_text()
    for k, (name, n) in enumerate(SIZES.items()):
        rows = [
            {"q": s, "choices": [WORDS[(i * 5 + j * 7 + k) % len(WORDS)] for j in range(3)], "label": i % 3}
            for i, s in enumerate(sentences(n, seed=k))
        ]
        data = write_jsonl(Path(f"tasks/{name}.jsonl").absolute(), rows)
        own = toy.replace("task: toy", f"task: {name}").replace(str(Path("tasks/docs.jsonl").absolute()), str(data))
        Path(f"tasks/{name}.yaml").write_text(own + "tag: several\n")


def write_group(name: str, members: str, lists: str = "") -> None:
    Path(f"tasks/{name}.yaml").write_text(
        f"group: {name}\ntask: {members}\n" + (f"aggregate_metric_list:\n{lists}" if lists else "")
    )


def stock(model: Any, tokenizer: Any, names: list[str]) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with mock.patch("lm_eval.evaluator.add_env_info"):
        return simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), tasks=names, bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False, include_path="tasks"),
        )  # fmt: skip


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_is_weighted_as_its_file_says(by_size: bool, tiny: Any, tokenizer: Any) -> None:
    write_group("all", "[one, two, three]", f"  - {{metric: acc, weight_by_size: {str(by_size).lower()}}}\n")
    base, tuned = tiny(seed=0, initializer_range=0.5), tiny(seed=1, initializer_range=0.5)
    result = cltk.measure((base, tokenizer), (tuned, tokenizer), ["all", "toy"], include_path="tasks")
    rows = {(row.task, row.metric): row for row in result.rows}
    for side, model in (("pre", base), ("post", tuned)):
        theirs = stock(model, tokenizer, ["all", "toy"])["results"]
        assert getattr(rows["all", "acc"], side) == pytest.approx(theirs["all"]["acc,none"], abs=1e-12)
        named = np.mean([theirs["all"]["acc,none"], theirs["toy"]["acc_norm,none"]])
        assert getattr(result.macro, side) == pytest.approx(named, abs=1e-12)
    assert {row.task for row in result.rows} == {"all", "toy"}
    assert ("all", "acc_norm") not in rows  # the group does not list it
    assert rows["all", "acc"].n == 22
    assert len(result.samples["all"]) == 22
    assert (rows["all", "acc"].lost is not None) == by_size


def test_equal_weights_have_the_interval_of_their_members(tiny: Any, tokenizer: Any) -> None:
    """By hand: T means with T weights, w_i = N / (T n_t); the variance of sum_i w_i (d_i - D) / N is that of a ratio."""
    write_group("all", "[one, two, three]", "  - {metric: acc, weight_by_size: false}\n")
    pair = [(tiny(seed=seed, initializer_range=0.5), tokenizer) for seed in (0, 1)]
    result = cltk.measure(*pair, ["all"], include_path="tasks", members=True)
    row = next(row for row in result.rows if (row.task, row.metric) == ("all", "margin"))
    d = {name: np.array([doc["margin_d"] for doc in result.samples[name]]) for name in SIZES}
    assert row.forgetting == pytest.approx(np.mean([x.mean() for x in d.values()]))
    spread = sum((((x - row.forgetting) * 22 / (3 * len(x))) ** 2).sum() for x in d.values())
    assert row.se == pytest.approx(np.sqrt(spread / (22 * 21)))


def test_members_have_rows_on_request_and_count_once(tiny: Any, tokenizer: Any) -> None:
    write_group("part", "[one, two]")
    write_group("all", "[part, three]")
    pair = [(tiny(seed=seed), tokenizer) for seed in (0, 1)]
    alone = cltk.measure(*pair, ["all", "toy"], include_path="tasks")
    beside = cltk.measure(*pair, "all, toy", include_path="tasks", members=True)
    assert list(dict.fromkeys(row.task for row in beside.rows)) == ["all", "toy", "part", "one", "two", "three"]
    assert beside.macro == alone.macro
    first = [row.to_json() for row in alone.rows]
    assert [row.to_json() for row in beside.rows][: len(first)] == first


def test_tags_and_patterns_stand_for_their_tasks(tiny: Any, tokenizer: Any) -> None:
    for name in ("zz_a", "zz_b", "zz_c"):
        Path(f"tasks/{name}.yaml").write_text(Path("tasks/one.yaml").read_text().replace("task: one", f"task: {name}"))
    write_group("zz_again", "[zz_a, zz_b]")  # holds what the pattern matches already
    write_group("zz_other", "[two, three]")
    suite = Suite(["several"], include_path="tasks")
    assert suite.rows("several") == ["one", "three", "two", "zz_a", "zz_b", "zz_c"]
    assert list(suite.evaluate(tiny(), tokenizer).tasks) == suite.rows("several")
    other = Suite(["zz_*"], include_path="tasks")
    assert other.rows("zz_*") == ["zz_a", "zz_b", "zz_c", "zz_other"]
    assert other.sizes() == {"zz_a": 3, "zz_b": 3, "zz_c": 3, "zz_other": 19}


def test_a_task_file_is_its_task(study: Path, tiny: Any, tokenizer: Any) -> None:
    found = Suite([str(study / "tasks" / "one.yaml"), "tasks/two.yaml"]).evaluate(tiny(), tokenizer)
    named = Suite(["one", "two"], include_path="tasks").evaluate(tiny(), tokenizer)
    assert {name: task.values for name, task in found.tasks.items()} == {n: t.values for n, t in named.tasks.items()}


def test_a_group_of_own_and_built_in_tasks(tiny: Any, tokenizer: Any) -> None:
    """lm-eval's own index holds the second; its data are not here, which the line says."""
    write_group("mixed", "[one, arc_easy]")
    with pytest.raises(InputError, match=r"'mixed'.*documents cannot be loaded") as caught:
        Suite(["mixed"], include_path="tasks").load()
    assert "NoneType" not in str(caught.value)
    own = Path("tasks/one.yaml").read_text().replace("task: one", "task: arc_easy")
    Path("tasks/arc_easy.yaml").write_text(own)
    assert Suite(["mixed"], include_path="tasks").sizes() == {"mixed": 6}


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (["all", "one"], "'one' is named twice"),
        (["one", "all"], "'one' is named twice"),
        (["tasks/nothing.yaml"], "no such file"),
        ([3], "expected names"),
        ([], "at least one"),
        (" , ", "at least one"),
    ],
)
def test_names_that_are_refused(tasks: Any, words: str) -> None:
    write_group("all", "[one, two]")
    with pytest.raises(InputError, match=words):
        Suite(tasks, include_path="tasks").load()


def test_metrics_that_members_do_not_share_are_named(tiny: Any, tokenizer: Any) -> None:
    Path("tasks/one.yaml").write_text(Path("tasks/one.yaml").read_text().replace(", {metric: acc_norm}", ""))
    write_group("all", "[one, two]")
    result = cltk.measure((tiny(), tokenizer), (tiny(), tokenizer), ["all"], include_path="tasks")
    assert "acc_norm" not in {row.metric for row in result.rows}
    assert [note for note in result.notes if "group all" in note and "acc_norm" in note]


def test_pooled_clusters_stay_apart() -> None:
    one, two = (
        TaskScores(name, {"acc": [1.0, 0.0]}, {"acc": True}, ["a", "b"], ["p", "q"], [2, 2], cluster, {"num_fewshot": shots})
        for name, cluster, shots in (("one", ["x", "x"], 0), ("two", [], 5))
    )
    found, missing = pool(Group("both", ("one", "two")), {"one": one, "two": two})
    assert found is not None
    assert not missing
    assert found.cluster == ["one/x", "one/x", "two/0", "two/1"]
    assert found.settings["num_fewshot"] == {"one": 0, "two": 5}


def test_roles_are_given_after_groups_and_tags_are_expanded(capsys: Any) -> None:
    """A group or a tag in evals.learn is gain, whatever its tasks are called."""
    write_group("grp", "[one, two]")
    Path("tasks/three.yaml").write_text(Path("tasks/three.yaml").read_text().replace("tag: several", "tag: lonely"))
    Path("x.yaml").write_text(
        TINY + 'train: {learning_rate: 3.0e-3, max_steps: 2, per_device_train_batch_size: 4, save_strategy: "no"}\n'
        "evals: {retain: [toy], learn: [grp, lonely], include_path: tasks, limit: 2, kl_rows: 0}\nkeep_model: false\n"
    )
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    record = json.loads(next(Path("out").glob("*/record.json")).read_text())
    learned, kept = ({row["task"] for row in record[role]["rows"]} for role in ("learn", "retain"))
    assert learned == {"heldout", "grp", "three"}
    assert kept == {"toy"}


def test_python_beside_a_task_that_is_named_as_a_file_is_part_of_its_rules(tiny: Any, tokenizer: Any) -> None:
    """Its answers were scored by other code, and a run said that there was nothing to do."""
    text = Path("tasks/one.yaml").read_text().replace("task: one", "task: own")
    Path("own").mkdir()
    Path("own/own.yaml").write_text(text + "process_results: !function scoring.process\n")
    digests = []
    for right in ("0.0", "1.0", "1.0"):
        Path("own/scoring.py").write_text(f"def process(doc, results):\n    return {{'acc': {right}, 'acc_norm': {right}}}\n")
        digests.append(Suite(["own/own.yaml"], trust=True).rules()["own"])
    assert digests[0] != digests[1] == digests[2]
