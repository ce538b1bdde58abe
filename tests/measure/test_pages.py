"""Memory that counts as it is written, against the resident set that the system says."""

from __future__ import annotations

import mmap
from typing import Any

import psutil
import pytest
import torch
from transformers import DynamicCache

from cltk.measure.pages import forget, zeros
from cltk.measure.slots import Slots

MIB = 2**20


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_not_written_takes_no_memory_and_all_is_given_back(dtype: torch.dtype) -> None:
    """256 heads of 256 KiB, half of each written: a huge page would take the other half too."""
    before, wide = resident(), 256 * 1024 // torch.empty((), dtype=dtype).element_size()
    made = zeros(torch.empty(0, dtype=dtype), (256, wide))
    assert (made.dtype, made.shape, made.is_contiguous()) == (dtype, (256, wide), True)
    assert resident() - before < 4 * MIB
    made[:, : wide // 2] = 1
    assert 30 * MIB < resident() - before < 40 * MIB
    assert not made[:, wide // 2 :].any()
    part = made[3, : wide // 2]
    del made
    assert part.sum(dtype=torch.float32) == wide // 2  # a view keeps them
    held = resident()
    del part
    assert held - resident() > 30 * MIB


@pytest.mark.parametrize("how", ["no such pages", "no room"])
def test_elsewhere_they_are_torchs(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    if how == "no room":
        monkeypatch.setattr(mmap, "mmap", full)
    else:
        monkeypatch.delattr(mmap, "MAP_ANONYMOUS")
    made = zeros(torch.ones(2), (3, 4))
    assert torch.equal(made, torch.zeros(3, 4))


def test_torch_says_that_there_is_no_memory() -> None:
    with pytest.raises(RuntimeError, match="memory"):
        zeros(torch.empty(0), (2**30, 2**20))


def test_a_row_that_is_forgotten_gives_its_memory_back_and_the_others_stay() -> None:
    """4 rows of 4 heads, 4 MiB a head; behind a length that no page ends at, and whole."""
    before, made = resident(), zeros(torch.empty(0), (4, 4, 1000, 1049))
    made.fill_(1)
    full = resident() - before
    assert full > 60 * MIB
    forget(made, 1, 501)
    forget(made, 3)
    assert full - (resident() - before) > 22 * MIB
    assert (made[[0, 2]] == 1).all()
    assert (made[1, :, :501] == 1).all()
    made[3] = 2
    assert (made[3] == 2).all()
    assert (made[2] == 1).all()


def test_what_has_no_pages_is_left() -> None:
    made = torch.ones(2, 2, 4096, 4)
    forget(made, 1)
    assert (made == 1).all()


def slots_of(*lengths: int) -> Slots:
    """Slots in which row r has `lengths[r]` tokens of the number r + 1; of a whole page or more every 16 tokens."""
    made = Slots()
    for row, length in enumerate(lengths):
        cache = DynamicCache()
        for layer in range(4):
            cache.update(*torch.full((2, 1, 4, length, 64), row + 1.0), layer)
        made.add(cache, [length])
    return made


def holds(slots: Slots, *numbers: int) -> bool:
    """Whether the rows are those of these numbers, in their order, in every layer."""
    return all(
        bool((part[row, :, :length] == number).all())
        for pair in slots._layers
        for part in pair
        for row, (length, number) in enumerate(zip(slots.lengths, numbers, strict=True))
    )


def test_a_row_that_leaves_its_slot_gives_its_pages_back() -> None:
    """8 rows of 1,024 tokens are 64 MiB; the last one, of 16, moves into the first slot, whose rest is given back too."""
    slots = slots_of(*[1024] * 7, 16)
    full = resident()
    assert slots.drop(0) == 7
    assert full - resident() > 7 * MIB
    assert slots.drop(6) == 6
    assert full - resident() > 15 * MIB
    assert holds(slots, 8, 2, 3, 4, 5, 6)


def test_growing_and_sorting_write_what_rows_hold() -> None:
    """Two rows of 1,024 tokens, far apart, and 14 of 16: 18 MiB; all as wide as the longest would take 128."""
    before = resident()
    slots = slots_of(1024, *[16] * 14, 1024)
    assert resident() - before < 80 * MIB  # 40 measured, 135 where slots grow by their longest
    slots.step()
    order = slots.sort()
    assert order[:2] == [0, 15]
    assert resident() - before < 130 * MIB  # 90 measured, of it a sorted copy of one layer; 182 where pages are kept
    assert slots.lengths == [1025, 1025, *[17] * 14]
    slots.lengths = [length - 1 for length in slots.lengths]  # the step's own tokens were not written
    assert holds(slots, *(row + 1 for row in order))
