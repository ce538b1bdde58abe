"""Models that think before they answer: prompts and texts are lm_eval's for `--model hf` with the same arguments, or a line.

What people met: thoughts taken for the answer without an end tag, choices compared right behind "think" (EleutherAI/
lm-evaluation-harness#3329, #3675), a tag of another model's tokeniser (#3375), a template's other arguments (#3164), a tag that
is asked of a served model and does nothing (#3558). float32.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.identity import identity
from cltk.measure.scoring import PrefixLM
from cltk.measure.templates import with_template
from cltk.models import load_tokenizer
from cltk.models.origin import Origin
from cltk.models.thinking import Thinking, carrying, thinking_of
from tests.measure.test_generation import louder

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %} none.{% endif %}{{ effort | default('') }}{% endif %}"
)  # as Qwen3's: an empty thought where thinking is switched off
PLAIN = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>"
TALK = """\
task: talk
dataset_path: json
dataset_kwargs: {data_files: {validation: FILE}}
validation_split: validation
output_type: generate_until
generation_kwargs: {until: ["zebra"], max_gen_toks: 12}
doc_to_text: "{{q}}"
doc_to_target: "{{choices[0]}}"
metric_list: [{metric: exact_match}]
"""
ASKED: dict[str, Any] = {"tasks": ["talk"], "include_path": "tasks", "limit": 5, "dtype": "float32"}


@pytest.fixture(autouse=True)
def _in_folder(study: Path, tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    (study / "tasks/talk.yaml").write_text(TALK.replace("FILE", str(study / "tasks/docs.jsonl")))
    for folder, seed, template in (("base", 0, TEMPLATE), ("tuned", 1, TEMPLATE), ("old", 2, PLAIN), ("bare", 3, None)):
        louder(tiny(seed=seed)).save_pretrained(folder)
        own = copy.deepcopy(tokenizer)
        own.chat_template = template
        own.save_pretrained(folder)


def by_lm_eval(folder: str, **args: Any) -> Any:
    """Prompts and texts as lm-eval's own model gives them, without any code of ours."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        "hf", model_args={"pretrained": folder, "dtype": "float32", **args}, tasks=["talk"], limit=5, device="cpu",
        bootstrap_iters=0, apply_chat_template=True, batch_size=1, log_samples=True,
        task_manager=TaskManager(include_defaults=False, include_path="tasks"),
    )  # fmt: skip
    return said(found["samples"]["talk"])


def said(samples: Any) -> list[Any]:
    return [(sample["arguments"][0][0], sample["filtered_resps"][0], sample["exact_match"]) for sample in samples]


def ours(base: str = "base", tuned: str = "tuned", **settings: Any) -> tuple[dict[str, Any], Any]:
    """What each model was asked and said, and the result."""
    kept: dict[str, Any] = {}
    keep = lambda name, scores: kept.update({name: said(scores.lm_eval["samples"]["talk"])})  # noqa: E731
    return kept, cltk.measure(base, tuned, **{"chat_template": True, **ASKED, **settings}, keep=keep)


@pytest.mark.parametrize(
    "args",
    [
        {"enable_thinking": False}, {"enable_thinking": True, "think_end_token": "e"}, {"think_end_token": 70},
        {"chat_template_args": {"effort": "high"}, "think_end_token": " a"},
    ],
    ids=["off", "on", "token", "others"],
)  # fmt: skip
@pytest.mark.parametrize("scorer", ["prefix", "stock"])
def test_prompts_and_texts_are_lm_evals(args: dict[str, Any], scorer: str) -> None:
    if args.get("think_end_token") == 70:
        args = {"think_end_token": third("base")}
    kept, result = ours(model_args=args, scorer=scorer)
    assert kept == {name: by_lm_eval(name, **args) for name in ("base", "tuned")}
    plain = by_lm_eval("base")
    assert kept["base"] != plain
    if "think_end_token" in args:
        assert [text for _, text, _ in kept["base"]] != [text for _, text, _ in by_lm_eval("base", **{**args, **NO_END})]
    assert result.settings["models"]["tuned"]["args"] == args
    assert result.settings.get("chat_template_args") == (Thinking.of(args).told or None)
    again, _ = ours(model_args=args, scorer=scorer)  # from what was kept
    assert again == kept


