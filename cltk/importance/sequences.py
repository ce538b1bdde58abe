"""Rows of token ids -> padded batches on one rank, and the digest of what was read. Streams: nothing is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cltk.data.rows import IGNORED, attended
from cltk.errors import InputError

Row = tuple[int, Tensor, Tensor]  # index in the stream, ids_T, targets_T


@dataclass
class Batch:
    """Right-padded sequences: `ids`, `mask`, `targets` are B x T.

    `targets[b, t]` is the token that position t predicts (t+1's), IGNORED if not counted.
    """

    indices: list[int]
    lengths: list[int]
    ids: Tensor
    mask: Tensor
    targets: Tensor

    @property
    def tokens(self) -> int:
        """Counted positions."""
        return int((self.targets != IGNORED).sum())

    def take(self, start: int, stop: int | None = None) -> Batch:
        """Sequences start..stop-1, padded no further than they need."""
        rows = slice(start, stop)
        part = (rows, slice(max(self.lengths[rows], default=0)))
        return Batch(self.indices[rows], self.lengths[rows], self.ids[part], self.mask[part], self.targets[part])

    def trial(self, counted: int) -> Batch:
        """The first sequence, up to `counted` positions after its first counted one."""
        stop = int((self.targets[0] != IGNORED).nonzero()[0]) + counted
        row = self.take(0, 1)
        return Batch(row.indices, [min(stop, row.lengths[0])], row.ids[:, :stop], row.mask[:, :stop], row.targets[:, :stop])

    def rows(self) -> Iterator[Batch]:
        """Every sequence alone."""
        return (self.take(i, i + 1) for i in range(len(self.indices)))

    def pieces(self, tokens: int) -> Iterator[Batch]:
        """The sequences by length, in pieces of at most `tokens` positions with padding (one sequence at least)."""
        order = sorted(range(len(self.indices)), key=lambda i: self.lengths[i])
        lengths = [self.lengths[i] for i in order]
        by_length = Batch([self.indices[i] for i in order], lengths, self.ids[order], self.mask[order], self.targets[order])
        start = 0
        for stop in range(1, len(order) + 1):
            if stop == len(order) or (stop + 1 - start) * lengths[stop] > tokens:
                yield by_length.take(start, stop)
                start = stop


class Rows:
    """Batches of this rank's rows (every `world`-th, from `rank`); `digest` covers the rows of all ranks.

    A row is a mapping with "input_ids" (1-D, any length) and, if not every token counts, "labels" (IGNORED where
    not). Position 0 is never predicted. Rows without a counted position are read and passed over.

    Raises:
        InputError: a row that has no token ids, ids outside the vocabulary, or labels of another length.
    """

    def __init__(self, data: Iterable[Any], samples: int | None, first: int, rank: int, world: int, vocabulary: int) -> None:
        self.data, self.samples, self.first, self.rank, self.world = data, samples, first, rank, world
        self.vocabulary = vocabulary
        self._sha = hashlib.sha256()

    @property
    def digest(self) -> str:
        """sha256 over the token ids and targets read so far, in order."""
        return self._sha.hexdigest()

    def __iter__(self) -> Iterator[Row]:
        for i, row in enumerate(islice(self.data, self.samples)):
            ids, targets = _row(row, i, self.vocabulary)
            self._sha.update(torch.stack([ids, targets]).numpy().tobytes() + b"|")
            if i % self.world == self.rank and bool((targets != IGNORED).any()):
                yield self.first + i, ids, targets

    def batches(self, size: int, device: torch.device) -> Iterator[Batch]:
        """`size` rows at a time; no more than one batch is held."""
        rows = iter(self)
        while chunk := list(islice(rows, size)):
            yield _collate(chunk, device)


def data_digest(data: Iterable[Any], samples: int | None = None) -> str:
    """The digest that an importance over these rows will carry."""
    rows = Rows(data, samples, 0, 0, 1, 2**62)
    for _ in rows:
        pass
    return rows.digest


def vocabulary(model: nn.Module) -> int:
    """Rows of the input embedding; without limit where the model does not say."""
    get: Any = getattr(model, "get_input_embeddings", None)
    embedding = get() if get else None
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else 2**62


def _row(row: Any, i: int, limit: int) -> tuple[Tensor, Tensor]:
    if not isinstance(row, Mapping) or "input_ids" not in row:
        raise InputError(f"row {i}: no input_ids; each row is a mapping with token ids under 'input_ids'")
    ids = _ids(row["input_ids"], f"row {i}: input_ids")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < limit:
        raise InputError(f"row {i}: token id {int(ids.max())}, vocabulary {limit}; was it made by another tokenizer?")
    labels = None if row.get("labels") is None else _ids(row["labels"], f"row {i}: labels")
    if labels is not None and len(labels) != len(ids):
        raise InputError(f"row {i}: {len(labels)} labels for {len(ids)} tokens; give one a token, {IGNORED} if not counted")
    if len(seen := attended(row, len(ids))) < len(ids):
        ids, labels = ids[seen], None if labels is None else labels[seen]
    targets = torch.full_like(ids, IGNORED)
    targets[:-1] = ids[1:]
    if labels is not None:
        targets[:-1][labels[1:] == IGNORED] = IGNORED
    return ids, targets


def _ids(value: Any, where: str) -> Tensor:
    ids = torch.as_tensor(value).cpu()
    if ids.dim() != 1 or (ids.is_floating_point() and len(ids)):
        raise InputError(f"{where}: {ids.dim()}-D {ids.dtype}; give a flat list of token ids")
    return ids.long()


def _collate(chunk: list[Row], device: torch.device) -> Batch:
    indices, ids, targets = zip(*chunk, strict=True)
    lengths = [len(row) for row in ids]

    def pad(rows: tuple[Tensor, ...], value: int) -> Tensor:
        return pad_sequence(list(rows), batch_first=True, padding_value=value).to(device)

    mask = pad(tuple(torch.ones_like(row) for row in ids), 0)
    return Batch(list(indices), lengths, pad(ids, 0), mask, pad(targets, IGNORED))
