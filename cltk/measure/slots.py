"""Keys and values of rows that decode together: one shared prefix, and a slot a row that a waiting row may take over.

The prefix and a row's slot are one sequence, in which a key's place is its position. A model builds its masks itself; for the
length of a forward transformers' mask interface hands that construction the position of a query, so the keys of a slot that
were left by another row, or are padding, lie behind every query and are never seen. transformers' attention interface is given
a function that reads the prefix once for all rows.
Shapes: B rows, T tokens a row in this forward, P prefix tokens, L longest slot, H key-value heads, G queries a head, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cltk.forward import products
from cltk.measure.pages import forget, zeros
from cltk.measure.tree_forward import UnsupportedModelError

Pair = tuple[Tensor, Tensor]  # keys and values
ROOM = 64  # tokens by which slots grow at least
BLOCK = 8  # rows that attend in one product on a processor, over as many keys as the longest of them has; a GPU takes all
SORTED = 1.25  # slots are sorted where blocks read so many times what sorted ones would
UNKNOWN = ("s_aux", "sinks", "position_bias", "head_mask", "attention_bias", "cache")  # what only its own attention does


class Slots:
    """The keys and values of B rows behind `prefix`, layer by layer.

    Args:
        prefix: for every layer keys and values [1, H, P, D]; none for no prefix.

    Attributes:
        lengths: tokens in each slot.
        width: keys and values that a slot has room for.
        token_bytes: bytes that a token takes in all layers; 0 before the first row.
    """

    def __init__(self, prefix: Sequence[Pair] = ()) -> None:
        self.prefix = list(prefix)
        self.start = prefix[0][0].shape[2] if prefix else 0
        self.lengths: list[int] = []
        self.width = self.token_bytes = 0
        self._layers: list[list[Tensor]] = []

    def __len__(self) -> int:
        return len(self.lengths)

    def bytes_for(self, rows: int, length: int) -> int:
        """What so many slots of this length take."""
        return rows * length * self.token_bytes

    def add(self, cache: Cache, lengths: Sequence[int]) -> None:
        """Rows behind the last one, from the cache of their prompts' forward (padded to the right)."""
        found = filled(cache)
        first, rows = len(self.lengths), len(self.lengths) + len(lengths)
        length = max(lengths)
        if not self._layers:
            self._layers = [[part[:0, :, :0] for part in pair] for pair in found]
            self.token_bytes = sum(part[0, :, 0].numel() * part.element_size() for pair in found for part in pair)
        self._grow(rows, length + 1)
        for pair, fresh in zip(self._layers, found, strict=True):
            for part, new in zip(pair, fresh, strict=True):
                part[first:rows, :, :length] = new[:, :, :length]
        self.lengths += list(lengths)

    def drop(self, row: int) -> int:
        """Take a row out: the last one gets its slot. The number that the last one had."""
        last = len(self.lengths) - 1
        length = self.lengths[last]
        for pair in self._layers:
            for part in pair:
                if row != last:
                    part[row, :, :length] = part[last, :, :length]
                    forget(part, row, length)
                forget(part, last)
        self.lengths[row] = length
        self.lengths.pop()
        return last

    def blocks(self) -> list[tuple[int, int, int]]:
        """Rows that attend together: (first, behind the last, tokens of the longest)."""
        return self._blocks(self.lengths)

    def sort(self) -> list[int]:
        """Rows by falling length, where that saves reading; the numbers that they had, in their new order."""
        order = sorted(range(len(self)), key=lambda row: -self.lengths[row])
        lengths = [self.lengths[row] for row in order]
        if self._read(self.lengths) < SORTED * self._read(lengths):
            return list(range(len(self)))
        places = torch.tensor(order, device=self._layers[0][0].device)
        for pair in self._layers:
            for part in pair:
                part[: len(order), :, : lengths[0]] = part[places, :, : lengths[0]]
                for row, length in enumerate(lengths):
                    forget(part, row, length)
        self.lengths = lengths
        return order

    def _blocks(self, lengths: Sequence[int]) -> list[tuple[int, int, int]]:
        size = BLOCK if self._layers[0][0].device.type == "cpu" else len(lengths)
        edges = [*range(0, len(lengths), size), len(lengths)]
        return [(first, end, max(lengths[first:end])) for first, end in pairwise(edges)]

    def _read(self, lengths: Sequence[int]) -> int:
        """Keys that one step's blocks read."""
        return sum((end - first) * longest for first, end, longest in self._blocks(lengths))

    def step(self) -> Cache:
        """The cache of a forward of one token a row, which it writes behind each row."""
        longest = max(self.lengths) + 1
        self._grow(len(self.lengths), longest)
        places = torch.tensor(self.lengths, device=self._layers[0][0].device)
        cache: Any = DynamicCache()
        cache.layers = [_Slot(keys, values, places, longest) for keys, values in self._layers]
        self.lengths = [length + 1 for length in self.lengths]
        return cache

    def _grow(self, rows: int, width: int) -> None:
        have = len(self._layers[0][0])
        if rows <= have and width <= self.width:
            return
        rows, paged = max(rows, have), self._layers[0][0].device.type == "cpu"  # see `pages`: what is written takes memory
        spare = width if paged else width // 8
        used: list[Any] = list(enumerate(self.lengths)) if paged else [(slice(len(self.lengths)), max(self.lengths, default=0))]
        self.width = self.width if width <= self.width else width + max(ROOM, spare)
        for pair in self._layers:
            for i, part in enumerate(pair):
                pair[i] = zeros(part, (rows, part.shape[1], self.width, part.shape[3]))
                for row, length in used:
                    pair[i][row, :, :length] = part[row, :, :length]


