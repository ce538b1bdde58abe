"""Every output type x {0, 2 examples} x {plain, chat template} x every kind of metric, against lm-eval's simple_evaluate alone.

What people met (EleutherAI/lm-evaluation-harness): other answers once the chat template is applied elsewhere (#1841), examples
as turns or as one question (#1490), a target that is a list and takes the path of several targets (#2895).
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from lm_eval.api import metrics as scores

from cltk.measure.evaluate import Suite
from cltk.measure.forgetting import compare
from tests.conftest import WORDS, sentences, write_jsonl

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
UTILS = """
import numpy as np

def which(doc):
    return doc["label"]

def starts(doc):
    return [doc["q"][:9] + " " + choice for choice in doc["choices"]]

def kinds(doc, results):
    text = results[0]
    level = [bool(len(text) > n) for n in range(doc["label"] + 1)]
    out = {"level": level, "hole": np.nan if doc["label"] else float(len(text) % 2), "flag": np.bool_(len(text) % 2)}
    out["sentinel"] = -1 if doc["label"] else np.float32(len(text) % 3 == 0)
    return out | ({"some": float(len(text) > 3)} if doc["label"] else {})

def flat(items):
    return sum(sum(item) for item in items) / sum(len(item) for item in items)

def kept(items):
    items = [item for item in items if item != -1]
    return sum(items) / len(items)

def longer(predictions, references, **_):
    return float(len(predictions[0]) > 6)

def gap(doc, results):
    lls = [ll for ll, _ in results]
    return {"acc": int(np.argmax(lls) == doc["label"]), "gap": max(lls) - min(lls)}

def bits(doc, results):
    return {"bits_per_byte": (results[0], len(doc["q"])), "chars": results[0] / len(doc["q"])}

def surprise(doc, results):
    (ll, greedy), = results
    return {"acc": greedy, "perplexity": ll, "target_ppl": ll}
"""
PLUS = ("chrf++",) if hasattr(scores, "chrfpp") else ()  # lm-eval 0.4.13 brought it
OWN = ", aggregation: mean, higher_is_better: true"
UP = ", higher_is_better: true"
CHOOSE = "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
ROLL = "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{q}}'\n"
NEXT = "output_type: loglikelihood\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{choices[0]}}'\n"
WRITE = "output_type: generate_until\ndoc_to_text: '{{q}}'\ngeneration_kwargs: {max_gen_toks: 6, until: ['.']}\n"


def metrics(*names: str, how: str = "") -> str:
    return "metric_list:\n" + "".join(f"  - {{metric: {name}{how}}}\n" for name in names)


TASKS = {
    "choice": CHOOSE
    + "doc_to_target: label\n"
    + metrics("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "mcc", "brier_score"),
    "letters": CHOOSE.replace("'{{choices}}'", "['A', 'B']")
    + "doc_to_target: \"{{'AB'[label]}}\"\ndescription: 'Choose.'\ntarget_delimiter: ': '\nfewshot_delimiter: ' ## '\n"
    + metrics("acc", "acc_norm"),
    "several": CHOOSE
    + "doc_to_target: rights\nfewshot_config: {doc_to_target: '{{choices[rights[0]]}}'}\n"
    + metrics("acc", "acc_norm"),
    "beginnings": CHOOSE.replace("'{{q}}'", "!function utils.which").replace("'{{choices}}'", "!function utils.starts")
    + "doc_to_target: tail\n"
    + metrics("acc"),
    "gaps": CHOOSE + "doc_to_target: label\nprocess_results: !function utils.gap\n" + metrics("acc", "gap", how=OWN),
    "next": NEXT + metrics("acc", "perplexity"),
    "surprise": NEXT
    + "process_results: !function utils.surprise\n"
    + metrics("acc", "perplexity")
    + "  - {metric: target_ppl, aggregation: perplexity, higher_is_better: false}\n",
    "rolling": ROLL + metrics("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "bits": ROLL + "process_results: !function utils.bits\n" + metrics("bits_per_byte") + f"  - {{metric: chars{OWN}}}\n",
    "write": WRITE + "doc_to_target: '{{q}}'\ngen_prefix: 'So'\n" + metrics("exact_match", "bleu", "chrf", *PLUS, "ter"),
    "filters": WRITE
    + 'doc_to_target: "{{q.split()[0]}}"\nmetric_list:\n  - {metric: exact_match, ignore_case: true}\n'
    + "filter_list:\n"
    + "  - {name: strict, filter: [{function: regex, regex_pattern: '(\\w+)'}, {function: take_first}]}\n"
    + "  - {name: loose, filter: [{function: lowercase}, {function: take_first}]}\n",
    "targets": WRITE + "doc_to_target: '{{choices}}'\n" + metrics("exact_match"),
    "function": WRITE + "doc_to_target: '{{q}}'\n" + metrics("!function utils.longer", how=OWN),
    "kinds": WRITE
    + "doc_to_target: '{{q}}'\nprocess_results: !function utils.kinds\n"
    + metrics("flag", "some", how=OWN)
    + f"  - {{metric: level, aggregation: !function utils.flat{UP}}}\n  - {{metric: hole, aggregation: nanmean{UP}}}\n"
    + f"  - {{metric: sentinel, aggregation: !function utils.kept{UP}}}\n",
}
LOWER = {
    "brier_score", "perplexity", "target_ppl", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter", "nll",
    "target_ppl_nll",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("matrix")
    words = list(dict.fromkeys(WORDS))
    rows = [
        {"q": s, "choices": [words[i], words[i + 7]], "label": i % 2, "rights": [[0], [0, 1]][i % 2], "tail": "on the mat"}
        for i, s in enumerate(sentences(8, seed=4))
    ]
    data = write_jsonl(out / "rows.jsonl", rows)
    (out / "utils.py").write_text(UTILS)
    for name, body in TASKS.items():
        (out / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{validation: {data}}}}}\n"
            f"validation_split: validation\nfewshot_split: validation\n{body}"
        )
    return out


@pytest.fixture(scope="module", params=[(0, False), (0, True), (2, False), (2, True)], ids=str)
def both(request: Any, folder: Path, tiny: Any, tokenizer: Any) -> tuple[Any, Any]:
    """(cltk's scores, lm-eval's results) of one model with (examples, chat template), float32."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    (shots, template), own, model = request.param, copy.deepcopy(tokenizer), tiny(initializer_range=0.3)
    own.chat_template = TEMPLATE
    with mock.patch("lm_eval.evaluator.add_env_info"):
        theirs = simple_evaluate(
            HFLM(pretrained=model, tokenizer=own, batch_size=4), tasks=list(TASKS), bootstrap_iters=0, num_fewshot=shots,
            task_manager=TaskManager(include_defaults=False, include_path=str(folder)), apply_chat_template=template,
        )  # fmt: skip
    ours = Suite(list(TASKS), include_path=folder, num_fewshot=shots, chat_template=template).evaluate(model, own)
    return ours, theirs


