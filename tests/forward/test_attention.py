"""Attention sequence by sequence: what stock attention under the block-diagonal mask gives, and nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cltk.data import Collator
from cltk.forward.attention import attention_by_sequence, by_sequence, lengths_of
from cltk.forward.packing import PackedCollator, label_head, pack
from tests.conftest import checkpointing_on
from tests.forward.test_packing import KINDS, assert_same, gradients, loud, ragged


def blocks(*rows: list[int]) -> torch.Tensor:
    """The mask [R, 1, L, L] of rows of sequences of these lengths."""
    return torch.stack([torch.block_diag(*[torch.ones(n, n) for n in row]).bool().tril() for row in rows])[:, None]


def lengths(mask: torch.Tensor | None) -> list[list[int]] | None:
    shape = (1, 1, 1, 2) if mask is None else (mask.shape[0], 2, mask.shape[-1], 4)
    return lengths_of(mask, torch.zeros(shape), torch.zeros(shape))


def test_lengths_are_read_from_the_mask() -> None:
    for rows in ([[5]], [[3, 1, 4]], [[1, 1, 1]], [[2, 4], [6, 0], [1, 5]]):
        rows = [[n for n in row if n] for row in rows]
        assert lengths(blocks(*rows)) == rows


def test_any_other_mask_is_left_to_stock_attention() -> None:
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    window = causal & ~causal.tril(-3)
    prefix = causal.clone()
    prefix[:3, :3] = True
    padded = causal.clone()
    padded[:, 4:] = False
    left = causal.clone()
    left[:, :2] = False
    skipping = causal.clone()
    skipping[4, 1] = False
    for mask in (window, prefix, padded, left, skipping, ~causal, torch.ones_like(causal)):
        assert lengths(mask[None, None]) is None
    assert lengths(None) is None
    assert lengths(causal.float()[None, None]) is None
    assert lengths(causal.expand(1, 2, 6, 6)) is None  # a mask for every head
    short = torch.zeros(1, 2, 1, 4)  # one new token against a cache
    assert lengths_of(causal[None, None, -1:], short, torch.zeros(1, 2, 6, 4)) is None


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_values_and_gradients_equal_masked_attention(groups: int) -> None:
    torch.manual_seed(0)
    rows = [[4, 1, 7], [12]]
    q = torch.randn(2, 6, 12, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, groups, 12, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scores = q @ k.repeat_interleave(6 // groups, 1).mT * 0.7  # written out, as the reference
    weights = scores.masked_fill(~blocks(*rows), float("-inf")).softmax(-1)
    expected = (weights @ v.repeat_interleave(6 // groups, 1)).transpose(1, 2)
    found = by_sequence(q, k, v, rows, 0.0, 0.7)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weigh = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad((x * weigh).sum(), (q, k, v)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    narrow = by_sequence(*(x.detach().bfloat16() for x in (q, k, v)), rows, 0.0, 0.7)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.double(), expected.detach(), rtol=0, atol=0.04)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_trains_as_on_padded_rows(kind: str, checkpointing: bool, tiny: Any) -> None:
    model, rows = loud(tiny(kind)).train(), ragged()
    expected = gradients(model, Collator(1)(rows))
    if checkpointing:
        checkpointing_on(model)
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with attention_by_sequence() as calls, label_head(model):
        for batch in (PackedCollator(1, 4096, None)(rows), pack(rows, [[0, 3, 4], [1, 2], [5, 6, 7]], 1)):
            before = calls.count
            assert_same(gradients(model, batch), expected)
            assert calls.count > before
        before = calls.count
        assert_same(gradients(model, Collator(1)(rows)), expected)
        assert calls.count == before  # padded rows go the stock way
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is stock


@pytest.mark.parametrize("packed", [False, True])
def test_sixteen_bits_are_computed_in_float32(packed: bool, tiny: Any) -> None:
    model, rows = tiny().train(), ragged()
    batch = PackedCollator(1, 4096, None)(rows) if packed else Collator(1)(rows)
    seen: list[torch.dtype] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(q: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(q.dtype)
        found = kernel(q, *args, **kwargs)
        assert found.dtype == q.dtype
        return found

    with pytest.MonkeyPatch.context() as patch, attention_by_sequence(), torch.autocast("cpu", torch.bfloat16):
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        loss = model(**batch).loss
    assert set(seen) == {torch.float32}
    assert loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-2)


def test_one_row_holds_a_whole_batch() -> None:
    rows = ragged(20)
    batch = PackedCollator(1, 4096, None)(rows)
    assert batch["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in rows))
    assert PackedCollator(1, 100, None)(rows)["input_ids"].shape[1] <= 100


def test_dropout_drops() -> None:
    q = torch.ones(1, 2, 64, 4)
    torch.manual_seed(0)
    found = by_sequence(q, q, q, [[40, 24]], 0.5, None)
    assert not torch.allclose(found, torch.ones_like(found))
    assert found.mean() == pytest.approx(1, abs=0.1)


def test_everything_is_taken_back_and_nests() -> None:
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(RuntimeError, match="out"), attention_by_sequence(), attention_by_sequence():
        raise RuntimeError("out")
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is stock