class _Slot(DynamicLayer):
    """One layer's slots, to which every row adds one token at its own place."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, places_B: Tensor, longest: int) -> None:
        super().__init__()
        self.keys, self.values, self.places, self.longest = keys, values, places_B, longest
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Pair:
        rows = torch.arange(len(key_states), device=self.keys.device)
        self.keys[rows, :, self.places] = key_states[:, :, 0]
        self.values[rows, :, self.places] = value_states[:, :, 0]
        return self.keys[: len(rows), :, : self.longest], self.values[: len(rows), :, : self.longest]

    def get_seq_length(self) -> int:
        return self.longest - 1


def filled(cache: Cache) -> list[Pair]:
    """Keys and values of every layer of a plain DynamicCache that a forward has filled."""
    layers: list[Any] = cache.layers
    if not layers or any(type(layer) is not DynamicLayer or layer.keys is None or layer.keys.ndim != 4 for layer in layers):
        raise UnsupportedModelError("it does not fill a transformers DynamicCache")
    return [(layer.keys, layer.values) for layer in layers]


@contextmanager
def attending(slots: Slots, positions_BT: Tensor, keys: int, blocks: Sequence[tuple[int, int, int]]) -> Iterator[None]:
    """While open, a model's rows see the prefix and the first `keys` tokens of their own slots, up to their own position.

    `blocks` (first row, behind the last, keys): rows that attend together, and how many of those keys they need.

    Raises UnsupportedModelError at the end, if the model builds masks or attends in ways of its own.
    """
    place_K = torch.arange(slots.start + keys, device=positions_BT.device)
    rows = torch.arange(len(positions_BT), device=positions_BT.device)[:, None, None, None]
    masks, calls = [], []

    def mask(mask_function: Callable = causal_mask_function, **_: Any) -> Tensor:
        masks.append(1)
        return mask_function(rows, torch.zeros_like(rows), positions_BT[:, None, :, None], place_K)

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **given: Any) -> Any:
        calls.append(1)
        if name := next((name for name in UNKNOWN if given.get(name) is not None), None):
            raise UnsupportedModelError(f"its attention has {name}")
        prefix = slots.prefix[int(module.layer_idx)] if slots.prefix else None
        seen = attention_mask.expand(len(query), -1, -1, -1)
        how = given.get("scaling"), prefix, given.get("softcap")
        with products.by_torch() if query.shape[2] == 1 else nullcontext():  # the slots are longer with every token
            found = [
                attention(query[a:b], key[a:b, :, :n], value[a:b, :, :n], seen[a:b, ..., : slots.start + n], *how)
                for a, b, n in blocks
            ]
        return torch.cat(found), None

    changed: tuple[Any, ...] = (ALL_MASK_ATTENTION_FUNCTIONS._local_mapping, ALL_ATTENTION_FUNCTIONS._local_mapping)
    saved = [dict(one) for one in changed]
    for one, function in zip(changed, (mask, attend), strict=True):
        one.update(sdpa=function, eager=function)
    try:
        yield
    finally:
        for one, before in zip(changed, saved, strict=True):
            one.clear()
            one.update(before)
    if not masks or (slots.prefix and len(calls) != len(slots.prefix)) or not calls:
        raise UnsupportedModelError("it does not attend through transformers' interfaces for masks and attention")


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, prefix: Pair | None, softcap: float | None
) -> Tensor:
    """softmax(q k^T scaling, where the mask allows) v of the prefix's keys [1, H, P, D] and each row's own [B, H, L, D].

    Args:
        query: [B, H G, T, D].
        mask: [B, 1, T, P + L], true where a query sees a key.
        softcap: c of c tanh(score / c).

    Returns:
        [B, T, H G, D].
    """
    (rows, heads, tokens, width), shared = query.shape, key.shape[1]
    groups, scaling = heads // shared, scaling if scaling is not None else width**-0.5
    query = query.reshape(rows, shared, groups * tokens, width)
    if mask.shape[1] != 1:
        raise UnsupportedModelError("its heads have masks of their own")
    mask = mask.expand(rows, 1, tokens, mask.shape[-1]).repeat(1, 1, groups, 1)
    if prefix is None and softcap is None:
        out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    else:
        parts = [query @ key.transpose(-1, -2)]
        if prefix is not None:  # one product for all rows
            flat = query.transpose(0, 1).reshape(1, shared, -1, width)
            parts.insert(0, (flat @ prefix[0].transpose(-1, -2)).view(shared, rows, groups * tokens, -1).transpose(0, 1))
        scores = torch.cat(parts, dim=-1) * scaling
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        own = weights[..., -key.shape[2] :]
        out = own @ value
        if prefix is not None:
            far = weights[..., : -key.shape[2]].transpose(0, 1).reshape(1, shared, rows * groups * tokens, -1)
            out = out + (far @ prefix[1]).view(shared, rows, groups * tokens, -1).transpose(0, 1)
    return out.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous()
