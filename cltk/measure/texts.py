"""Held-out text: rows, tokens, NLL and bits per byte of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cltk.data import Row, read_rows, text_of
from cltk.errors import InputError
from cltk.measure.harness import Progress
from cltk.measure.scores import TaskScores
from cltk.probe import row_nll
from cltk.ranks import shared


@dataclass(frozen=True)
class TextTask:
    """Held-out text whose token NLL is measured: `rows` of texts, or of token ids made by the caller's tokeniser."""

    name: str
    rows: Sequence[Row]
    max_length: int = 1024
    cluster: str | None = None  # column that groups dependent rows

    @classmethod
    def read(cls, name: str, path: str, *, limit: int | None = None, cluster: str | None = None) -> TextTask:
        """From a file of texts; `limit` takes evenly spread rows, so that every part of the file is represented."""
        rows = read_rows(path)
        if limit is not None and limit < len(rows):
            rows = [rows[i * len(rows) // limit] for i in range(limit)]
        if cluster and cluster not in rows[0]:
            raise InputError(f"{path}: cluster column {cluster!r} is missing; the columns are {', '.join(rows[0])}")
        return cls(name, rows, cluster=cluster)


def token_rows(text: TextTask, tokenizer: Any) -> list[Row]:
    """The task's rows as token ids (and labels, where they come with the rows)."""
    rows: list[Row] = []
    for i, row in enumerate(text.rows):
        if "input_ids" in row:
            rows.append({key: list(map(int, row[key])) for key in ("input_ids", "labels") if key in row})
        else:
            rows.append({"input_ids": tokenizer(text_of(row, f"{text.name}, row {i}"))["input_ids"][: text.max_length]})
    return rows


def score_text(text: TextTask, model: Any, tokenizer: Any, digest: str, journal: Any, progress: Progress | None) -> TaskScores:
    """Token NLL of each row; a text starts with the tokeniser's first special token where it has one."""
    rows = token_rows(text, tokenizer)
    hashes = [
        hashlib.sha256((json.dumps(ids["input_ids"]) if "input_ids" in row else text_of(row, text.name)).encode()).hexdigest()
        for row, ids in zip(text.rows, rows, strict=True)
    ]
    prompts = [hashlib.sha256(json.dumps([row["input_ids"], row.get("labels")]).encode()).hexdigest() for row in rows]
    keys = [hashlib.sha256(f"{digest} nll {prompt}".encode()).hexdigest() for prompt in prompts]
    known = [journal.get(key) for key in keys] if journal is not None else []
    if known and all(answer is not None for answer in known):
        nll = [answer["logprob"] for answer in known]
    else:
        tell = (lambda done, total: progress(text.name, done, total, 0)) if progress else None
        nll = shared(lambda some: row_nll(model, some, progress=tell)[0], rows)
        if journal is not None:
            journal.put_all({key: {"logprob": value, "greedy": False} for key, value in zip(keys, nll, strict=True)})
    values = {"nll": nll}
    if rows and all("input_ids" not in row for row in text.rows):
        sizes = [len(text_of(row, text.name).encode()) for row in text.rows]
        tokens = [len(row["input_ids"]) - 1 for row in rows]
        values["bits_per_byte"] = [x * n / size / float(np.log(2)) for x, n, size in zip(nll, tokens, sizes, strict=True)]
    return TaskScores(
        text.name, values, dict.fromkeys(values, False), hashes, prompts,
        cluster=[str(row[text.cluster]) for row in text.rows] if text.cluster else [],
    )  # fmt: skip
