"""The shared-prefix scorer against lm-eval's own HFLM, on the real model and real tasks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import cltk
from cltk.measure.evaluate import Suite
from cltk.measure.loading import load_tasks

EVALS = Path(cltk.__file__).parent.parent / "evals" / "tasks"
LIMIT = 8
TASKS = ["arc_easy", "piqa", "sciq", "hellaswag", "lambada", "winogrande"]


@pytest.fixture(scope="module")
def smollm() -> Any:
    from cltk.models import load_model

    return load_model("asset:smollm2-135m-instruct")


def responses(results: Any, task: str) -> list[list[tuple[float, bool]]]:
    return [[tuple(r) for r in sample["filtered_resps"]] for sample in results["samples"][task]]


def stock_results(name: str, limit: int, model: Any, tokenizer: Any) -> Any:
    """lm-eval's own evaluation by its own model class."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    tasks = list(load_tasks([name], EVALS, Path(tempfile.mkdtemp()))["tasks"].values())
    with mock.patch("lm_eval.evaluator.add_env_info"):
        return simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8), tasks=tasks, limit=limit, bootstrap_iters=0
        )


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_equal_to_stock(task: str, smollm: Any) -> None:
    """Within 1e-5 of |logprob| of stock, or stock itself is further from float64 than we are; same greedy flags and argmax."""
    name = f"local_{task}"
    ours = Suite([name], include_path=EVALS, limit=LIMIT).evaluate(*smollm)
    stock = stock_results(name, LIMIT, *smollm)
    apart = []
    for document, (a, b) in enumerate(zip(responses(ours.lm_eval, name), responses(stock, name), strict=True)):
        assert [greedy for _, greedy in a] == [greedy for _, greedy in b], document
        ranked = [max(range(len(side)), key=lambda i, side=side: side[i][0]) for side in (a, b)]
        assert ranked[0] == ranked[1], document
        apart += [(document, i) for i, ((x, _), (y, _)) in enumerate(zip(a, b, strict=True)) if abs(x - y) > 1e-5 * abs(y)]
    for metric in ("acc", "acc_norm"):
        if metric in ours.tasks[name].values:
            assert ours.tasks[name].values[metric] == [float(sample[metric]) for sample in stock["samples"][name]]
    if apart:
        check_against_float64(ours, name, apart[:8], smollm)


def check_against_float64(scores: Any, task: str, apart: list[tuple[int, int]], smollm: Any) -> None:
    """Where we differ from stock by more than rounding allows, we must be within 1e-4 of the float64 answer."""
    import copy

    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = smollm
    exact = HFLM(pretrained=copy.deepcopy(model).to(torch.float64), tokenizer=tokenizer, batch_size=1)
    for document, i in apart:
        sample = scores.lm_eval["samples"][task][document]
        request = Instance("loglikelihood", {}, tuple(sample["arguments"][i]), i)
        ((reference, _),) = exact.loglikelihood([request], disable_tqdm=True)
        assert abs(sample["filtered_resps"][i][0] - reference) < 1e-4, (document, i)
