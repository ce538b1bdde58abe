"""Rows that a tokenizer padded (`padding="max_length"`, no labels): an attention_mask of 0 is no text, on either side.

Trainer's own collator gives pads no loss (huggingface/transformers#23530, #22794), and whoever counts them measures the pad
token: rows of one length were the rule before packing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cltk.forward.probe import mean_nll
from cltk.importance.fisher import fisher
from cltk.importance.sequences import data_digest
from cltk.mitigate.memory import labelled

PLAIN = [{"input_ids": [3, 1, 4, 1, 5, 9 + i, 2]} for i in range(4)]


def padded(row: dict[str, Any], left: bool, labels: bool = False, kind: Any = list) -> dict[str, Any]:
    ids, pads = row["input_ids"], [0] * 5

    def side(one: list[int], pad: list[int]) -> Any:
        return kind(pad + one if left else one + pad)

    found = {"input_ids": side(ids, pads), "attention_mask": side([1] * len(ids), pads)}
    return found | ({"labels": side(ids, [-100] * 5)} if labels else {})


@pytest.mark.parametrize("kind", [list, torch.tensor])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("labels", [True, False])
def test_padding_is_no_text(left: bool, labels: bool, kind: Any, tiny: Any) -> None:
    rows, model = [padded(row, left, labels, kind) for row in PLAIN], tiny()
    assert [labelled(row) for row in rows] == [labelled(row) for row in PLAIN]
    assert mean_nll(model, [labelled(row) for row in rows]) == mean_nll(model, [labelled(row) for row in PLAIN])
    assert data_digest(rows) == data_digest([row | {"labels": row["input_ids"]} if labels else row for row in PLAIN])
    found, expected = (fisher(model, data, samples=4) for data in (rows, PLAIN))
    assert found.info["tokens"] == expected.info["tokens"] == 4 * 6
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_whole_mask_changes_nothing() -> None:
    row = PLAIN[0] | {"attention_mask": [1] * 7, "completion_mask": [0, 0, 0, 1, 1, 1, 1]}
    assert labelled(row) == {"input_ids": PLAIN[0]["input_ids"], "labels": [-100, -100, -100, 1, 5, 9, 2]}
