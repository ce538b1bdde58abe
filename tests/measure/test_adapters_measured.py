"""Adapters as users have them (PEFT's and TRL's folders): measured unmerged, merged, several on one base, or refused in a line.

Situations from EleutherAI/lm-evaluation-harness#672 and #3744 (an adapter and its base, several on one), oumi-ai/oumi#389 (an
adapter that is ignored without a word), huggingface/peft#2777 and huggingface/transformers#45127 (tied embeddings of which one
was trained), huggingface/peft#309 (a folder of two files). float32.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.bench import Bench
from cltk.measure.evaluate import Suite, TextTask
from cltk.measure.sides import named_model
from cltk.models.merging import merge
from cltk.models.origin import Origin

TEXT = [{"text": "the cat sat on the mat."}, {"text": "a big red bird flew over the green house."}]
TASK: dict[str, Any] = {"tasks": ["toy"], "include_path": "tasks", "limit": 6, "dtype": "float32"}


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


def adapter(folder: str, seed: int = 1, rows: int | None = None, **settings: Any) -> Path:
    """A folder as PEFT saves it, with weights that change every answer, on tiny-llama."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained("tiny-llama")
    tokenizer = AutoTokenizer.from_pretrained("tiny-llama")
    if rows:
        tokenizer.add_tokens([f"<new{i}>" for i in range(3)])
        base.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = get_peft_model(
            base, LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": ["q_proj", "v_proj", "up_proj"], **settings})
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def values(result: Any) -> dict[str, list[float]]:
    return {f"{row.task} {row.metric}": [row.pre, row.post] for row in result.rows}


def close(one: Any, other: Any, within: float = 1e-4) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name], abs=within), name


