"""Per-document values, corpus metrics and choices of every kind of task, against lm-eval's own simple_evaluate."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cltk
from cltk.errors import InputError
from cltk.measure.evaluate import Suite
from cltk.measure.power import known, plan
from tests.conftest import WORDS, sentences, write_jsonl

UTILS = """
import numpy as np

def which(doc):
    return doc["label"]

def starts(doc):
    return [doc["q"] + " " + choice for choice in doc["choices"]]

def npbool(doc, results):
    lls = [ll for ll, _ in results]
    right = np.bool_(np.argmax(lls) == doc["label"])
    return {"acc": right, "em": np.float16(right), "arr": np.array([float(right)])}

def mc2(doc, results):
    lls = np.array([ll for ll, _ in results])
    p = np.exp(lls - lls.max())
    labels = np.array(doc["labels"])
    return {"acc": (p[labels == 1].sum()) / p.sum()}

def instructions(doc, results):
    text = results[0]
    level = [bool(len(text) > n) for n in range(doc["label"] + 1)]
    return {"level": level, "prompt": all(level)}

def flat(items):
    return sum(sum(item) for item in items) / sum(len(item) for item in items)

def sparse(doc, results):
    out = {"always": float(len(results[0]) % 2), "sentinel": -1 if doc["label"] == 0 else float(len(results[0]) % 3 == 0)}
    out["hole"] = np.nan if doc["label"] == 1 else 0.5 * (len(results[0]) % 2)
    if doc["label"] == 2:
        out["some"] = float(len(results[0]) > 3)
    if len(results[0]) % 2:
        out["answered"] = float(len(results[0]) > 3)
    return out

def kept(items):
    items = [item for item in items if item != -1]
    return sum(items) / len(items)

def pairs(items):
    return float(np.mean([a == b for a, b in items]))

def matched(doc, results):
    return {"pairs": (len(results[0]) % 2, doc["label"] % 2), "loss": float(len(results[0])), "acc": 1.0}
"""
GENERATE = "output_type: generate_until\ndoc_to_text: '{{q}}'\ngeneration_kwargs: {max_gen_toks: 4, until: [\"\\n\"]}\n"
ASK = "output_type: multiple_choice\ndoc_to_text: '{{q}}'\n"
CHOOSE = "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
ROLL = "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"


def metrics(*names: str, how: str = "") -> str:
    return "metric_list:\n" + "".join(f"  - {{metric: {name}{how}}}\n" for name in names)


UP = ", aggregation: mean, higher_is_better: true"
FILTERS = """filter_list:
  - {name: strict-match, filter: [{function: regex, regex_pattern: "([a-m])"}, {function: take_first}]}
  - {name: none, filter: [{function: take_first}]}
