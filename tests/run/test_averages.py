"""Cells that differ only in averages at the end (WiSE-FT and its kin) share one training, with the weights of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk import tensors
from cltk.run import cells
from cltk.run.records import read_json

SWEEP = """\
grid:
  mitigators:
    plain: []
    wise 0.3: [wise_ft: {alpha: 0.3}]
    wise 0.7: [wise_ft: {alpha: 0.7}]
    cocktail: [lm_cocktail: {limit: 4}]
    lora: [lora: {r: 2, rate: 1.0e-2}]
    lora wise 0.5: [lora: {r: 2, rate: 1.0e-2}, wise_ft: {alpha: 0.5}]
keep_model: true
"""


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


def by_method(out: str) -> dict[str, Any]:
    return {record["method"]: record for record in map(read_json, Path(out).glob("*/record.json"))}


def test_one_training_serves_a_sweep(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = experiment.read_text().split("grid:")[0]
    experiment.write_text(head + SWEEP)
    trained: list[str] = []
    train = cells.train_cell

    def counted(cell: Any, *args: Any, **kwargs: Any) -> Any:
        trained.append(cell.method)
        return train(cell, *args, **kwargs)

    monkeypatch.setattr(cells, "train_cell", counted)
    cltk.load(experiment, "out").run()
    assert trained == ["plain", "lora"]
    found = by_method("out")
    assert len({record["digests"]["tuned_model"] for record in found.values()}) == 6
    assert sum(found["cocktail"]["train"]["notes"]["lm_cocktail"]["weights"].values()) == pytest.approx(1)
    assert not list(Path("out/cache").glob("trained-*"))

    start, _ = cltk.models.load_model("tiny-llama")
    tuned, _ = cltk.models.load_model(next(Path("out").glob("plain*/model")))
    mixed, _ = cltk.models.load_model(next(Path("out").glob("wise-0.3*/model")))
    for a, b, c in zip(start.parameters(), tuned.parameters(), mixed.parameters(), strict=True):
        assert float((0.7 * a + 0.3 * b - c).detach().abs().max()) < 1e-6

    for method in ("wise 0.3", "cocktail", "lora wise 0.5"):  # alone, attached to a training of its own: the same bits
        only = [line for line in SWEEP.split("\n") if line.startswith(f"    {method}:")]
        experiment.write_text(head + "grid:\n  mitigators:\n" + only[0] + "\nkeep_model: false\n")
        cltk.load(experiment, f"alone {method}").run()
        assert by_method(f"alone {method}")[method]["digests"]["tuned_model"] == found[method]["digests"]["tuned_model"]


def test_a_damaged_shared_training_is_named(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment.write_text(experiment.read_text().split("grid:")[0] + SWEEP)
    run = cltk.load(experiment, "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells.Work, "_evaluate", _interrupted(cells.Work._evaluate))
        with pytest.raises(KeyboardInterrupt):
            run.run()
    (weights,) = Path("out/cache").glob("trained-*/model/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(cltk.errors.RunError, match="of this finished training are damaged"):
        cltk.load(experiment, "out").run()
    assert tensors.digest(cltk.models.load_model("tiny-llama")[0]) == by_method("out")["lora"]["digests"]["start_model"]


def _interrupted(evaluate: Any) -> Any:
    """The start model is scored; the first tuned one is not."""

    def first(self: Any, cell: Any, model: Any, tokenizer: Any, who: str) -> Any:
        if who != "start model":
            raise KeyboardInterrupt
        return evaluate(self, cell, model, tokenizer, who)

    return first


def test_behind_frozen_layers_a_merge_keeps_what_it_keeps_alone(experiment: Path) -> None:
    """Frozen weights did not move: a shared training counted their zeros, and kept another share of what was trained."""
    grid = "grid:\n  mitigators:\n{}    b: [freeze: {{layers: 1}}, ties: {{density: 0.2}}]\nkeep_model: true\n"
    head = experiment.read_text().split("grid:")[0]
    for out, more in (("alone", ""), ("beside", "    a: [freeze: {layers: 1}]\n")):
        experiment.write_text(head + grid.format(more))
        cltk.load(experiment, out).run()
    alone, beside = by_method("alone")["b"], by_method("beside")["b"]
    assert alone["digests"]["cell"] == beside["digests"]["cell"]
    assert alone["digests"]["tuned_model"] == beside["digests"]["tuned_model"]
