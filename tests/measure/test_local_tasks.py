"""The tasks of evals/tasks on their real data: base scores against lm-eval alone, and SmolLM2 against a noised copy of itself.

What people met (EleutherAI/lm-evaluation-harness): perplexities of LAMBADA that nobody can place (#350, #911, #1586), GSM8K
scores that follow the number of examples and the filter (#1896, #2034).
"""

from __future__ import annotations

import copy
import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cltk.data import assets
from cltk.measure.compare import measure
from cltk.measure.evaluate import Suite
from cltk.measure.forgetting import compare
from tests.conftest import hold

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
TASKS = Path(__file__).parents[2] / "evals" / "tasks"
DETECTED = {"local_ifeval", "local_languages"}  # need langdetect
NAMES = sorted({path.stem for path in TASKS.glob("*.yaml")} - (set() if importlib.util.find_spec("langdetect") else DETECTED))
DOCUMENTS = 8
MODEL = "asset:smollm2-135m-instruct"


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """(model, tokenizer) in float32."""
    import transformers as t

    folder = assets.resolve(MODEL)
    return t.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval(), t.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny: Any, smollm2: Any) -> tuple[Any, Any]:
    """(cltk's scores, lm-eval's results) of every task, on a sample and a random model with SmolLM2's tokeniser, float32."""
    import lm_eval.tasks
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    own, folder, tokenizer = Path(lm_eval.tasks.__file__).parent, tmp_path_factory.mktemp("plain"), smollm2[1]
    for path in TASKS.iterdir():  # what cltk does with its two conveniences, by hand
        if not path.is_file():
            continue
        text = path.read_text().replace("lm_eval:", f"{own}/").replace("cltk:", f"{TASKS.parent}/")
        (folder / path.name).write_text(re.sub(r"asset:[\w-]+", lambda found: str(assets.resolve(found[0])), text))
    model = tiny(vocab_size=len(tokenizer), max_position_embeddings=2048, initializer_range=0.3)
    ours = Suite(NAMES, include_path=TASKS, sample=DOCUMENTS).evaluate(model, tokenizer)
    with mock.patch("lm_eval.evaluator.add_env_info"):
        theirs = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), tasks=list(NAMES), bootstrap_iters=0,
            samples=ours.lm_eval["config"]["samples"],
            task_manager=lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(folder)),
        )  # fmt: skip
    return ours, theirs


def test_base_scores_are_lm_evals(both: tuple[Any, Any]) -> None:
    """One test: with one a task, every process of a parallel run would evaluate all of them."""
    hold(check, NAMES, *both)


def check(name: str, ours: Any, theirs: Any) -> None:
    pairs = list(zip(ours.lm_eval["samples"][name], theirs["samples"][name], strict=True))
    assert [one["doc_id"] for one, _ in pairs] == ours.lm_eval["config"]["samples"][name] * (
        len(pairs) // len(ours.tasks[name])
    )
    for one, other in pairs:
        for key in ("doc", "target", "filter", "doc_hash", "prompt_hash"):
            assert one[key] == other[key], key
        assert [tuple(args) for args in one["arguments"]] == [tuple(args) for args in other["arguments"]]
    rows: dict[Any, Any] = {(row.task, row.metric): row for row in compare(ours, ours, draws=100).rows}
    first, found = theirs["samples"][name][0]["filter"], theirs["results"][name]
    printed = {key: value for key, value in found.items() if "," in key and "_stderr" not in key}
    assert printed
    for key, value in printed.items():
        metric, chosen = key.split(",")
        row = rows[name, metric if chosen == first else key]
        assert row.pre == pytest.approx(value, rel=1e-4, abs=1e-6), key
        assert row.higher_is_better == theirs["higher_is_better"][name][metric], key


@pytest.fixture(scope="module")
def noised(smollm2: Any) -> Any:
    """SmolLM2 whose every matrix has normal noise of half its own standard deviation: it must have forgotten."""
    import torch

    model, generator = copy.deepcopy(smollm2[0]), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.5 * weight.std().item())
    return model, smollm2[1]


def test_lambada_and_a_group_are_forgotten_under_noise(smollm2: Any, noised: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TASKS, tmp_path / "tasks"))
    (folder / "science.yaml").write_text(
        "group: science\ntask: [local_sciq, local_arc_easy]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    names = ["local_lambada", "science"]
    result = measure(smollm2, noised, names, limit=8, include_path=folder, members=True)
    rows: dict[Any, Any] = {(row.task, row.metric): row for row in result.rows}
    nll, perplexity, acc = (rows["local_lambada", metric] for metric in ("nll", "perplexity", "acc"))
    assert nll.verdict.startswith("forgets"), nll
    assert nll.pre < nll.post
    assert perplexity.pre < perplexity.post
    assert perplexity.forgetting > 0
    assert acc.pre > acc.post
    assert acc.forgetting == pytest.approx(acc.pre - acc.post)
    group, members = rows["science", "acc"], [rows[name, "acc"] for name in ("local_sciq", "local_arc_easy")]
    assert group.n == sum(row.n for row in members) == 16
    assert group.pre == pytest.approx(sum(row.pre for row in members) / 2)  # both of 8 documents
    assert group.forgetting > 0
    assert rows["local_sciq", "logprob"].verdict.startswith("forgets")
    assert result.macro.forgetting > 0
    assert result.macro.n == 8 + 16  # the group once, its tasks not again


def test_gsm8k_end_to_end(smollm2: Any, noised: Any) -> None:
    """Worked examples, generation, both filters. A model of this size solves none of these in the form asked for; the flexible
    filter takes any number it says, which may be right by chance."""
    given: dict[str, Any] = {"num_fewshot": 1, "gen_kwargs": "max_gen_toks=24"}  # for time's sake
    result = measure(smollm2, noised, "local_gsm8k", limit=8, include_path=TASKS, **given)
    rows: dict[Any, Any] = {row.metric: row for row in result.rows}
    assert set(rows) == {"exact_match", "exact_match,flexible-extract"}
    for row in rows.values():
        assert row.n == 8
        assert row.higher_is_better
        assert row.forgetting == pytest.approx((row.lost - row.gained) / 8)
        assert row.verdict == "cannot tell at this n"
    assert rows["exact_match"].pre == rows["exact_match"].post == 0
