"""EWC("auto") from the YAML, inside a real training: the strength it found and how is in the record."""

from __future__ import annotations

from pathlib import Path

import cltk


def test_strength_is_found_and_recorded(experiment: Path, tmp_path: Path) -> None:
    text = experiment.read_text()
    text = text[: text.index("grid:")] + (
        "mitigators:\n"
        "  - ewc: {strength: auto, budget: 0.01, trial_steps: 3, trials: 2,"
        " importance: {memory: old.jsonl, samples: 8, block: 32}}\n"
        "keep_model: false\n"
    )
    experiment.write_text(text)
    (record,) = cltk.load(experiment, tmp_path / "out").run()
    note = record["train"]["notes"]["ewc"]
    calibration = note["calibration"]
    assert note["strength"] in [trial["strength"] for trial in calibration["trials"]]
    assert 1 <= len(calibration["trials"]) <= 3
    assert (calibration["budget"], calibration["trial_steps"]) == (0.01, 3)
    assert record["train"]["steps"] == 6
