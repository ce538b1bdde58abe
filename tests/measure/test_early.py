"""What a model's config and tokeniser say already is one line before weights are loaded.

What people met: more new tokens than positions, and a prompt that is silently deleted (EleutherAI/lm-evaluation-harness#4001).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.cli import main
from cltk.errors import InputError
from tests.conftest import TINY, write_jsonl

GENERATES = """\
task: gen
dataset_path: json
dataset_kwargs: {data_files: {validation: DOCS}}
validation_split: validation
output_type: generate_until
doc_to_text: '{{q}}'
doc_to_target: '{{q}}'
generation_kwargs: {max_gen_toks: 3, until: ["."]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    Path("tasks/gen.yaml").write_text(GENERATES.replace("DOCS", str(study / "tasks/docs.jsonl")))


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (0, "it asks for 0 new tokens; set max_gen_toks to 1 or more"),
        (-1, "it asks for -1 new tokens"),
        (256, "it asks for up to 256 new tokens, and the model has 256 positions"),
        ("many", "its generation_kwargs cannot be read"),
    ],
)
def test_new_tokens(asked: Any, said: str, unloaded: None) -> None:
    with pytest.raises(InputError, match=f"task gen: {said}"):
        cltk.measure("tiny-llama", "tiny-llama", ["gen"], include_path="tasks", gen_kwargs={"max_gen_toks": asked})


def test_new_tokens_of_a_live_model(tiny: Any, tokenizer: Any) -> None:
    pair = (tiny(max_position_embeddings=16), tokenizer)
    with pytest.raises(InputError, match="task gen: it asks for up to 20 new tokens, and the model has 16 positions"):
        cltk.measure(pair, pair, ["gen"], include_path="tasks", gen_kwargs={"max_gen_toks": 20})


@pytest.mark.parametrize(
    ("evals", "said"),
    [
        ("{retain: [gen], include_path: tasks, gen_kwargs: {max_gen_toks: 300}}", "task gen: it asks for up to 300 new tokens"),
        ("{retain: [{text: bare.jsonl}]}", "text bare: none of its 2 rows has two tokens"),
    ],
)
def test_an_experiment(evals: str, said: str, unloaded: None, capsys: Any) -> None:
    write_jsonl(Path("bare.jsonl"), [{"text": ""}, {"text": "a"}])
    Path("x.yaml").write_text(TINY + f"evals: {evals}\nkeep_model: false\n")
    assert main(["run", "x.yaml", "--out", "out"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_text_that_begins_with_an_empty_row_has_a_divergence(tiny: Any, tokenizer: Any) -> None:
    text = cltk.measure.evaluate.TextTask("t", [{"text": ""}, {"text": "a cat sat"}, {"text": "the dog ran on"}])
    result = cltk.measure((tiny(), tokenizer), (tiny(seed=1), tokenizer), [], texts=[text])
    assert result.divergence["t"]["n"] == 2


def test_no_bar_of_lm_evals_own_is_drawn(tiny: Any, tokenizer: Any, capfd: Any) -> None:
    cltk.measure((tiny(), tokenizer), (tiny(seed=1), tokenizer), ["gen"], include_path="tasks", scorer="stock")
    assert "Running" not in capfd.readouterr().err
