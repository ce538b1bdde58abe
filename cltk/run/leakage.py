"""Rows that are learned from and measured on: equal texts, and texts that share 13 words in a row.

Words are runs of letters and digits in lower case. Runs of 13 words that stand in more than 10 rows of the set that is learned
from are a template, and do not count. Source: Brown et al. 2020 (arXiv 2005.14165), appendix C.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cltk.data.memories import said
from cltk.data.messages import words
from cltk.data.readers import locate
from cltk.data.rows import NoText, batched
from cltk.errors import InputError
from cltk.measure.texts import TextTask
from cltk.run.inputs import Inputs
from cltk.run.methods import resolve_path
from cltk.run.plans import Cell
from cltk.run.sources import memories

RUN = 13  # words in a row
TEMPLATE = 10  # rows in which a run may stand
MOST = 50_000_000  # characters of a memory: methods that need a part of one read its beginning
OTHER = 2**63  # the number of every word that no measured set has
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Leak:
    """Of `rows` rows that are measured (`measured`), how many are in what is learned from (`learned`)."""

    learned: str
    measured: str
    rows: int
    equal: int
    near: int  # not equal, and share `RUN` words in a row

    def __str__(self) -> str:
        equal = f"{self.equal} are in {self.learned} too (but for case and punctuation)" if self.equal else ""
        near = f"{self.near} share {RUN} words in a row with {'it' if self.equal else self.learned}" if self.near else ""
        said = " and ".join(filter(None, [equal, near]))
        return f"{self.measured}: of {self.rows} rows {said}"


class Texts:
    """A set of texts as words: the normalised texts, and a number of every run of `RUN` words with the row it stands in.

    Args:
        texts: the rows.
        vocabulary: word -> number, shared by all sets that are measured; they let it grow.
        known: whether words that are not in it stay out: no run that holds one is in a measured set.
    """

    def __init__(self, texts: Sequence[str], vocabulary: dict[str, int], known: bool = False) -> None:
        rows = [WORD.findall(text.lower()) for text in texts]
        self.keys = [" ".join(words) for words in rows]
        if known:
            numbers: Iterator[int] = (vocabulary.get(word, OTHER) for words in rows for word in words)
        else:
            numbers = (vocabulary.setdefault(word, len(vocabulary)) for words in rows for word in words)
        ids = np.fromiter(numbers, np.uint64, sum(map(len, rows)))
        place = np.repeat(np.arange(len(rows)), [len(words) for words in rows])
        count = max(0, len(ids) - RUN + 1)
        whole = place[:count] == place[len(ids) - count :]
        self.row = place[:count][whole]
        self.run = _numbers(ids, count)[whole]


def _numbers(ids: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """A 64-bit number of each of the first `count` runs: a polynomial of the words' own (splitmix64), modulo 2^64."""
    mixed = ids + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    total = np.zeros(count, np.uint64)
    for k in range(RUN):
        total = total * np.uint64(0x2545F4914F6CDD1D) + mixed[k : k + count]
    return total


class Against:
    """What of a measured set is found in the texts that are learned from, which pass by.

    A run counts in so many rows of theirs; more than `TEMPLATE` make it one.
    """

    def __init__(self, measured: Texts) -> None:
        self.measured = measured
        self.runs = np.unique(measured.run)
        self.rows = np.zeros(len(self.runs), np.int64)
        self.keys = {key for key in measured.keys if key}
        self.equal: set[str] = set()

    def see(self, learned: Texts) -> None:
        self.equal |= self.keys.intersection(learned.keys)
        at = np.searchsorted(self.runs, learned.run)
        at[at == len(self.runs)] = 0
        hit = self.runs[at] == learned.run if len(self.runs) else np.zeros(len(at), bool)
        each = np.unique(np.stack([at[hit], learned.row[hit]]), axis=1)[0]  # once a row
        self.rows += np.bincount(each, minlength=len(self.rows))

    def found(self) -> tuple[int, int]:
        """Rows whose words are those of a row that was seen, and other rows that share a run with one."""
        equal = np.array([key in self.equal for key in self.measured.keys], bool)
        near = np.zeros(len(self.measured.keys), bool)
        shared = self.runs[(self.rows > 0) & (self.rows <= TEMPLATE)]
        near[self.measured.row[np.isin(self.measured.run, shared)]] = True
        return int(equal.sum()), int((near & ~equal).sum())


def compare(learned: Iterable[str], measured: Sequence[Texts], vocabulary: dict[str, int]) -> list[tuple[int, int]]:
    """For each measured set its rows that are equal to learned ones, and others that are near; see `Against`.

    What is learned from is read once and not kept: memory grows with what is measured alone.
    """
    against = [Against(one) for one in measured]
    for some in batched(learned, len):
        chunk = Texts(some, vocabulary, known=True)
        for one in against:
            one.see(chunk)
    return [one.found() for one in against]


