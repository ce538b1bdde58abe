"""Prompts that begin alike: which of them share a prefix that is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from cltk.measure.prefix_tree import HEADER, common

FEW = 4  # prompts that are worth a prefix of their own


def groups(prompts: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """(tokens of a shared beginning, the prompts that have it); the first entry has those that share too little: 0 tokens.

    Neighbours in lexicographic order share a beginning if there are at least `FEW` of them, and it is at least `HEADER` tokens
    and half of the longest. Longest prompts come first.
    """
    order = sorted(range(len(prompts)), key=lambda i: list(prompts[i]))
    arrays = [np.asarray(prompts[i], dtype=np.int64) for i in order]
    shared = [0, *(min(common(a, b), min(len(a), len(b)) - 1) for a, b in pairwise(arrays))]
    found: list[tuple[int, list[int]]] = []
    alone: list[int] = []
    stack = [(0, len(order))] if order else []
    while stack:
        low, high = stack.pop()
        least = min(shared[low + 1 : high], default=0)
        longest = max(map(len, arrays[low:high]))
        if high - low < FEW or (least < HEADER and max(shared[low + 1 : high]) < HEADER):
            alone += order[low:high]
        elif least >= HEADER and 2 * least >= longest:
            found.append((least, order[low:high]))
        else:
            cuts = [low, *(i for i in range(low + 1, high) if shared[i] == least), high]
            stack.extend(reversed(list(pairwise(cuts))))
    return [(n, sorted(some, key=lambda i: (-len(prompts[i]), i))) for n, some in [(0, alone), *found] if some]
