"""A file of lm-eval's samples: what is kept of each document, read line by line so that no text stays in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.measure.lost import requests_of


@dataclass
class Documents:
    """The documents of one task, in the order of doc_id. All lists have one entry a document."""

    doc_id: list[int] = field(default_factory=list)
    doc_hash: list[str] = field(default_factory=list)
    prompt_hash: list[str] = field(default_factory=list)
    target_hash: list[str] = field(default_factory=list)
    target: list[str] = field(default_factory=list)
    cluster: list[str] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)  # of each request, of those that have one
    endings: list[list[str]] = field(default_factory=list)  # what each request asked the probability of
    contexts: list[int] = field(default_factory=list)  # different ones
    metrics: dict[str, dict[str, dict[int, Any]]] = field(default_factory=dict)  # filter -> metric -> doc_id -> value
    sealed: str = ""  # as lm-eval's task_hashes

    def __len__(self) -> int:
        return len(self.doc_id)


def read(file: Path, known: dict[str, set[str]], cluster: str | None, choices: bool) -> Documents:
    """The documents of a file of samples.

    Args:
        known: filter -> names of metrics in the results, for files that do not list a sample's metrics.
        cluster: the column of the documents that says which belong together.
        choices: whether the log-probabilities of choices are wanted.

    Raises:
        InputError: a line that is no sample, a document that stands twice under a filter, no documents.
    """
    found, seal, seen = Documents(), hashlib.sha256(), set[tuple[str, int]]()
    first: str | None = None
    for line, sample in lines(file):
        try:
            chosen, number = str(sample.get("filter", "none")), int(sample["doc_id"])
            own = hashes(sample)
            if (chosen, number) in seen:
                raise InputError(f"{file}:{line}: document {number} stands there twice; the file is of two runs")
            seen.add((chosen, number))
            seal.update("".join(own).encode())
            names: Collection[str] = sample.get("metrics") or known.get(chosen) or ()
            for metric in names:
                if metric in sample:
                    found.metrics.setdefault(chosen, {}).setdefault(metric, {})[number] = sample[metric]
            first = chosen if first is None else first
            if chosen == first:
                _document(found, sample, number, own, cluster, choices)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(f"{file}:{line}: no sample of lm-eval ({type(error).__name__}: {error})") from None
    if not found.doc_id:
        raise InputError(f"{file}: holds no documents; run lm_eval again with --log_samples")
    found.sealed = seal.hexdigest()
    return _sorted(found)


def lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, sample) of JSON lines, or of one list, which lm-eval wrote before 0.4.4."""
    with file.open(encoding="utf-8") as opened:
        try:
            for number, line in enumerate(opened, 1):
                if number == 1 and line.lstrip().startswith("["):
                    yield from enumerate(json.loads(line + opened.read()), 1)
                    return
                if line.strip():
                    yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}: cannot be read ({error}); it is cut or damaged, copy it again") from None


def hashes(sample: dict[str, Any]) -> tuple[str, str, str]:
    """Of document, prompt and right answer; made by lm-eval's own rule where an old file has none."""
    if "doc_hash" in sample and "prompt_hash" in sample and "target_hash" in sample:
        return sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]
    parts = json.dumps(sample["doc"], indent=2, ensure_ascii=False), str(requests_of(sample)[0][0]), str(sample["target"])
    doc, prompt, target = (hashlib.sha256(part.encode()).hexdigest() for part in parts)
    return doc, prompt, target


def _document(
    found: Documents, sample: dict[str, Any], number: int, own: tuple[str, str, str], cluster: str | None, choices: bool
) -> None:
    found.doc_id.append(number)
    found.doc_hash.append(own[0])
    found.prompt_hash.append(own[1])
    found.target_hash.append(own[2])
    if cluster:
        found.cluster.append(str(sample["doc"][cluster]))
    if choices:
        requests = requests_of(sample)
        found.target.append(str(sample["target"]))
        found.logprobs.append([float(one[0] if isinstance(one, list) else one) for one in sample["filtered_resps"]])
        found.endings.append([str(one[1]) for one in requests])
        found.contexts.append(len({one[0] for one in requests}))


def _sorted(found: Documents) -> Documents:
    order = sorted(range(len(found)), key=found.doc_id.__getitem__)
    if order == list(range(len(found))):
        return found
    lists = ("doc_id", "doc_hash", "prompt_hash", "target_hash", "target", "cluster", "logprobs", "endings", "contexts")
    for name in lists:
        values = getattr(found, name)
        setattr(found, name, [values[i] for i in order] if values else values)
    return found
