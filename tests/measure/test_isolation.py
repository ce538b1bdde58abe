"""What a task's own code raises, and log-probabilities of -inf, cost a note and neither the other tasks nor other metrics.

What people met: a perplexity beyond e^709 that ends everything (bigscience-workshop/lm-evaluation-harness#106,
UKGovernmentBEIS/inspect_ai#5028), a group whose members have other metrics (EleutherAI/lm-evaluation-harness#1424),
one failing document that loses the evaluation or vanishes from it without a word (Kaggle/kaggle-benchmarks#170).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cltk
from cltk.errors import InputError
from cltk.measure.evaluate import Suite, TextTask
from tests.conftest import sentences, write_jsonl

CHOICE = "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: label\n"
WRITE = (
    "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{q}}'\n"
    "generation_kwargs: {max_gen_toks: 4, until: ['.']}\n"
)
UP = ", aggregation: mean, higher_is_better: true}]\n"
PYTHON = """
def boom(doc, results):
    raise KeyError("x")

def third(doc, results):
    return {"acc": 1.0, "words": 1 / (doc["n"] - 2)}

def nothing(doc, results):
    return None

def words(doc, results):
    return {"acc": float(len(results[0]) % 2), "said": results[0]}

def two(doc, results):
    return {"acc": 1.0, "odd": float(results[0] == "")}

def breaks(items):
    raise ZeroDivisionError("no items")

def short(resps, docs):
    return resps[:1]
"""
BAD = {
    "boom": (CHOICE + "process_results: !function own.boom\n", "KeyError: 'x'"),
    "third": (CHOICE + "process_results: !function own.third\n", "ZeroDivisionError"),
    "nothing": (CHOICE + "process_results: !function own.nothing\n", "NoneType, not metrics"),
    "filtered": (WRITE + "metric_list: [{metric: exact_match}]\nfilter_list: [{name: a, filter: "
                 "[{function: custom, filter_fn: !function own.short}]}]\n", "a filter: it gives no answer"),
}  # fmt: skip
ROWS = [{"q": s, "choices": ["a", "b"], "label": i % 2, "n": i} for i, s in enumerate(sentences(6))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("isolated")
    data = write_jsonl(out / "rows.jsonl", ROWS)
    (out / "own.py").write_text(PYTHON)
    bodies = {
        "good": CHOICE,
        **{name: body for name, (body, _) in BAD.items()},
        "said": WRITE + "process_results: !function own.words\nmetric_list: [{metric: acc" + UP,
        "aggregate": WRITE + "process_results: !function own.two\nmetric_list:\n"
        "  - {metric: odd, aggregation: !function own.breaks, higher_is_better: true}\n"
        "  - {metric: acc, aggregation: mean, higher_is_better: true}\n",
        "word": "output_type: loglikelihood\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{choices[label] * 200}}'\n"
        "metric_list: [{metric: perplexity}, {metric: acc}]\n",
    }  # fmt: skip
    for name, body in bodies.items():
        (out / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{validation: {data}}}}}\n"
            f"validation_split: validation\n{body}"
        )
    (out / "both.yaml").write_text("group: both\ntask: [good, boom]\naggregate_metric_list: [{metric: acc}]\n")
    return out


def test_the_others_are_compared_and_each_failure_is_named(folder: Path, tiny: Any, tokenizer: Any) -> None:
    pair = tiny(), tokenizer
    result = cltk.measure(pair, pair, ["good", *BAD], include_path=folder)
    assert {row.task for row in result.rows} == {"good"}
    for name, (_, words) in BAD.items():
        (note,) = (note for note in result.notes if f"task {name} " in note)
        assert words in note
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize("names", [["boom"], ["third", "filtered"]])
def test_where_nothing_is_left_it_is_a_line_for_the_first_model(
    names: list[str], folder: Path, tiny: Any, tokenizer: Any
) -> None:
    with pytest.raises(InputError, match=f"task {names[0]}: its own code fails") as caught:
        Suite(names, include_path=folder).evaluate(tiny(), tokenizer)
    assert all(name in str(caught.value) for name in names)


def test_code_that_fails_is_known_after_its_first_document(
    folder: Path, tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    asked: list[int] = []
    own = HFLM._loglikelihood_tokens

    def counted(self: Any, requests: Any, **settings: Any) -> Any:
        asked.append(len(requests))
        return own(self, requests, **settings)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", counted)
    with pytest.raises(InputError, match="KeyError"):
        Suite(["boom"], include_path=folder).evaluate(tiny(), tokenizer)
    assert asked == [2]  # the choices of one document


def test_a_member_that_fails_leaves_the_other_its_row(folder: Path, tiny: Any, tokenizer: Any) -> None:
    pair = tiny(), tokenizer
    result = cltk.measure(pair, pair, ["both"], include_path=folder)
    assert {row.task for row in result.rows} == {"good"}
    assert any("group both" in note for note in result.notes)
    assert any("task boom" in note and "KeyError" in note for note in result.notes)


def test_an_aggregation_that_raises_costs_its_own_metric(folder: Path, tiny: Any, tokenizer: Any) -> None:
    pair = tiny(), tokenizer
    result = cltk.measure(pair, pair, ["aggregate", "said"], include_path=folder)
    assert {(row.task, row.metric) for row in result.rows} == {("aggregate", "acc"), ("said", "acc")}
    assert any("aggregate: odd is left out" in note and "ZeroDivisionError: no items" in note for note in result.notes)
    assert any("said: said is left out" in note for note in result.notes)


def test_a_perplexity_beyond_all_numbers_leaves_the_nll(folder: Path, tiny: Any, tokenizer: Any) -> None:
    """200 tokens at 6 nats each: lm-eval's own exp raises OverflowError."""
    pair = tiny(), tokenizer
    result = cltk.measure(pair, pair, ["word"], include_path=folder)
    rows = {row.metric: row for row in result.rows}
    assert set(rows) == {"nll", "acc"}
    assert rows["nll"].pre > 800
    assert any("word: perplexity is left out" in note and "OverflowError" in note for note in result.notes)


