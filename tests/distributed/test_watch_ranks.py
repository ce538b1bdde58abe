"""A watch on two gloo ranks, under DDP and FSDP2: the same weights as without, and the scores of the weights that are left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cltk.measure.evaluate import Suite, TextTask
from tests.conftest import WORDS, sentences, write_jsonl
from tests.distributed.launch import launch
from tests.distributed.worker import OLD

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any, tiny: Any, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("start")
    tiny().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tasks = folder / "tasks"
    tasks.mkdir()
    docs = [
        {"q": s, "choices": [w, "zebra", "violet"], "label": i % 3}
        for i, (s, w) in enumerate(zip(sentences(15, seed=3), WORDS, strict=False))
    ]
    data = write_jsonl(tasks / "docs.jsonl", docs)
    (tasks / "toy.yaml").write_text(
        "task: toy\ndataset_path: json\ndataset_kwargs: {data_files: {validation: " + str(data) + "}}\n"
        "validation_split: validation\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: label\nmetric_list: [{metric: acc}]\n"
    )
    return folder


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_a_watch_on_two_ranks(engine: str, folder: Path, tiny: Any, tokenizer: Any) -> None:
    found = launch(engine, folder, ["watch-off", "watch-on"], seconds=240)
    off, on = found["watch-off"], found["watch-on"]
    assert "broke" not in on[0], on[0]["broke"]
    assert "refused" not in on[0], on[0]
    for rank in range(2):
        assert all(torch.equal(value, on[rank]["weights"][name]) for name, value in off[rank]["weights"].items())
    curve = on[0]["curve"]
    assert curve == on[1]["curve"]
    assert [point["step"] for point in curve[:2]] == [0, 2]
    tuned = tiny()
    tuned.load_state_dict(on[0]["weights"], strict=False)
    suite = Suite("toy", texts=[TextTask("old_text", [{"text": s} for s in OLD[:12]])], include_path=folder / "tasks")
    before, after = (suite.evaluate(model, tokenizer).tasks for model in (tiny(), tuned))
    for row, metric, sign in (("toy", "acc", 1), ("old_text", "nll", -1)):
        lost = sign * (np.mean(before[row].values[metric]) - np.mean(after[row].values[metric]))
        assert curve[-1][f"forgetting_{row}"] == pytest.approx(lost, abs=1e-5)
    assert curve[-1]["forgetting_old_text"] != 0
