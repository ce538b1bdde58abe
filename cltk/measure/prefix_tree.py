"""Packing of scoring requests into prefix trees, so that a token that several requests share is computed once.

A request asks for log p(continuation | context). Its input is (context + continuation)[:-1]; the last `scored` input positions
predict the continuation. Sorted by their inputs, requests that share a beginning are neighbours, and a run of neighbours is a
trie. Written in depth-first order, the trie is a sequence in which node j is an ancestor of node i, or i itself, iff

    j <= i < end_j          end_j: one past the last node below j

so one integer a node is the whole attention mask. Everything here is numpy on the host; `tree_forward.py` runs the model.
Shapes: B rows (trees) of a batch, T nodes of a row (padded), N requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

JOIN = 256  # a tree of at most so many nodes costs no more attention than it saves
HEADER = 64  # a shared prefix of at least so many tokens is worth a forward of its own
KEYS = 4  # keys that a forward may copy, in multiples of its tokens


class Requests:
    """The distinct requests in the lexicographic order of their inputs.

    Args:
        pairs: (context + continuation tokens, number of continuation tokens), 1 <= scored < number of tokens; may repeat.

    Attributes:
        place: [given] where each given request is among the distinct ones.
        tokens: N arrays, context + continuation (input = all but the last token).
        scored: [N] the number of continuation tokens.
        length: [N] the number of input tokens.
        shared: [N] input tokens shared with the request before (0 for the first).
    """

    def __init__(self, pairs: Sequence[tuple[Sequence[int], int]]) -> None:
        keys = [(_bytes(tokens[:-1]), int(tokens[-1]), scored) for tokens, scored in pairs]
        number = {key: n for n, key in enumerate(sorted(set(keys)))}
        self.place = np.array([number[key] for key in keys], dtype=np.int64)
        inputs = [np.frombuffer(key[0], dtype=">u4").astype(np.int64) for key in number]
        self.tokens = [np.append(ids, key[1]) for ids, key in zip(inputs, number, strict=True)]
        self.scored = np.array([key[2] for key in number], dtype=np.int64)
        self.length = np.array([len(ids) for ids in inputs], dtype=np.int64)
        self.shared = np.array([0, *(common(a, b) for a, b in pairwise(inputs))], dtype=np.int64)[: len(inputs)]
        self._nodes = np.concatenate([[0], np.cumsum(self.length - self.shared)])
        self._inputs = np.concatenate([[0], np.cumsum(self.length)])

    def __len__(self) -> int:
        return len(self.tokens)

    def nodes(self, low: int, high: int, start: int = 0) -> int:
        """Distinct prefixes longer than `start` of the inputs low..high-1 (which share their first `start` tokens)."""
        return int(self._nodes[high] - self._nodes[low] + self.shared[low]) - start

    def inputs(self, low: int, high: int, start: int = 0) -> int:
        """Input tokens beyond the first `start`, with repetition: what a request-by-request scorer computes."""
        return int(self._inputs[high] - self._inputs[low]) - start * (high - low)


def _bytes(tokens: Sequence[int]) -> bytes:
    """Big-endian bytes, which sort as the token sequences do."""
    return np.asarray(tokens, dtype=">u4").tobytes()


def common(a: Ints, b: Ints) -> int:
    """The length of the longest common prefix."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


@dataclass(frozen=True)
class Span:
    """Requests low..high-1 as one tree of `size` nodes, below the first `start` tokens of request `owner`."""

    low: int
    high: int
    size: int
    start: int = 0
    owner: int = 0


def spans(requests: Requests, join: int = JOIN, header: int = HEADER) -> list[Span]:
    """Cut the sorted requests into trees, from the root of their trie downwards.

    A part of the trie becomes one tree when that is not much more attention than its longest request needs
    (size <= max(join, 2 longest)) and something is shared (an eighth of the inputs). Otherwise it is cut where the least is
    shared; before that, what all of it shares becomes a prefix with a key-value cache of its own, if it has at least `header`
    tokens and the parts together save more than one computation of it. Deterministic in the set of requests.
    """
    found: list[Span] = []
    stack = [(0, len(requests), 0, 0)] if len(requests) else []
    while stack:
        low, high, start, owner = stack.pop()
        size = requests.nodes(low, high, start)
        if high - low == 1 or _is_tree(requests, low, high, start, join):
            found.append(Span(low, high, size, start, owner))
            continue
        inner = requests.shared[low + 1 : high]
        cuts = [low, *(low + 1 + np.flatnonzero(inner == inner.min())).tolist(), high]
        unscored = (requests.length[low:high] - requests.scored[low:high]).min()  # scored nodes stay in the trees
        depth = int(min(inner.min(), unscored))
        if depth - start >= header and (len(cuts) - 2) * (depth - start) >= depth:
            start, owner = depth, low
        stack.extend((a, b, start, owner) for a, b in reversed(list(pairwise(cuts))))
    return found


