"""Scores in another dtype than training: those of lm-eval's HFLM on the same weights read in it; the weights stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import cltk
from cltk import tensors
from cltk.cli import main
from cltk.run import machine
from cltk.run.estimates import estimate_yaml
from cltk.run.records import read_json
from tests.conftest import sentences


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_weights_are_rounded_as_a_folder_is_read(kind: str, tiny: Any, tmp_path: Path) -> None:
    tiny(kind).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids = torch.arange(40).reshape(2, 20)
    before, places = model(ids).logits, [p.data_ptr() for p in model.parameters()]
    with torch.no_grad(), tensors.in_dtype(model, torch.bfloat16):
        assert {name: p.dtype for name, p in model.named_parameters()} == {n: p.dtype for n, p in narrow.named_parameters()}
        assert {name: b.dtype for name, b in model.named_buffers()} == {n: b.dtype for n, b in narrow.named_buffers()}
        assert torch.equal(model(ids).logits, narrow(ids).logits)
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert tied == (narrow.get_input_embeddings().weight is narrow.get_output_embeddings().weight)
    with pytest.raises(RuntimeError, match="in the middle"), tensors.in_dtype(model, torch.bfloat16):
        raise RuntimeError("in the middle")
    assert [p.data_ptr() for p in model.parameters()] == places
    assert torch.equal(model(ids).logits, before)


def test_what_a_class_keeps_in_float32_stays(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    monkeypatch.setattr(model, "_keep_in_fp32_modules_strict", {"norm"})
    with tensors.in_dtype(model, torch.bfloat16):
        wide = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert wide == {"model.norm.weight"}


def nll(folder: Path, row: str, dtype: torch.dtype) -> float:
    """Mean NLL of a row of text, by hand."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(row, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return F.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:]).item()


def test_scores_are_those_of_weights_read_in_it(experiment: Path, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start model and cell against HFLM in bfloat16, one request at a time; float32 gives other numbers."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(study)
    text = (
        experiment.read_text()
        .split("grid:")[0]
        .replace("  limit: 8", "  limit: 8\n  dtype: bfloat16\n  scorer: stock\n  batch_size: 1")
    )
    experiment.write_text(text)
    assert main(["run", "experiment.yaml", "--out", "out"]) == 0
    (record,) = Path("out").glob("*/record.json")
    tuned, old = record.parent / "model", sentences(120, seed=1)[0]
    for folder, scores in (
        (Path("tiny-llama"), next(Path("out").glob("base-*/scores.json"))),
        (tuned, record.parent / "scores.json"),
    ):
        found = read_json(scores)["tasks"]
        logprobs = {}
        for dtype in ("bfloat16", "float32"):
            lm = HFLM(str(folder), dtype=dtype, batch_size=1, device="cpu")
            stock = simple_evaluate(
                lm,
                tasks=["toy"],
                limit=8,
                task_manager=TaskManager(include_defaults=False, include_path="tasks"),
                bootstrap_iters=0,
            )
            logprobs[dtype] = [float(doc["filtered_resps"][doc["doc"]["label"]][0]) for doc in stock["samples"]["toy"]]
        assert found["toy"]["values"]["logprob"] == logprobs["bfloat16"]
        assert found["toy"]["values"]["logprob"] != pytest.approx(logprobs["float32"], rel=1e-5)
        assert found["old_text"]["values"]["nll"][0] == pytest.approx(nll(folder, old, torch.bfloat16), rel=1e-3)
        assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32
    assert read_json(record)["config"]["evals"]["dtype"] == "bfloat16"


def test_it_is_a_measurement_of_its_own(experiment: Path, study: Path) -> None:
    """Other scores of the start model, the same trainings; a file without the key keeps its digests."""
    plans = {}
    for dtype in (None, "float32", "bfloat16"):
        text = (
            experiment.read_text()
            if dtype is None
            else experiment.read_text().replace("  limit: 8", f"  limit: 8\n  dtype: {dtype}")
        )
        (study / "other.yaml").write_text(text)
        run = cltk.load(study / "other.yaml", study / "out")
        plans[dtype] = run.inputs.measured(run.cells[0])
    assert len(set(plans.values())) == 3
    assert "dtype" not in cltk.load(experiment, study / "out").cells[0].config.evals.model_dump()


def test_the_copy_is_estimated(experiment: Path) -> None:
    """A bfloat16 model scored in float32: 2 + 4 bytes a parameter, above what its training by SGD on a token holds."""
    head = experiment.read_text().replace("pretrained: tiny-llama", "pretrained: tiny-llama, dtype: bfloat16")
    experiment.write_text(head.replace("  limit: 8", "  limit: 8\n  dtype: float32"))
    one = estimate_yaml(experiment, batch=1, length=1, optim="sgd")[0]
    assert one.moment in ("start", "scoring")
    assert one.peak == 6 * one.parameters


@pytest.mark.parametrize(("gain", "said"), [(0.01, "take 100 times as long as"), (0.0, "are emulated"), (0.9, "")])
def test_a_processor_without_such_products_is_said(
    gain: float, said: str, experiment: Path, study: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Zen 3: right, and a hundred times slower than not asking for it."""
    monkeypatch.chdir(study)
    monkeypatch.setattr("cltk.measure.settings.bfloat16_gain", lambda: gain)
    machine.warn_of_slow_scores.cache_clear()
    experiment.write_text(experiment.read_text().replace("  limit: 8", "  limit: 8\n  dtype: bfloat16"))
    cltk.load(experiment, "out").check()
    lines = [record.getMessage() for record in caplog.records if "evals.dtype" in record.getMessage()]
    assert len(lines) == bool(said)
    assert all(said in line and "leave evals.dtype out" in line for line in lines)
    machine.warn_of_slow_scores.cache_clear()
