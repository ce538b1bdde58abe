"""The new task's sources -> token rows: read, tokenised, split by prompt, mixed by weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cltk.data.readers import Row
from cltk.data.tables import Table, joined
from cltk.errors import InputError
from cltk.measure.sampling import choose
from cltk.run.spec_data import DataSpec, Source
from cltk.run.tokens import Part, Reader


@dataclass
class Prepared:
    """The new task as token rows: what is trained on, what choices are made on, and what is reported."""

    train: Any  # a sequence of rows, or a `cltk.run.streams.Stream`
    validation: Sequence[Row]
    heldout: Sequence[Row]
    dropped: dict[str, int] = field(default_factory=dict)  # rows left out because the prompt alone fills max_length
    sources: dict[str, int] = field(default_factory=dict)  # training rows of each, where there are several

    def notes(self) -> dict[str, dict[str, int]]:
        """What the record keeps of them."""
        return {name: kept for name, kept in (("dropped", self.dropped), ("sources", self.sources)) if kept}


def prepare_data(spec: DataSpec, tokenizer: Any, folder: Path) -> Prepared:
    """Read, tokenise, split by prompt (by prompt and completion where all rows have one prompt), mix by weight.

    Raises:
        InputError: a set is empty, a column is missing, or a cell holds no text.
    """
    if spec.streamed:
        return _streamed(spec, tokenizer, folder)
    parts = [Reader(source, at, spec, tokenizer, folder).parts() for at, source in spec.sources]
    for key in ("validation", "heldout"):
        if isinstance(source := getattr(spec, key), Source):
            parts[0][key] = Reader(source, key, spec, tokenizer, folder).whole()
    sets: dict[str, Table] = {}
    sources: dict[str, int] = {}
    for key in ("train", "validation", "heldout"):
        whole = [part[key] for part in parts if key in part]
        if not any(len(one.rows) for one in whole):
            raise InputError(f"data.{key}: the prompts of all its rows are too long; raise data.max_length")
        fraction = key == "train" or isinstance(getattr(spec, key), float)
        counts = shares([len(one.rows) for one in whole], spec.weights if fraction else None, f"data.{key}")
        sets[key] = joined([_drawn(one, n, f"data.{key}.{at}") for at, (one, n) in enumerate(zip(whole, counts, strict=True))])
        if key == "train" and len(parts) > 1:
            paths = [f"{at} ({source.path})" for at, source in spec.sources]
            sources = dict(zip(paths, counts, strict=True))
    dropped = {key: sum(part[key].dropped for part in parts if key in part) for key in sets}
    return Prepared(**sets, dropped={key: count for key, count in dropped.items() if count}, sources=sources)


def _streamed(spec: DataSpec, tokenizer: Any, folder: Path) -> Prepared:
    from cltk.run.streams import Stream

    reader = {at: Reader(source, at, spec, tokenizer, folder) for at, source in spec.sources}["train"]
    others: dict[str, Part] = {}
    for key in ("validation", "heldout"):
        if isinstance(source := getattr(spec, key), Source):
            others[key] = Reader(source, key, spec, tokenizer, folder).whole()
    stream = Stream(reader.stream)
    if not stream.first(1):
        raise InputError("data.train: the stream has no row to train on")
    dropped = {key: part.dropped for key, part in others.items() if part.dropped}
    return Prepared(stream, others["validation"].rows, others["heldout"].rows, dropped)


def _drawn(part: Part, count: int, name: str) -> Table:
    return part.rows if count == len(part.rows) else part.rows.select(np.asarray(choose(len(part.rows), count, f"0 {name}")))


def shares(sizes: Sequence[int], weights: Sequence[float] | None, where: str) -> list[int]:
    """How many rows to take of sets of these sizes: n_i = round(n w_i / sum w) with the largest n that repeats no row.

    All rows where there are no weights.

    Raises:
        InputError: a set of which less than one row would be taken.
    """
    if weights is None:
        return list(sizes)
    total = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    counts = [min(size, round(total * weight)) for size, weight in zip(sizes, weights, strict=True)]
    if 0 in counts:
        at = counts.index(0)
        raise InputError(
            f"{where}: of source {at} less than one row is left by the weights {', '.join(f'{w:g}' for w in weights)} and"
            f" {', '.join(map(str, sizes))} rows; change the weights, or give it more rows"
        )
    return counts