def third(folder: str) -> int:
    """The third token of the first answer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(by_lm_eval(folder)[0][0], return_tensors="pt", add_special_tokens=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    made = model.generate(ids["input_ids"], max_new_tokens=3, min_new_tokens=3, do_sample=False)
    return int(made[0, -1])


NO_END: dict[str, Any] = {"think_end_token": None, "enable_thinking": None}


def test_kept_texts_know_the_end_they_were_cut_at(tiny: Any, tokenizer: Any) -> None:
    whole, _ = ours()
    cut, _ = ours(model_args="think_end_token=e")
    assert cut["base"] != whole["base"]
    assert ours()[0] == whole
    one, other = (carrying(copy.deepcopy(tokenizer), Thinking(None, end)) for end in (None, "e"))
    assert identity(tiny(), one) == identity(tiny(), tokenizer) != identity(tiny(), other)


def test_thoughts_without_an_end_are_counted(tokenizer: Any) -> None:
    """lm-eval takes them for the answer without a word."""
    never = ours(model_args="think_end_token=zebra zebra")
    assert never[0]["base"] == by_lm_eval("base", think_end_token="zebra zebra")
    said = [note for note in never[1].notes if "do not come to 'zebra zebra'" in note]
    assert [note.partition(":")[0] for note in said] == ["base", "tuned"]
    assert all("5 generated texts" in note for note in said)
    assert ours(model_args="think_end_token=zebra zebra")[1].notes == never[1].notes  # of kept texts too
    assert not any("do not come" in note for note in ours()[1].notes)


def test_each_side_is_told_its_own_and_documents_are_paired() -> None:
    kept, result = ours(tuned_args={"enable_thinking": False})
    assert kept == {"base": by_lm_eval("base"), "tuned": by_lm_eval("tuned", enable_thinking=False)}
    assert any("told different things of thinking" in note for note in result.notes)
    kept, result = ours("bare", "tuned", chat_template="tuned", tuned_args={"enable_thinking": False})
    assert {text for text, *_ in kept["bare"]} == {text for text, *_ in kept["tuned"]}  # what it is told goes with a template
    assert kept["tuned"] == by_lm_eval("tuned", enable_thinking=False)
    assert not any("thinking" in note for note in result.notes)


def test_adapters_and_live_models_are_told_too(tiny: Any) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = get_peft_model(AutoModelForCausalLM.from_pretrained("base"), LoraConfig(r=2, target_modules=["q_proj"]))
    whole.save_pretrained("lora")
    kept, _ = ours("base", "lora", model_args={"enable_thinking": False})
    assert kept["lora"] == kept["base"] == by_lm_eval("base", enable_thinking=False)  # a new LoRA is its base
    pair = AutoModelForCausalLM.from_pretrained("tuned"), load_tokenizer("tuned")
    live, _ = ours("base", pair, model_args={"enable_thinking": False})  # type: ignore[arg-type]
    assert by_lm_eval("tuned", enable_thinking=False) in live.values()
    assert thinking_of(pair[1]) == Thinking()  # the caller's own is as it was


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model_args": "enable_thinking=True"}, "enable_thinking needs think_end_token"),
        ({"model_args": "enable_thinking=False", "chat_template": "none"}, "add chat_template"),
        ({"model_args": "enable_thinking=False", "base": "old"}, "base old: the chat template does not read enable_thinking"),
        ({"model_args": {"chat_template_args": {"efort": 1}}}, "does not read efort"),
        ({"model_args": "enable_thinking=True,think_end_token=e", "tasks": ["talk", "toy"]}, "toy compares log-probabilities"),
        ({"tuned_args": "think_end_token=<end>"}, "think_end_token=0"),
        ({"tuned_args": "think_end_token=4000"}, "4000 is no token"),
        ({"tuned_args": "enable_thinking=False", "base_args": "enable_thinking=True,think_end_token=e",
          "chat_template": "tuned"}, "would change nothing: tuned makes all prompts"),
        ({"tuned_args": "enable_thinking=maybe"}, "enable_thinking must be bool"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_line_before_weights(given: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cltk.measure.sides.load_model", None)
    settings = {"base": "base", "tuned": "tuned", "chat_template": True, **ASKED, **given}
    with pytest.raises(InputError, match=words) as caught:
        cltk.measure(**settings)
    assert "\n" not in str(caught.value)


def test_the_command_line_shows_and_measures(capsys: Any) -> None:
    given = ["--model-args", "enable_thinking=False", "--include-path", "tasks"]
    assert main(["tasks", "talk", "--chat-template", "base", *given]) == 0
    assert "<assistant> none." in capsys.readouterr().out
    assert main(["tasks", "talk", "--chat-template", "old", *given]) == 2
    assert "does not read enable_thinking" in capsys.readouterr().err
    assert main(["tasks", "talk", *given]) == 2
    asked = ["-t", "talk", "-L", "3", "--apply_chat_template", "--dtype", "float32", "--json", "-"]
    assert main(["measure", "base", "tuned", *given, *asked]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["models"]["base"]["args"] == {"enable_thinking": False}


def test_lm_evals_own_command_with_our_model(tiny: Any, tokenizer: Any) -> None:
    """`--model cltk`: the constructor is HFLM's."""
    lm = PrefixLM("base", dtype="float32", enable_thinking=True, think_end_token="e")
    assert lm.chat_template_args == {"enable_thinking": True}
    with pytest.raises(InputError, match="think_end_token"):
        PrefixLM("base", dtype="float32", enable_thinking=True)
    from lm_eval.api.instance import Instance

    with pytest.raises(InputError, match="enable_thinking"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("a", " b"), 0)])


