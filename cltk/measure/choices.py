"""Multiple choice: which answers are right, and by how much the model prefers them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Choice:
    """One document: the log-probability of each choice [k], the indices of the right ones, the bytes of each [k] or none."""

    logprobs: list[float]
    right: frozenset[int]
    sizes: list[int]

    @property
    def ways(self) -> float:
        """k / r: choices for each right one, so that 1 / ways is the chance of a guess; nan when none or all are right."""
        r = len(self.right)
        return len(self.logprobs) / r if 0 < r < len(self.logprobs) else float("nan")

    def margin(self, per_byte: bool = False) -> float:
        """The likeliest right choice's log-probability minus the likeliest wrong one's, in nats or nats per byte.

        A document whose choices have no such difference (none or all are right, an empty choice per byte) gives nan. Where
        the model excludes every right choice it is -inf, whatever it gives the wrong ones.
        """
        scores = self.logprobs
        if per_byte:
            if not self.sizes or 0 in self.sizes:
                return float("nan")
            scores = [score / size for score, size in zip(scores, self.sizes, strict=True)]
        wrong = [score for i, score in enumerate(scores) if i not in self.right]
        best = max((scores[i] for i in self.right), default=float("nan"))
        return best - max(wrong) if wrong and best > -math.inf else best if wrong else float("nan")

    def logprob(self) -> float:
        """Log-probability of the likeliest right choice, in nats; nan when none or all choices are right."""
        return max(self.logprobs[i] for i in self.right) if self.ways == self.ways else float("nan")


def together(choices: Sequence[Choice]) -> dict[str, list[float]] | None:
    """`logprob`, `margin` and `margin_norm` of documents with as many finite choices each, at once; None for others."""
    shape = {(len(one.logprobs), len(one.sizes)) for one in choices}
    if len(shape) != 1 or any(not 0 < len(one.right) < len(one.logprobs) for one in choices):
        return None
    scores, sizes = (np.array([getattr(one, name) for one in choices], np.float64) for name in ("logprobs", "sizes"))
    right = np.array([[i in one.right for i in range(len(one.logprobs))] for one in choices])
    if not np.isfinite(scores).all():
        return None
    best, wrong = (np.where(mask, scores, -np.inf).max(1) for mask in (right, ~right))
    found = {"logprob": best.tolist(), "margin": (best - wrong).tolist(), "margin_norm": [math.nan] * len(choices)}
    if sizes.size:
        with np.errstate(divide="ignore", invalid="ignore"):
            best, wrong = (np.where(mask, scores / sizes, -np.inf).max(1) for mask in (right, ~right))
            found["margin_norm"] = np.where((sizes == 0).any(1), np.nan, best - wrong).tolist()
    return found


def choices_of(task: Any, samples: Sequence[dict[str, Any]]) -> list[Choice]:
    """The choices of every document as lm-eval reads them; empty when the task does not let them be known.

    lm-eval's own `process_results` takes the target as an index when it is an integer and looks it up among the choices
    when it is a text; with several contexts and one ending the index is what `doc_to_text` gives. The unconditional scores
    that acc_mutual_info asks for stand behind the choices. A task with a `process_results` of its own is asked which
    choice it calls right (`_probed`).
    """
    config: Any = getattr(task, "config", None)
    if getattr(task, "OUTPUT_TYPE", None) != "multiple_choice" or getattr(config, "doc_to_choice", None) is None:
        return []
    own = callable(config.process_results)
    found = []
    for sample in samples:
        texts = [str(text) for text in task.doc_to_choice(sample["doc"])]
        scores = [float(one[0] if isinstance(one, tuple | list) else one) for one in sample["filtered_resps"]]
        if len(scores) != len(texts) and not (len(scores) == 2 * len(texts) and "acc_mutual_info" in task.aggregation()):
            return []
        right = _probed(task, sample["doc"], len(scores)) if own else _right(task, sample, texts)
        sizes = [] if task.multiple_input else [len(text.encode()) for text in texts]
        found.append(Choice(scores[: len(texts)], frozenset(i for i in right if i < len(texts)), sizes))
    return found


def _right(task: Any, sample: dict[str, Any], texts: list[str]) -> set[int]:
    """Indices of the right choices by lm-eval's rules; none where its accuracy can only be 0."""
    gold = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    if isinstance(gold, list | tuple):
        return {int(one) for one in gold if _index(one, texts)} if task.multiple_target else set()
    if isinstance(gold, str):
        return {texts.index(gold)} if gold in texts else set()
    return {int(gold)} if _index(gold, texts) else set()


def _index(gold: Any, texts: list[str]) -> bool:
    try:
        return not isinstance(gold, str) and int(gold) == gold and 0 <= int(gold) < len(texts)
    except (TypeError, ValueError):
        return False


def _probed(task: Any, doc: Any, count: int) -> set[int]:
    """The choices that the task's own `process_results` calls right: each in turn is made the only likely one."""
    right = set()
    for i in range(count):
        answers = [(-1.0, True) if i == j else (-1000.0, False) for j in range(count)]
        try:
            score = float(task.process_results(doc, answers)["acc"])
        except Exception:
            return set()
        if score > 0.5:
            right.add(i)
    return right