def leaks(inputs: Inputs, cells: Sequence[Cell]) -> list[Leak]:
    """What the cells learn from (or choose by) and measure on: training, validation, memories; held-out rows and texts.

    What was compared once is known to `inputs`: a record of each cell asks again.
    """
    vocabulary: dict[str, int] = {}
    texts: dict[Any, Texts] = {}
    chosen: list[Leak | None] = []
    for cell in cells:
        sets = list(_sets(inputs, cell))
        for one in sets:
            others = [other for other in sets if _compared(one, other)]
            new = [other for other in others if (one.key, other.key) not in inputs.leaks]
            for other in new:
                if other.key not in texts:
                    texts[other.key] = Texts(list(other.rows()), vocabulary)
            found = compare(one.rows(), [texts[other.key] for other in new], vocabulary) if new else []
            for other, (equal, near) in zip(new, found, strict=True):
                leak = Leak(one.name, other.name, len(texts[other.key].keys), equal, near)
                inputs.leaks[one.key, other.key] = leak if equal or near else None
            chosen += [inputs.leaks[one.key, other.key] for other in others]
    return list(dict.fromkeys(leak for leak in chosen if leak))


def _compared(one: _Set, other: _Set) -> bool:
    if one is other or one.kind == "measured":
        return False
    return other.kind == "measured" or (one.kind, other.kind) == ("train", "validation")


class _Set(NamedTuple):
    """A set of a cell; equal keys hold equal rows."""

    key: Any
    name: str
    rows: Callable[[], Iterable[str]]
    kind: str  # train, validation, memory or measured


def _sets(inputs: Inputs, cell: Cell) -> Iterator[_Set]:
    for training in cell.trainings:
        data = inputs.data(training)
        for part in ("train", "validation", "heldout"):
            rows = getattr(data, part)
            if part == "train" and training.data.streamed:
                continue  # said by check_leaks
            name = ": ".join(filter(None, [training.stage, f"data.{part}"]))
            kind = "measured" if part == "heldout" else part
            yield _Set(id(rows), name, partial(_decoded, rows, inputs.tokenizer(cell)), kind)
    for text in inputs.suite(cell).texts:
        if text.rows and "input_ids" not in text.rows[0]:
            yield _Set(id(text.rows), text.name, partial(_words, text), "measured")
    for memory in sorted(set(memories(cell.config.mitigators)), key=lambda one: one.label):
        path = resolve_path(memory.path, inputs.plan.folder, "memory")
        yield _Set(memory[1:], f"memory {memory.label}", partial(_memory, path, dict(memory.how)), "memory")


def _decoded(rows: Sequence[Any], tokenizer: Any) -> Iterator[str]:
    for some in batched(rows):
        yield from tokenizer.batch_decode([list(map(int, row["input_ids"])) for row in some], skip_special_tokens=True)


def _words(text: TextTask) -> list[str]:
    return [words(row, text.name) for row in text.rows]


def _memory(path: str, how: dict[str, Any]) -> Iterator[str]:
    """The texts of a memory, up to `MOST`; none of a model's folder, of an importance, or of rows that are tokens already."""
    there = locate(path)
    if there is None or Path(there).suffix == ".safetensors" or (Path(there) / "config.json").exists():
        return
    held = 0
    try:
        for text in said({"path": path, **how}):
            yield text
            held += len(text)
            if held > MOST:
                logging.getLogger(__name__).warning("leakage: memory %s: its first %d MB were compared", path, MOST // 10**6)
                return
    except NoText as error:
        raise InputError(f"memory {error}") from error
    except InputError:  # said where the memory is made into rows
        return


def check_leaks(inputs: Inputs, cells: Sequence[Cell], strict: bool) -> list[str]:
    """A line for every leak.

    Raises:
        InputError: there is one, and `strict` is set.
    """
    streamed = sorted({one.name for cell in cells for one in cell.trainings if one.data.streamed})
    if streamed and strict:
        raise InputError(f"{inputs.plan.file}: data.train is a stream, which --strict cannot look at; leave --strict away")
    if streamed:
        logging.getLogger(__name__).warning("leakage: data.train is a stream, and is not compared with what is measured")
    lines = [f"leakage: {leak}" for leak in leaks(inputs, cells)]
    if lines and strict:
        raise InputError(f"{inputs.plan.file}: {'; '.join(lines)}; take these rows out, or leave --strict away")
    return lines
