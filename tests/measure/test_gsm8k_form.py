"""gsm8k as lm-eval has it (5 examples, strict and flexible filter) on rows in its form, and models that write in it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.measure.evaluate import Suite
from tests.conftest import CHATML, sentences, write_jsonl
from tests.measure.test_generation import forbidden, louder

FILTERS = ("strict-match", "flexible-extract")


def rows(n: int, seed: int) -> list[dict[str, str]]:
    return [{"question": f"{s} How many?", "answer": f"{s.split()[0]}\n#### {len(s) % 7}"} for s in sentences(n, seed)]


@pytest.fixture(scope="module")
def pair(tiny: Any, tokenizer: Any) -> tuple[Any, Any, Any]:
    """Two random models that write "#### " and a digit of their own, again and again, and the tokeniser."""
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = CHATML
    (mark,), (space,), *digits = (chatty.encode(one) for one in "# 0123456789")
    bias = [[[mark], 1e3], [[mark] * 4 + [space], 2e3], *([[mark] * 4 + [space, *digit], 4e3] for digit in digits)]
    models = [louder(tiny(seed=seed, max_position_embeddings=1024)) for seed in (0, 5)]
    for model in models:
        model.generation_config.sequence_bias = bias
    return models[0], models[1], chatty


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pair: Any) -> Path:
    """The task; every second answer of the test split is what the first model says."""
    import lm_eval.tasks

    out = tmp_path_factory.mktemp("gsm8k")
    test = rows(12, 4)
    files = {split: str(write_jsonl(out / f"{split}.jsonl", made)) for split, made in (("train", rows(20, 3)), ("test", test))}
    stock_yaml = Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k.yaml"
    (out / "gsm8k.yaml").write_text(
        stock_yaml.read_text()
        .replace("dataset_path: openai/gsm8k", f"dataset_path: json\ndataset_kwargs: {{data_files: {json.dumps(files)}}}")
        .replace("dataset_name: main\n", "")
        .replace("  do_sample: false", "  max_gen_toks: 16\n  do_sample: false")
    )
    for sample in stock(pair[0], pair[2], out)["samples"]["gsm8k"]:
        if sample["filter"] == "strict-match" and sample["doc_id"] % 2:
            test[sample["doc_id"]]["answer"] = f"so\n#### {sample['filtered_resps'][0]}"
    write_jsonl(out / "test.jsonl", test)
    return out


def stock(model: Any, tokenizer: Any, folder: Path, **given: Any) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=str(folder))
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=1)
    return simple_evaluate(lm, tasks=["gsm8k"], task_manager=manager, bootstrap_iters=0, **given)


@pytest.mark.parametrize("given", [{}, {"chat": True}, {"shots": 0}], ids=str)
def test_texts_filters_and_scores_are_lm_evals(given: dict[str, Any], folder: Path, pair: Any) -> None:
    model, _, tokenizer = pair
    settings: dict[str, Any] = {"num_fewshot": given["shots"]} if "shots" in given else {}
    theirs = stock(
        model, tokenizer, folder, apply_chat_template="chat" in given, fewshot_as_multiturn="chat" in given, **settings
    )  # fmt: skip
    ours = Suite(["gsm8k"], include_path=folder, chat_template="chat" in given, **settings).evaluate(model, tokenizer).lm_eval

    def answers(found: Any) -> list[Any]:
        samples = found["samples"]["gsm8k"]
        return sorted((s["filter"], s["doc_id"], s["resps"], s["filtered_resps"], s["prompt_hash"]) for s in samples)

    assert answers(ours) == answers(theirs)
    assert len({s["resps"][0][0] for s in theirs["samples"]["gsm8k"]}) > 2
    for name in FILTERS:
        assert ours["results"]["gsm8k"][f"exact_match,{name}"] == theirs["results"]["gsm8k"][f"exact_match,{name}"]


def test_what_was_forgotten_of_it(folder: Path, pair: Any, monkeypatch: Any) -> None:
    from cltk.measure.scoring import PrefixLM

    begin = PrefixLM.__init__

    def made(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        forbidden(self)

    monkeypatch.setattr(PrefixLM, "__init__", made)
    base, tuned, tokenizer = pair
    result = cltk.measure((base, tokenizer), (tuned, tokenizer), ["gsm8k"], include_path=folder, journal=False)
    found: dict[Any, Any] = {row.metric: row for row in result.rows}
    for metric, name in zip(("exact_match", "exact_match,flexible-extract"), FILTERS, strict=True):
        before, after = (stock(one, tokenizer, folder)["results"]["gsm8k"][f"exact_match,{name}"] for one in (base, tuned))
        assert (found[metric].pre, found[metric].post) == (before, after)
        assert 0 < before < 1
        assert before != after
        assert found[metric].n == 12
