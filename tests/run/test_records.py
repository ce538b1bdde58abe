"""What a record holds: plain JSON, numbers as numbers."""

import json
from pathlib import Path

import numpy as np
import torch

from cltk.run.records import canonical, read_json, write_json


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path):
    note = {
        "a": np.float32(0.5),
        "b": np.bool_(True),
        "c": np.int64(3),
        "d": torch.tensor(0.25),
        "e": Path("x"),
        "f": np.ones(1),
    }
    expected = {"a": 0.5, "b": True, "c": 3, "d": 0.25, "e": "x", "f": "[1.]"}
    assert json.loads(canonical(note)) == expected
    write_json(tmp_path / "note.json", note)
    assert {key: value for key, value in read_json(tmp_path / "note.json").items() if key != "sha256"} == expected


def test_a_margin_of_a_corpus_metric_is_handed_on() -> None:
    """It was accepted, and then dropped: the verdict was held to the default."""
    from cltk.measure.scores import Scores, TaskScores
    from cltk.run.outcome import margins_of

    task = TaskScores("t", {"acc": [1.0]}, {"acc": True, "bleu": True}, ["d"], ["d"], corpus={"bleu": [30.0]})
    assert margins_of({"bleu": 2.0, "acc": 0.02, "nll": 0.1}, Scores("m", {"t": task})) == {"bleu": 2.0, "acc": 0.02}
