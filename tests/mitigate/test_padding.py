"""Rows that a tokenizer padded (`padding="max_length"`, no labels): an attention_mask of 0 is no text, on either side.

Trainer's own collator gives pads no loss (huggingface/transformers#23530, #22794), and whoever counts them measures the pad
token: rows of one length were the rule before packing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import default_data_collator

from cltk.forward.probe import mean_nll
from cltk.importance.fisher import fisher
from cltk.importance.sequences import data_digest
from cltk.measure.evaluate import Suite, TextTask
from cltk.mitigate.memory import labelled
from cltk.mitigate.mixed import Mixed

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


@pytest.mark.parametrize("left", [True, False])
def test_padded_old_rows_stay_as_long_as_new_ones(left: bool) -> None:
    """A collator that pads nothing takes rows of one length; their padding neither counts nor is looked at."""
    new, old = ([padded(row, left) | {"labels": padded(row, left)["input_ids"]} for row in rows] for rows in (PLAIN, PLAIN[:2]))
    del old[0]["labels"], old[1]["labels"]
    mixed = Mixed(new, old, 2)
    batch = default_data_collator([mixed[i] for i in range(len(mixed))])
    assert batch["input_ids"].shape == (6, 12)
    assert list(mixed.lengths()) == [12] * 6
    assert torch.equal(batch["attention_mask"][4:], torch.tensor([row["attention_mask"] for row in old]))
    seen = batch["attention_mask"][4:] == 1
    assert torch.equal(batch["labels"][4:], batch["input_ids"][4:].masked_fill(~seen, -100))


def test_a_column_of_attention_is_made_where_old_rows_have_none() -> None:
    mixed = Mixed([PLAIN[0] | {"attention_mask": [1] * 7}], [{"input_ids": [5, 6, 7]}], 1)
    assert mixed[1] == {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("labels", [True, False])
def test_padding_of_a_text_is_not_scored(left: bool, labels: bool, tiny: Any, tokenizer: Any) -> None:
    plain = [row | {"labels": row["input_ids"]} if labels else row for row in PLAIN]
    sides = [Suite([], texts=[TextTask("t", rows)]) for rows in (plain, [padded(row, left, labels) for row in PLAIN])]
    scores = [suite.evaluate(tiny(), tokenizer, digest="m").tasks["t"] for suite in sides]
    assert scores[0].values == scores[1].values
    assert scores[0].doc_hash == scores[1].doc_hash
    assert sides[0].digests() == sides[1].digests()
