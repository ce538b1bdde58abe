"""`sample` against lm-eval alone on the same indices, the same documents for everyone, and what a reader is told.

What people met: documents logged under other indices where those are not ascending (EleutherAI/lm-evaluation-harness#4084), a
limit that is one of each subset and 57 times the work (modelscope/evalscope#1496), indices of single tasks (#2520).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.evaluate import Suite, TextTask
from cltk.measure.sampling import choose
from tests.conftest import WORDS, sentences, write_jsonl

N = 40


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks have 20 documents of one source and then 20 of another; `passages` has clusters of two."""
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    rows = [
        {
            "q": s, "choices": [WORDS[(i * 5 + j * 7) % len(WORDS)] for j in range(3)], "label": i % 3,
            "source_id": f"{kind}~{i}", "passage": f"p{i // 2}", "subject": ["law", "art"][i >= 20],
        }
        for i, (s, kind) in enumerate(zip(sentences(N, seed=8), ["net"] * 20 + ["how"] * 20, strict=True))
    ]  # fmt: skip
    data = write_jsonl(Path("tasks/many.jsonl").absolute(), rows)
    toy = Path("tasks/toy.yaml").read_text().replace(str(Path("tasks/docs.jsonl").absolute()), str(data))
    for name, metadata in {
        "plain": "version: 1.0", "spread": "version: 1.0, stratum: \"{{source_id.split('~')[0]}}\"",
        "passages": "version: 1.0, cluster: passage, stratum: subject",
    }.items():  # fmt: skip
        Path(f"tasks/{name}.yaml").write_text(toy.replace("task: toy", f"task: {name}") + f"metadata: {{{metadata}}}\n")


def stock(model: Any, tokenizer: Any, names: list[str], **settings: Any) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with mock.patch("lm_eval.evaluator.add_env_info"):
        return simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), tasks=names, bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False, include_path="tasks"), **settings,
        )  # fmt: skip


def test_lm_eval_alone_gives_the_same_on_the_indices_that_are_named(tiny: Any, tokenizer: Any) -> None:
    """Documents, values and aggregates, few-shot examples too; a task beside it is scored whole."""
    own = Path("tasks/plain.yaml").read_text().replace("task: plain", "task: shots")
    Path("tasks/shots.yaml").write_text(own + "num_fewshot: 2\nfewshot_split: validation\n")
    model = tiny(initializer_range=0.5)
    asked = {"plain": 9, "spread": 0.2, "passages": 8, "shots": 7}
    scores = Suite([*asked, "toy"], include_path="tasks", sample=asked).evaluate(model, tokenizer)
    samples = scores.lm_eval["config"]["samples"]
    assert {name: len(found) for name, found in samples.items()} == {"plain": 9, "spread": 8, "passages": 8, "shots": 7}
    theirs = stock(model, tokenizer, [*asked, "toy"], samples=json.loads(json.dumps(samples)))
    for name in [*asked, "toy"]:
        for key, value in theirs["results"][name].items():
            if not key.startswith(("alias", "name")) and "stderr" not in key:
                assert scores.lm_eval["results"][name][key] == pytest.approx(value, abs=1e-6), (name, key)
        ours, other = scores.lm_eval["samples"][name], theirs["samples"][name]
        assert [s["doc_id"] for s in ours] == [s["doc_id"] for s in other] == samples.get(name, list(range(12)))
        for key in ("doc_hash", "prompt_hash", "target", "acc"):
            assert [s[key] for s in ours] == [s[key] for s in other], (name, key)
        assert scores.tasks[name].values["acc"] == [s["acc"] for s in other]
        assert len(scores.tasks[name]) == theirs["n-samples"][name]["effective"]


def chosen(suite: Suite, tiny: Any, tokenizer: Any, seed: int = 0) -> dict[str, list[int]]:
    return suite.evaluate(tiny(seed=seed), tokenizer).lm_eval["config"]["samples"]


def test_the_same_documents_for_every_model_and_in_every_order(tiny: Any, tokenizer: Any) -> None:
    settings: dict[str, Any] = {"include_path": "tasks", "sample": 6}
    suite = Suite(["plain", "spread"], **settings)
    first = chosen(suite, tiny, tokenizer)
    assert chosen(suite, tiny, tokenizer, seed=1) == first
    assert chosen(Suite("spread,plain,toy", **settings), tiny, tokenizer) == {**first, "toy": choose(12, 6, "0 toy")}
    assert first["plain"] == choose(N, 6, "0 plain") != first["spread"]
    other = Suite(["plain", "spread"], **settings, sample_seed=1)
    assert chosen(other, tiny, tokenizer)["plain"] == choose(N, 6, "1 plain") != first["plain"]
    assert suite.sizes() == {"plain": 6, "spread": 6}
    assert suite.digests() == Suite(["plain", "spread"], **settings).digests()
    assert not set(suite.digests().values()) & set(other.digests().values())
    assert suite.rules()["plain"] != other.rules()["plain"]


