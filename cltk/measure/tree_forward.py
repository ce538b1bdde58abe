"""Run a causal language model on prefix trees: masks, positions, a shared key-value prefix, logits only where they are read.

The model builds its own masks, layer type by layer type (full, sliding window, chunked); for the length of a forward,
transformers' mask interface hands that construction the depth of a node instead of its index, and the tree's ancestors. So a
window counts tokens along the path. The scored hidden states are picked in front of the output layer, so that scaling and
soft-capping after it stay the model's own.
Shapes: B trees, T nodes, P prefix tokens, K = P + T keys, M scored nodes, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

from cltk.measure.prefix_tree import Ints, Packed


class UnsupportedModelError(Exception):
    """The model cannot run on trees; the message is the reason."""


def ancestors(ends_BT: Tensor, start: int) -> Tensor:
    """[B, T, K] boolean: key k is in the prefix, is query t, or is above it in the tree (k <= t < end_k)."""
    index = torch.arange(ends_BT.shape[1], device=ends_BT.device)
    tree_BTT = (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < ends_BT[:, None, :])
    return nn.functional.pad(tree_BTT, (start, 0), value=True)


@contextmanager
def tree_masks(positions_BT: Tensor, ends_BT: Tensor, start: int) -> Iterator[list[int]]:
    """While open, the masks that a model builds are those of the trees. Gives a list with one entry a mask built."""
    allowed_BTK = ancestors(ends_BT, start)
    prefix = torch.arange(start, device=positions_BT.device).expand(len(positions_BT), start)
    keys_BK = torch.cat([prefix, positions_BT], dim=1)
    rows = torch.arange(len(positions_BT), device=positions_BT.device)[:, None, None, None]
    built: list[int] = []

    def boolean(mask_function: Callable = causal_mask_function, **_: Any) -> Tensor:
        built.append(1)
        near = mask_function(rows, torch.zeros_like(rows), positions_BT[:, None, :, None], keys_BK[:, None, None, :])
        return allowed_BTK[:, None] & near

    def additive(dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor:
        mask = boolean(**kwargs)
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)

    local = ALL_MASK_ATTENTION_FUNCTIONS._local_mapping
    saved = dict(local)
    local.update(sdpa=boolean, eager=additive)
    try:
        yield built
    finally:
        local.clear()
        local.update(saved)


class _Shared(DynamicLayer):
    """One layer's keys and values of the prefix, in front of those of every row; nothing is kept of the rows."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = len(key_states)
        keys, values = (past.expand(rows, -1, -1, -1) for past in (self.keys, self.values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


class TreeForward:
    """A model that scores packed trees. `model`: a transformers causal language model, in eval mode, under inference_mode.

    Attributes:
        rows: Rows of logits that exist at a time; 2^24 logits on the CPU, 2^27 elsewhere, measured as the fastest.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.rows = max(64, (2**24 if model.device.type == "cpu" else 2**27) // model.config.get_text_config().vocab_size)
        self._prefix: tuple[Ints, DynamicCache] | None = None
        self._plain: bool | None = None  # whether the logits are the output layer's result as it is

    def forget(self) -> None:
        """Drop the cached prefix: the weights may have changed since."""
        self._prefix = None

    def log_probs(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """The log-probability of every target, and whether it is the most likely token.

        log softmax in float32 (float64 for a float64 model), of the scored rows only, `rows` of them at a time.

        Returns:
            [S] float64 and [S] bool, on the CPU.

        Raises:
            UnsupportedModelError: The model does not build its masks, its cache or its logits as expected.
        """
        slots, targets = torch.from_numpy(packed.slots), torch.from_numpy(packed.targets)
        logprob, greedy, first = torch.zeros(len(slots), dtype=torch.float64), torch.zeros(len(slots), dtype=torch.bool), 0
        for logits_MV in self._blocks(packed):
            here = (slots >= first) & (slots < first + len(logits_MV))
            row, column = (slots[here] - first).to(logits_MV.device), targets[here].to(logits_MV.device)
            logp_MV = logits_MV.log_softmax(-1, dtype=torch.promote_types(logits_MV.dtype, torch.float32))
            picked = logp_MV[row, column]
            best = picked == logp_MV.amax(-1)[row]  # amax is fast; argmax, for ties, only where the target is among the best
            best[best.clone()] = logp_MV[row[best]].argmax(-1) == column[best]
            logprob[here], greedy[here] = picked.double().cpu(), best.cpu()
            first += len(logits_MV)
        return logprob, greedy

    def _blocks(self, packed: Packed) -> Iterator[Tensor]:
        """The logits of `_logits` in blocks that stay in the cache of a CPU."""
        for logits_MV in self._logits(packed):
            rows = 2**20 // logits_MV.shape[1] if logits_MV.device.type == "cpu" else self.rows
            yield from logits_MV.split(max(1, rows))

    def _logits(self, packed: Packed) -> Iterator[Tensor]:
        """The logits [<= rows, V] of the scored nodes, in the order of `packed.index`."""
        index = torch.from_numpy(packed.index).to(self.model.device)
        chunks: list[Tensor] = []

        def scored(hidden_BTD: Tensor) -> Tensor:
            chunks.extend(hidden_BTD.flatten(0, 1)[index].split(self.rows))
            return chunks[0][:1] if self._plain else chunks[0]

        logits, head = self.tree_logits(packed, scored), self.model.get_output_embeddings()
        if self._plain is None:
            self._plain = torch.equal(head(chunks[0][None])[0].to(logits.dtype), logits)
        if self._plain:
            yield from (head(chunk[None])[0] for chunk in chunks)
            return
        yield logits
        token = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        for chunk in chunks[1:]:  # one token through the model, to reach what the model does after its output layer
            yield self.call(partial(_instead, chunk), input_ids=token, use_cache=False)

    def tree_logits(self, packed: Packed, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """One forward of the batch; plain rows without prefix need neither masks nor positions, padding is to their right."""
        tokens, positions, ends = (
            torch.from_numpy(array).to(self.model.device) for array in (packed.tokens, packed.positions, packed.ends)
        )
        start = len(packed.prefix)
        if not start and not packed.branching:
            return self.call(pick, input_ids=tokens, use_cache=False)
        cache = self._cache(packed.prefix) if start else None
        seen = torch.ones(len(tokens), start + tokens.shape[1], dtype=torch.long, device=tokens.device)
        with tree_masks(positions, ends, start) as built:
            logits = self.call(
                pick,
                input_ids=tokens,
                attention_mask=seen,  # all ones: positions that jump back are not taken for packed sequences
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        if not built:
            raise UnsupportedModelError("it does not build its attention masks through transformers.masking_utils")
        return logits

    def _cache(self, prefix: Ints) -> DynamicCache:
        """Keys and values of the prefix, computed once while consecutive batches have the same."""
        if self._prefix is None or not np.array_equal(self._prefix[0], prefix):
            self._prefix = None
            cache = DynamicCache()  # without the config: every layer keeps all keys, the masks apply the windows
            tokens = torch.from_numpy(prefix)[None].to(self.model.device)
            self.call(lambda hidden: hidden[0, -1:], input_ids=tokens, past_key_values=cache, use_cache=True)
            layers: list[Any] = cache.layers
            if not layers or any(
                getattr(layer, "keys", None) is None or layer.keys.shape[-2] != len(prefix) for layer in layers
            ):
                raise UnsupportedModelError("it does not fill a transformers DynamicCache")
            cache.layers = [_Shared(layer.keys, layer.values) for layer in layers]
            self._prefix = (prefix, cache)
        return self._prefix[1]

    def call(self, pick: Callable[[Tensor], Tensor], **inputs: Any) -> Tensor:
        """The model's logits [M, V] for the hidden states [M, D] that `pick` takes from those in front of the output layer."""
        head, counts = self.model.get_output_embeddings(), []

        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            rows = pick(args[0])
            counts.append(len(rows))
            return (rows[None], *args[1:])

        if head is None:
            raise UnsupportedModelError("it has no output embeddings")
        handle = head.register_forward_pre_hook(hook)
        try:
            logits_1MV = self.model(**inputs).logits
        finally:
            handle.remove()
        if len(counts) != 1 or logits_1MV.shape[:2] != (1, counts[0]):
            raise UnsupportedModelError("its logits are not its output embeddings applied once to the last hidden states")
        return logits_1MV[0]


def _instead(chunk: Tensor, _: Tensor) -> Tensor:
    return chunk
