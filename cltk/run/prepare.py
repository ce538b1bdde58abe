"""The new task's sources -> token rows: read, tokenised, split by prompt, mixed by weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cltk.data.conversations import conversations
from cltk.data.messages import conversation, spoken
from cltk.data.pairs import pairs
from cltk.data.readers import Row, read_rows
from cltk.data.rows import blocks, filled, split_by
from cltk.errors import InputError
from cltk.measure.sampling import choose
from cltk.run.methods import resolve_path
from cltk.run.spec_data import DataSpec, Source

Rows = list[Row | None]  # None: left out, too long


@dataclass
class Prepared:
    """The new task as token rows: what is trained on, what choices are made on, and what is reported."""

    train: list[Row]
    validation: list[Row]
    heldout: list[Row]
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
    parts = [_parts(source, at, spec, tokenizer, folder) for at, source in spec.sources]
    for key in ("validation", "heldout"):
        if isinstance(source := getattr(spec, key), Source):
            some = _rows(source, folder, f"data.{key}")
            parts[0][key] = _tokenized(some, source, spec, tokenizer, _place(key, source))
            for part in parts[1:]:
                part[key] = []
    sets: dict[str, list[Row]] = {}
    for key in ("train", "validation", "heldout"):
        whole = [[row for row in part[key] if row is not None] for part in parts]
        if not any(whole):
            raise InputError(f"data.{key}: the prompts of all its rows are too long; raise data.max_length")
        fraction = key == "train" or isinstance(getattr(spec, key), float)
        counted = shares([len(rows) for rows in whole], spec.weights if fraction else None, f"data.{key}")
        taken = [
            rows if count == len(rows) else [rows[i] for i in choose(len(rows), count, f"0 data.{key}.{at}")]
            for at, (rows, count) in enumerate(zip(whole, counted, strict=True))
        ]
        sets[key] = [row for rows in taken for row in rows]
        if key == "train" and len(parts) > 1:
            paths = [f"{at} ({source.path})" for at, source in spec.sources]
            sources = dict(zip(paths, counted, strict=True))
    dropped = {key: sum(part[key].count(None) for part in parts) for key in sets}
    return Prepared(
        **sets, dropped={key: count for key, count in dropped.items() if count}, sources=sources if len(parts) > 1 else {}
    )


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


def _parts(source: Source, at: str, spec: DataSpec, tokenizer: Any, folder: Path) -> dict[str, Rows]:
    """One source of training rows: tokenised, and split where validation or heldout is a fraction."""
    where = _place(at, source)
    rows = _rows(source, folder, f"data.{at}")
    # rows are tokenised before they are split, so that a fault is told by the row of the file
    whole = [] if source.text else _tokenized(rows, source, spec, tokenizer, where)
    fractions = {key: value for key in ("validation", "heldout") if isinstance(value := getattr(spec, key), float)}
    keys = _keys(source, rows, where) if fractions else [""] * len(rows)
    parts = dict(zip(("train", *fractions), split_by(keys, list(fractions.values())), strict=True))
    found: dict[str, Rows] = {"validation": [], "heldout": []}
    for key, part in parts.items():
        if not part:
            raise InputError(
                f"data.{key}: no rows are left for it; rows are split by prompt, and {source.path} has"
                f" {len(set(keys))} different ones: give it a file of its own or a larger fraction"
            )
        some = [rows[i] for i in part]
        found[key] = [whole[i] for i in part] if whole else _tokenized(some, source, spec, tokenizer, where)
    return found


def _keys(source: Source, rows: list[Row], where: str) -> list[str]:
    """What rows are split by: equal prompts stay together, so that none is trained on and reported on."""
    if source.text:
        return [text for (text,) in filled(rows, [source.text], where)]
    if columns := _columns(rows, source):
        found = [(one.question, one.text) for one in (conversation(row, columns, where) for row in rows)]
    else:
        found = [(prompt, answer) for prompt, answer in filled(rows, [_prompt(source), _completion(source)], where)]
    prompts = [prompt for prompt, _ in found]
    return prompts if len(set(prompts)) > 1 else ["\n".join(pair) for pair in found]


def _tokenized(rows: list[Row], source: Source, spec: DataSpec, tokenizer: Any, where: str) -> Rows:
    """Conversations, pairs, or blocks of plain text in which every token counts.

    What the source does not say is as in (the first of) data.train.
    """
    first = spec.sources[0][1]
    said = source.text or source.prompt or source.completion or source.messages
    text = source.text if said else first.text
    if text:
        texts = [found for (found,) in filled(rows, [text], where)]
        done: Rows = [{**row, "labels": list(row["input_ids"])} for row in blocks(texts, tokenizer, spec.max_length)]
        if not done:
            raise InputError(f"{where}: holds no text")
        return done
    asked = {"prompt": source.prompt or _prompt(first), "completion": source.completion or _completion(first)}
    mask = spec.mask if spec.completion_only else "all"
    if columns := _columns(rows, source if said else first):
        return conversations(
            rows, tokenizer, columns, mask=mask, max_length=spec.max_length, drop_long=spec.drop_long, where=where
        )
    if {"chosen", "rejected"} <= set(rows[0]) and asked["completion"] not in rows[0]:
        raise InputError(
            f"{where}: its rows are preference pairs (chosen, rejected), and `cltk run` trains on answers: attach the methods"
            " to TRL's DPOTrainer in a script of your own, or train on the chosen ones (completion: chosen)"
        )
    return pairs(
        rows, tokenizer, **asked, max_length=spec.max_length, chat_template=spec.chat_template,
        completion_only=mask != "all", drop_long=spec.drop_long, where=where,
    )  # fmt: skip


def _columns(rows: list[Row], source: Source) -> tuple[str, ...]:
    return spoken(rows[0], source.prompt, source.completion, source.messages)


def _rows(source: Source, folder: Path, where: str) -> list[Row]:
    path = resolve_path(source.path, folder, f"{where}.path")
    rows = read_rows(path, name=source.name, split=source.split, revision=source.revision)
    if source.sample is None:
        return rows[: source.limit]
    return [rows[i] for i in choose(len(rows), source.sample, f"0 {where}")]


def _place(key: str, source: Source) -> str:
    """How an error names the rows of a source: they are counted as they are read."""
    return f"data.{key} ({source.path}{'' if source.sample is None else f', sample {source.sample}'})"


def _prompt(source: Source) -> str:
    return source.prompt or "prompt"


def _completion(source: Source) -> str:
    return source.completion or "completion"
