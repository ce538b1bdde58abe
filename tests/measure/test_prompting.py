"""Prompts are those of lm-eval's `simple_evaluate`: its seeds, examples, chat template and defaults.

What people met: the seed of examples set only when num_fewshot is given (EleutherAI/lm-evaluation-harness#1906), examples that
differ from run to run (princeton-nlp/HELMET#43), turns against one question in a chat template (#1098, #1490).
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.evaluate import Suite, TextTask
from tests.conftest import sentences, write_jsonl

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


@pytest.fixture
def chatty(tokenizer: Any) -> Any:
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    return own


def stock(model: Any, tokenizer: Any, name: str | list[str], **settings: Any) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with mock.patch("lm_eval.evaluator.add_env_info"):
        return simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), tasks=[name] if isinstance(name, str) else name,
            bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False, include_path="tasks"), **settings,
        )  # fmt: skip


def write_task(name: str, body: str, like: str = "toy") -> None:
    own = Path(f"tasks/{like}.yaml").read_text().replace(f"task: {like}\n", f"task: {name}\n")
    Path(f"tasks/{name}.yaml").write_text(own + body)


def asked(samples: list[dict[str, Any]]) -> list[Any]:
    return [[list(args) for args in sample["arguments"]] for sample in samples]


@pytest.mark.parametrize("shots", [None, 2])
def test_examples_are_lm_evals_for_every_build(shots: int | None, tiny: Any, tokenizer: Any) -> None:
    """Also where the number stands in the task's file: the seed is set in any case."""
    write_task("own", "num_fewshot: 3\nfewshot_split: validation\n")
    suite = Suite(["own"], include_path="tasks", num_fewshot=shots, limit=6)
    assert suite.digests() == suite.digests()
    theirs = asked(stock(tiny(), tokenizer, "own", num_fewshot=shots, limit=6)["samples"]["own"])
    for seed in (0, 1):
        assert asked(suite.evaluate(tiny(seed=seed), tokenizer).lm_eval["samples"]["own"]) == theirs
    assert len({args[0][0] for args in theirs}) == 6
    assert theirs[0][0][0].count("\n\n") == (shots or 3)


@pytest.mark.parametrize("beside", [[], ["toy", "second", "third"]], ids=["alone", "behind others"])
def test_documents_shuffled_while_loading_are_lm_evals(beside: list[str], tiny: Any, tokenizer: Any) -> None:
    """GPQA's form: choices are shuffled by the module's own `random` in process_docs, which lm-eval seeds with 0.

    Tasks that are built before draw from it too, each time lm-eval asks for their names.
    """
    import datasets

    Path("tasks/shuffling.py").write_text(
        "import random\n\ndef process(docs):\n    def one(doc):\n        choices = list(doc['choices'])\n"
        "        random.shuffle(choices)\n        return {**doc, 'choices': choices, 'label': choices.index('zebra')}\n"
        "    return docs.map(one)\n"
    )
    write_task("shuffled", "process_docs: !function shuffling.process\n")
    datasets.disable_caching()
    try:
        for name in beside[1:]:
            write_task(name, "")
        names = [*beside, "shuffled"]
        theirs = stock(tiny(), tokenizer, names)["samples"]["shuffled"]
        suite = Suite(names, include_path="tasks")
        assert suite.digests() == suite.digests()
        for _ in range(2):
            ours = suite.evaluate(tiny(), tokenizer).lm_eval["samples"]["shuffled"]
            assert asked(ours) == asked(theirs)
            assert [s["doc"] for s in ours] == [s["doc"] for s in theirs]
    finally:
        datasets.enable_caching()
    assert any(s["doc"]["label"] for s in theirs)


