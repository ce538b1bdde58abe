"""How long a row a model can read: a table of positions ends, computed ones (rotary, ALiBi) do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from cltk.data.readers import Row
from cltk.data.tables import lengths
from cltk.errors import InputError


def table_size(model: Any) -> int | None:
    """Tokens for which the model's table of positions has a row (GPT-2, OPT, GPT-J); None where positions are computed.

    An embedding that begins behind an offset (OPT) or behind its padding (RoBERTa) has so many rows less.
    """
    if not hasattr(model, "get_input_embeddings"):  # no language model, or none yet: a cost is told without weights
        return None
    tokens = model.get_input_embeddings()
    sizes = []
    for name, module in model.named_modules():
        own = name.rsplit(".", 1)[-1]
        if isinstance(module, nn.Embedding) and module is not tokens and ("position" in own or own == "wpe"):
            before = getattr(module, "offset", None)
            before = before if isinstance(before, int) else 0 if module.padding_idx is None else module.padding_idx + 1
            sizes.append(module.num_embeddings - before)
    sizes += [len(buffer) for name, buffer in model.named_buffers() if name.endswith(".embed_positions") and buffer.ndim == 2]
    return min(sizes, default=None)


def check_length(model: Any, rows: Sequence[Row], where: str, remedy: str) -> None:
    """Raises InputError for a row that is longer than the model's table of positions; torch would fail in the middle."""
    size = table_size(model)
    if size is None:
        return
    longest = int(max(lengths(rows), default=0))
    if longest > size:
        raise InputError(f"{where}: a row has {longest} tokens, and the model has {size} positions; {remedy}")
