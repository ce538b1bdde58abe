"""What a model cannot be asked is one line before anything is scored; generated texts are asked for once."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import cltk
from cltk.errors import InputError
from cltk.measure.evaluate import Suite, TextTask
from cltk.measure.journal import Journal
from cltk.measure.scoring import PrefixLM
from cltk.measure.settings import options


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


def requests(*pairs: Any) -> list[Any]:
    return [SimpleNamespace(args=pair, task_name="t") for pair in pairs]


def bigger(tokenizer: Any) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["zebra"])
    return tokenizer


@pytest.mark.parametrize("scorer", ["prefix", "stock"])
def test_a_tokeniser_that_is_larger_than_the_embedding(scorer: str, tiny: Any, tokenizer: Any) -> None:
    model, longer = tiny(), bigger(tokenizer)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError, match=r"tokenizer: token 'zebra' has number 300, and the model's vocabulary ends at 299"):
        Suite(["toy"], include_path="tasks").evaluate(model, longer, scorer=scorer)
    with pytest.raises(InputError, match=r"tokenizer: token 'zebra' has number 300"):
        Suite([], texts=[TextTask("old", [{"text": "the cat"}, {"text": "a zebra"}])]).evaluate(model, longer, scorer=scorer)
    lm = PrefixLM(model, longer, trees=scorer == "prefix")
    with pytest.raises(InputError, match="task t, request 0: token 300 is outside"):
        lm.generate_until(requests(("a zebra", {"until": ["."], "max_gen_toks": 4})), disable_tqdm=True)
    assert not calls


@pytest.mark.parametrize("settings", [{"max_gen_toks": 256}, {"max_new_tokens": 300}, {}])
def test_more_new_tokens_than_positions(settings: dict[str, int], tiny: Any, tokenizer: Any) -> None:
    lm = PrefixLM(tiny(), tokenizer)
    with pytest.raises(InputError, match=r"task t, request 0: .* new tokens leave no room for a prompt in the model's 256"):
        lm.generate_until(requests(("the cat", {"until": ["."], **settings})), disable_tqdm=True)


def test_requests_without_a_token(tiny: Any, tokenizer: Any) -> None:
    lm = PrefixLM(tiny(), tokenizer)
    with pytest.raises(InputError, match="scoring request 1, continuation '': there is no token"):
        lm.loglikelihood(requests(("", "the cat"), ("", "")), disable_tqdm=True)
    with pytest.raises(InputError, match="task t, request 0: the prompt is empty"):
        lm.generate_until(requests(("", {"until": ["."], "max_gen_toks": 4})), disable_tqdm=True)
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = bare.eos_token = None
    lm = PrefixLM(tiny(), bare)
    with pytest.raises(InputError, match="no bos_token and no eos_token"):
        lm.loglikelihood(requests(("", "the cat")), disable_tqdm=True)
    with pytest.raises(InputError, match="task t: the tokeniser has no eos_token"):
        lm.generate_until(requests(("the cat", {"until": ["."], "max_gen_toks": 4})), disable_tqdm=True)
    with pytest.raises(InputError, match="no bos_token and no eos_token"):
        lm.loglikelihood_rolling(requests(("the cat",)), disable_tqdm=True)


@pytest.mark.parametrize("value", [0, -1, "0", "eight", "auto:x", 2.5, True, None])
def test_a_batch_size_that_is_none(value: Any) -> None:
    with pytest.raises(InputError, match="batch_size: must be auto or a whole number above 0"):
        options("prefix", value)


def test_scorers_and_batch_sizes(tiny: Any, tokenizer: Any) -> None:
    assert [options("stock", value) for value in ("auto", "auto:4", 3, "16")] == ["auto", "auto", 3, 16]
    pair = (tiny(), tokenizer)
    with pytest.raises(InputError, match="scorer: 'foo' is unknown; use prefix or stock"):
        cltk.measure(pair, pair, ["toy"], include_path="tasks", scorer="foo")
    with pytest.raises(InputError, match="batch_size"):
        cltk.measure("no-such-folder", pair, ["toy"], include_path="tasks", batch_size=0)


def test_a_live_tokeniser_keeps_its_padding_token(tiny: Any, tokenizer: Any) -> None:
    live = copy.deepcopy(tokenizer)
    live.pad_token = None
    size = len(live)
    for scorer in ("prefix", "stock"):
        Suite(["toy"], include_path="tasks").evaluate(tiny(), live, scorer=scorer)
    assert live.pad_token is None
    assert len(live) == size


def test_a_model_that_is_given_bare_or_in_a_list(tiny: Any, tokenizer: Any) -> None:
    model = tiny()
    with pytest.raises(InputError, match=r"^measure: base is a LlamaForCausalLM; give \(model, tokenizer\), .{0,80}$"):
        cltk.measure(model, (model, tokenizer), ["toy"], include_path="tasks")
    with pytest.raises(InputError, match=r"^measure: tuned is a tuple of LlamaForCausalLM, int; give .{0,80}$"):
        cltk.measure((model, tokenizer), (model, 3), ["toy"], include_path="tasks")
    result = cltk.measure([model, tokenizer], (model, tokenizer), ["toy"], include_path="tasks", limit=4)
    assert all(row.forgetting == 0 for row in result.rows)


GENERATE = """task: write
dataset_path: json
dataset_kwargs: {data_files: {validation: tasks/docs.jsonl}}
validation_split: validation
output_type: generate_until
doc_to_text: '{{q}}'
doc_to_target: '{{choices[0]}}'
generation_kwargs: {until: ['.'], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def texts_of(scores: Any) -> list[str]:
    return [sample["filtered_resps"][0] for sample in scores.lm_eval["samples"]["write"]]


@pytest.mark.parametrize("scorer", ["prefix", "stock"])
def test_texts_are_generated_once(scorer: str, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    Path("tasks/write.yaml").write_text(GENERATE)
    model, suite, calls = tiny(), Suite(["write"], include_path="tasks"), []
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5)
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    stock: Any = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8), tasks=["write"], bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False, include_path="tasks"),
    )  # fmt: skip
    expected = [sample["filtered_resps"][0] for sample in stock["samples"]["write"]]
    assert len(set(expected)) > 3
    calls.clear()
    for turn in range(2):
        found = suite.evaluate(model, tokenizer, journal=Journal(tmp_path / "j"), scorer=scorer)
        assert texts_of(found) == expected
        assert bool(calls) == (turn == 0)
        calls.clear()
    lines = (tmp_path / "j").read_text().splitlines(keepends=True)
    (tmp_path / "j").write_text("".join(lines[:8]))  # the second batch was never written
    assert texts_of(suite.evaluate(model, tokenizer, journal=Journal(tmp_path / "j"), scorer=scorer)) == expected
    assert calls
    assert (tmp_path / "j").read_text().startswith("".join(lines[:8]))
    assert len((tmp_path / "j").read_text().splitlines()) == len(lines) == 12
    calls.clear()
    longer = Suite(["write"], include_path="tasks")
    Path("tasks/write.yaml").write_text(GENERATE.replace("max_gen_toks: 6", "max_gen_toks: 3"))
    longer.evaluate(model, tokenizer, journal=Journal(tmp_path / "j"), scorer=scorer)
    assert calls  # other settings are another question


def test_samples_of_one_prompt_are_drawn_anew(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    settings = {"until": ["."], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    asked = requests(*[("the cat", settings)] * 4)
    first, again = (
        PrefixLM(tiny(), tokenizer, journal=Journal(tmp_path / "j"), digest="abc").generate_until(asked, disable_tqdm=True)
        for _ in range(2)
    )
    assert len(set(first)) > 1
    assert first == again