def test_a_borrowed_template_leaves_the_end_where_it_was(tokenizer: Any) -> None:
    own = carrying(copy.deepcopy(tokenizer), Thinking(None, "</think>"))
    worn = with_template(own, TEMPLATE, {"enable_thinking": False})
    assert thinking_of(worn).settings() == {"think_end_token": "</think>", "chat_template_args": {"enable_thinking": False}}
    assert Origin("x", {"think_end_token": "70"}).thinking.end == 70


def test_cells_of_an_experiment_think_as_the_file_says(experiment: Path, capsys: Any) -> None:
    text = experiment.read_text().replace("pretrained: tiny-llama", "pretrained: base, MORE")
    text = text[: text.index("grid:")] + "keep_model: false\n"
    text = text.replace("retain: [toy,", "chat_template: true\n  kl_rows: 0\n  retain: [talk,")
    from cltk.run.records import read_record

    for name, more in (("off", "enable_thinking: false, think_end_token: e"), ("plain", "dtype: float32")):
        Path(f"{name}.yaml").write_text(text.replace("MORE", more))
        assert main(["run", f"{name}.yaml", "--out", f"runs-{name}", "-q"]) == 0, capsys.readouterr().err
    off, plain = (read_record(next(Path(f"runs-{name}").rglob("record.json"))) for name in ("off", "plain"))
    assert off["config"]["model"]["think_end_token"] == "e"
    assert "think_end_token" not in plain["config"]["model"]
    samples = [json.loads(line) for f in Path("runs-off").rglob("samples_talk*.jsonl") for line in f.read_text().splitlines()]
    if samples:
        assert all("<assistant> none." in json.dumps(sample["arguments"]) for sample in samples)
    Path("bad.yaml").write_text(text.replace("MORE", "enable_thinking: true"))
    assert main(["run", "bad.yaml"]) == 2
    assert "think_end_token" in capsys.readouterr().err
    Path("bad.yaml").write_text(text.replace("MORE", "enable_thinking: false").replace("pretrained: base", "pretrained: old"))
    assert main(["run", "bad.yaml", "--dry-run"]) == 2
    assert "does not read enable_thinking" in capsys.readouterr().err
