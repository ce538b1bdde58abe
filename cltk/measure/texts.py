"""Held-out text: rows, tokens, NLL and bits per byte of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Any

from cltk.data.conversations import Mask
from cltk.data.memories import whole_row
from cltk.data.messages import renamed, row_key
from cltk.data.readers import Row, open_rows
from cltk.data.rows import text_of, unpadded
from cltk.errors import InputError
from cltk.forward.probe import NLL_TOKENS, by_ranks, row_nll
from cltk.measure.harness import Progress
from cltk.measure.sampling import Sample, choose, described, spread
from cltk.measure.scores import TaskScores
from cltk.measure.windows import by_windows, counted, positions


@dataclass(frozen=True)
class TextTask:
    """Held-out text whose token NLL is measured: `rows` of texts, or of token ids made by the caller's tokeniser.

    With `max_length` only the first so many tokens of a row are measured, nats and bytes; without, every token is.
    """

    name: str
    rows: Sequence[Row]
    max_length: int | None = None
    cluster: str | None = None  # column that groups dependent rows
    stratum: str | None = None  # column of the sources or subjects that samples are spread over
    note: str = ""  # which of a text's rows these are
    mask: Mask | None = None  # which tokens of a conversation count; by default those of every answer

    @classmethod
    def read(
        cls, name: str, path: str, *, limit: float | None = None, cluster: str | None = None, stratum: str | None = None,
        config: str | None = None, split: str | None = None, revision: str | None = None, prompt: str | None = None,
        completion: str | None = None, messages: str | None = None, mask: Mask | None = None,
    ) -> TextTask:  # fmt: skip
        """From a file of texts, pairs or conversations, or a data set's configuration, split and revision.

        `prompt` and `completion` (columns or templates) or `messages` name the columns, where these have other names.

        `limit` takes so many rows (or, below 1, that fraction), evenly spread, so that every part of the file is represented.
        """
        rows = spread(open_rows(path, name=config, split=split, revision=revision), limit)
        for kind, column in (("cluster", cluster), ("stratum", stratum)):
            if column and (odd := next((row for row in rows if column not in row), None)) is not None:
                raise InputError(f"{path}: {kind} column {column!r} is missing; the columns are {', '.join(odd)}")
        if prompt or completion or messages:
            rows = [renamed(row, f"{path}, row {i}", prompt, completion, messages) for i, row in enumerate(rows)]
        return cls(name, rows, cluster=cluster, stratum=stratum, mask=mask)

    def sampled(self, sample: Sample, seed: int = 0) -> TextTask:
        """Random rows, whole clusters, spread over strata: `cltk.measure.sampling.choose`, seeded by seed and name."""
        strata = [str(row[self.stratum]) for row in self.rows] if self.stratum else []
        indices = choose(len(self.rows), sample, f"{seed} {self.name}", self.labels(), strata)
        note = described(sample, seed, indices, len(self.rows), self.labels(), strata, "rows")
        return replace(self, rows=[self.rows[i] for i in indices], note=note)

    def labels(self, kept: Sequence[int] | None = None) -> list[str]:
        """The cluster of each row, or of those at `kept`; empty without a cluster column."""
        rows = self.rows if kept is None else [self.rows[i] for i in kept]
        return [str(row[self.cluster]) for row in rows] if self.cluster else []


def token_rows(text: TextTask, tokenizer: Any) -> list[Row]:
    """The task's rows as token ids, as the tokeniser begins a text; labels come with rows, or are their answers'."""
    rows: list[Row] = []
    for i, row in enumerate(text.rows):
        if "input_ids" in row:
            if text.mask is not None:
                raise InputError(f"{text.name}: mask: {text.mask}: its rows are token ids, of which labels say what counts")
            found = unpadded(row)
        else:
            found = whole_row(row, tokenizer, text.name, i, text.mask)
        rows.append({key: ids[: text.max_length] for key, ids in found.items()})
    return rows


def predicts(text: TextTask, tokenizer: Any) -> bool:
    """Whether some row has a token to predict; rows are tokenised until one has."""
    return any(counted(token_rows(replace(text, rows=[row]), tokenizer)[0]) for row in text.rows)


def scored_rows(text: TextTask, tokenizer: Any) -> tuple[list[int], list[Row]]:
    """Indices and token rows of the texts with a token to predict; the first token of a row has nothing before it.

    Raises:
        InputError: no row has one.
    """
    rows = token_rows(text, tokenizer)
    kept = [i for i, row in enumerate(rows) if counted(row)]
    if not kept:
        raise nothing_to_predict(text)
    return kept, [rows[i] for i in kept]


def nothing_to_predict(text: TextTask) -> InputError:
    """The refusal of a text of which no row `predicts`."""
    return InputError(
        f"text {text.name}: none of its {len(text.rows)} rows has two tokens, so that there is nothing to predict"
    )


def check_ids(name: str, rows: Sequence[Row], model: Any) -> None:
    """Raise InputError for a token id that the model has no embedding for."""
    embedding = model.get_input_embeddings()
    size = getattr(embedding, "num_embeddings", None)
    worst = max(max(row["input_ids"], default=0) for row in rows)
    if size is not None and worst >= size:
        raise InputError(
            f"text {name}: token {worst} is outside of the model's vocabulary of {size}; the tokeniser has more tokens than the"
            " embedding: resize it as in training, or use the model's own tokeniser"
        )


def score_text(text: TextTask, model: Any, tokenizer: Any, digest: str, journal: Any, progress: Progress | None) -> TaskScores:
    """Token NLL of each row, nats a token, and bits per byte: see `read_text`."""
    return read_text(text, tokenizer, partial(_nll, text.name, model, digest, journal, progress))


def read_text(text: TextTask, tokenizer: Any, nll_of: Callable[[list[Row], list[str]], list[float]]) -> TaskScores:
    """A text's scores by what gives token rows, and the digests of what is asked, their mean NLL.

    A text begins as the tokeniser begins it; a first token that is a part of the text is context and no more, nats and bytes.
    Bits per byte: bits of the scored tokens over their bytes. Rows without a token to predict are left out, as the notes say.
    """
    kept, rows = scored_rows(text, tokenizer)
    source = [text.rows[i] for i in kept]
    prompts = [_sha(json.dumps([row["input_ids"], row.get("labels")])) for row in rows]
    pairs = zip(source, rows, strict=True)
    hashes = [_sha(json.dumps(ids["input_ids"]) if "input_ids" in row else row_key(row, text.name)) for row, ids in pairs]
    nll = nll_of(rows, prompts)
    values, weights = {"nll": nll}, {}
    if all("input_ids" not in row and "labels" not in ids for row, ids in zip(source, rows, strict=True)):
        words = [text_of(row, text.name) for row in source]
        sizes = [scored_bytes(word, row["input_ids"], tokenizer) for word, row in zip(words, rows, strict=True)]
        if all(sizes):
            bits = [x * counted(row) / log(2) for x, row in zip(nll, rows, strict=True)]
            values["bits_per_byte"] = [b / n for b, n in zip(bits, sizes, strict=True)]
            weights["bits_per_byte"] = [float(n) for n in sizes]
    return TaskScores(
        text.name, values, dict.fromkeys(values, False), hashes, prompts, cluster=text.labels(kept), weights=weights,
        notes=_notes(text, kept, tokenizer),
    )  # fmt: skip


def _nll(
    name: str, model: Any, digest: str, journal: Any, progress: Progress | None, rows: list[Row], prompts: list[str]
) -> list[float]:
    """Mean NLL of each row, from the journal where it holds them all."""
    check_ids(name, rows, model)
    size = positions(model)
    keys = [
        _sha(f"{digest} nll {prompt}" + (f" {size}" if len(row["input_ids"]) > size else ""))
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    known = [journal.get(key) for key in keys] if journal is not None else []
    if known and all(answer is not None for answer in known):
        return [answer["logprob"] for answer in known]
    tell = (lambda done, total: progress(name, done, total, 0)) if progress else None
    score = lambda parts, told: row_nll(model, parts, progress=told)[0]  # noqa: E731
    nll = by_windows(rows, size, lambda parts: by_ranks(score, parts, NLL_TOKENS, tell))
    if journal is not None:
        journal.put_all({key: {"logprob": value, "greedy": False} for key, value in zip(keys, nll, strict=True)})
    return nll


def _notes(text: TextTask, kept: Sequence[int], tokenizer: Any) -> list[str]:
    """How many rows are not measured, or not whole."""
    notes = [text.note] if text.note else []
    if len(kept) < len(text.rows):
        notes.append(f"{len(text.rows) - len(kept)} of {len(text.rows)} rows have no token to predict and are left out")
    if text.max_length is not None:
        whole = token_rows(replace(text, rows=[text.rows[i] for i in kept], max_length=None), tokenizer)
        if cut := sum(len(row["input_ids"]) > text.max_length for row in whole):
            notes.append(f"{cut} of {len(text.rows)} rows are measured on their first {text.max_length} tokens")
    return notes


def scored_bytes(text: str, ids: Sequence[int], tokenizer: Any) -> int:
    """Bytes of the text that the tokens behind the first one stand for: up to the last token that is there.

    By the tokeniser's offsets; by decoding where it has none. A special token in front stands for no bytes.
    """
    if getattr(tokenizer, "is_fast", False):
        spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][: len(ids)]
        ends = [end for start, end in spans if end > start]
        begin = spans[0][1] if spans[0][1] > spans[0][0] else 0
        return len(text[begin : max(ends, default=0)].encode())
    whole, first = (len(tokenizer.decode(list(part), skip_special_tokens=True).encode()) for part in (ids, ids[:1]))
    return whole - first


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
