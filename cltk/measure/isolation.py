"""What a task's own code raises while answers are scored costs neither the other tasks nor the task's other metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from cltk.errors import CltkError, reason

PASSING = (CltkError, MemoryError, torch.OutOfMemoryError, Warning)  # no fault of a task's code
Failures = dict[str, dict[str, str]]  # task -> what failed -> the first reason


@contextmanager
def isolated(tasks: Mapping[str, Any]) -> Iterator[Failures]:
    """While lm-eval scores inside, an error in one task's own code costs neither the other tasks nor the other metrics.

    Filters, `process_results` and `doc_to_target` that raise are noted, and nothing is made of that document; an aggregation
    that raises gives nan. What is noted makes no number: who asks must leave the task out.
    """
    failures: Failures = {}
    for name, task in tasks.items():
        noted = failures.setdefault(name, {})
        vars(task).update(
            apply_filters=partial(_filtered, task, task.apply_filters, noted),
            process_results=partial(_noted, task.process_results, "process_results", noted, {}),
            doc_to_target=partial(_noted, task.doc_to_target, "doc_to_target", noted, None),
            aggregation=partial(_Aggregations, task.aggregation),
        )
    try:
        yield failures
    finally:
        for task in tasks.values():
            for name in ("apply_filters", "process_results", "doc_to_target", "aggregation"):
                del vars(task)[name]


def _noted(act: Callable[..., Any], what: str, noted: dict[str, str], instead: Any, *given: Any, **named: Any) -> Any:
    """`act(...)`, or `instead` with a note of the first error."""
    try:
        found = act(*given, **named)
        if instead == {} and not isinstance(found, Mapping):
            raise TypeError(f"it gives {type(found).__name__}, not metrics by name")
        return found
    except PASSING:
        raise
    except Exception as error:
        noted.setdefault(what, reason(error))
        return instead


def _filtered(task: Any, act: Callable[[], Any], noted: dict[str, str]) -> Any:
    """Filters, and that every request has been through all of them; else no request has."""
    found = _noted(act, "a filter", noted, None)
    kept = {tuple(instance.filtered_resps) for instance in task.instances}
    if len(kept) > 1:
        noted.setdefault("a filter", "it gives no answer for some documents")
    if "a filter" in noted:
        for instance in task.instances:
            instance.filtered_resps.clear()
    return found


class _Aggregations(dict[str, Any]):
    """A task's aggregations by metric, lm-eval's mean where it has none, that give nan where they raise."""

    def __init__(self, own: Callable[[], Mapping[str, Any]]) -> None:
        super().__init__({metric: partial(_number_or_nan, act) for metric, act in own().items()})

    def __missing__(self, metric: str) -> Any:
        from lm_eval.api.metrics import mean

        return partial(_number_or_nan, mean)


def _number_or_nan(act: Callable[..., Any], items: Any) -> Any:
    try:
        return act(items)
    except PASSING:
        raise
    except Exception:
        return math.nan