@pytest.mark.parametrize(
    "settings", [{}, {"fewshot_as_multiturn": False}, {"system_instruction": "be brief"}], ids=["turns", "one turn", "system"]
)
@pytest.mark.parametrize("template", [True, False])
def test_chat_templates_are_applied_as_lm_eval_does_by_default(
    template: bool, settings: dict[str, Any], tiny: Any, chatty: Any
) -> None:
    write_task("own", "fewshot_split: validation\ndescription: 'Answer.'\n")
    theirs = asked(
        stock(tiny(), chatty, "own", num_fewshot=2, limit=4, apply_chat_template=template, **settings)["samples"]["own"]
    )
    suite = Suite(["own"], include_path="tasks", num_fewshot=2, limit=4, chat_template=template, **settings)
    ours = suite.evaluate(tiny(), chatty)
    assert asked(ours.lm_eval["samples"]["own"]) == theirs
    assert [list(args) for args in suite._requests(chatty)["own"]] == [one for doc in theirs for one in doc]
    assert ("<assistant>" in theirs[0][0][0]) == template
    if template:
        turns = theirs[0][0][0].count("<user>")
        assert turns == (1 if settings.get("fewshot_as_multiturn") is False else 3)


def test_digests_know_the_template_and_every_setting(chatty: Any) -> None:
    write_task("own", "fewshot_split: validation\n")
    other = copy.deepcopy(chatty)
    other.chat_template = TEMPLATE.replace("<", "[")
    kinds = [
        ({}, chatty), ({"num_fewshot": 2}, chatty), ({"system_instruction": "be brief"}, chatty),
        ({"chat_template": True}, chatty), ({"chat_template": True}, other),
        ({"chat_template": True, "num_fewshot": 2}, chatty),
        ({"chat_template": True, "num_fewshot": 2, "fewshot_as_multiturn": False}, chatty),
    ]  # fmt: skip
    found = [Suite(["own"], include_path="tasks", limit=2, **given).digests(tokenizer)["own"] for given, tokenizer in kinds]
    assert len(set(found)) == len(found)
    texts = [TextTask("t", [{"text": "a cat sat"}], max_length=n) for n in (None, 2, 3)]
    assert len({Suite([], texts=[text]).digests()["t"] for text in texts}) == 3
    generation("made")
    kinds = [{}, {"gen_kwargs": {"max_gen_toks": 3}}, {"gen_kwargs": {"temperature": 0.5, "do_sample": True}}, {"limit": 2}]
    found = [Suite(["made"], include_path="tasks", **given).digests()["made"] for given in kinds]
    assert len(set(found)) == len(found)


def generation(name: str = "long") -> str:
    data = write_jsonl(Path("tasks/gen.jsonl").absolute(), [{"q": s} for s in sentences(4)])
    Path(f"tasks/{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{validation: {data}}}}}\n"
        "validation_split: validation\noutput_type: generate_until\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: '{{q}}'\nmetric_list: [{metric: exact_match}]\n"
        'generation_kwargs: {max_gen_toks: 8, until: ["zzz"]}\n'
    )
    return name


@pytest.mark.parametrize("given", [{"max_gen_toks": 3}, "max_gen_toks=3"])
def test_gen_kwargs_go_over_the_tasks_own(given: Any, tiny: Any, tokenizer: Any) -> None:
    name = generation()
    theirs = stock(tiny(), tokenizer, name, gen_kwargs=given)["samples"][name]
    suite = Suite([name], include_path="tasks", gen_kwargs=given)
    ours = suite.evaluate(tiny(), tokenizer).lm_eval["samples"][name]
    assert [s["resps"] for s in ours] == [s["resps"] for s in theirs]
    assert asked(ours) == asked(theirs)
    plain = Suite([name], include_path="tasks")
    assert plain.evaluate(tiny(), tokenizer).lm_eval["samples"][name][0]["resps"] != ours[0]["resps"]
    assert plain.digests() != suite.digests()


