"""Two named or live models in looks: scored on more and more documents, with a journal of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cltk import tensors
from cltk.errors import InputError
from cltk.measure.evaluate import Progress, Suite
from cltk.measure.forgetting import Result
from cltk.measure.journal import Journal
from cltk.measure.scores import Scores
from cltk.measure.stepwise import stepwise
from cltk.measure.templates import Templates
from cltk.models.adapters import SwitchedOff, acting
from cltk.ranks import agreed


def check_looks(until: float | None, every_task: bool, models: int, templates: Templates) -> None:
    """Raises InputError for settings of looks without looks, and for looks that cannot be."""
    if every_task and until is None:
        raise InputError("every_task: says whose interval `until` is about; give until too")
    if until is not None and models > 1:
        raise InputError("until: the looks depend on the tuned model, so measure one at a time")
    if until is not None and templates.apart:
        raise InputError("until: both sides must be asked the same; take one side's chat template for both")


def in_looks(
    suite: Suite, pairs: list[tuple[Any, Any]], until: float, every_task: bool, margins: Mapping[str, float] | None,
    batch_size: Any, scorer: str, progress: Progress | None,
) -> tuple[Result, Scores]:  # fmt: skip
    """`stepwise` with a journal of its own: what a look has scored no later one scores again."""
    digests = [model.digest if isinstance(model, SwitchedOff) else tensors.digest(model) for model, _ in pairs]
    with TemporaryDirectory() as folder:
        books = [Journal(Path(folder) / f"{number}.jsonl") for number in range(2)]

        def one(part: Suite, number: int) -> Scores:
            how: dict[str, Any] = {"batch_size": batch_size, "journal": books[number], "progress": progress, "scorer": scorer}
            with acting(pairs[number][0]) as model:
                return agreed(part.evaluate(model, pairs[number][1], digest=digests[number], **how))

        def score(part: Suite) -> tuple[Scores, Scores]:
            return one(part, 0), one(part, 1)

        return stepwise(suite, score, until, every_task=every_task, margins=margins, tokenizer=pairs[0][1])