def _is_tree(requests: Requests, low: int, high: int, start: int, join: int) -> bool:
    size, inputs = requests.nodes(low, high, start), requests.inputs(low, high, start)
    longest = int(requests.length[low:high].max()) - start
    return size <= max(join, 2 * longest) and 8 * (inputs - size) >= inputs


def batches(trees: Sequence[Span], max_tokens: int) -> Iterator[list[Span]]:
    """Group trees that have the same prefix, of similar size, longest first.

    Args:
        trees: The trees of a set of requests.
        max_tokens: Padded tokens a forward; a longer tree goes alone. Keys, prefix included, may be `KEYS` times as many.
    """
    batch: list[Span] = []
    for span in sorted(trees, key=lambda s: (s.owner, s.start, -s.size, s.low)):
        if batch:
            head, rows = batch[0], len(batch) + 1
            same = (head.owner, head.start) == (span.owner, span.start)
            if not same or rows * head.size > max_tokens or rows * (head.start + head.size) > KEYS * max_tokens:
                yield batch
                batch = []
        batch.append(span)
    if batch:
        yield batch


@dataclass(frozen=True)
class Packed:
    """A batch of trees as arrays, right-padded.

    Attributes:
        prefix: [P] the tokens before every tree.
        tokens: [B, T] node tokens; 0 in the padding.
        positions: [B, T] node depths, counted from the start of the input (P for children of the prefix).
        ends: [B, T] one past the last node below; a padding node's own index + 1, so that it sees itself and no one sees it.
        index: [M] scored nodes in the flattened [B * T], distinct and sorted.
        slots: [S] for every (request, continuation token) its place in `index`.
        targets: [S] the continuation tokens.
        requests: [R] the request (sorted number) of every group of slots.
        counts: [R] the continuation lengths; sum S.
        branching: a row holds more than one path.
    """

    prefix: Ints
    tokens: Ints
    positions: Ints
    ends: Ints
    index: Ints
    slots: Ints
    targets: Ints
    requests: Ints
    counts: Ints
    branching: bool

    def gaps(self) -> Ints:
        """[R] how many nodes of other requests stand before the last node of each: where a wrong mask or position shows."""
        node = self.index[self.slots[np.cumsum(self.counts) - 1]]
        return node % self.tokens.shape[1] + len(self.prefix) - self.positions.ravel()[node]


def pack(requests: Requests, batch: Sequence[Span]) -> Packed:
    """The arrays of a batch of trees that share their prefix."""
    width, start = max(span.size for span in batch), batch[0].start
    tokens = np.zeros((len(batch), width), dtype=np.int64)
    positions = np.full_like(tokens, start)
    ends = np.tile(np.arange(1, width + 1), (len(batch), 1))
    nodes = [_fill(requests, span, tokens[row], positions[row], ends[row], row * width) for row, span in enumerate(batch)]
    index, slots = np.unique(np.concatenate([part for row in nodes for part in row]), return_inverse=True)
    members = np.concatenate([np.arange(span.low, span.high) for span in batch])
    return Packed(
        prefix=requests.tokens[batch[0].owner][:start],
        tokens=tokens,
        positions=positions,
        ends=ends,
        index=index,
        slots=slots,
        targets=np.concatenate([requests.tokens[k][-requests.scored[k] :] for k in members]),
        requests=members,
        counts=requests.scored[members],
        branching=any(span.size > requests.length[span.low : span.high].max() - start for span in batch),
    )


def _fill(requests: Requests, span: Span, tokens: Ints, positions: Ints, ends: Ints, offset: int) -> list[Ints]:
    """Write one tree into its row; the scored nodes of each of its requests, as flattened indices."""
    path = np.zeros(int(requests.length[span.low : span.high].max()), dtype=np.int64)
    scored, cursor, before = [], 0, span.start
    ends[: span.size] = span.size
    for k in range(span.low, span.high):
        length = int(requests.length[k])
        keep = span.start if k == span.low else max(int(requests.shared[k]), span.start)
        ends[path[keep:before]] = cursor
        new = slice(cursor, cursor + length - keep)
        tokens[new] = requests.tokens[k][keep:length]
        positions[new] = np.arange(keep, length)
        path[keep:length] = np.arange(new.start, new.stop)
        scored.append(offset + path[length - requests.scored[k] : length])
        cursor, before = new.stop, length
    return scored
