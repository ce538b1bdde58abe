"""Generated texts, kept: the batches are lm-eval's, one is asked for when one of its texts is not in the journal."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cltk.ranks import ranks, shared


def generate(lm: Any, ask: Callable[[list[Any]], list[str]], requests: Sequence[Any]) -> list[str]:
    """The text of every request: from `lm.journal`, or from `ask` (several ranks share what is asked)."""
    if lm.journal is None:
        return shared(ask, requests)
    keys = _keys(lm.digest, requests)
    for batch in _batches(lm, requests):
        if any(lm.journal.get(keys[i]) is None for i in batch):
            texts = shared(ask, [requests[i] for i in batch])
            lm.journal.put_all({keys[i]: {"text": text} for i, text in zip(batch, texts, strict=True)})
    return [lm.journal.get(key)["text"] for key in keys]


def _keys(digest: str, requests: Sequence[Any]) -> list[str]:
    """Of the model, the prompt, the settings, and how many times the same was asked before: samples are drawn anew."""
    seen: Counter[str] = Counter()
    keys = []
    for request in requests:
        context, settings = request.args
        asked = json.dumps([digest, "generate", context, settings], sort_keys=True, default=str)
        keys.append(hashlib.sha256(f"{asked} {seen[asked]}".encode()).hexdigest())
        seen[asked] += 1
    return keys


def _batches(lm: Any, requests: Sequence[Any]) -> Iterator[list[int]]:
    """As HFLM batches them: by settings, longest prompt first. Where texts are drawn at random, all of them in one call."""
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
    if any(_samples(request.args[1]) for request in requests):
        yield list(range(len(requests)))
        return
    size = lm.batch_size * ranks()[1]
    for members in groups.values():
        order = sorted(members, key=lambda i: (-len(lm.tok_encode(requests[i].args[0])), requests[i].args[0]))
        yield from (order[start : start + size] for start in range(0, len(order), size))


def _samples(settings: dict[str, Any]) -> bool:
    return bool(settings.get("do_sample")) or float(settings.get("temperature") or 0) > 0
