"""Standard errors in lm-eval's result files against lm-eval's own."""

from __future__ import annotations

import random

import pytest

from cltk.measure.stderr import fill_stderr, standard_error


@pytest.mark.parametrize("metric", ["f1", "mcc"])
def test_confusion_metrics_against_lm_evals_bootstrap(metric: str) -> None:
    from lm_eval.api import metrics

    rng = random.Random(0)
    pairs = [(gold, gold if rng.random() < 0.8 else 1 - gold) for gold in (rng.randrange(2) for _ in range(300))]
    aggregate = {"f1": metrics.f1_score, "mcc": metrics.matthews_corrcoef}[metric]
    drawn = []
    for _ in range(1500):  # the document bootstrap that lm-eval draws, fewer times and in one process
        drawn.append(float(aggregate(rng.choices(pairs, k=len(pairs)))))
    mean = sum(drawn) / len(drawn)
    spread = (sum((x - mean) ** 2 for x in drawn) / (len(drawn) - 1)) ** 0.5
    found = standard_error(metric, pairs, float(aggregate(pairs)))
    assert found == pytest.approx(spread, rel=0.08)  # 1,500 draws are known to some 2 %


def test_means_are_lm_evals_own() -> None:
    from lm_eval.api.metrics import mean_stderr

    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert standard_error("acc", values, 0.6) == pytest.approx(mean_stderr(values))
    assert standard_error("perplexity", values, 17.0) is None  # not a mean
    assert standard_error("acc", [1.0], 1.0) is None


def test_only_what_is_missing_is_filled() -> None:
    samples = [{"filter": "none", "metrics": ["acc"], "acc": float(i % 2)} for i in range(10)]
    raw = {"results": {"t": {"acc,none": 0.5, "acc_stderr,none": "N/A", "x_stderr,none": 3.0}}, "samples": {"t": samples}}
    fill_stderr(raw)
    assert raw["results"]["t"]["acc_stderr,none"] == pytest.approx((0.25 * 10 / 9 / 10) ** 0.5)
    assert raw["results"]["t"]["x_stderr,none"] == 3.0
