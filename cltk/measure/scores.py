"""What an evaluation yields: per-document scores of one model, plain data without lm-eval or torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TaskScores:
    """The scores of one model on one task, document by document; all lists have one entry a document, in task order.

    Units: accuracies are 0 or 1; `nll` is nats per token; `bits_per_byte` is bits per byte; `logprob` is the summed
    log-probability (nats) of the correct choice, `margin` that minus the best wrong choice's.
    """

    task: str
    values: dict[str, list[float]]  # metric -> score of each document, in the metric's own unit
    higher_is_better: dict[str, bool]
    doc_hash: list[str]
    prompt_hash: list[str]
    choices: list[int] = field(default_factory=list)  # answers to choose from; empty when the task is not multiple choice
    cluster: list[str] = field(default_factory=list)  # documents with equal labels are not independent; empty: all are
    settings: dict[str, Any] = field(default_factory=dict)  # what must be equal before and after: dtype, num_fewshot, ...

    def __len__(self) -> int:
        return len(self.doc_hash)


@dataclass(frozen=True)
class Scores:
    """The scores of one model on several tasks. `digest` is the sha256 of its weights."""

    digest: str
    tasks: dict[str, TaskScores]
    lm_eval: dict[str, Any] = field(default_factory=dict)  # lm-eval's own results and samples, to write in its format

    def to_json(self) -> dict[str, Any]:
        return {"digest": self.digest, "tasks": {name: asdict(task) for name, task in self.tasks.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scores:
        return cls(data["digest"], {name: TaskScores(**task) for name, task in data["tasks"].items()})