def same(one: Any, other: Any) -> bool:
    """Equal, numbers up to the rounding of float32 sums of log-probabilities."""
    if isinstance(one, list | tuple | np.ndarray):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other if isinstance(one, str) else bool(np.isclose(one, other, rtol=1e-5, atol=1e-4, equal_nan=True))


@pytest.mark.parametrize("name", TASKS)
def test_documents_prompts_and_values(name: str, both: tuple[Any, Any]) -> None:
    ours, theirs = both
    pairs = list(zip(ours.lm_eval["samples"][name], theirs["samples"][name], strict=True))
    assert {one["doc_id"] for one, _ in pairs} == set(range(8))
    assert len({str(one["arguments"]) for one, _ in pairs}) == 8
    for one, other in pairs:
        for key in ("doc_id", "doc", "target", "filter", "doc_hash", "prompt_hash", "target_hash", "metrics"):
            assert one[key] == other[key], key
        assert [tuple(args) for args in one["arguments"]] == [tuple(args) for args in other["arguments"]]
        for key in ("resps", "filtered_resps", *one["metrics"]):
            assert same(one[key], other[key]), key


@pytest.mark.parametrize("name", TASKS)
def test_values_of_a_document_are_lm_evals(name: str, both: tuple[Any, Any]) -> None:
    """In the form that pairs them: nll of a log-probability, bits of (log-probability, bytes), else the number itself."""
    task, samples = both[0].tasks[name], both[1]["samples"][name]
    first = samples[0]["filter"]
    for sample in samples:
        i = sample["doc_id"]
        for metric in sample["metrics"]:
            value, key = sample[metric], metric if sample["filter"] == first else f"{metric},{sample['filter']}"
            if metric in ("perplexity", "target_ppl"):
                key, value = key.replace(metric, {"perplexity": "nll", "target_ppl": "target_ppl_nll"}[metric]), -value
            elif metric == "bits_per_byte":
                assert task.weights[key][i] == value[1]
                value = -value[0] / value[1] / math.log(2)
            elif key in task.corpus:
                continue
            elif np.isnan(value) or value == -1:
                assert task.weights[key][i] == 0
                continue
            assert same(task.values[key][i], value), key


@pytest.mark.parametrize("name", TASKS)
def test_aggregates_and_directions(name: str, both: tuple[Any, Any]) -> None:
    """Every number that lm-eval prints is a row, and no row improves in the other direction."""
    ours, theirs = both
    rows = {(row.task, row.metric): row for row in compare(ours, ours, draws=100).rows}
    first, found = theirs["samples"][name][0]["filter"], theirs["results"][name]
    printed = {key: value for key, value in found.items() if "," in key and "_stderr" not in key}
    assert len(printed) >= len({key.split(",")[0] for key in printed}) >= 1
    for key, value in printed.items():
        metric, chosen = key.split(",")
        row = rows[name, metric if chosen == first else key]
        assert row.pre == pytest.approx(value, rel=1e-4, abs=1e-6), key
        assert row.higher_is_better == (metric not in LOWER), key
        if metric != "ter" or PLUS:  # lm-eval before 0.4.13 declares it the other way round
            assert row.higher_is_better == bool(theirs["higher_is_better"][name].get(metric, True)), key
    assert all(row.higher_is_better == (metric not in LOWER) for (_, metric), row in rows.items())
