"""The documents themselves, out of the lm-eval samples in a run's folder: read within limits, and only ever shown as text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_BYTES = 64 << 20  # a larger file is not read
PROMPT, ANSWER, ANSWERS = 600, 160, 8  # characters shown of a prompt (its end) and of an answer; answers shown
DATE = r"\d{4}-\d\d-\d\dT[\d.+-]+"  # how lm-eval ends the names of its files


@dataclass(frozen=True)
class Answer:
    """A choice with its log-probability after training, or what the model wrote."""

    text: str
    score: float | None
    right: bool


@dataclass(frozen=True)
class Document:
    """What one document asked, and what the tuned model made of it."""

    prompt: str
    answers: tuple[Answer, ...]


def read_documents(run: Path, task: str, wanted: Collection[str]) -> dict[str, Document]:
    """The documents with these hashes, as the newest samples of the run have them; those that cannot be read are left out."""
    file = samples_file(run, task)
    if file is None or file.stat().st_size > FILE_BYTES:
        return {}
    found = {}
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                sample = json.loads(line)
                if sample["doc_hash"] in wanted:
                    found[sample["doc_hash"]] = _document(sample)
            except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError, RecursionError):
                continue
    return found


def samples_file(run: Path, task: str) -> Path | None:
    """The newest samples_TASK_DATE.jsonl below the run's lm_eval folder."""
    name = re.compile(rf"samples_{re.escape(task)}_{DATE}\.jsonl")
    found = (file for file in (run / "lm_eval").rglob("samples_*.jsonl") if name.fullmatch(file.name))
    return max(found, key=lambda file: file.name, default=None)


def _document(sample: dict[str, Any]) -> Document:
    requests = [sample["arguments"][f"gen_args_{i}"] for i in range(len(sample["arguments"]))]
    responses, prompt = sample["filtered_resps"], str(requests[0]["arg_0"])
    if len(responses) == len(requests) and all(isinstance(one, list) for one in responses):
        texts = [str(request["arg_1"]) for request in requests]
        if len(set(texts)) < len(texts):  # the choices differ in what stands before the answer
            texts = [str(request["arg_0"]) for request in requests]
        right = [len(texts) == 1 or str(i) == str(sample["target"]) for i in range(len(texts))]
        scores = [float(one[0]) for one in responses]
        answers = [Answer(_start(text), score, ok) for text, score, ok in zip(texts, scores, right, strict=True)]
    else:
        answers = [Answer(_start(str(sample["target"])), None, True), *[Answer(_start(str(r)), None, False) for r in responses]]
    return Document(prompt if len(prompt) <= PROMPT else f"…{prompt[-PROMPT:]}", tuple(answers[:ANSWERS]))


def _start(text: str) -> str:
    return text if len(text) <= ANSWER else f"{text[:ANSWER]}…"
