"""One line instead of a traceback, whatever a task, text, model or option holds; before weights are loaded if that can be.

What people met: no chat template (EleutherAI/lm-evaluation-harness#1841), unsafe tasks without a flag (ml-explore/mlx-lm#347),
groups with an unknown task (#1301), a folder of tasks that is not read (#1382), more new tokens than positions.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import cltk
from cltk.cli import main
from cltk.errors import CltkError, InputError
from cltk.measure.evaluate import Suite
from tests.conftest import sentences, write_jsonl

ROWS = [{"q": s, "choices": ["a", "b"], "label": i % 2} for i, s in enumerate(sentences(4))]
CHOICE = "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: label\n"
GENERATE = (
    "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{q}}'\nmetric_list: [{metric: exact_match}]\n"
    "generation_kwargs: {max_gen_toks: 4, until: ['.']}\n"
)
PYTHON = (
    "def boom(doc, results):\n    raise KeyError('x')\n\ndef nothing(doc, results):\n    return None\n\n"
    "def empty(docs):\n    return docs.select([])\n\ndef dies(docs):\n    raise RuntimeError('no')\n"
)


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    Path("tasks/own.py").write_text(PYTHON)


def write_task(name: str, rows: list[dict[str, Any]], body: str) -> str:
    data = write_jsonl(Path(f"tasks/{name}.jsonl").absolute(), rows)
    Path(f"tasks/{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{validation: {data}}}}}\n"
        f"validation_split: validation\n{body}"
    )
    return name


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (CHOICE.replace("{{q}}", "{{q"), "template"),
        (CHOICE.replace("{{q}}", "{{nothing}}"), "template.*nothing"),
        (CHOICE.replace("multiple_choice", "what"), "output_type"),
        (CHOICE + "metric_list: [{metric: nope}]\n", "bad"),
        (CHOICE + "metric_list: [{metric: acc, aggregation: nope}]\n", "metric acc.*aggregation"),
        (CHOICE + "filter_list: [{name: a, filter: [{function: nope}]}]\n", "nope"),
        (CHOICE + "test_split: nope\n", "nope"),
        (CHOICE + "metadata: {cluster: passage}\n", "metadata.cluster.*passage.*they are q"),
        (CHOICE + "include: nothing_yaml\n", "nothing_yaml"),
        (CHOICE + "whatever: 3\n", "whatever"),
        (CHOICE + "process_docs: !function own.empty\n", "bad"),
        (CHOICE + "process_docs: !function own.dies\n", "RuntimeError: no"),
        (CHOICE + "unsafe_code: true\n", "unsafe.*--confirm-run-unsafe-code"),
        (CHOICE + "num_fewshot: 4\nfewshot_split: validation\ntest_split: validation\n", "fewer documents"),
        (GENERATE.replace("generation_kwargs: {", "generation_kwargs: 3 # {"), "bad"),
    ],
)
def test_a_tasks_file_is_found_wrong_before_weights_are_loaded(body: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    write_task("bad", ROWS, body)
    with pytest.raises(InputError, match=words) as caught:
        cltk.measure("tiny-llama", "tiny-llama", ["toy", "bad"], include_path="tasks", dtype="float32")
    assert "bad" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "offline version" not in str(caught.value)


def test_what_shows_while_scoring_names_its_task(tiny: Any, tokenizer: Any) -> None:
    write_task("bad", ROWS, GENERATE.replace("max_gen_toks: 4", "max_gen_toks: 300"))
    with pytest.raises(InputError, match=r"task bad.*300 new tokens.*256 positions"):
        Suite(["toy", "bad"], include_path="tasks").evaluate(tiny(), tokenizer)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("shape", r"GPT2LMHeadModel: its forward pass fails \(RuntimeError.*normalized_shape.*weights must fit its config"),
        ("positions", r"GPT2LMHeadModel.*fails \(IndexError: index out of range"),
    ],
)
@pytest.mark.parametrize("scorer", ["prefix", "stock"])
@pytest.mark.filterwarnings("ignore:.*contexts are not shared")
def test_a_forward_that_fails_is_one_line(what: str, words: str, scorer: str, tiny: Any, tokenizer: Any) -> None:
    """Shapes that do not fit (a wrong config), positions that are fewer than the config says: huggingface/transformers#3902."""
    model = tiny("gpt2")
    if what == "positions":
        model.config.n_positions, model.transformer.wpe = 256, torch.nn.Embedding(4, 32)
    else:
        model.transformer.ln_f = torch.nn.LayerNorm(16)
    for given in ({"tasks": ["toy"]}, {"texts": ["old.jsonl"]}):
        with pytest.raises(InputError, match=words) as caught:
            cltk.measure((model, tokenizer), (model, tokenizer), include_path="tasks", scorer=scorer, limit=2, **given)
        assert "\n" not in str(caught.value)


