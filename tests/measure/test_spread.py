"""Models that do not fit one device: spread by device_map, parts of them in main memory or on disk; scores as of the whole.

What people met: tensors on two devices (EleutherAI/lm-evaluation-harness#1575), meta tensors of what is on disk read as weights
(TransformerLensOrg/TransformerLens#1280, #1615). Without a GPU the parts are main memory and disk. float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import cltk
from cltk import tensors
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.evaluate import TextTask
from tests.conftest import sentences
from tests.measure.test_adapters_measured import adapter

TEXT = TextTask("old", [{"text": s} for s in sentences(8)])
PARTS = {
    "model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu",
    "model.layers.0": "cpu", "model.layers.1": "disk",
}  # fmt: skip
TALK = "task: talk\ninclude: toy.yaml\noutput_type: generate_until\ngeneration_kwargs: {until: ['.'], max_gen_toks: 6}\n"


@pytest.fixture(autouse=True)
def _in_folder(study: Path, tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    for name, seed, tied in (("base", 1, True), ("tuned", 2, True), ("loose", 3, False)):
        tiny(seed=seed, tie_word_embeddings=tied).save_pretrained(name)
        tokenizer.save_pretrained(name)


def values(result: Any) -> Any:
    return [(row.task, row.metric, row.pre, row.post) for row in result.rows], result.divergence


@pytest.mark.parametrize("tuned", ["tuned", "loose"])
def test_parts_on_disk_give_the_same(tuned: str) -> None:
    asked: Any = {"tasks": ["toy"], "include_path": "tasks", "texts": [TEXT], "dtype": "float32", "limit": 6, "journal": False}
    whole = cltk.measure("base", tuned, **asked)
    spread: Any = {"device_map": PARTS, "offload_folder": "parts"}
    assert values(cltk.measure("base", tuned, **asked, model_args=spread)) == values(whole)
    assert values(cltk.measure("base", tuned, **asked, tuned_args=spread)) == values(whole)


def test_digests_are_those_of_the_whole_model() -> None:
    for name in ("base", "loose"):
        spread = AutoModelForCausalLM.from_pretrained(name, device_map=PARTS, offload_folder="parts")
        assert any(parameter.is_meta for parameter in spread.parameters())
        assert tensors.digest(spread) == tensors.digest(AutoModelForCausalLM.from_pretrained(name))
    with torch.device("meta"):
        nothing = AutoModelForCausalLM.from_config(spread.config)
    with pytest.raises(InputError, match="has no values"):
        tensors.digest(nothing)


def test_the_command_line_spreads_and_refuses(capsys: Any) -> None:
    call = ["measure", "base", "tuned", "-t", "toy", "--include-path", "tasks", "-L", "4", "--dtype", "float32"]
    found = []
    for more in ([], ["--model-args", "parallelize=True"], ["--model-args", "device_map=auto"]):
        assert main([*call, *more]) == 0
        found.append(capsys.readouterr().out)
    assert found[1:] == found[:1] * 2
    lost = {**PARTS, "model.embed_tokens": "disk", "lm_head": "disk"}
    for args in ({"device_map": lost, "offload_folder": "parts"}, {"device_map": "nowhere"}):
        assert main([*call, "--model-args", json.dumps(args)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_an_adapter_on_a_base_that_is_spread(capsys: Any) -> None:
    adapter("low-rank")
    asked: Any = {"tasks": ["toy"], "include_path": "tasks", "texts": [TEXT], "dtype": "float32", "limit": 6}
    whole = cltk.measure("tiny-llama", "low-rank", **asked)
    assert values(cltk.measure("tiny-llama", "low-rank", **asked, model_args={"device_map": "auto"}))[0] == values(whole)[0]
