"""Rows that are learned from and measured on: equal texts, and texts that share 13 words in a row.

Words are runs of letters and digits in lower case. Runs of 13 words that stand in more than 10 rows of the set that is learned
from are a template, and do not count. Source: Brown et al. 2020 (arXiv 2005.14165), appendix C.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cltk.data.memories import said
from cltk.data.messages import words
from cltk.data.readers import locate
from cltk.data.rows import NoText
from cltk.errors import InputError
from cltk.measure.texts import TextTask
from cltk.run.inputs import Inputs
from cltk.run.methods import resolve_path
from cltk.run.plans import Cell
from cltk.run.sources import memories

RUN = 13  # words in a row
TEMPLATE = 10  # rows in which a run may stand
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
        vocabulary: word -> number, shared by all sets that are compared; it grows.
    """

    def __init__(self, texts: Sequence[str], vocabulary: dict[str, int]) -> None:
        rows = [WORD.findall(text.lower()) for text in texts]
        self.keys = [" ".join(words) for words in rows]
        ids = np.fromiter(
            (vocabulary.setdefault(word, len(vocabulary)) for words in rows for word in words), np.uint64, sum(map(len, rows))
        )
        place = np.repeat(np.arange(len(rows)), [len(words) for words in rows])
        count = max(0, len(ids) - RUN + 1)
        whole = place[:count] == place[len(ids) - count :]
        self.row = place[:count][whole]
        self.run = _numbers(ids, count)[whole]

    def runs(self) -> NDArray[np.uint64]:
        """The runs that are no template, ascending."""
        order = np.lexsort((self.row, self.run))
        run, row = self.run[order], self.row[order]
        first = np.ones(len(run), bool)
        first[1:] = (run[1:] != run[:-1]) | (row[1:] != row[:-1])
        found, rows = np.unique(run[first], return_counts=True)
        return found[rows <= TEMPLATE]


def _numbers(ids: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """A 64-bit number of each of the first `count` runs: a polynomial of the words' own (splitmix64), modulo 2^64."""
    mixed = ids + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    total = np.zeros(count, np.uint64)
    for k in range(RUN):
        total = total * np.uint64(0x2545F4914F6CDD1D) + mixed[k : k + count]
    return total


def compare(learned: Texts, measured: Texts) -> tuple[int, int]:
    """Rows of `measured` whose words are those of a row of `learned`, and other rows that share a run with it."""
    known = {key for key in learned.keys if key}
    equal = np.array([key in known for key in measured.keys], bool)
    near = np.zeros(len(measured.keys), bool)
    near[measured.row[np.isin(measured.run, learned.runs())]] = True
    return int(equal.sum()), int((near & ~equal).sum())


def leaks(inputs: Inputs, cells: Sequence[Cell]) -> list[Leak]:
    """What the cells learn from (or choose by) and measure on: training, validation, memories; held-out rows and texts.

    What was compared once is known to `inputs`: a record of each cell asks again.
    """
    vocabulary: dict[str, int] = {}
    texts: dict[Any, Texts] = {}
    chosen: list[Leak | None] = []

    def read(which: _Set) -> Texts:
        if which.key not in texts:
            texts[which.key] = Texts(which.rows(), vocabulary)
        return texts[which.key]

    for cell in cells:
        sets = list(_sets(inputs, cell))
        for one, other in product(sets, sets):
            if one.kind == "measured" or (other.kind != "measured" and (one.kind, other.kind) != ("train", "validation")):
                continue
            pair = one.key, other.key
            if pair not in inputs.leaks:
                equal, near = compare(read(one), read(other))
                found = Leak(one.name, other.name, len(read(other).keys), equal, near)
                inputs.leaks[pair] = found if equal or near else None
            chosen.append(inputs.leaks[pair])
    return list(dict.fromkeys(leak for leak in chosen if leak))


class _Set(NamedTuple):
    """A set of a cell; equal keys hold equal rows."""

    key: Any
    name: str
    rows: Callable[[], Sequence[str]]
    kind: str  # train, validation, memory or measured


def _sets(inputs: Inputs, cell: Cell) -> Iterator[_Set]:
    for training in cell.trainings:
        data = inputs.data(training)
        for part in ("train", "validation", "heldout"):
            rows = getattr(data, part)
            name = ": ".join(filter(None, [training.stage, f"data.{part}"]))
            kind = "measured" if part == "heldout" else part
            yield _Set(id(rows), name, partial(_decoded, rows, inputs.tokenizer(cell)), kind)
    for text in inputs.suite(cell).texts:
        if text.rows and "input_ids" not in text.rows[0]:
            yield _Set(id(text.rows), text.name, partial(_words, text), "measured")
    for memory in sorted(set(memories(cell.config.mitigators)), key=lambda one: one.label):
        path = resolve_path(memory.path, inputs.plan.folder, "memory")
        yield _Set(memory[1:], f"memory {memory.label}", partial(_memory, path, dict(memory.how)), "memory")


def _decoded(rows: Sequence[Any], tokenizer: Any) -> list[str]:
    return list(tokenizer.batch_decode([list(map(int, row["input_ids"])) for row in rows], skip_special_tokens=True))


def _words(text: TextTask) -> list[str]:
    return [words(row, text.name) for row in text.rows]


def _memory(path: str, how: dict[str, Any]) -> list[str]:
    """The texts of a memory; none of a model's folder, of an importance, or of rows that are tokens already."""
    there = locate(path)
    if there is None or Path(there).suffix == ".safetensors" or (Path(there) / "config.json").exists():
        return []
    try:
        return said({"path": path, **how})
    except NoText as error:
        raise InputError(f"memory {error}") from error
    except InputError:  # said where the memory is made into rows
        return []


def check_leaks(inputs: Inputs, cells: Sequence[Cell], strict: bool) -> list[str]:
    """A line for every leak.

    Raises:
        InputError: there is one, and `strict` is set.
    """
    lines = [f"leakage: {leak}" for leak in leaks(inputs, cells)]
    if lines and strict:
        raise InputError(f"{inputs.plan.file}: {'; '.join(lines)}; take these rows out, or leave --strict away")
    return lines