def test_machine_errors_stay_what_they_are(tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory is no fault of a task: callers catch it as it is."""

    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    model = tiny()
    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        Suite(["toy"], include_path="tasks").evaluate(model, tokenizer, scorer="stock")
    assert not isinstance(caught.value, CltkError)


@pytest.mark.parametrize("body", ["", "task: []\n"])
def test_a_group_without_tasks_is_refused_also_beside_other_tasks(body: str) -> None:
    Path("tasks/empty.yaml").write_text(f"group: empty\n{body}")
    with pytest.raises(InputError, match=r"task 'empty'.*group without tasks"):
        Suite(["toy", "empty"], include_path="tasks").load()


def test_unsafe_tasks_run_with_consent(tiny: Any, tokenizer: Any, capsys: Any) -> None:
    write_task("risky", ROWS, CHOICE + "unsafe_code: true\n")
    Path("tasks/grp.yaml").write_text("group: grp\ntask: [risky, toy]\n")
    call = ["measure", "tiny-llama", "tiny-llama", "--tasks", "grp", "--include-path", "tasks", "--dtype", "float32"]
    assert main(call) == 2
    assert "task risky: it is marked unsafe" in capsys.readouterr().err
    assert main([*call, "--confirm-run-unsafe-code"]) == 0
    result = cltk.measure((tiny(), tokenizer), (tiny(), tokenizer), "risky", include_path="tasks", confirm_run_unsafe_code=True)
    assert result.macro.forgetting == 0


@pytest.mark.parametrize("body", [CHOICE, GENERATE])
def test_a_tokenizer_without_bos_and_eos(body: str, tiny: Any, tokenizer: Any) -> None:
    """lm-eval itself cannot score with it (a TypeError)."""
    own = copy.deepcopy(tokenizer)
    own.bos_token = own.eos_token = None
    with pytest.raises(InputError, match="neither a BOS nor an EOS"):
        Suite([write_task("one", ROWS, body)], include_path="tasks").evaluate(tiny(), own)


@pytest.mark.parametrize("what", ["tasks", "texts"])
def test_a_tokenizer_that_outgrew_its_model(what: str, tiny: Any, tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["zebra", "unused"])
    given = {"tasks": ["toy"]} if what == "tasks" else {"texts": ["held.jsonl"]}
    write_jsonl(Path("held.jsonl"), [{"text": "a zebra sat"}])
    with pytest.raises(InputError, match=r"'zebra' has number 300.*ends at 299"):
        cltk.measure((tiny(), own), (tiny(), own), include_path="tasks", **given)
    write_jsonl(Path("held.jsonl"), [{"text": "a cat sat"}])
    result = cltk.measure((tiny(), own), (tiny(), own), texts=["held.jsonl"], kl_rows=0)  # the new ones do not occur
    assert {row.task for row in result.rows} == {"held"}


def test_encoder_decoder_models(tokenizer: Any) -> None:
    """lm-eval scores tasks on them; a text's NLL they do not have."""
    import transformers as t

    config = t.T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0)
    pair = t.T5ForConditionalGeneration(config), tokenizer
    assert cltk.measure(pair, pair, ["toy"], include_path="tasks", scorer="stock").macro.forgetting == 0
    with pytest.raises(InputError, match="T5ForConditionalGeneration"):
        cltk.measure(pair, pair, texts=["old.jsonl"])


def test_models_and_texts_of_other_kinds(tiny: Any, tokenizer: Any) -> None:
    pair = (tiny(), tokenizer)
    assert cltk.measure(list(pair), pair, "toy", include_path="tasks").macro.forgetting == 0  # type: ignore[arg-type]
    wrong: list[tuple[Any, Any, dict[str, Any], str]] = [
        (pair[0], pair, {"tasks": ["toy"]}, "base is a LlamaForCausalLM"),
        (pair, None, {"tasks": ["toy"]}, "tuned is a NoneType"),
        (pair[::-1], pair, {"tasks": ["toy"]}, "base is a tuple"),
        (pair, pair, {"texts": [3]}, "texts: expected"),
        (pair, pair, {}, "at least one task"),
        (pair, pair, {"tasks": ["toyy"]}, "did you mean 'toy'"),
        (pair, pair, {"tasks": ["toy"], "limit": -0.5}, "limit"),
    ]
    for base, tuned, given, words in wrong:
        with pytest.raises(InputError, match=words) as caught:
            cltk.measure(base, tuned, include_path="tasks", **given)
        assert len(str(caught.value)) < 300


def test_an_adapters_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"adapter_config\.json .*names no peft_type"):
        cltk.measure("tiny-llama", tmp_path / "adapter", ["toy"], include_path="tasks")


def test_live_models_that_are_none(tiny: Any, tokenizer: Any) -> None:
    """Wrapped as they leave a training (nn.DataParallel), of another kind, without weights; no task at all."""
    good = (tiny(), tokenizer)
    with torch.device("meta"):
        empty = tiny()
    for model, said in (
        (torch.nn.DataParallel(tiny()), r"tuned is a DataParallel, .*give the model inside it \(model\.module\)"),
        (torch.nn.Sequential(torch.nn.Embedding(300, 8)), "tuned is a Sequential, which is no transformers model; give one"),
        (empty, "tuned, a LlamaForCausalLM, has parameters without values"),
    ):
        with pytest.raises(InputError, match=said):
            cltk.measure(good, (model, tokenizer), ["toy"], include_path="tasks")
    with pytest.raises(InputError, match="tasks: expected a list of names, got NoneType"):
        cltk.measure(good, good, None)
