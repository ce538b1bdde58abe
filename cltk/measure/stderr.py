"""Standard errors for lm-eval's result files, exact and at once where lm-eval draws 100,000 bootstrap samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cltk.measure.bootstrap import METRICS, confusion_se


def fill_stderr(raw: dict[str, Any]) -> None:
    """Replace "N/A" in lm-eval's results by the unpaired standard error of each task's metric, in place.

    Means: sd / sqrt(n), as lm-eval computes them. f1 and mcc of binary labels: the multinomial law of the confusion cells,
    which is the law of the document bootstrap. Anything else stays "N/A".
    """
    for task, samples in raw.get("samples", {}).items():
        results = raw["results"][task]
        for key in [key for key, value in results.items() if "_stderr," in key and value == "N/A"]:
            metric, _, chosen = key.partition("_stderr,")
            values = [sample[metric] for sample in samples if sample["filter"] == chosen and metric in sample["metrics"]]
            error = standard_error(metric, values, results[f"{metric},{chosen}"])
            if error is not None:
                results[key] = error


def standard_error(metric: str, values: Sequence[Any], aggregate: float) -> float | None:
    """The standard error of `aggregate`, when it is the mean of `values`, or f1 or mcc of (gold, predicted) pairs."""
    if len(values) < 2:
        return None
    if metric in METRICS and all(isinstance(pair, tuple | list) and set(pair) <= {0, 1} for pair in values):
        gold, predicted = np.asarray(values, dtype=bool).T
        cells = [gold & predicted, ~gold & predicted, gold & ~predicted, ~gold & ~predicted]
        return confusion_se([int(cell.sum()) for cell in cells], metric)
    if all(isinstance(value, bool | int | float | np.number) for value in values):
        scores = np.asarray(values, dtype=float)
        if np.isclose(scores.mean(), aggregate, rtol=1e-9, atol=1e-12):
            return float(scores.std(ddof=1) / np.sqrt(len(scores)))
    return None
