"""The tokens that a record counts are those that were trained on, whoever makes the batches."""

from __future__ import annotations

from pathlib import Path

import pytest

import cltk
from cltk.run.inputs import Inputs
from tests.conftest import TINY


@pytest.mark.parametrize("packing", ["auto", "false"])
def test_tokens_with_data_loader_workers(packing: str, study: Path) -> None:
    """One pass over all rows: the sum of their lengths, by hand; with accumulation, and with batches drawn ahead."""
    file = study / "x.yaml"
    file.write_text(
        TINY
        + "train: {num_train_epochs: 1, per_device_train_batch_size: 4, gradient_accumulation_steps: 2, save_strategy: 'no'}\n"
        + f"speed: {{packing: {packing}}}\nevals: {{kl_rows: 0}}\nkeep_model: false\n"
        + "grid: {train.dataloader_num_workers: [0, 1]}\n"
    )
    run = cltk.load(file, study / "out")
    rows = Inputs(run.plan).data(run.cells[0]).train
    expected = sum(len(row["input_ids"]) for row in rows)
    assert [record["train"]["tokens"] for record in run.run()] == [expected, expected]
