"""What a model's config and tokeniser say of a suite before the weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cltk.measure.evaluate import Suite
from cltk.measure.harness import fits_positions
from cltk.measure.texts import TextTask, nothing_to_predict, predicts


def check_models(suite: Suite, models: Mapping[str, tuple[Any, Callable[[], Any]]]) -> None:
    """That every model has room for what the tasks generate, and every text a token to predict.

    Args:
        models: who -> (config or None where it cannot be had, what gives the tokenizer). A tokenizer is asked for only
            where something depends on it.

    Raises:
        InputError: a task asks for more new tokens than a model has positions, or for none; no row of a text has two tokens.
    """
    tasks = (suite.load() or {"tasks": {}})["tasks"]
    generated = {name: task for name, task in tasks.items() if task.OUTPUT_TYPE == "generate_until"}
    for config, tokenizer in models.values():
        if generated and config is not None:
            fits_positions(generated, config, tokenizer())
        for text in suite.texts:
            _check_text(text, tokenizer)


def _check_text(text: TextTask, tokenizer: Callable[[], Any]) -> None:
    ready = all("input_ids" in row for row in text.rows)
    if not predicts(text, None if ready else tokenizer()):
        raise nothing_to_predict(text)