def test_sampled_generations_start_from_lm_evals_seeds(tiny: Any, tokenizer: Any) -> None:
    name, given = generation(), {"do_sample": True, "temperature": 1.0}
    theirs = stock(tiny(), tokenizer, name, gen_kwargs=given)["samples"][name]
    suite = Suite([name], include_path="tasks", gen_kwargs=given)
    for _ in range(2):
        ours = suite.evaluate(tiny(), tokenizer, scorer="stock", batch_size=4).lm_eval["samples"][name]
        assert [s["resps"] for s in ours] == [s["resps"] for s in theirs]


@pytest.mark.parametrize("alias", ["max_new_tokens", "max_tokens"])
def test_a_setting_that_the_tasks_own_goes_before_is_refused(alias: str, tiny: Any, tokenizer: Any) -> None:
    """lm-eval warns and takes the task's max_gen_toks; the settings would say the other number."""
    suite = Suite([generation()], include_path="tasks", gen_kwargs={alias: 3})
    with pytest.raises(InputError, match=rf"gen_kwargs: {alias}: the task's own max_gen_toks goes before it"):
        suite.evaluate(tiny(), tokenizer)
    both = Suite([generation()], include_path="tasks", gen_kwargs={"max_gen_toks": 3})
    assert both.evaluate(tiny(), tokenizer).lm_eval


def test_what_generate_refuses_is_no_fault_of_the_models_forward(tiny: Any, tokenizer: Any) -> None:
    from cltk.measure.faults import _of_model

    model = tiny()
    ids = torch.tensor([[5, 6, 7]])
    for refused, act in (
        (False, lambda: model.generate(ids, do_sample=True, temperature=0.0)),
        (True, lambda: model(ids + 10**6)),
    ):
        with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever transformers raises
            act()
        assert (_of_model(raised.value) is not None) is refused