"""
TASKS = {
    "index": CHOOSE + "doc_to_target: label\n" + metrics("acc", "acc_norm", "acc_bytes", "mcc", "brier_score"),
    "word": CHOOSE + "doc_to_target: '{{choices[label]}}'\n" + metrics("acc"),
    "letter": ASK + "doc_to_choice: ['(A)', '(B)', '(C)']\ndoc_to_target: letter\n"
    + metrics("acc"),
    "digit": ASK + "doc_to_choice: ['1', '2', '3']\ndoc_to_target: digit\n"
    + metrics("acc"),
    "wino": "output_type: multiple_choice\ndoc_to_text: !function utils.which\ndoc_to_choice: !function utils.starts\n"
    "doc_to_target: tail\n" + metrics("acc"),
    "mutual": CHOOSE + "doc_to_target: label\n" + metrics("acc", "acc_mutual_info"),
    "several": CHOOSE + "doc_to_target: rights\n" + metrics("acc"),
    "mc2": CHOOSE + "doc_to_target: 0\nprocess_results: !function utils.mc2\n" + metrics("acc", how=UP),
    "npbool": CHOOSE + "doc_to_target: label\nprocess_results: !function utils.npbool\n" + metrics("acc", "em", "arr", how=UP),
    "levels": GENERATE + "doc_to_target: '{{q}}'\nprocess_results: !function utils.instructions\nmetric_list:\n"
    "  - {metric: prompt, aggregation: mean, higher_is_better: true}\n"
    "  - {metric: level, aggregation: !function utils.flat, higher_is_better: true}\n",
    "sparse": GENERATE + "doc_to_target: '{{q}}'\nprocess_results: !function utils.sparse\n"
    + metrics("always", "some", "answered", how=UP)
    + "  - {metric: sentinel, aggregation: !function utils.kept, higher_is_better: true}\n"
    "  - {metric: hole, aggregation: nanmean, higher_is_better: true}\n",
    "filters": GENERATE + "doc_to_target: '{{q[0]}}'\n" + metrics("exact_match") + FILTERS,
    "translate": GENERATE + "doc_to_target: '{{q}}'\n" + metrics("bleu", "chrf", "ter"),
    "own": GENERATE + "doc_to_target: '{{q}}'\nprocess_results: !function utils.matched\nmetric_list:\n"
    "  - {metric: pairs, aggregation: !function utils.pairs, higher_is_better: true}\n"
    "  - {metric: loss, aggregation: mean}\n",
    "roll": ROLL + metrics("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "last": "output_type: loglikelihood\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{choices[0]}}'\n"
    + metrics("perplexity", "acc"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kinds")
    words = list(dict.fromkeys(WORDS))
    rows = [
        {
            "q": s, "choices": [words[(i + 5 * k) % len(words)] for k in range(3)], "label": i % 3, "digit": "123"[i % 3],
            "letter": "(" + "ABC"[i % 3] + ")", "tail": "on the mat", "rights": [[0, 2], [1]][i % 2], "labels": [1, i % 2, 0],
        }
        for i, s in enumerate(sentences(18, seed=3))
    ]  # fmt: skip
    write_jsonl(out / "rows.jsonl", rows)
    write_jsonl(out / "texts.jsonl", [{"text": s} for s in ["", "a cat", *sentences(5, seed=4), " ".join(sentences(40))]])
    (out / "utils.py").write_text(UTILS)
    for name, body in TASKS.items():
        file = out / ("texts.jsonl" if name == "roll" else "rows.jsonl")
        (out / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{validation: {file}}}}}\n"
            f"validation_split: validation\n{body}"
        )
    text = (out / "index.yaml").read_text() + "  - {metric: f1}\n"
    changes = {"index": "two", "{{choices}}": "{{choices[:2]}}", "doc_to_target: label": "doc_to_target: '{{label % 2}}'"}
    for old, new in changes.items():
        text = text.replace(old, new)
    (out / "two.yaml").write_text(text)
    return out


@pytest.fixture(scope="module")
def measured(folder: Path, tiny: Any, tokenizer: Any) -> Any:
    """(cltk's result, lm-eval's for the model before, and after), every task, float32."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    models = [tiny(seed=seed, initializer_range=0.3) for seed in (0, 1)]
    names = [*TASKS, "two"]
    ours = cltk.measure((models[0], tokenizer), (models[1], tokenizer), names, include_path=folder)
    with mock.patch("lm_eval.evaluator.add_env_info"):
        theirs = [
            simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), tasks=names, bootstrap_iters=0,
                task_manager=TaskManager(include_defaults=False, include_path=str(folder)),
            )
            for model in models
        ]  # fmt: skip
    return ours, *theirs


def rows_of(result: Any) -> dict[tuple[str, str], Any]:
    return {(row.task, row.metric): row for row in result.rows}


def test_every_number_of_lm_eval_is_a_row_or_a_note(measured: Any) -> None:
    ours, before, after = measured
    found, unseen = rows_of(ours), []
    for task, results in before["results"].items():
        for key in results:
            metric, _, chosen = key.partition(",")
            if not chosen or "_stderr" in metric:
                continue
            name = f"{metric},none" if task == "filters" and chosen == "none" else metric
            if (task, name) not in found:
                unseen.append((task, name))
                continue
            row = found[task, name]
            assert row.pre == pytest.approx(results[key], rel=1e-4, abs=1e-6), (task, key)
            assert row.post == pytest.approx(after["results"][task][key], rel=1e-4, abs=1e-6), (task, key)
            worse = row.pre - row.post if row.higher_is_better else row.post - row.pre
            assert row.forgetting == pytest.approx(worse, rel=1e-9, abs=1e-12), (task, key)
    assert unseen == [("own", "loss")]
    assert any("own: loss" in note and "higher_is_better" in note for note in ours.notes)


