"""The documents that were lost, in words: the question, the right answer, and what the model said before and after."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cltk.measure.results import Result
from cltk.measure.scores import Scores

Sample = Mapping[str, Any]  # one document as lm-eval logs it
Find = Callable[[str, Collection[str]], Mapping[str, Sample]]  # task, hashes -> the samples that there are, by hash


@dataclass(frozen=True)
class Lost:
    """One document that got worse. Margins: log-probability of the right choice minus the best other one's, in nats."""

    task: str
    metric: str
    doc_hash: str
    loss: float  # in the metric's unit
    question: str
    right: str
    before: str  # the choice that was picked, or what was written; "" where neither is logged
    after: str
    margin_before: float | None = None
    margin_after: float | None = None


def lost_documents(result: Result, before: Find, after: Find, most: int) -> list[Lost]:
    """Of each task's headline metric, the documents that lost most, at most `most` a task.

    Documents that lost as much as others come in the order in which their margin fell most. Texts, and tasks without logged
    samples, have none.
    """
    found = []
    for task, rows in result.samples.items():
        metric = result.headline[task]
        worse = [row for row in rows if (row.get(f"{metric}_d") or 0) > 0]
        worse = sorted(worse, key=lambda row: (-row[f"{metric}_d"], -(row.get("margin_d") or 0)))[:most]
        wanted = {row["doc_hash"] for row in worse}
        old, new = before(task, wanted), after(task, wanted)
        for row in worse:
            key = row["doc_hash"]
            if key in old and key in new:
                found.append(_lost(task, metric, row, old[key], new[key]))
    return found


def with_lost(result: Result, pre: Scores, post: Scores, most: int) -> Result:
    """The comparison with `most` lost documents of each task; as it is for 0."""
    old, new = (among(one.lm_eval.get("samples") or {}) for one in (pre, post))
    return replace(result, lost=lost_documents(result, old, new, most)) if most else result


def among(samples: Mapping[str, list[dict[str, Any]]]) -> Find:
    """Looks in lm-eval's samples of one evaluation; of a group in those of its tasks."""

    def find(task: str, wanted: Collection[str]) -> dict[str, Sample]:
        listed = samples.get(task) or [one for found in samples.values() for one in found]
        return {one["doc_hash"]: one for one in reversed(listed) if one["doc_hash"] in wanted}

    return find


def requests_of(sample: Sample) -> list[list[Any]]:
    """The arguments of each request: lists, or as files have them, gen_args_0 with arg_0 and so on."""
    given = sample["arguments"]
    if isinstance(given, Mapping):
        return [list(one.values()) if isinstance(one, Mapping) else list(one) for one in given.values()]
    return [list(one) for one in given]


def _lost(task: str, metric: str, row: Mapping[str, Any], old: Sample, new: Sample) -> Lost:
    asked = requests_of(old)
    scores = [_logprobs(one) for one in (old, new)]
    texts = [str(one[1]) if len(one) > 1 else "" for one in asked]
    if len(set(texts)) < len(texts):  # choices that differ in what stands before the answer
        texts = [str(one[0]) for one in asked]
    common = (task, metric, row["doc_hash"], row[f"{metric}_d"], _question(old, asked))
    if len(asked) < 2 or not all(len(one) >= len(asked) for one in scores):
        return Lost(*common, _written(old["target"]), _written(_response(old)), _written(_response(new)))
    first, then = _picks(texts, scores[0], scores[1], metric.split(",")[0] == "acc_norm")
    pre, post = (one[first] - max(x for i, x in enumerate(one[: len(texts)]) if i != first) for one in scores)
    return Lost(*common, texts[first].strip(), texts[first].strip(), texts[then].strip(), pre, post)


def _picks(texts: list[str], old: list[float], new: list[float], by_length: bool) -> tuple[int, int]:
    """The choice before, which was the right one as the document was lost, and the one after: by log-probability (`by_length`:
    by that a character), or by the other where this did not change."""
    ways = [[1] * len(texts), [max(len(text.strip()), 1) for text in texts]]
    found = (0, 0)
    for lengths in reversed(ways) if by_length else ways:
        found = tuple(max(range(len(texts)), key=lambda i: one[i] / lengths[i]) for one in (old, new))  # type: ignore[assignment]
        if found[0] != found[1]:
            break
    return found


def _logprobs(sample: Sample) -> list[float]:
    """One a request, where the answers are log-probabilities."""
    given = [one[0] if isinstance(one, list | tuple) and one else one for one in sample["filtered_resps"]]
    try:
        return [float(one) for one in given]
    except (TypeError, ValueError):
        return []


def _question(sample: Sample, asked: list[list[Any]]) -> str:
    contexts = {str(one[0]) for one in asked}
    return str(asked[0][0]) if len(contexts) == 1 else json.dumps(sample["doc"], ensure_ascii=False, default=str)


def _response(sample: Sample) -> Any:
    """What was written; of a single log-probability nothing."""
    first = next(iter(sample["filtered_resps"]), "")
    return "" if _logprobs(sample) and isinstance(first, list | tuple) else first


def _written(value: Any) -> str:
    return " | ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