def by_lm_eval(**args: Any) -> dict[str, float]:
    """acc and acc_norm as lm-eval's own model for Hugging Face gives them, without any code of ours."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = simple_evaluate(
            "hf", model_args={"dtype": "float32", **args}, tasks=["toy"], limit=6, device="cpu", bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False, include_path="tasks"), log_samples=True,
        )  # fmt: skip
    logprobs = [float(answer[0]) for sample in found["samples"]["toy"] for answer in sample["filtered_resps"]]
    return {"acc": found["results"]["toy"]["acc,none"], "sum": sum(logprobs)}


def test_unmerged_and_merged_give_the_same_and_lm_eval_s(capsys: Any) -> None:
    adapter("low-rank")
    assert main(["merge", "low-rank", "whole", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["adapter"], told["digest"]) == ("whole", "low-rank", cltk.models.stored_digest("whole"))
    apart = cltk.measure("tiny-llama", "low-rank", **TASK, texts=_text())
    merged = cltk.measure("tiny-llama", "whole", **TASK, texts=_text())
    close(values(apart), values(merged))
    assert apart.divergence["words"]["kl"] == pytest.approx(merged.divergence["words"]["kl"], rel=1e-4)
    assert apart.divergence["words"]["kl"] > 1e-3
    stock = by_lm_eval(pretrained="tiny-llama", peft="low-rank")
    (acc,) = [row for row in apart.rows if row.metric == "acc"]
    assert acc.post == pytest.approx(stock["acc"], abs=1e-12)
    suite = Suite(["toy"], include_path="tasks", limit=6)
    model, tokenizer = Bench(Origin("tiny-llama"), "float32").load(Origin("low-rank"))
    ours = suite.evaluate(model, tokenizer).lm_eval["samples"]["toy"]
    assert sum(answer[0] for sample in ours for answer in sample["filtered_resps"]) == pytest.approx(stock["sum"], abs=1e-3)
    assert not list(Path("whole").glob("adapter*"))


def _text() -> list[Any]:
    return [TextTask("words", TEXT)]


def test_the_base_is_loaded_once_and_its_scores_are_the_plain_model_s(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    adapter("low-rank", modules_to_save=["lm_head"])
    loaded: list[Any] = []
    load = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: (loaded.append(a[0]), load(*a, **k))[1]
    )
    found = cltk.measure("tiny-llama", "low-rank", **TASK, texts=_text())
    assert loaded == ["tiny-llama"]
    plain = cltk.measure("tiny-llama", "tiny-llama", **TASK, texts=_text())
    assert {name: pre for name, (pre, _) in values(found).items()} == {name: pre for name, (pre, _) in values(plain).items()}
    said = found.settings["models"]["tuned"]["adapter"]
    assert said["base"].endswith("tiny-llama")
    assert len({said["digest"], said["base_digest"]}) == 2
    assert len(list(Path("cache/journals").glob("*.jsonl"))) == 2  # one of the base, shared with the plain comparison


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"bias": "all", "target_modules": ["q_proj"]},
        {"init_lora_weights": "pissa"},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"rows": 320},
        {"rows": 303, "trainable_token_indices": {"embed_tokens": [300, 301, 302]}},
    ],
    ids=["modules to save", "biases", "pissa", "embedding", "resized", "trained tokens"],
)
def test_kinds_of_adapters_equal_their_merged_model(settings: dict[str, Any]) -> None:
    adapter("low-rank", **settings)
    merge("low-rank", "whole", dtype="float32")
    apart, merged = (cltk.measure("tiny-llama", name, **TASK, texts=_text()) for name in ("low-rank", "whole"))
    close(values(apart), values(merged))
    assert apart.divergence["words"]["kl"] == pytest.approx(merged.divergence["words"]["kl"], rel=1e-3)


def test_a_merged_head_is_not_tied_to_the_embedding_again() -> None:
    """Both were trained apart, the base ties them: loading would throw one of them away."""
    from transformers import AutoModelForCausalLM

    adapter("low-rank", modules_to_save=["lm_head"])
    merge("low-rank", "whole")
    model: Any = AutoModelForCausalLM.from_pretrained("whole")
    assert not model.config.tie_word_embeddings
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_several_adapters_take_turns_on_one_base(tokenizer: Any) -> None:
    names = ["one", "two", "three"]
    for seed, name in enumerate(names):
        adapter(name, seed=seed + 5, **({"modules_to_save": ["lm_head"]} if name == "two" else {}))
    bench = Bench(Origin("tiny-llama"), "float32")
    ids = torch.tensor([tokenizer("the cat sat on the mat.")["input_ids"]])
    sides = [named_model(name, "tuned") for name in names]
    base, _ = bench.first(sides)
    with torch.no_grad():
        plain = base.eval()(ids).logits
        for name, side in zip(names, sides, strict=True):
            model, _ = bench.load(side)
            alone, _ = Bench(Origin("tiny-llama"), "float32").load(Origin(name))
            assert torch.allclose(model(ids).logits, alone(ids).logits, atol=1e-6)
            assert not torch.allclose(model(ids).logits, plain, atol=1e-3)
            start, _ = bench.start((bench._held[0], None))  # type: ignore[index]
            assert torch.allclose(start(input_ids=ids).logits, plain, atol=1e-6)


def test_an_adapter_that_trl_has_saved(tokenizer: Any) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = SFTTrainer(
            "tiny-llama",
            args=SFTConfig("out", max_steps=2, learning_rate=0.05, report_to="none", bf16=False, save_strategy="no"),
            train_dataset=Dataset.from_list([{"text": row["text"]} for row in TEXT] * 8),
            peft_config=LoraConfig(r=4, target_modules="all-linear"),
        )  # fmt: skip
        trainer.train()
        trainer.save_model("trl")
    merge("trl", "whole")
    found = cltk.measure("tiny-llama", "trl", **TASK)
    close(values(found), values(cltk.measure("tiny-llama", "whole", **TASK)))
    assert found.rows[0].post == pytest.approx(by_lm_eval(pretrained="tiny-llama", peft="trl")["acc"], abs=1e-12)
    assert max(abs(pre - post) for pre, post in values(found).values()) > 1e-3


def test_documents_until_the_interval_is_narrow_enough_with_an_adapter() -> None:
    adapter("low-rank")
    merge("low-rank", "whole")
    one, other = (
        cltk.measure("tiny-llama", name, ["toy"], include_path="tasks", dtype="float32", until=0.9)
        for name in ("low-rank", "whole")
    )
    close(values(one), values(other))


def edited(folder: str, **changes: Any) -> None:
    file = Path(folder, "adapter_config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(words: list[str], capsys: Any, *expected: str) -> None:
    code = main(words)
    lines = capsys.readouterr().err.strip().splitlines()
    assert (code, len(lines)) == (2, 1), lines
    for one in expected:
        assert one in lines[0], lines[0]


MEASURE = [
    "measure",
    "tiny-llama",
    "low-rank",
    "--tasks",
    "toy",
    "--include-path",
    "tasks",
    "--dtype",
    "float32",
    "--limit",
    "4",
]


def test_a_base_that_is_not_there_is_named_before_weights_are_loaded(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter("low-rank")
    edited("low-rank", base_model_name_or_path="org/never-was")
    monkeypatch.setattr("cltk.measure.sides.load_model", None)
    refused(MEASURE, capsys, "low-rank", "org/never-was", "base=")
    edited("low-rank", base_model_name_or_path="/no/such/folder")
    refused(MEASURE, capsys, "low-rank", "/no/such/folder", "base=")
    refused(["merge", "low-rank", "out"], capsys, "/no/such/folder")
    assert not Path("out").exists()


def test_the_base_can_be_given_and_stands_in_where_none_is_named(capsys: Any) -> None:
    adapter("low-rank")
    expected = values(cltk.measure("tiny-llama", "low-rank", **TASK))
    edited("low-rank", base_model_name_or_path="org/never-was")
    assert values(cltk.measure("tiny-llama", "low-rank", **TASK, tuned_args={"base": "tiny-llama"})) == expected
    assert main([*MEASURE, "--tuned-args", "base=tiny-llama"]) == 0
    edited("low-rank", base_model_name_or_path=None)
    assert values(cltk.measure("tiny-llama", "low-rank", **TASK)) == expected
    capsys.readouterr()
    refused(["merge", "low-rank", "out"], capsys, "names no base")
    shutil.copytree("tiny-llama", "copy")
    edited("low-rank", base_model_name_or_path="copy")  # the same model in another folder is the same base
    assert not any("own base" in note for note in cltk.measure("tiny-llama", "low-rank", **TASK).notes)


def test_another_base_than_the_one_compared_with_is_said(tiny: Any, tokenizer: Any) -> None:
    adapter("low-rank")
    tiny(seed=9).save_pretrained("other")
    tokenizer.save_pretrained("other")
    found = cltk.measure("other", "low-rank", **TASK)
    assert any("own base" in note and "tiny-llama" in note for note in found.notes)
    close(
        {k: v[1:] for k, v in values(found).items()},
        {k: v[1:] for k, v in values(cltk.measure("tiny-llama", "low-rank", **TASK)).items()},
    )


def test_an_adapter_that_does_not_fit_is_refused(tiny: Any, tokenizer: Any, capsys: Any) -> None:
    """Another width; fewer layers, whose adapters would be dropped without a word; layers that were never trained."""
    adapter("low-rank")
    for name, changes in (
        ("narrow", {"hidden_size": 16, "num_attention_heads": 2}),
        ("short", {"num_hidden_layers": 1}),
        ("deep", {"num_hidden_layers": 3}),
    ):
        tiny(**changes).save_pretrained(name)
        tokenizer.save_pretrained(name)
        refused([*MEASURE, "--tuned-args", f"base={name}"], capsys, "low-rank", "does not fit")


def test_what_cannot_be_merged_is_refused(capsys: Any) -> None:
    adapter("low-rank")
    refused(["merge", "tiny-llama", "out"], capsys, "no PEFT adapter")
    refused(["merge", "low-rank", "tiny-llama"], capsys, "not empty")
    Path("low-rank/adapter_config.json").write_text("{")
    refused(["merge", "low-rank", "out"], capsys, "adapter_config.json")


def test_a_config_that_names_a_module_to_import_is_refused(capsys: Any) -> None:
    adapter("low-rank")
    edited("low-rank", megatron_config={"a": 1}, megatron_core="antigravity")
    refused(MEASURE, capsys, "megatron_core")


def test_where_a_whole_model_is_needed_the_line_says_merge(capsys: Any) -> None:
    adapter("low-rank")
    with pytest.raises(InputError, match="cltk merge"):
        cltk.models.load_model("low-rank")


def test_a_live_pair_with_an_adapter_is_as_before(tokenizer: Any) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter("low-rank")
    base = AutoModelForCausalLM.from_pretrained("tiny-llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = PeftModel.from_pretrained(copy.deepcopy(base), "low-rank")
    one = cltk.measure((base, tokenizer), (live, tokenizer), **{**TASK, "dtype": "auto"})
    close(values(one), values(cltk.measure("tiny-llama", "low-rank", **TASK)))
