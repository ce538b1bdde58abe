"""Generated texts: greedy ones from `decoding.py`, all others from lm-eval's own batches; kept, and shared by the ranks."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from cltk.forward import products
from cltk.measure import named
from cltk.measure.decoding import Decoder
from cltk.measure.greedy import Asked, Reader, Row, check_plain, text_of, thinks_on
from cltk.measure.named import Tell
from cltk.measure.prompting import SEEDS
from cltk.measure.tree_forward import UnsupportedModelError
from cltk.ranks import gathered, ranks, shared

log = logging.getLogger(__name__)
OFTEN = 1.0  # seconds between two writes of finished texts
Stock = Callable[[list[Any]], list[str]]  # lm-eval's own generation
Answer = dict[str, Any]  # "text", and "unended" where the model still thought


def generate(lm: Any, stock: Callable[..., list[str]], requests: Sequence[Any], hidden: bool = False) -> list[str]:
    """The text of every request: from `lm.journal`, by decoding together what is greedy, or from lm-eval's `stock`.

    What the two ways give is kept apart. A model whose texts cannot be decoded here is left to `stock`, with one warning.
    """

    def ask(part: list[Any]) -> list[str]:
        return stock(part, disable_tqdm=True) if part else []

    lm.model.eval()
    with named.bar(len(requests), hidden or not lm.named or lm.rank != 0, "generate_until") as drawn:
        tell = lm.progress or drawn
        texts = _greedy(lm, requests, tell) if lm.decodes and requests else {}
        if rest := [i for i in range(len(requests)) if i not in texts]:
            found = _stock(lm, ask, [requests[i] for i in rest], lambda done: tell(len(texts) + done, len(requests), 0))
            texts |= dict(zip(rest, found, strict=True))
    return [texts[i] for i in range(len(requests))]


def _greedy(lm: Any, requests: Sequence[Any], tell: Tell) -> dict[int, str]:
    """The texts of the requests that can be decoded together, by number; why others cannot is said."""
    reader = Reader(lm)
    asked = {i: reader(request.args[1]) for i, request in enumerate(requests)}
    for why, count in Counter(one for one in asked.values() if isinstance(one, str)).items():
        log.warning("%d generated texts come from lm-eval's own batches: %s", count, why)
    greedy = {i: one for i, one in asked.items() if isinstance(one, Asked)}
    try:
        check_plain(lm.model)
        return _Together(lm, requests, greedy, tell).texts()
    except UnsupportedModelError as error:
        lm.decodes = False
        what = f"{type(lm.model).__name__}: texts are not decoded together, lm-eval's own generation is used"
        warnings.warn(f"{what}: {error}", stacklevel=4)
        return {}


class _Together:
    """Greedy requests of one call. A request that comes twice is answered once."""

    def __init__(self, lm: Any, requests: Sequence[Any], greedy: Mapping[int, Asked], tell: Tell) -> None:
        self.lm, self.requests, self.greedy, self.tell = lm, requests, greedy, tell
        self.rank, self.world = (0, 1) if lm.named else ranks()
        self.keys = {i: _key(lm.digest, "decoded", requests[i]) for i in greedy}
        self.copies = Counter(self.keys.values())
        self.found: dict[str, Answer] = {}
        self.unwritten: dict[str, Answer] = {}
        self.tokens, self.cut, self.written = 0, 0, time.monotonic()

    def texts(self) -> dict[int, str]:
        """Request -> text. Raises UnsupportedModelError where the model cannot be decoded here."""
        lm = self.lm
        if lm.journal is not None:
            kept = {key: lm.journal.get(key) for key in self.copies}
            self.found = {key: answer for key, answer in kept.items() if answer and "text" in answer}
        first = {key: i for i, key in reversed(self.keys.items()) if key not in self.found}
        rows = [self._row(i) for i in sorted(first.values())]
        if self.cut:
            log.warning(
                "%d of %d prompts and their new tokens are longer than the model's positions: cut from the left",
                self.cut,
                len(rows),
            )
        if rows:
            trees = lm.proven(max(len(row.prompt) + row.asked.limit for row in rows))
            if trees is None:
                return {}
            decoder = Decoder(trees, lm.tokenizer, lm.rows, lm.max_tokens)
            with torch.inference_mode(), products.fast(lm.model):
                for part in self._parts(rows):
                    self._decode(decoder, part)
        lm.unended = getattr(lm, "unended", 0) + sum("unended" in self.found[key] for key in self.keys.values())
        return {i: self.found[key]["text"] for i, key in self.keys.items()}

    def _row(self, i: int) -> Row:
        (context, _), asked = self.requests[i].args, self.greedy[i]
        room = self.lm.max_length - asked.limit
        ids, _ = self.lm.tok_batch_encode([context], left_truncate_len=room, truncation=self.lm.truncation)
        self.cut += len(ids[0]) >= room and len(self.lm.tok_encode(context)) > room
        return Row(i, ids[0].tolist(), asked)

    def _parts(self, rows: list[Row]) -> Iterator[list[Row]]:
        """All at once; among several ranks what they do before they tell one another."""
        size = len(rows) if self.world == 1 else 4 * self.lm.rows * self.world
        yield from (rows[start : start + size] for start in range(0, len(rows), size))

    def _decode(self, decoder: Decoder, part: list[Row]) -> None:
        """This rank's share, then every rank's texts on all; what one could not do is raised on all."""
        fresh: dict[str, Answer] = {}
        before = self.tokens
        problem: Exception | None = None
        try:
            for row in decoder.run(part[self.rank :: self.world]):
                key = self.keys[row.number]
                fresh[key] = {"text": text_of(self.lm, row.new, row.asked)}
                fresh[key] |= {"unended": True} if thinks_on(self.lm, row.new) else {}
                self.tokens += len(row.new)
                if self.world == 1:
                    self._keep({key: fresh[key]})
        except Exception as error:
            if self.world == 1:
                self._write()
                raise
            problem = error
        if self.world > 1:
            answers = gathered((problem, fresh, self.tokens - before))
            if failed := next((error for error, _, _ in answers if error is not None), None):
                raise failed
            self.tokens = before + sum(tokens for _, _, tokens in answers)
            for _, texts, _ in answers:
                self._keep(texts)
        self._write()

    def _keep(self, answers: Mapping[str, Answer]) -> None:
        for key, answer in answers.items():
            self.found[key] = self.unwritten[key] = answer
            for i in (i for i, one in self.keys.items() if one == key):
                self.lm.cache_hook.add_partial("generate_until", self.requests[i].args, answer["text"])
        self.tell(sum(self.copies[key] for key in self.found), len(self.requests), self.tokens)
        if time.monotonic() - self.written > OFTEN:
            self._write()

    def _write(self) -> None:
        if self.lm.journal is not None and self.unwritten:
            self.lm.journal.put_all(self.unwritten)
        self.unwritten, self.written = {}, time.monotonic()


def _stock(lm: Any, ask: Stock, requests: list[Any], tell: Callable[[int], None]) -> list[str]:
    """lm-eval's own texts: batches are lm-eval's, one is asked for when one of its texts is not in the journal."""
    share = ask if lm.named else lambda some: shared(ask, some)
    if lm.journal is None:
        texts = share(requests)
        tell(len(texts))
        return list(texts)
    seen: Counter[str] = Counter()
    keys, seeds = [], getattr(lm, "seeds", SEEDS)
    for request in requests:
        drawn = _samples(request.args[1]) and seeds != SEEDS  # other seeds, other samples
        plain = _key(f"{lm.digest} seeds {seeds}" if drawn else lm.digest, "generate", request)
        keys.append(hashlib.sha256(f"{plain} {seen[plain]}".encode()).hexdigest())  # samples are drawn anew
        seen[plain] += 1
    done = 0
    for batch in _batches(lm, requests):
        if any(lm.journal.get(keys[i]) is None for i in batch):
            texts = share([requests[i] for i in batch])
            lm.journal.put_all({keys[i]: {"text": text} for i, text in zip(batch, texts, strict=True)})
        done += len(batch)
        tell(done)
    return [lm.journal.get(key)["text"] for key in keys]


def _key(digest: str, way: str, request: Any) -> str:
    """Of the model, the prompt and the settings."""
    context, settings = request.args
    return hashlib.sha256(json.dumps([digest, way, context, settings], sort_keys=True, default=str).encode()).hexdigest()


def _batches(lm: Any, requests: Sequence[Any]) -> Iterator[list[int]]:
    """As HFLM batches them: by settings, longest prompt first. Where texts are drawn at random, all of them in one call."""
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
    if any(_samples(request.args[1]) for request in requests):
        yield list(range(len(requests)))
        return
    size = lm.batch_size * (1 if lm.named else ranks()[1])
    for members in groups.values():
        order = sorted(members, key=lambda i: (-len(lm.tok_encode(requests[i].args[0])), requests[i].args[0]))
        yield from (order[start : start + size] for start in range(0, len(order), size))


def _samples(settings: dict[str, Any]) -> bool:
    return bool(settings.get("do_sample")) or float(settings.get("temperature") or 0) > 0
