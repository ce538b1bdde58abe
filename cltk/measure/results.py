"""What a comparison says: a row a metric and task, their mean, and the documents behind them. Plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cltk.measure import frames
from cltk.measure.flips import Flips
from cltk.measure.intervals import Estimate

FORMAT = 1  # of a result's JSON


@dataclass(frozen=True)
class Row:
    """Forgetting of one metric on one task. `forgetting` is positive when the model got worse, whatever the metric.

    pre, post, forgetting, se, ci, margin and mde are in the metric's unit (accuracies are shares: 0.01 is 1 pp).
    """

    task: str
    metric: str
    n: int  # documents
    pre: float
    post: float
    forgetting: float  # pre - post when higher is better, else post - pre
    se: float  # paired, by cluster
    ci: tuple[float, float]  # 95 %
    p: float  # two-sided, of no change
    test: str  # what made p: "mcnemar exact", "sign-flip" (or the t test, if larger); "bootstrap" of the corpus; "two-phase t"
    lost: int | None  # documents 1 -> 0; None for continuous metrics
    gained: int | None  # documents 0 -> 1
    flips: Flips | None  # the same, corrected for guessing
    clusters: int
    margin: float
    tost_p: float  # of "differs by the margin or more, either way"
    noninferiority_p: float  # of "forgets the margin or more"
    verdict: str
    mde: float  # smallest forgetting that n documents show with 80 % power
    higher_is_better: bool
    documents: dict[str, Any] | None = None  # {scored, total, r2, n_eff} of a two-phase estimate, with {drawn, size} of an
    # unequal draw, size being the documents it counts as for losses that none shows; None: all were scored
    estimate: Estimate | None = field(default=None, repr=False, compare=False)  # what other margins are tested on; None: `ci`

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what is not finite (one cluster has no standard error) becomes null."""
        found = asdict(replace(self, estimate=None))
        del found["estimate"]
        return finite(found)


@dataclass(frozen=True, repr=False)
class Result:
    """The forgetting between two models: rows a (task, metric), the macro average, and the documents behind them."""

    rows: list[Row]
    macro: Row
    samples: dict[
        str, list[dict[str, Any]]
    ]  # task -> a row a document: doc_hash, prompt_hash, cluster, {metric}_pre, _post, _d
    headline: dict[str, str]  # task -> the metric that stands for it
    pre_digest: str
    post_digest: str
    divergence: dict[str, dict[str, Any]] = field(default_factory=dict)  # text -> forward KL(start || tuned), nats a token
    notes: list[str] = field(default_factory=list)  # what was asked for and is not so, what could not be compared, a line each
    settings: dict[str, Any] = field(default_factory=dict)  # what was measured, and how: see `cltk.measure.compare.measure`
    left_out: dict[str, str] = field(default_factory=dict)  # task, or task/metric, that could not be compared -> why
    members: list[str] = field(default_factory=list)  # tasks shown beside their group, which no average counts again
    choices: dict[str, list[float]] = field(default_factory=dict)  # task -> of each document, as `TaskScores` has them
    corpus: dict[str, dict[str, dict[str, list[float]]]] = field(
        default_factory=dict
    )  # task -> metric of all documents together -> {"pre", "post"}: its score, then that of every resample

    lost: list[Any] = field(default_factory=list)  # `cltk.measure.lost.Lost` of the documents asked for; not in the JSON

    def __repr__(self) -> str:
        return frames.text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return frames.html(self)

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame, the macro last; see `cltk.measure.frames.frame`."""
        return frames.frame(self)

    def documents(self, task: str) -> Any:
        """A task, document by document, as a pandas DataFrame; see `cltk.measure.frames.documents`. Raises InputError."""
        return frames.documents(self, task)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, which `cltk compare` reads back (`cltk schema result` describes it); what is not finite becomes null."""
        return finite({
            "format": FORMAT,
            "rows": [row.to_json() for row in self.rows],
            "macro": self.macro.to_json(),
            "samples": self.samples,
            "headline": self.headline,
            "pre_digest": self.pre_digest,
            "post_digest": self.post_digest,
            "divergence": self.divergence,
            "notes": self.notes,
            "settings": self.settings,
            **({"left_out": self.left_out} if self.left_out else {}),
            **({"members": self.members} if self.members else {}),
            **({"choices": self.choices} if self.choices else {}),
            **({"corpus": self.corpus} if self.corpus else {}),
        })  # fmt: skip


def finite(value: Any) -> Any:
    """The tree as JSON may hold it: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