def test_a_zero_in_the_tasks_file_stays_and_is_said(tiny: Any, tokenizer: Any, capsys: Any) -> None:
    write_task("zero", "num_fewshot: 0\nfewshot_split: validation\n")
    theirs = asked(stock(tiny(), tokenizer, "zero", num_fewshot=5)["samples"]["zero"])
    suite = Suite(["zero", "toy"], include_path="tasks", num_fewshot=2)
    assert asked(suite.evaluate(tiny(), tokenizer).lm_eval["samples"]["zero"]) == theirs
    assert [note.startswith("task zero: num_fewshot=2 is ignored") for note in suite.notes] == [True]
    result = cltk.measure((tiny(), tokenizer), (tiny(), tokenizer), ["zero"], include_path="tasks", num_fewshot=2)
    assert result.to_json()["notes"] == suite.notes
    call = ["measure", "tiny-llama", "tiny-llama", "--tasks", "zero", "--include-path", "tasks", "--num-fewshot", "2"]
    assert main([*call, "--dtype", "float32"]) == 0
    assert "note: task zero: num_fewshot=2 is ignored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_fewshot": -1}, "num_fewshot"),
        ({"num_fewshot": 1.5}, "num_fewshot"),
        ({"num_fewshot": 100}, "task toy"),
        ({"chat_template": True}, "chat template"),
        ({"gen_kwargs": "what"}, "gen_kwargs"),
        ({"gen_kwargs": 3}, "gen_kwargs"),
        ({"system_instruction": 3}, "system_instruction"),
        ({"chat_template": "mine"}, "chat_template"),
    ],
)
def test_what_cannot_be_done_is_refused_before_weights_are_loaded(
    settings: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(InputError, match=words) as caught:
        cltk.measure("tiny-llama", "tiny-llama", ["toy"], include_path="tasks", dtype="float32", **settings)
    assert "\n" not in str(caught.value)


def test_each_side_s_own_template_pairs_documents_and_says_so(tiny: Any, chatty: Any) -> None:
    """base against instruct, each asked as it was made to be asked: both sides are lm-eval's own numbers."""
    other = copy.deepcopy(chatty)
    other.chat_template = TEMPLATE.replace("<", "[")
    one, two = (tiny(), chatty), (tiny(seed=1), other)
    result = cltk.measure(one, two, ["toy"], include_path="tasks", chat_template=True)
    assert any("chat template" in note and "differ" in note for note in result.notes)
    (acc,) = [row for row in result.rows if row.metric == "acc"]
    for side, pair in (("pre", one), ("post", two)):
        assert getattr(acc, side) == stock(*pair, "toy", apply_chat_template=True)["results"]["toy"]["acc,none"]
    result = cltk.measure(one, (tiny(), chatty), ["toy"], include_path="tasks", chat_template="own")
    assert result.macro.forgetting == 0
    assert not any("chat template" in note for note in result.notes)


@pytest.mark.parametrize("whose", ["base", "tuned"])
def test_one_side_s_template_for_both(whose: str, tiny: Any, tokenizer: Any, chatty: Any) -> None:
    """A base without a template against its chat model: both are asked what that is asked."""
    plain, chat = (tiny(), tokenizer), (tiny(seed=1), chatty)
    base, tuned = (plain, chat) if whose == "tuned" else (chat, plain)
    result = cltk.measure(base, tuned, ["toy"], include_path="tasks", chat_template=whose)
    (acc,) = [row for row in result.rows if row.metric == "acc"]
    for side, (model, _) in (("pre", base), ("post", tuned)):
        assert getattr(acc, side) == stock(model, chatty, "toy", apply_chat_template=True)["results"]["toy"]["acc,none"]
    assert result.settings["chat_template"] == TEMPLATE
    assert tokenizer.chat_template is None
    with pytest.raises(InputError, match="has no chat template"):
        cltk.measure(base, tuned, ["toy"], include_path="tasks", chat_template="base" if whose == "tuned" else "tuned")
    with pytest.raises(InputError, match="chat_template: tuned"):
        cltk.measure(base, tuned, ["toy"], include_path="tasks", chat_template="own")


def test_the_flag_may_stand_alone_before_the_models(chatty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from cltk.cli import main

    chatty.save_pretrained("tiny-llama")
    rest = ["--tasks", "toy", "--include-path", "tasks", "--dtype", "float32", "--limit", "4"]
    assert main(["measure", "--chat-template", "tiny-llama", "tiny-llama", *rest]) == 0
    assert main(["measure", "--chat-template", "tuned", "tiny-llama", "tiny-llama", *rest, "--json", "r.json"]) == 0
    assert '"chat_template_of": "tuned"' in Path("r.json").read_text()
    assert main(["measure", "tiny-llama", "tiny-llama", *rest, "--chat-template"]) == 0


def test_a_run_with_examples_and_its_reproduction(study: Path, tokenizer: Any) -> None:
    """The cell's base and tuned model see the same prompts, and so does `cltk reproduce`."""
    from tests.conftest import TINY

    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    own.save_pretrained("tiny-llama")
    Path("x.yaml").write_text(
        TINY + 'train: {learning_rate: 3.0e-3, max_steps: 2, per_device_train_batch_size: 4, save_strategy: "no"}\n'
        "evals: {retain: [toy], include_path: tasks, limit: 6, num_fewshot: 2, chat_template: true, kl_rows: 0,"
        " system_instruction: be brief, gen_kwargs: {max_gen_toks: 3}}\nkeep_model: false\n"
    )
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    (record,) = Path("out").glob("*/record.json")
    assert main(["reproduce", str(record), "--out", "again"]) == 0
    samples = next(Path("out").glob("*/lm_eval/**/samples_toy_*.jsonl"))
    prompt = json.loads(samples.read_text().splitlines()[0])["arguments"]
    assert "be brief" in json.dumps(prompt)
    (results,) = (json.loads(file.read_text()) for file in samples.parent.glob("results_*.json"))
    assert results["config"]["chat_template"] == TEMPLATE
    assert results["config"]["system_instruction"] == "be brief"
    assert results["system_instruction"] == "be brief"
    assert results["config"]["lm_eval_version"]
    if samples.is_relative_to(record.parent):
        assert record.parent.name in results["config"]["model_args"]
    assert json.dumps(prompt).count("<user>") >= 3
