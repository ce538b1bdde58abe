"""An append-only file of answers, so that an interrupted scoring goes on where it stopped and gives the same bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
from filelock import lock_descriptor
from numpy.typing import ArrayLike

from cltk.errors import InputError
from cltk.files import check_held, disk_error, leased
from cltk.measure.prefix_tree import Requests

LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of network file systems without flock


class Answer(TypedDict, total=False):
    """A log-probability in nats and whether greedy decoding gives the continuation; or a generated text."""

    logprob: float
    greedy: bool
    text: str
    unended: bool  # whether the text has no end of its thinking; absent where it has


def request_key(weights: str, tokens: ArrayLike, scored: int) -> str:
    """sha256 (hex) of a request under one set of weights: their digest, the token ids, and how many of the last are scored."""
    return hashlib.sha256(f"{weights}|{scored}|".encode() + np.asarray(tokens, dtype="<i8").tobytes()).hexdigest()


class Journal:
    """Answers by key, one JSON line each: {"key", "logprob", "greedy", "check"}, or {"key", "text", "check"}.

    Floats are written as `repr` does, which reads back exactly; `check` is the start of the line's own sha256. What a kill or
    a power loss left unfinished at the end is dropped, and written over. Several processes may append to one file (it is
    locked for each write).

    Args:
        path: The file; created with its folder at the first write.
        write: Whether answers go to the file; of several ranks one writes, and all remember.
        others: Journals that other processes may be writing now; whole lines of them are read, once.

    Raises:
        InputError: A line before the last whole one is not what was written (file and line number are named).
        DiskError: At a write: the disk is full, or the file cannot be written to.
    """

    def __init__(self, path: str | Path, write: bool = True, others: Iterable[Path] = ()) -> None:
        self.path, self.write = Path(path), write
        self._answers: dict[str, Answer] = {}
        if self.path.exists():
            self._read()
        for other in others:
            found = [] if other == self.path else [_answer(line) for line in other.read_bytes().split(b"\n")]
            for pair in filter(None, found):
                self._answers.setdefault(*pair)

    def get(self, key: str) -> Answer | None:
        """The answer of this key, or None."""
        return self._answers.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Append one answer and sync it to disk; an answer that is there already stays as it is."""
        self.put_all({key: answer})

    def put_all(self, answers: Mapping[str, Answer]) -> None:
        """Append a batch, in one write and one fsync."""
        fresh = {key: answer for key, answer in answers.items() if key not in self._answers}
        self._answers.update(fresh)
        if fresh and self.write:
            self._append(fresh)

    def _append(self, fresh: Mapping[str, Answer]) -> None:
        text = "".join(_line(key, answer) for key, answer in fresh.items()).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file, ExitStack() as holds:
                _alone(file, self.path, holds)
                check_held()
                file.truncate(_whole(file))
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(error, self.path) or error from error

    def __len__(self) -> int:
        return len(self._answers)

    def _read(self) -> None:
        *lines, _ = self.path.read_bytes().split(b"\n")
        found = [_answer(line) for line in lines]
        while found and found[-1] is None:
            found.pop()
        if dropped := len(lines) - len(found):
            logging.getLogger(__name__).warning(
                "%s: the last %d lines were not written whole (power loss?); they are scored again", self.path, dropped
            )
        for number, pair in enumerate(found, start=1):
            if pair is None:
                raise InputError(f"{self.path}, line {number}: the line is damaged; delete the file to score again")
            self._answers.setdefault(*pair)


class ModelJournal:
    """What a journal knows of one model's scoring requests; answers from trees and lm-eval's own are kept apart.

    Args:
        journal: Where it is; nothing is kept without one.
        digest: Of all that decides an answer (`cltk.measure.identity`).
    """

    def __init__(self, journal: Journal | None, digest: str) -> None:
        self.journal, self.digest = journal, digest

    def get(self, requests: Requests, trees: bool) -> dict[int, tuple[float, bool]]:
        """The answers that are there, by the number of the request."""
        if self.journal is None:
            return {}
        found = {k: self.journal.get(self._key(requests, k, trees)) for k in range(len(requests))}
        return {k: (answer["logprob"], answer["greedy"]) for k, answer in found.items() if answer and "logprob" in answer}

    def put(self, answers: Mapping[int, tuple[float, bool]], requests: Requests, trees: bool) -> None:
        """Keep answers, given by the number of the request."""
        if self.journal is not None:
            rows = {self._key(requests, k, trees): Answer(logprob=p, greedy=greedy) for k, (p, greedy) in answers.items()}
            self.journal.put_all(rows)

    @property
    def refused(self) -> bool:
        """Whether trees were found to be wrong for this model; what they gave is not asked for again."""
        return self.journal is not None and self.journal.get(request_key(f"{self.digest} refused", [], 0)) is not None

    def refuse(self) -> None:
        """Note that trees are wrong for this model."""
        if self.journal is not None:
            self.journal.put(request_key(f"{self.digest} refused", [], 0), Answer(logprob=0.0, greedy=False))

    def _key(self, requests: Requests, k: int, trees: bool) -> str:
        return request_key(f"{self.digest} {'trees' if trees else 'stock'}", requests.tokens[k], int(requests.scored[k]))


def _alone(file: BinaryIO, path: Path, holds: ExitStack) -> None:
    """Lock an open file; where the file system has no such locks, by a lease beside it until `holds` closes."""
    try:
        lock_descriptor(file.fileno())
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise
        holds.enter_context(leased(path.with_suffix(".lease")))


def _whole(file: BinaryIO) -> int:
    """The length of a file up to its last whole line. Lines are shorter than a block; what a power loss left may be longer."""
    size = file.seek(0, os.SEEK_END)
    for block in (4096, size):
        start = file.seek(max(0, size - block))
        *lines, _ = file.read().split(b"\n")
        for last in range(len(lines), 0, -1):
            if _answer(lines[last - 1]) is not None:
                return start + sum(len(line) + 1 for line in lines[:last])
    return 0


def _answer(line: bytes) -> tuple[str, Answer] | None:
    """Key and answer of a line as it was written; None of any other."""
    try:
        row = json.loads(line)
        key, answer = (
            row["key"],
            Answer(text=row["text"]) if "text" in row else Answer(logprob=row["logprob"], greedy=row["greedy"]),
        )
        if "unended" in row:
            answer["unended"] = row["unended"]
        typed = isinstance(key, str) and (
            isinstance(answer["text"], str) if "text" in answer else isinstance(answer["greedy"], bool)
        )
        return (key, answer) if typed and _line(key, answer).encode() == line + b"\n" else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _line(key: str, answer: Answer) -> str:
    found: dict[str, Any] = dict(answer)
    if "logprob" in found:
        found["logprob"] = float(found["logprob"])
    body = json.dumps({"key": key, **found})[1:-1]
    return f'{{{body}, "check": "{hashlib.sha256(body.encode()).hexdigest()[:16]}"}}\n'