class Masked:
    """A hook that gives some tokens no probability."""

    def __init__(self, model: Any, tokens: list[int]) -> None:
        self.tokens = tokens
        model.lm_head.register_forward_hook(self)

    def __call__(self, module: Any, given: Any, logits: Any) -> Any:
        logits = logits.clone()
        logits[..., self.tokens] = -float("inf")
        return logits


@pytest.mark.parametrize("scorer", ["prefix", "stock"])
@pytest.mark.parametrize("hidden", [[" a"], [" a", " b"], ["."]], ids=str)
def test_excluded_tokens_leave_what_has_numbers(
    hidden: list[str], scorer: str, folder: Path, tiny: Any, tokenizer: Any
) -> None:
    """acc is lm-eval's, on both sides; nothing is nan, and what is infinite is named."""
    from unittest import mock

    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    base, tuned = tiny(initializer_range=0.3), tiny(seed=1, initializer_range=0.3)
    Masked(tuned, [tokenizer(text)["input_ids"][-1] for text in hidden])
    text = TextTask("text", [{"text": s} for s in sentences(4)])
    result = cltk.measure((base, tokenizer), (tuned, tokenizer), ["good"], include_path=folder, texts=[text], scorer=scorer)
    with mock.patch("lm_eval.evaluator.add_env_info"), np.errstate(all="ignore"):
        theirs = simple_evaluate(
            HFLM(pretrained=tuned, tokenizer=tokenizer, batch_size=4), tasks=["good"], bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False, include_path=str(folder)),
        )  # fmt: skip
    rows = {(row.task, row.metric): row for row in result.rows}
    assert rows["good", "acc"].post == theirs["results"]["good"]["acc,none"]
    assert np.isfinite([[row.pre, row.post, row.forgetting] for row in result.rows]).all()
    if hidden == ["."]:
        assert not any(row.task == "text" for row in result.rows)
        assert any("task text (after): nll of document 0 is inf" in note for note in result.notes)
        assert any("text: KL is left out" in note for note in result.notes)
        assert {"logprob", "margin"} <= {row.metric for row in result.rows if row.task == "good"}
    else:
        assert not {"logprob", "margin", "margin_norm"} & {row.metric for row in result.rows if row.task == "good"}
        assert any("good: margin is left out: that of document" in note and "-inf" in note for note in result.notes)
    json.dumps(result.to_json(), allow_nan=False)
