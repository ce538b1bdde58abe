"""Greedy decoding of many prompts: those that begin alike share what they begin with, rows that end leave at once, and waiting
ones take their place. `slots.py` has the keys and values, `greedy.py` says what is asked.

Texts equal those of one prompt at a time but for rounding: a product with more rows may round otherwise, which decides only
where two tokens are as likely as one another within it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from cltk.errors import RunError
from cltk.forward import products
from cltk.measure.greedy import Row, Stops
from cltk.measure.headers import groups
from cltk.measure.slots import Slots, attending, filled
from cltk.measure.tree_forward import TreeForward, UnsupportedModelError
from cltk.measure.tree_proof import EXTRA, WIDE, check_close

WATCHED, SOON = 2, 16  # which row of a group is compared with a plain forward, and after how many tokens
TRIED = (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError, NotImplementedError)  # by an odd model
ROOM_CPU, ROOM_SHARE = 2**30, 0.4  # bytes of keys and values: on the CPU, and of a GPU's free memory


class Decoder:
    """A model that decodes rows together.

    Args:
        trees: the model, proven to run on trees (`tree_proof`): it mixes tokens by masked attention alone.
        tokenizer: its tokenizer.
        rows: rows at a time, at most.
        max_tokens: padded tokens of prompts in a forward; a longer prompt goes alone.
    """

    def __init__(self, trees: TreeForward, tokenizer: Any, rows: int, max_tokens: int) -> None:
        self.trees, self.stops, self.rows, self.max_tokens = trees, Stops(tokenizer), rows, max_tokens
        self.device = trees.model.device
        self.room = ROOM_CPU if self.device.type == "cpu" else int(ROOM_SHARE * torch.cuda.mem_get_info(self.device)[0])
        self._checked: dict[bool, int] = {}  # behind a prefix -> tokens of the longest row that was compared

    def run(self, rows: Sequence[Row]) -> Iterator[Row]:
        """The rows, each as soon as it has ended. None is given out before rows of its kind agree with a plain forward.

        Raises:
            UnsupportedModelError: the model gives other logits here than in a plain forward.
        """
        for start, members in groups([row.prompt for row in rows]):
            some = [rows[i] for i in members]
            behind = start > 0
            if len(some[0].prompt) > self._checked.get(behind, -1):
                some[:WATCHED][-1].watched = True  # the second: a row that another stands before
                self._checked[behind] = len(some[0].prompt)
            try:
                yield from self._agreed(start, some)
            except TRIED as error:
                if isinstance(error, torch.OutOfMemoryError) or not any(row.watched for row in some):
                    raise
                line = (str(error).strip().split("\n") or [""])[0]
                raise UnsupportedModelError(line or type(error).__name__) from error

    def _agreed(self, start: int, rows: Sequence[Row]) -> Iterator[Row]:
        """Rows of one beginning that have ended, held back until those that are watched have been compared."""
        held: list[Row] = []
        for ended in self._together(start, rows):
            held += ended
            if not any(row.watched for row in rows[:WATCHED]):
                yield from held
                held = []

    def _together(self, start: int, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows of one beginning, those that end in the same step at a time."""
        waiting, active, unread, ended = deque(rows), list[Row](), list[Row](), list[Row]()
        slots = Slots(self._prefix(rows[0].prompt[:start]))
        try:
            while waiting or active:
                while unread := self._next(slots, waiting):
                    self._begin(slots, active, unread, ended)
                    yield self._compared(active, ended)
                if active:
                    self._make_room(slots, active, waiting)
                    active[:] = [active[row] for row in slots.sort()]
                    self._choose(slots, active, list(active), self._step(slots, active), ended)
                    yield self._compared(active, ended)
            return
        except torch.OutOfMemoryError:
            if len(active) + len(unread) < 2 and not ended:
                raise
            if len(unread) > 1:
                self.max_tokens = max(1, self.max_tokens // 2)
            elif active:
                self.room = slots.bytes_for(len(active), slots.width) // 2
        del slots  # behind the error, whose frames held its keys and values
        if ended:
            yield self._compared([], ended)
        if left := [*active, *unread, *waiting]:
            yield from self._together(start, left)

    def _begin(self, slots: Slots, active: list[Row], unread: list[Row], ended: list[Row]) -> None:
        """Read these prompts, which then are active, and choose their first tokens."""
        logits, fresh = self._read(slots, unread), list(unread)
        active += fresh
        unread.clear()
        self._choose(slots, active, fresh, logits, ended)

    def _prefix(self, tokens: list[int]) -> list[tuple[Tensor, Tensor]]:
        if not tokens:
            return []
        cache = DynamicCache()
        ids = torch.tensor([tokens], device=self.device)
        self.trees.call(lambda hidden: hidden[0, -1:], input_ids=ids, past_key_values=cache, use_cache=True)
        return filled(cache)

    def _next(self, slots: Slots, waiting: deque[Row]) -> list[Row]:
        """Waiting rows that fit: of rows, of keys and values, and of tokens in one forward."""
        fresh: list[Row] = []
        padded, longest = 0, max(slots.lengths, default=0)
        while waiting and len(slots) + len(fresh) < self.rows:
            taken, length = len(slots) + len(fresh), len(waiting[0].tokens) - slots.start
            padded, longest = max(padded, length), max(longest, length)
            many = len(fresh) > 0 and (len(fresh) + 1) * padded > self.max_tokens
            if many or (taken and slots.bytes_for(taken + 1, longest + SOON) > self.room):
                break
            fresh.append(waiting.popleft())
            if not slots.token_bytes:
                break  # the first one says how much a token takes
        return fresh

    def _read(self, slots: Slots, fresh: list[Row]) -> Tensor:
        """The prompts' forward; logits [B, V] behind their last tokens."""
        parts = [row.tokens[slots.start :] for row in fresh]
        lengths = [len(part) for part in parts]
        width = max(lengths)
        ids = torch.tensor([part + [0] * (width - len(part)) for part in parts], device=self.device)
        last = torch.tensor(lengths, device=self.device) - 1
        cache, rows = DynamicCache(), torch.arange(len(parts), device=self.device)
        given: dict[str, Any] = {"input_ids": ids, "past_key_values": cache, "use_cache": True}
        if slots.prefix:
            positions = (slots.start + torch.arange(width, device=self.device)).expand(len(parts), width)
            given |= self._seen(positions, slots.start + width)
            with attending(slots, positions, width, [(0, len(parts), width)]):
                logits = self.trees.call(lambda hidden: hidden[rows, last], **given)
        else:
            logits = self.trees.call(lambda hidden: hidden[rows, last], **given)
        slots.add(cache, lengths)
        return logits

    def _step(self, slots: Slots, active: list[Row]) -> Tensor:
        """One more token a row; logits [B, V]."""
        ids = torch.tensor([[row.new[-1]] for row in active], device=self.device)
        positions = slots.start + torch.tensor(slots.lengths, device=self.device)[:, None]
        cache = slots.step()
        keys = max(slots.lengths)
        with products.few_rows(self.trees.model), attending(slots, positions, keys, slots.blocks()):
            return self.trees.call(
                lambda hidden: hidden[:, -1], input_ids=ids, past_key_values=cache, use_cache=True,
                **self._seen(positions, slots.start + keys),
            )  # fmt: skip

    def _seen(self, positions: Tensor, keys: int) -> dict[str, Tensor]:
        seen = torch.ones(len(positions), keys, dtype=torch.long, device=self.device)  # all: the masks come from `attending`
        return {"position_ids": positions, "attention_mask": seen}

    def _make_room(self, slots: Slots, active: list[Row], waiting: deque[Row]) -> None:
        """Rows that have the fewest new tokens wait again, where longer slots would take more memory than there is."""
        while len(active) > 1 and slots.bytes_for(len(active), max(slots.lengths) + 1) > self.room:
            row = min(range(len(active)), key=lambda i: len(active[i].new))
            waiting.appendleft(active[row])
            self._leave(slots, active, row)

    def _leave(self, slots: Slots, active: list[Row], row: int) -> None:
        last = slots.drop(row)
        active[row] = active[last]
        active.pop()

    def _choose(self, slots: Slots, active: list[Row], rows: list[Row], logits_BV: Tensor, ended: list[Row]) -> None:
        """Give each of these rows its most likely token; those that end leave their slots for `ended`. All rows, or, where
        memory runs out, none."""
        processed = any(row.asked.config is not None for row in rows)  # else they are read alone
        scores = logits_BV.to(torch.float32, copy=processed)
        for i, row in enumerate(rows):
            if row.asked.config is not None:
                ids = torch.tensor([row.tokens], device=self.device)
                if row.processor is None:
                    row.processor = row.asked.processors(self.trees.model, ids)
                scores[i] = row.processor(ids, scores[i : i + 1])[0] if row.processor else scores[i]
        tokens = scores.argmax(-1)
        best = scores.gather(-1, tokens[:, None])[:, 0]
        if bool(best.isnan().any()):
            raise RunError(
                f"generation request {rows[int(best.isnan().nonzero()[0])].number}: the model gives NaN; look for weights that"
                " are not finite (a run that diverged) or use a wider dtype"
            )
        chosen = tokens.tolist()
        more = [
            float(logits.float().log_softmax(-1)[token]) if row.watched else 0.0
            for row, token, logits in zip(rows, chosen, logits_BV, strict=True)
        ]
        for row, token, logprob in zip(rows, chosen, more, strict=True):
            row.new.append(token)
            row.logprob += logprob
        for row, end in zip(rows, self.stops([(row.new, row.asked) for row in rows]), strict=True):
            if end:
                self._leave(slots, active, active.index(row))
                ended.append(row)

    def _compared(self, active: Sequence[Row], ended: list[Row]) -> list[Row]:
        """The rows that ended, which are given out then; those that are watched have been compared, and active ones in time."""
        for row in [*active, *ended]:
            if row.watched and (row in ended or len(row.new) >= SOON):
                self._compare(row)
        done = list(ended)
        ended.clear()
        return done

    def _compare(self, row: Row) -> None:
        """Raise UnsupportedModelError where a plain forward gives other log-probabilities to the new tokens of a row."""
        plain = self._plain(row, 0)
        other = plain if self.trees.model.dtype in WIDE else self._plain(row, EXTRA)
        check_close([row.logprob], [plain], [other], self.trees.model.dtype)
        row.watched = False

    def _plain(self, row: Row, extra: int) -> float:
        ids, first = torch.tensor([row.tokens + [3] * extra], device=self.device), len(row.prompt) - 1
        count = len(row.new)
        logits = self.trees.call(lambda hidden: hidden[0, first : first + count], input_ids=ids, use_cache=False)
        new = torch.tensor(row.new, device=self.device)[:, None]
        return float(logits.float().log_softmax(-1).gather(-1, new).double().sum())