def test_directions(measured: Any) -> None:
    found = rows_of(measured[0])
    lower = {key for key, row in found.items() if not row.higher_is_better}
    assert lower == {
        ("index", "brier_score"), ("two", "brier_score"), ("translate", "ter"), ("last", "perplexity"), ("last", "nll"),
        ("roll", "word_perplexity"), ("roll", "byte_perplexity"), ("roll", "bits_per_byte"),
    }  # fmt: skip


def test_the_log_likelihood_that_is_called_perplexity_is_an_nll(measured: Any) -> None:
    ours, before, after = measured
    row, whole = (rows_of(ours)["last", metric] for metric in ("nll", "perplexity"))
    lls = [[sample["perplexity"] for sample in side["samples"]["last"]] for side in (before, after)]
    assert row.forgetting == pytest.approx(np.mean(lls[0]) - np.mean(lls[1]), abs=1e-4)
    assert math.exp(row.pre) == pytest.approx(whole.pre, rel=1e-5)
    assert (row.forgetting > 0) == (whole.forgetting > 0)


@pytest.mark.parametrize("task", ["index", "word", "letter", "digit", "wino", "mutual", "npbool"])
def test_margins_agree_with_lm_evals_accuracy(task: str, measured: Any) -> None:
    ours, before, after = measured
    for side, stock in (("pre", before), ("post", after)):
        for row, sample in zip(ours.samples[task], stock["samples"][task], strict=True):
            assert float(row[f"margin_{side}"] > 0) == sample["acc"]
            lls = [one[0] for one in sample["filtered_resps"]][:3]
            label = sample["doc"]["label"]
            assert row[f"logprob_{side}"] == pytest.approx(lls[label], abs=1e-4)
            assert row[f"margin_{side}"] == pytest.approx(lls[label] - max(lls[:label] + lls[label + 1 :]), abs=1e-4)
    flips = rows_of(ours)[task, "acc"].flips
    a, b = (np.mean([sample["acc"] for sample in stock["samples"][task]]) for stock in (before, after))
    assert flips.chance_rate == pytest.approx((1 - a) * (1 - b) / 2)  # three choices


def test_margins_per_byte_agree_with_acc_bytes_and_ones_without_meaning_are_not_there(measured: Any) -> None:
    ours, before, _ = measured
    found = rows_of(ours)
    for row, sample in zip(ours.samples["index"], before["samples"]["index"], strict=True):
        assert float(row["margin_norm_pre"] > 0) == sample["acc_bytes"]
    assert ("wino", "margin") in found
    assert ("wino", "margin_norm") not in found  # the ending is the same for both beginnings


@pytest.mark.parametrize("task", ["several", "mc2"])
def test_a_right_answer_has_no_margin_over_another_right_one(task: str, measured: Any) -> None:
    ours, before, _ = measured
    for row, sample in zip(ours.samples[task], before["samples"][task], strict=True):
        doc = sample["doc"]
        right = set(doc["rights"]) if task == "several" else {i for i, one in enumerate(doc["labels"]) if one}
        lls = [one[0] for one in sample["filtered_resps"]]
        best = max(lls[i] for i in right)
        assert row["margin_pre"] == pytest.approx(best - max(ll for i, ll in enumerate(lls) if i not in right), abs=1e-4)


def test_several_right_answers_are_guessed_more_often(folder: Path, tiny: Any, tokenizer: Any) -> None:
    scores = Suite(["several"], include_path=folder).evaluate(tiny(), tokenizer)
    assert scores.tasks["several"].choices == [1.5, 3] * 9
    assert known(scores)[1]["several"] == pytest.approx(1 / np.mean([2 / 3, 1 / 3]))


def test_chance_is_that_of_the_choices_whatever_the_target_looks_like(folder: Path, tiny: Any, tokenizer: Any) -> None:
    scores = Suite(["word", "letter", "digit", "wino", "mutual"], include_path=folder).evaluate(tiny(), tokenizer)
    base, choices = known(scores)
    assert set(choices.values()) == {3}
    rows = plan(dict.fromkeys(base, 18), dict.fromkeys(base, 1 / 3), choices)
    assert all("at chance" in " ".join(row.warnings) for row in rows[:-1])


