"""What an evaluation yields: per-document scores of one model, plain data without lm-eval or torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TaskScores:
    """The scores of one model on one task, document by document; all lists have one entry a document, in task order.

    A metric's score on the task is sum_i w_i v_i / sum_i w_i, for its `values` v and `weights` w (1 where it has none). A
    metric that only exists for all documents together (bleu, f1, a perplexity) stands in `corpus` instead.

    Units: accuracies are 0 or 1; `nll` is nats per token of a text and nats per answer of a task; `bits_per_byte` is bits
    per byte; `logprob` is the summed log-probability (nats) of the right choice (the likeliest where several are),
    `margin` that minus the best wrong choice's; `margin_norm` the same of log-probabilities per byte of the choice.
    """

    task: str
    values: dict[str, list[float]]  # metric -> score of each document, in the metric's own unit
    higher_is_better: dict[str, bool]
    doc_hash: list[str]
    prompt_hash: list[str]
    choices: list[float] = field(default_factory=list)  # answers to choose from for each right one; empty: free form
    cluster: list[str] = field(default_factory=list)  # documents with equal labels are not independent; empty: all are
    settings: dict[str, Any] = field(default_factory=dict)  # what must be equal before and after; a text has none
    weights: dict[str, list[float]] = field(default_factory=dict)  # metric -> weight of each document; 0: it has no such score
    corpus: dict[str, list[float | None]] = field(default_factory=dict)  # metric -> its score, then that of every resample
    left_out: dict[str, str] = field(default_factory=dict)  # metric -> why it has no number
    notes: list[str] = field(default_factory=list)  # what else a reader of the numbers must know

    def __len__(self) -> int:
        return len(self.doc_hash)


@dataclass(frozen=True)
class Scores:
    """The scores of one model on several tasks. `digest` is the sha256 of its weights."""

    digest: str
    tasks: dict[str, TaskScores]
    lm_eval: dict[str, Any] = field(default_factory=dict)  # lm-eval's own results and samples, to write in its format
    members: list[str] = field(default_factory=list)  # tasks shown beside their group, which no average counts again
    dtype: str = ""  # what the model computed in: "bfloat16"; empty where it is not known

    def to_json(self) -> dict[str, Any]:
        tasks = {name: asdict(task) for name, task in self.tasks.items()}
        more = {"members": self.members, "dtype": self.dtype}
        return {"digest": self.digest, "tasks": tasks, **{name: value for name, value in more.items() if value}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scores:
        tasks = {name: TaskScores(**task) for name, task in data["tasks"].items()}
        return cls(data["digest"], tasks, members=list(data.get("members", [])), dtype=data.get("dtype", ""))


def documents(task: TaskScores, metric: str) -> NDArray[np.float64]:
    """A number for each document [n] whose mean is the task's score R = sum w v / sum w: R + w_i / mean(w) (v_i - R)."""
    v = np.asarray(task.values[metric], dtype=np.float64)
    w = np.asarray(task.weights.get(metric, np.ones(len(v))), dtype=np.float64)
    score = w @ v / w.sum()
    return np.asarray(v if (w == 1).all() else score + w / w.mean() * (v - score))
