"""What did quantisation forget? A GGUF file in Q8_0 against its own float32 weights, by `--tuned-args gguf_file=`. float32.

The difference is computed by hand beside it: the format's definition in numpy, put into the model, one forward a row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import cltk
from cltk.measure.evaluate import TextTask
from tests.conftest import sentences
from tests.measure.gguf_files import dequantised, write_gguf


def nll(model: Any, tokenizer: Any, texts: list[str]) -> list[float]:
    """Mean NLL of each text behind its first token, nats a token."""
    found = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            found.append(float(torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].double(), ids[0, 1:])))
    return found


def test_q8_0_against_float32(tmp_path: Path, tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLTK_CACHE", str(tmp_path / "cache"))
    full = tiny(intermediate_size=64, initializer_range=0.2).eval()  # rows of whole blocks, and weights that show the rounding
    folder = tmp_path / "full"
    full.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(folder / "small.gguf", full, tokenizer, "Q8_0")
    texts = sentences(12, seed=5)
    result = cltk.measure(
        folder, folder, texts=[TextTask("old", [{"text": text} for text in texts])], dtype="float32",
        tuned_args={"gguf_file": "small.gguf", "tokenizer": str(folder)},
    )  # fmt: skip
    before = nll(full, tokenizer, texts)
    with torch.no_grad():
        for parameter in full.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.from_numpy(dequantised(parameter.numpy(), "Q8_0")))
    after = nll(full, tokenizer, texts)
    rows = result.samples["old"]
    assert [row["nll_pre"] for row in rows] == pytest.approx(before, abs=1e-5)
    assert [row["nll_post"] for row in rows] == pytest.approx(after, abs=1e-5)
    moved = [b - a for a, b in zip(before, after, strict=True)]
    assert max(map(abs, moved)) > 1e-3
    (row,) = [row for row in result.rows if row.metric == "nll"]
    assert row.forgetting == pytest.approx(sum(moved) / len(moved), abs=1e-5)
    assert result.divergence["old"]["kl"] > 0
    assert result.settings["models"]["tuned"]["args"]["gguf_file"] == "small.gguf"