def test_metrics_of_some_documents_are_paired_on_them(measured: Any) -> None:
    ours, before, after = measured
    found = rows_of(ours)
    for metric, n in (("some", 6), ("sentinel", 12), ("hole", 12), ("always", 18)):
        assert found["sparse", metric].n == n
    assert found["sparse", "some"].test == "mcnemar exact"
    assert sum(row["some_d"] is None for row in ours.samples["sparse"]) == 12
    sides = [[s.get("answered") for s in side["samples"]["sparse"]] for side in (before, after)]
    assert [x is None for x in sides[0]] != [x is None for x in sides[1]]  # the task must be able to show it
    assert any("answered is not there for the same documents" in note for note in ours.notes)


def test_filters_do_not_share_a_name(measured: Any) -> None:
    ours = rows_of(measured[0])
    assert {metric for task, metric in ours if task == "filters"} == {"exact_match", "exact_match,none"}
    assert ours["filters", "exact_match"].n == ours["filters", "exact_match,none"].n == 18


def test_an_empty_document_and_one_of_other_length_count_by_their_bytes(measured: Any) -> None:
    """lm-eval's ratio of sums, with the ratio estimator's standard error by hand (Cochran 1977, 6.3)."""
    ours, before, after = measured
    row = rows_of(ours)["roll", "bits_per_byte"]
    residuals = []
    for side in (before, after):
        lls, sizes = (np.array(x) for x in zip(*[s["bits_per_byte"] for s in side["samples"]["roll"]], strict=True))
        bits = -lls / math.log(2)
        residuals.append((bits - bits.sum() / sizes.sum() * sizes) / sizes.mean())
    d = residuals[1] - residuals[0]
    assert row.se == pytest.approx(d.std(ddof=1) / len(d) ** 0.5, rel=1e-4)
    assert row.n == 8


def test_a_result_is_json(measured: Any) -> None:
    text = json.dumps(measured[0].to_json(), allow_nan=False)
    assert "bootstrap" in text


def test_a_task_that_nobody_can_compare_is_refused_before_weights_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (folder / "own.yaml").read_text()
    changes = {"task: own": "task: vague", "higher_is_better: true": "higher_is_better: null", "utils.matched": "utils.sparse"}
    for old, new in changes.items():
        body = body.replace(old, new)
    (folder / "vague.yaml").write_text(body)
    with pytest.raises(InputError, match=r"task vague: .*metric always: .*higher_is_better"):
        Suite(["vague"], include_path=folder).load()
    Suite(["vague", "index"], include_path=folder).load()  # the other can be compared


def test_such_a_task_does_not_take_the_others_with_it(folder: Path, tiny: Any, tokenizer: Any) -> None:
    result = cltk.measure((tiny(), tokenizer), (tiny(seed=1), tokenizer), ["vague", "index"], include_path=folder)
    assert {row.task for row in result.rows} == {"index"}
    assert any("task vague" in note and "higher_is_better" in note for note in result.notes)


@given(
    st.lists(st.tuples(st.lists(st.floats(-50, 0), min_size=3, max_size=3), st.sets(st.integers(0, 2), min_size=1, max_size=2)))
)
def test_choices_together_are_each_by_itself(documents: list[tuple[list[float], set[int]]]) -> None:
    from cltk.measure.choices import Choice, together

    choices = [Choice(scores, frozenset(right), [3, 5, i % 4]) for i, (scores, right) in enumerate(documents)]
    found = together(choices)
    if found is None:
        assert not choices
        return
    for i, one in enumerate(choices):
        assert found["logprob"][i] == one.logprob()
        assert found["margin"][i] == one.margin()
        assert found["margin_norm"][i] == pytest.approx(one.margin(per_byte=True), rel=0, abs=0, nan_ok=True)
    assert together([*choices, Choice([-1.0, -2.0], frozenset({0}), [1, 1])]) is None
    assert together([*choices, Choice([-1.0, -math.inf, 0.0], frozenset({0}), [1, 1, 1])]) is None
