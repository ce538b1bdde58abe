"""lm-eval's own task families, on rows made here in their data sets' own columns, against lm-eval's simple_evaluate alone.

What people met (EleutherAI/lm-evaluation-harness): answers that are an index, a letter or a text (#2895),
metrics that members of a group do not share (#1424), tasks that break with a package or its version (#3260).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from cltk.measure.evaluate import Suite
from cltk.measure.forgetting import compare
from tests.conftest import WORDS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
DOCUMENTS = 4
GENERATED = {"max_gen_toks": 6}
SPLITS = (
    "train validation test dev val valid eval auxiliary_train train_r1 dev_r1 test_r1 validation_matched validation_mismatched"
    " test_matched test_mismatched"
).split()
VOCABULARY = list(dict.fromkeys(WORDS))


class Made:
    """The i-th row's pieces: sentences, words, a label, always the same."""

    def __init__(self, i: int) -> None:
        self.i, self.rng = i, random.Random(i)

    def s(self, words: int = 7) -> str:
        return " ".join(self.rng.choice(VOCABULARY) for _ in range(words)) + "."

    def w(self, n: int = 1) -> str:
        return " ".join(self.rng.sample(VOCABULARY, n))

    def ws(self, n: int) -> list[str]:
        return self.rng.sample(VOCABULARY, n)

    def k(self, n: int) -> int:
        return self.i % n


Row = Callable[[Made], dict[str, Any]]
PAIR: Row = lambda m: {"sentence1": m.s(), "sentence2": m.s(), "label": m.k(2)}  # noqa: E731
NLI: Row = lambda m: {"premise": m.s(), "hypothesis": m.s(), "label": m.k(3)}  # noqa: E731

SUM: Row = lambda m: {"question": m.s(), "answer": f"{m.s()}\n#### {m.i}", "answer_number": m.i, "equation_solution": None}  # noqa: E731

# task -> (data set's path and, where several tasks share it, name; its rows)
FAMILIES: dict[str, tuple[str, Row]] = {
    "arithmetic_1dc": ("json arithmetic", lambda m: {"context": f"What is {m.i} plus 1?", "completion": f" {m.i + 1}"}),
    "hellaswag": ("Rowan/hellaswag", lambda m: {
        "activity_label": m.w(), "ctx_a": m.s(), "ctx_b": m.s(3), "ctx": m.s(), "endings": [m.s(4) for _ in range(4)],
        "label": str(m.k(4))}),
    "cb": ("aps/super_glue cb", NLI),
    "mnli": ("nyu-mll/glue mnli", NLI),
    "wnli": ("nyu-mll/glue wnli", PAIR),
    "drop": ("EleutherAI/drop", lambda m: {
        "section_id": "s", "query_id": str(m.i), "passage": m.s(20), "question": m.s(),
        "answer": (one := {"number": str(m.i), "date": {"day": "", "month": "", "year": ""}, "spans": [], "worker_id": "",
                           "hit_id": ""}),
        "validated_answers": {"number": [one["number"]], "date": [one["date"]], "spans": [["cat"]], "worker_id": [""],
                              "hit_id": [""]}}),
    "mgsm_direct_en": ("juletxara/mgsm", SUM),
    "lambada_openai": ("EleutherAI/lambada_openai", lambda m: {"text": m.s(9)[:-1]}),
    "race": ("EleutherAI/race", lambda m: {"article": m.s(20), "problems": repr(
        [{"question": f"{m.s(3)} _ .", "answer": "ABCD"[m.k(4)], "options": m.ws(4)} for _ in range(2)])}),
    "ethics_utilitarianism": ("EleutherAI/hendrycks_ethics utilitarianism", lambda m: {
        "activity": m.s(), "baseline": m.s(), "rating": m.k(2), "less_pleasant": m.s()}),
    "medmcqa": ("openlifescienceai/medmcqa", lambda m: {
        "question": m.s(), **dict(zip(("opa", "opb", "opc", "opd"), m.ws(4), strict=True)), "cop": m.k(4)}),
    "mutual": ("EleutherAI/mutual", lambda m: {
        "answers": "ABCD"[m.k(4)], "options": [m.s(4) for _ in range(4)], "article": m.s(), "id": str(m.i)}),
    "mela_en": ("Geralt-Targaryen/MELA", lambda m: {"sentence": m.s(), "label": m.k(2)}),
    "babi": ("Muennighoff/babi", lambda m: {"passage": m.s(12), "question": m.s(), "answer": m.w(), "task": 1}),
    "haerae_history": ("HAERAE-HUB/HAE_RAE_BENCH", lambda m: {
        "query": m.s(), "options": "", "answer": f"({'ABCDE'[m.k(5)]})", "category": ""}),
}  # fmt: skip


def fake(path: Any = None, name: Any = None, *_: Any, data_files: Any = None, split: Any = None, **__: Any) -> Any:
    """`datasets.load_dataset`, answered from the rows above."""
    import datasets

    makers = dict(FAMILIES.values())
    keys = [f"{path} {name}", str(path), *(key for key in makers if key.startswith("json ") and key[5:] in str(data_files))]
    row = next(makers[key] for key in keys if key in makers)
    count = 3 * DOCUMENTS
    found = {s: datasets.Dataset.from_list([row(Made(i + 100 * n)) for i in range(count)]) for n, s in enumerate(SPLITS)}
    return datasets.DatasetDict(found) if split is None else found[split]


@functools.cache
def both(tiny: Any, tokenizer: Any) -> tuple[Any, Any, Any]:
    """(the suite's notes, cltk's scores, lm-eval's results) of every family, on one random model, float32."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = tiny(max_position_embeddings=4096, initializer_range=0.3)
    with mock.patch("datasets.load_dataset", fake), mock.patch("lm_eval.evaluator.add_env_info"):
        theirs = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), tasks=list(FAMILIES), limit=DOCUMENTS, bootstrap_iters=0,
            gen_kwargs=GENERATED,
        )  # fmt: skip
        with mock.patch("cltk.measure.corpus.DRAWS", 30):
            ours = Suite(list(FAMILIES), limit=DOCUMENTS, gen_kwargs=GENERATED).evaluate(model, tokenizer)
    return compare(ours, ours, draws=100), ours, theirs


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_lm_evals_numbers_and_directions(name: str, tiny: Any, tokenizer: Any) -> None:
    result, ours, theirs = both(tiny, tokenizer)
    mine, samples = ours.lm_eval["samples"][name], theirs["samples"][name]
    assert len({one["doc_id"] for one in mine}) == DOCUMENTS
    for one, other in zip(mine, samples, strict=True):
        for key in ("doc_hash", "prompt_hash", "target_hash", "filter"):
            assert one[key] == other[key], key
    rows = {(row.task, row.metric): row for row in result.rows}
    first, found = samples[0]["filter"], theirs["results"][name]
    printed = {key: value for key, value in found.items() if "," in key and "_stderr" not in key}
    assert printed
    compared = 0
    for key, value in printed.items():
        metric, chosen = key.split(",")
        row = rows.get((name, metric if chosen == first else key))
        if row is None:
            assert any(note.startswith(f"{name}: {metric}") for note in result.notes), key
            continue
        assert row.pre == pytest.approx(value, rel=1e-4, abs=1e-6), key
        assert row.higher_is_better == theirs["higher_is_better"][name].get(metric, True), key
        compared += 1
    assert compared
