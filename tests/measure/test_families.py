"""lm-eval's own task families, on rows made here in their data sets' own columns, against lm-eval's simple_evaluate alone.

What people met (EleutherAI/lm-evaluation-harness): answers that are an index, a letter or a text (#2895),
metrics that members of a group do not share (#1424), tasks that break with a package or its version (#3260).
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from cltk.measure.evaluate import Suite
from cltk.measure.forgetting import compare
from tests.conftest import hold
from tests.measure.family_rows import DOCUMENTS, FAMILIES, fake

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
GENERATED = {"max_gen_toks": 6}


@pytest.fixture(scope="module")
def both(tiny: Any, tokenizer: Any) -> tuple[Any, Any, Any]:
    """(the suite's notes, cltk's scores, lm-eval's results) of every family, on one random model, float32."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from rouge_score.scoring import BootstrapAggregator

    model = tiny(max_position_embeddings=4096, initializer_range=0.3)
    draws = {"__defaults__": (0.95, 10)}  # rouge resamples one document a thousand times
    with (
        mock.patch("datasets.load_dataset", fake),
        mock.patch("lm_eval.evaluator.add_env_info"),
        mock.patch.multiple(BootstrapAggregator.__init__, **draws),
    ):
        theirs = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), tasks=list(FAMILIES), limit=DOCUMENTS, bootstrap_iters=0,
            gen_kwargs=GENERATED,
        )  # fmt: skip
        with mock.patch("cltk.measure.corpus.DRAWS", 30):
            ours = Suite(list(FAMILIES), limit=DOCUMENTS, gen_kwargs=GENERATED).evaluate(model, tokenizer)
    return compare(ours, ours, draws=100), ours, theirs


def test_families_give_lm_evals_numbers_and_directions(both: tuple[Any, Any, Any]) -> None:
    """One test: with one a family, every process of a parallel run would evaluate all of them."""
    hold(check, FAMILIES, *both)


def check(name: str, result: Any, ours: Any, theirs: Any) -> None:
    mine, samples = ours.lm_eval["samples"][name], theirs["samples"][name]
    assert len({one["doc_id"] for one in mine}) == DOCUMENTS
    for one, other in zip(mine, samples, strict=True):
        for key in ("doc_hash", "prompt_hash", "target_hash", "filter"):
            assert one[key] == other[key], key
    rows = {(row.task, row.metric): row for row in result.rows}
    first, found = samples[0]["filter"], theirs["results"][name]
    printed = {key: value for key, value in found.items() if "," in key and "_stderr" not in key}
    assert printed
    for metric, values in ours.tasks[name].values.items():
        plain, _, chosen = metric.partition(",")
        theirs_too = [one.get(plain) for one in samples if one["filter"] == (chosen or first)]
        if all(isinstance(value, bool | int | float) for value in theirs_too):
            assert values == pytest.approx(list(map(float, theirs_too)), rel=1e-4, abs=1e-6, nan_ok=True), metric
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
