"""Which requests are scored together: trees of shared contexts, or rows as lm-eval batches them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cltk.measure.prefix_tree import Packed, Requests, Span, batches, spans

Answer = tuple[float, bool]  # (log-probability in nats, whether greedy decoding gives the continuation)


@dataclass(frozen=True)
class Batch:
    """Requests that are scored together, by number: as `trees`, or by lm-eval's own code where there are none."""

    members: list[int]
    size: int  # tokens
    trees: list[Span] | None = None


def tree_batches(requests: Requests, max_tokens: int) -> list[Batch]:
    """Batches of trees; in front those that prove the others: the largest, without and with a prefix."""
    planned = list(batches(spans(requests), max_tokens))
    first: list[int] = []
    for behind in (False, True):
        some = [i for i, batch in enumerate(planned) if (batch[0].start > 0) == behind and _is_tree(requests, batch)]
        first += sorted(some, key=lambda i: (-planned[i][0].start - max(span.size for span in planned[i]), i))[:1]
    order = first + [i for i in range(len(planned)) if i not in first]
    return [Batch(_members(planned[i]), sum(span.size for span in planned[i]), planned[i]) for i in order]


def _is_tree(requests: Requests, batch: list[Span]) -> bool:
    """Whether a row of the batch is more than one path, or stands behind a prefix."""
    return any(s.start > 0 or s.size > requests.length[s.low : s.high].max() for s in batch)


def stock_batches(requests: Requests, inputs: int) -> Iterator[Batch]:
    """As HFLM batches them: requests of one input together, longest first, `inputs` of them a batch."""
    same: dict[bytes, list[int]] = {}
    for k, tokens in enumerate(requests.tokens):
        same.setdefault(tokens[:-1].tobytes(), []).append(k)
    order = sorted(same.values(), key=lambda members: (-int(requests.length[members[0]]), members[0]))
    for start in range(0, len(order), inputs):
        some = order[start : start + inputs]
        yield Batch([k for members in some for k in members], sum(int(requests.length[members[0]]) for members in some))


def _members(batch: list[Span]) -> list[int]:
    """The requests of a batch, by number."""
    return [k for span in batch for k in range(span.low, span.high)]


def answers_of(packed: Packed, logprob_S: torch.Tensor, greedy_S: torch.Tensor) -> dict[int, Answer]:
    """Sum the log-probabilities of each request's tokens; greedy when all of them are."""
    counts = packed.counts.tolist()
    parts = zip(packed.requests.tolist(), logprob_S.split(counts), greedy_S.split(counts), strict=True)
    return {k: (float(logprob.sum()), bool(greedy.all())) for k, logprob, greedy in parts}
