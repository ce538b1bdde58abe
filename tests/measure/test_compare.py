"""cltk.measure and the evaluation behind it: exact zeros, untouched states, lm-eval's own scores, refusals."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cltk
from cltk import tensors
from cltk.errors import InputError
from cltk.forward.probe import row_nll
from cltk.measure.compare import common_dtype
from cltk.measure.divergence import distance, divergence, row_kl
from cltk.measure.evaluate import Suite, TextTask
from cltk.measure.forgetting import UNITS


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


@pytest.fixture
def pair(tiny: Any, tokenizer: Any) -> Any:
    """pair(seed) -> a live (model, tokenizer)."""
    return lambda seed=0, **changes: (tiny(seed=seed, **changes), tokenizer)


TEXT = TextTask(
    "words", [{"text": "the cat sat on the mat.", "from": "a"}, {"text": "a big red bird flew.", "from": "b"}], cluster="from"
)


def test_a_model_forgets_exactly_nothing_against_itself(pair: Any) -> None:
    result = cltk.measure(pair(), pair(), ["toy"], include_path="tasks", texts=[TEXT])
    for row in [*result.rows, result.macro]:
        assert row.forgetting == 0
        assert row.ci[0] == -row.ci[1]
        assert (row.ci[1] == 0) == (row.metric in UNITS)  # a few documents without a flip do not say that there are none
        assert row.p == 1
        assert (row.lost or 0) == (row.gained or 0) == 0


def test_two_models_differ_and_both_sides_are_what_lm_eval_says(pair: Any, study: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    base, tuned = pair(0), pair(1)
    result = cltk.measure(base, tuned, ["toy"], include_path="tasks")
    manager = TaskManager(include_defaults=False, include_path="tasks")
    for side, (model, tokenizer) in (("pre", base), ("post", tuned)):
        stock = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), tasks=["toy"], task_manager=manager, bootstrap_iters=0
        )
        for row in result.rows:
            if row.metric in ("acc", "acc_norm"):
                assert getattr(row, side) == pytest.approx(stock["results"]["toy"][f"{row.metric},none"], abs=1e-12)
    assert {row.metric for row in result.rows} == {"acc", "acc_norm", "logprob", "margin", "margin_norm"}
    first = result.samples["toy"][0]
    assert first["acc_d"] == first["acc_pre"] - first["acc_post"]


def test_the_margin_is_the_correct_choice_against_the_best_wrong_one(pair: Any) -> None:
    model, tokenizer = pair()
    scores = Suite(["toy"], include_path="tasks", limit=3).evaluate(model, tokenizer).tasks["toy"]
    raw = Suite(["toy"], include_path="tasks", limit=3).evaluate(model, tokenizer).lm_eval["samples"]["toy"]
    for i, sample in enumerate(raw):
        logprobs = [response[0] for response in sample["filtered_resps"]]
        assert scores.values["logprob"][i] == pytest.approx(logprobs[0])
        assert scores.values["margin"][i] == pytest.approx(logprobs[0] - max(logprobs[1:]))
    assert scores.choices == [3, 3, 3]


def test_mode_and_every_random_state_are_as_before(pair: Any) -> None:
    model, tokenizer = pair()
    model.train()
    model.lm_head.eval()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().clone()  # type: ignore[index]
    Suite(["toy"], include_path="tasks", texts=[TEXT]).evaluate(model, tokenizer)
    assert model.training
    assert not model.lm_head.training
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_journal_is_keyed_by_the_weights(study: Path, tiny: Any, tokenizer: Any) -> None:
    other = study / "other"
    tiny(seed=1).save_pretrained(other)
    tokenizer.save_pretrained(other)
    first = cltk.measure("tiny-llama", other, ["toy"], include_path="tasks", dtype="float32")
    again = cltk.measure("tiny-llama", other, ["toy"], include_path="tasks", dtype="float32")  # both sides from the journal
    live = cltk.measure((tiny(seed=0), tokenizer), (tiny(seed=1), tokenizer), ["toy"], include_path="tasks")
    assert first.to_json() == again.to_json()
    assert [row.forgetting for row in first.rows] == pytest.approx([row.forgetting for row in live.rows], abs=1e-6)
    assert any(row.forgetting != 0 for row in first.rows)
    assert len(list((study / "cache" / "journals").glob("*.jsonl"))) == 2


def test_text_nll_against_a_plain_forward(pair: Any) -> None:
    model, tokenizer = pair()
    scores = Suite([], texts=[TEXT]).evaluate(model, tokenizer).tasks["words"]
    for i, row in enumerate(TEXT.rows):
        ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
        with torch.no_grad():
            expected = model.eval()(ids, labels=ids).loss.item()
        assert scores.values["nll"][i] == pytest.approx(expected, abs=1e-6)
    assert scores.cluster == ["a", "b"]


@pytest.mark.parametrize("budget", [8, 64, 4096])
def test_row_nll_does_not_depend_on_batches(budget: int, tiny: Any) -> None:
    generator = random.Random(0)
    rows = [{"input_ids": [generator.randrange(300) for _ in range(generator.randint(2, 30))]} for _ in range(20)]
    for row in rows[::2]:
        row["labels"] = [-100 if i < len(row["input_ids"]) // 2 else token for i, token in enumerate(row["input_ids"])]
    values, counts = row_nll(tiny(), rows, batch_tokens=budget)
    alone = [row_nll(tiny(), [row])[0][0] for row in rows]
    assert values == pytest.approx(alone, abs=1e-5)
    assert counts[1] == len(rows[1]["input_ids"]) - 1


def test_kl_against_its_definition(tiny: Any) -> None:
    start, tuned = tiny(seed=0), tiny(seed=1)
    rows = [{"input_ids": [5, 9, 20, 7, 3]}, {"input_ids": [4, 8, 15], "labels": [-100, -100, 15]}]
    found = row_kl(start, tuned, rows)
    for row, value in zip(rows, found, strict=True):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            p, q = (model.eval()(ids).logits[0].double().log_softmax(-1) for model in (start, tuned))
        kl = (p.exp() * (p - q)).sum(-1)[:-1]
        positions = [i for i, label in enumerate(row.get("labels", row["input_ids"])[1:]) if label != -100]
        assert value == pytest.approx(kl[positions].mean().item(), rel=1e-4)
    assert row_kl(start, start, rows) == [0, 0]
    assert divergence(start, tuned, {"a": rows}, 1)[0]["a"]["n"] == 1


def test_distance_of_weights_counts_a_tied_tensor_once(tiny: Any) -> None:
    start, tuned = tiny(), tiny()
    assert distance(start, tuned) == {"l2": 0.0, "relative": 0.0}
    with torch.no_grad():
        tuned.get_input_embeddings().weight.add_(0.5)
    elements = start.get_input_embeddings().weight.numel()
    size = sum(float(p.detach().square().sum()) for p in start.parameters())
    found = distance(start, tuned)
    assert found["l2"] == pytest.approx(0.5 * elements**0.5, rel=1e-6)
    assert found["relative"] == pytest.approx(0.5 * (elements / size) ** 0.5, rel=1e-5)


def test_models_that_must_not_be_compared(pair: Any, tiny: Any, tokenizer: Any) -> None:
    half = tiny().to(torch.bfloat16)
    with pytest.raises(InputError, match="different dtypes"):
        cltk.measure(pair(), (half, tokenizer), ["toy"], include_path="tasks")
    with pytest.raises(InputError, match="not float16"):
        common_dtype(pair(), pair(), "float16")
    broken = tiny()
    with torch.no_grad():
        broken.lm_head.weight[:] = float("nan")
    with pytest.raises(cltk.CltkError, match=r"(?i)nan"):
        cltk.measure(pair(), (broken, tokenizer), ["toy"], include_path="tasks")


def test_a_task_without_documents_and_a_limit_of_zero(study: Path, pair: Any) -> None:
    with pytest.raises(InputError, match="limit"):
        Suite(["toy"], include_path="tasks", limit=0)
    (study / "tasks" / "docs.jsonl").write_text("")
    with pytest.raises(InputError, match="toy"):
        Suite(["toy"], include_path="tasks").load()


def test_the_start_model_is_not_changed(pair: Any) -> None:
    model, tokenizer = pair()
    before = tensors.digest(model)
    Suite(["toy"], include_path="tasks", texts=[TEXT]).evaluate(model, tokenizer)
    assert tensors.digest(model) == before


def test_the_file_of_a_result_says_what_was_measured_and_how(pair: Any) -> None:
    import json
    from importlib.metadata import version

    from cltk.cli import main

    asked = ["--tasks", "toy", "--include-path", "tasks", "--limit", "4", "--text", "old.jsonl", "--dtype", "float32"]
    assert main(["measure", "tiny-llama", "tiny-llama", *asked, "--scorer", "stock", "--json", "r.json"]) == 0
    said = json.loads(Path("r.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert len(said["pre_digest"]) == len(said["post_digest"]) == 64
    expected = {
        "base": "tiny-llama", "tuned": "tiny-llama", "texts": ["old"], "limit": 4, "include_path": "tasks", "dtype": "float32",
        "scorer": "stock", "batch_size": "auto", "num_fewshot": None, "chat_template": None, "system_instruction": None,
        "cltk_version": cltk.__version__, "lm_eval_version": version("lm-eval"), "torch_version": version("torch"),
        "transformers_version": version("transformers"), "fewshot_seed": 1234,
    }  # fmt: skip
    assert {key: said["settings"][key] for key in expected} == expected
    assert said["settings"]["tasks"]["toy"] == {"num_fewshot": 0, "version": "Yaml", "chat_template": False, "limit": 4}

    model, tokenizer = pair()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    live = cltk.measure((model, tokenizer), pair(1), "toy", texts="old.jsonl", include_path="tasks", limit=4)
    assert live.settings["texts"] == ["old"]
    assert live.settings["base"] == "LlamaForCausalLM"
    assert live.settings["chat_template"] is None
    both = [(one, tokenizer) for one in (model, model)]
    live = cltk.measure(*both, "toy", num_fewshot=0, include_path="tasks", limit=4, chat_template=True)
    assert (live.settings["chat_template"], live.settings["num_fewshot"]) == (tokenizer.chat_template, 0)