def test_strata_have_their_shares_and_clusters_stay_whole(tiny: Any, tokenizer: Any) -> None:
    found = chosen(Suite(["spread", "passages"], include_path="tasks", sample=8), tiny, tokenizer)
    assert Counter(i >= 20 for i in found["spread"]) == {False: 4, True: 4}
    assert Counter(i >= 20 for i in found["passages"]) == {False: 4, True: 4}
    assert set(Counter(i // 2 for i in found["passages"]).values()) == {2}


def test_what_was_scored_is_said(tiny: Any, tokenizer: Any) -> None:
    text = TextTask.read("old", "old.jsonl", cluster="document")
    suite = Suite(["plain", "passages", "toy"], include_path="tasks", texts=[text], sample=20)
    scores = suite.evaluate(tiny(), tokenizer)
    assert scores.tasks["plain"].notes == ["20 of 40 documents, drawn at random (sample 20, seed 0)"]
    assert scores.tasks["plain"].settings | {"sample": 20, "sample_seed": 0, "limit": None} == scores.tasks["plain"].settings
    assert scores.tasks["passages"].notes == [
        "20 of 40 documents, drawn at random (sample 20, seed 0), in 10 of 20 clusters, spread over 2 of 2 strata"
    ]
    assert scores.tasks["toy"].notes == ["all of its 12 documents (sample 20)"]
    assert "sample" not in scores.tasks["toy"].settings  # whoever has no sample has the same
    assert scores.tasks["old"].notes == ["20 of 120 rows, drawn at random (sample 20, seed 0), in 5 of 30 clusters"]
    assert set(Counter(scores.tasks["old"].cluster).values()) == {4}


def test_a_group_has_its_sample_of_each_task_and_says_so(tiny: Any, tokenizer: Any) -> None:
    lists = "aggregate_metric_list:\n  - {metric: acc, weight_by_size: true}\n"
    Path("tasks/all.yaml").write_text(f"group: all\ntask: [plain, toy]\n{lists}")
    model = tiny(initializer_range=0.5)
    scores = Suite(["all"], include_path="tasks", sample=10).evaluate(model, tokenizer)
    theirs = stock(model, tokenizer, ["all"], samples=scores.lm_eval["config"]["samples"])
    row = scores.tasks["all"]
    assert sum(row.values["acc"]) / len(row) == pytest.approx(theirs["results"]["all"]["acc,none"], abs=1e-12)
    assert row.notes[-1] == (
        "a sample is of each of its 2 tasks: 20 of 52 documents (seed 0); they weigh by the documents that were drawn, as in"
        " lm-eval: a fraction keeps each task's own weight"
    )
    half = Suite(["all"], include_path="tasks", sample=0.5)
    assert half.sizes() == {"all": 26}
    assert half.evaluate(model, tokenizer).tasks["all"].notes[-1].endswith("26 of 52 documents (seed 0)")
    only = Suite(["all"], include_path="tasks", sample={"all": 10, "toy": 3})
    assert only.sizes() == {"all": 13}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"limit": 3, "sample": 3}, "limit, sample: limit takes the first documents and sample random ones; give one"),
        ({"sample": 0}, "sample: expected a whole number of documents from 1, or a fraction"),
        ({"sample": 1.5}, "sample: expected"),
        ({"sample": "ten"}, "sample: expected"),
        ({"sample": {"plain": -1}}, "sample of plain: expected"),
        ({"sample": {"plane": 3}}, "sample: 'plane' is not measured; what is: plain"),
        ({"sample": 3, "sample_seed": 0.5}, "sample_seed: expected a whole number"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_a_model_is_loaded(given: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        Suite(["plain"], include_path="tasks", **given).load()


@pytest.mark.parametrize(("key", "value"), [("stratum", "sauce"), ("stratum", '"{{sauce.split()}}"'), ("cluster", "sauce")])
def test_a_column_that_is_not_there_is_refused(key: str, value: str) -> None:
    body = Path("tasks/plain.yaml").read_text().replace("version: 1.0", f"version: 1.0, {key}: {value}")
    Path("tasks/plain.yaml").write_text(body)
    with pytest.raises(InputError, match="sauce"):
        Suite(["plain"], include_path="tasks", sample=5).load()
    Path("old2.jsonl").write_text('{"text": "a b", "kind": "x"}\n{"text": "c d"}\n')
    with pytest.raises(InputError, match="stratum column 'kind' is missing"):
        TextTask.read("old", "old2.jsonl", stratum="kind")


def test_first_documents_of_one_source_are_said_and_others_not(tiny: Any, tokenizer: Any) -> None:
    """A field that the task names, one it does not name, and documents in random order."""
    notes = {}
    for name, limit in (("spread", 15), ("passages", 15), ("plain", 15), ("plain", 3), ("toy", 3)):
        scores = Suite([name], include_path="tasks", limit=limit).evaluate(tiny(), tokenizer)
        notes[name, limit] = scores.tasks[name].notes
    said = "its first 15 documents are not like all 40: 15 of them have {{source_id.split('~')[0]}} 'net', 50.0 % of all;"
    assert notes["spread", 15][0].startswith(said)
    assert "15 of them have subject 'law', 50.0 % of all" in notes["passages", 15][0]
    assert "15 of them have subject 'law', 50.0 % of all" in notes["plain", 15][0]
    assert not notes["plain", 3]
    assert not notes["toy", 3]


def test_a_large_task_is_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a million documents for a limit of ten would take longer than scoring these."""
    from cltk.measure import selection

    class Documents(list[dict[str, Any]]):
        read = 0

        def __getitem__(self, i: Any) -> Any:
            Documents.read += 1
            return super().__getitem__(i)

    monkeypatch.setattr(selection, "MANY", 100)
    task = mock.Mock(eval_docs=Documents([{"kind": f"k{i // 500}"} for i in range(5000)]))
    task.dump_config.return_value = {}
    (note,) = selection.Selection(limit=20)._task("big", task, None).notes
    assert "its first 20 documents are not like all 5000: 20 of them have kind 'k0'" in note
    chosen = selection.Selection(sample=20)._task("big", task, 20)
    assert [one["kind"] for one in chosen.of(task.eval_docs)] == [f"k{i // 500}" for i in choose(5000, 20, "0 big")]
    assert Documents.read == 20 + 100 + 20


def test_other_samples_are_refused_by_name(tiny: Any, tokenizer: Any) -> None:
    from cltk.measure.forgetting import compare

    def scores(**given: Any) -> Any:
        return Suite(["plain"], include_path="tasks", **given).evaluate(tiny(), tokenizer)

    whole, some = scores(), scores(sample=10)
    for other, said in (
        (whole, "all documents"), (scores(sample=12), "sample 12 (seed 0)"), (scores(limit=10), "the first 10 documents"),
        (scores(sample=10, sample_seed=3), "sample 10 (seed 3)"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="sample 10 \\(seed 0\\) before") as found:
            compare(some, other)
        assert f"{said} after" in str(found.value)
    assert compare(whole, scores(sample=40)).rows[0].n == 40


def test_command_line(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = ["measure", str(tiny_folder), str(tiny_folder), "--include-path", "tasks", "--tasks", "plain", "--text", "old.jsonl"]
    assert main([*same, "--sample", "10", "--sample-seed", "5", "--json", "out.json"]) == 0
    found = json.loads(Path("out.json").read_text())
    assert (found["settings"]["sample"], found["settings"]["sample_seed"]) == (10, 5)
    assert {row["n"] for row in found["rows"]} == {10}
    out = capsys.readouterr().out
    assert "note: plain: 10 of 40 documents, drawn at random (sample 10, seed 5)" in out
    assert "note: old: 10 of 120 rows, drawn at random (sample 10, seed 5)" in out
    assert main([*same, "--sample", "0.1"]) == 0
    assert "4 of 40 documents" in capsys.readouterr().out
    assert main([*same, "--sample", "10", "--limit", "10"]) == 2
    assert main([*same, "--sample", "1.5"]) == 2
    assert main(["power", "--include-path", "tasks", "--tasks", "plain", "--sample", "10"]) == 0
    assert main(["power", "--include-path", "tasks", "--tasks", "plain", "--limit", "15"]) == 0
    assert "its first 15 documents are not like all 40" in capsys.readouterr().out


def test_python(tiny: Any, tokenizer: Any) -> None:
    pair = (tiny(), tokenizer)
    result = cltk.measure(pair, pair, ["plain"], include_path="tasks", texts="old.jsonl", sample={"plain": 5, "old": 0.1})
    assert {row.task: row.n for row in result.rows} == {"plain": 5, "old": 12}
    assert result.settings["sample"] == {"plain": 5, "old": 0.1}
