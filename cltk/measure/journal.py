"""An append-only file of answers, so that an interrupted scoring goes on where it stopped and gives the same bytes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from cltk.errors import InputError


class Answer(TypedDict):
    """A log-probability in nats, and whether greedy decoding gives the continuation."""

    logprob: float
    greedy: bool


def request_key(weights: str, tokens: ArrayLike, scored: int) -> str:
    """sha256 (hex) of a request under one set of weights: their digest, the token ids, and how many of the last are scored."""
    return hashlib.sha256(f"{weights}|{scored}|".encode() + np.asarray(tokens, dtype="<i8").tobytes()).hexdigest()


class Journal:
    """Answers by key, one JSON line each: {"key", "logprob", "greedy", "check"}.

    Floats are written as `repr` does, which reads back exactly; `check` is the start of the line's own sha256. A last line that
    a kill cut short is dropped, and written over. Several processes may append to one file (it is locked for each write).

    Args:
        path: The file; created with its folder at the first write.

    Raises:
        InputError: A line in the middle is not what was written (file and line number are named).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._answers: dict[str, Answer] = {}
        if self.path.exists():
            self._read()

    def get(self, key: str) -> Answer | None:
        """The answer of this key, or None."""
        return self._answers.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Append one answer and sync it to disk; an answer that is there already stays as it is."""
        self.put_all({key: answer})

    def put_all(self, answers: Mapping[str, Answer]) -> None:
        """Append a batch, in one write and one fsync."""
        fresh = {key: answer for key, answer in answers.items() if key not in self._answers}
        if not fresh:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(_line(key, answer) for key, answer in fresh.items()).encode()
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(_whole(file))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._answers.update(fresh)

    def __len__(self) -> int:
        return len(self._answers)

    def _read(self) -> None:
        whole, _, _ = self.path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                row = json.loads(line)
                key, answer = row["key"], Answer(logprob=row["logprob"], greedy=row["greedy"])
                intact = _line(key, answer).encode() == line + b"\n"
            except (ValueError, KeyError, TypeError):
                intact = False
            if not intact:
                raise InputError(f"{self.path}, line {number}: the line is damaged; delete the file to score again")
            self._answers.setdefault(key, answer)


def _whole(file: BinaryIO) -> int:
    """The length of a file up to its last newline; lines are far shorter than a block."""
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - 4096))
    return start + file.read().rfind(b"\n") + 1


def _line(key: str, answer: Answer) -> str:
    body = (
        f'"key": {json.dumps(key)}, "logprob": {json.dumps(float(answer["logprob"]))}, "greedy": {json.dumps(answer["greedy"])}'
    )
    return f'{{{body}, "check": "{hashlib.sha256(body.encode()).hexdigest()[:16]}"}}\n'
