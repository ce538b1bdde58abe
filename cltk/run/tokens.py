"""One source of the new task's rows, tokenised as it is read: conversations, pairs, or blocks of plain text."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cltk.data.conversations import ConversationEncoder
from cltk.data.faults import Faults
from cltk.data.messages import spoken
from cltk.data.pairs import PairEncoder
from cltk.data.readers import Row, open_rows
from cltk.data.rows import NoText, batched, cut_blocks, fill, key_number, parts_of
from cltk.data.tables import Facts, Table, table_of, tokenizer_digest
from cltk.errors import InputError
from cltk.measure.sampling import choose
from cltk.run.methods import resolve_path
from cltk.run.spec_data import DataSpec, Source

STREAMED = 64  # rows of a stream that are tokenised together
UNPAIRED = {"prompt", "completion", "label"}  # TRL's, for KTO
log = logging.getLogger(__name__)


class Part(NamedTuple):
    """Token rows, and how many were left out because nothing of the completion is left within `max_length`."""

    rows: Table
    dropped: int = 0


class Reader:
    """Reads and tokenises one source; what it does not say of its columns is as in (the first of) data.train.

    Args:
        source: where the rows are.
        at: its place below `data`.
        spec: the new task.
    """

    def __init__(self, source: Source, at: str, spec: DataSpec, tokenizer: Any, folder: Path) -> None:
        self.source, self.at, self.spec, self.tokenizer = source, at, spec, tokenizer
        self.where = f"data.{at} ({source.path}{'' if source.sample is None else f', sample {source.sample}'})"
        path = resolve_path(source.path, folder, f"data.{at}.path")
        self.rows = open_rows(
            path, name=source.name, split=source.split, revision=source.revision, limit=source.limit, streaming=source.streaming
        )
        first = spec.sources[0][1]
        said = source.text or source.prompt or source.completion or source.messages
        self.columns = source if said else first
        self.text = self.columns.text
        self.prompt = source.prompt or first.prompt or "prompt"
        self.completion = source.completion or first.completion or "completion"

    def whole(self) -> Part:
        """All rows."""
        return self._blocks([], 0) if self.text else self._answers([])[0]

    def stream(self) -> Iterator[Row]:
        """Token rows of one pass, as they are read.

        Raises:
            InputError: a row at fault, when it is its turn.
        """
        if self.text:
            texts = (fill(self.text, row, f"{self.where}, row {i}") for i, row in enumerate(self.rows))
            for row in cut_blocks(texts, self.tokenizer, self.spec.max_length):
                yield {**row, "labels": list(row["input_ids"])}
            return
        faults = Faults(self.where, self.spec.max_length, self.spec.drop_long)
        encoder = self._encoder(faults)
        for some in batched(self.rows, most=STREAMED):
            found = encoder(some)
            if faults.kept or not faults.drop_long:
                faults.check()
            yield from (row for row in found if row is not None)
        faults.check()

    def parts(self) -> dict[str, Part]:
        """The rows to train on, and those of `validation` and `heldout` where they are fractions.

        Raises:
            InputError: nothing is left for one of them.
        """
        fractions = {key: value for key in ("validation", "heldout") if isinstance(value := getattr(self.spec, key), float)}
        shares = list(fractions.values())
        if self.text:
            counts, keys = self._look(shares)
            self._check(["train", *fractions], counts, keys)
            found = [self._blocks(shares, part) for part in range(len(counts))]
        else:
            found = self._answers(shares, ["train", *fractions])
        return dict(zip(("train", *fractions), found, strict=True))

    def _check(self, names: list[str], counts: Iterable[int], keys: int) -> None:
        for name, count in zip(names, counts, strict=True):
            if not count:
                raise InputError(
                    f"data.{name}: no rows are left for it; rows are split by prompt, and {self.source.path} has"
                    f" {keys} different ones: give it a file of its own or a larger fraction"
                )

    def _read(self) -> Iterator[Row]:
        """The rows, or the sample of them."""
        if self.source.sample is None:
            yield from self.rows
            return
        kept = iter(choose(sum(1 for _ in self.rows), self.source.sample, f"0 data.{self.at}"))
        wanted = next(kept, None)
        for i, row in enumerate(self.rows):
            if i == wanted:
                yield row
                wanted = next(kept, None)

    def _key(self, *more: Any) -> list[Any]:
        said = self.source.model_dump(exclude={"path", "weight"})
        columns = [self.columns.text, self.columns.messages, self.prompt, self.completion]
        how = {key: getattr(self.spec, key) for key in ("max_length", "chat_template", "completion_only", "mask", "drop_long")}
        sampled = self.at if self.source.sample is not None else None  # what the sample is seeded by
        return [self.rows.digest(), said, columns, how, sampled, tokenizer_digest(self.tokenizer), *more]

    def _look(self, shares: list[float]) -> tuple[list[int], int]:
        """That every row of plain text has one; how many fall into each part, and how many different ones there are."""
        faults, numbers = Faults(self.where), []
        for row in self._read():
            try:
                numbers.append(key_number(fill(self.text or "", row, faults.place(faults.rows))))
            except NoText as error:
                faults.without.add(faults.rows, str(error))
            faults.rows += 1
        faults.check()
        found = np.asarray(numbers, np.uint64)
        return np.bincount(parts_of(found, shares), minlength=len(shares) + 1).tolist(), len(np.unique(found))

    def _blocks(self, shares: list[float], part: int) -> Part:
        """The texts of a part as blocks in which every token counts."""
        if not shares:
            self._look([])

        def texts() -> Iterator[str]:
            for row in self._read():
                text = fill(self.text or "", row, self.where)
                if not shares or parts_of(np.asarray([key_number(text)], np.uint64), shares)[0] == part:
                    yield text

        def made(_: Facts) -> Iterator[Row]:
            for row in cut_blocks(texts(), self.tokenizer, self.spec.max_length):
                yield {**row, "labels": list(row["input_ids"])}

        rows, _ = table_of(self.rows.bytes, lambda: self._key("blocks", shares, part), made)
        if not len(rows):
            raise InputError(f"{self.where}: holds no text")
        return Part(rows)

    def _encoder(self, faults: Faults) -> PairEncoder | ConversationEncoder:
        first = next(iter(self.rows))
        mask = self.spec.mask if self.spec.completion_only else "all"
        columns = spoken(first, self.columns.prompt, self.columns.completion, self.columns.messages)
        if {"chosen", "rejected"} <= set(first) and not {self.completion, *columns[-1:]} & set(first):
            raise InputError(
                f"{self.where}: its rows are preference pairs (chosen, rejected), and `cltk run` trains on answers: attach the"
                " methods to TRL's DPOTrainer in a script of your own, or train on the chosen ones"
                f" ({'completion' if self.prompt in first else 'messages'}: chosen)"
            )
        if set(first) == UNPAIRED and isinstance(first["label"], bool):
            log.warning(
                "%s: its rows have the columns of unpaired preferences (prompt, completion, label), and every completion is"
                " trained as an answer, also where `label` is false: leave those out, or a column of another meaning",
                self.where,
            )
        if columns:
            return ConversationEncoder(self.tokenizer, faults, columns, mask=mask)
        return PairEncoder(
            self.tokenizer, faults, self.prompt, self.completion, chat_template=self.spec.chat_template,
            completion_only=mask != "all",
        )  # fmt: skip

    def _answers(self, shares: list[float], names: list[str] | None = None) -> list[Part]:
        """Conversations or pairs, one token row each: a part for each of the shares, and first for what they leave.

        A row's place goes with it, so that one table serves all fractions: the hash of what is asked, and of all of it for a
        set in which everybody asks the same.
        """
        faults = Faults(self.where, self.spec.max_length, self.spec.drop_long)
        encoder = self._encoder(faults)

        def made(facts: Facts) -> Iterator[Row]:
            asked = None
            for some in batched(self._read()):
                for raw, row in zip(some, encoder(some), strict=True):
                    if faults.without.count or faults.empty.count:
                        continue  # refused, once all are counted
                    question, answer = encoder.said(raw)
                    asked = question if asked is None else asked
                    facts["varied"] = facts.get("varied", False) or question != asked
                    both = key_number(f"{question}\n{answer}")
                    yield {**(row or {"input_ids": [], "labels": []}), "asked": key_number(question), "both": both}
            faults.check()

        table, facts = table_of(self.rows.bytes, lambda: self._key("answers"), made)
        numbers: NDArray[np.uint64] = table.column("asked" if facts["varied"] else "both").astype(np.uint64)
        of, kept = parts_of(numbers, shares), table.lengths() > 0
        if names:
            self._check(names, np.bincount(of, minlength=len(names)), len(np.unique(numbers)))
        return [
            Part(
                table if kept.all() and not shares else table.select(np.flatnonzero((of == i) & kept)),
                int(((of == i) & ~kept).sum()),
            )
            for i in range(len(shares) + 1)
        ]
