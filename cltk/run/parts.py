"""Cells that score part of the documents: which documents, what predicts the others, and what the record says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cltk.errors import InputError
from cltk.measure.evaluate import Suite
from cltk.measure.forgetting import ACCURACIES, Result, compare, headline
from cltk.measure.looks import Looks
from cltk.measure.partial import FIRST, compare_part, marked, until
from cltk.measure.scores import Scores
from cltk.measure.stats import Floats
from cltk.measure.subset import by_document, by_margin, check_prompts, positions, restricted
from cltk.run.plans import Cell


@dataclass(frozen=True)
class Part:
    """The documents that a cell scored, and the models that scored them all."""

    places: dict[str, list[int]]  # task -> of the documents that were scored; tasks left out: all
    references: dict[str, Scores]  # method -> scores of all documents
    looks: dict[str, Looks] = field(default_factory=dict)
    chances: dict[str, Floats] = field(default_factory=dict)  # task -> every document's probability, where not all are equal
    notes: dict[str, str] = field(default_factory=dict)  # task -> how it was drawn, where that is not what was asked for

    def to_json(self, pre: Scores) -> dict[str, Any]:
        """For a record: counts, places among the start model's documents, their probabilities where these are unequal, looks,
        and the weights of the references."""
        chance = {name: np.asarray(found)[self.places[name]].tolist() for name, found in self.chances.items()}
        return {
            "references": {name: scores.digest for name, scores in self.references.items()},
            "scored": {name: [len(places), len(pre.tasks[name])] for name, places in self.places.items()},
            "places": self.places,
            "looks": {name: len(one.information) for name, one in self.looks.items()},
            **({"chance": chance} if chance else {}),
        }


def check_part(cell: Cell, suite: Suite, tokenizer: Any) -> None:
    """What would make a part of the documents another measurement, asked before weights are loaded.

    Raises:
        InputError: a group; prompts that depend on the documents before them.
    """
    documents = cell.config.evals.documents
    assert documents is not None
    try:
        places = positions(suite, FIRST if documents.scored == "auto" else documents.scored)
        check_prompts(suite, restricted(suite, places), tokenizer)
    except InputError as error:
        raise InputError(f"evals.documents: {error}") from None


def check_rows(suite: Suite, pre: Scores) -> None:
    """Raises InputError for a text of which not every row has a score: places would not be those of the rows."""
    for text in suite.texts:
        if text.name in pre.tasks and len(pre.tasks[text.name]) != len(text.rows):
            left = len(text.rows) - len(pre.tasks[text.name])
            raise InputError(f"evals.documents: {left} rows of {text.name} have no token to predict; remove them from the file")


def score_part(
    cell: Cell, suite: Suite, pre: Scores, references: dict[str, Scores], evaluate: Callable[[Suite], Scores]
) -> tuple[Scores, Part]:
    """The scores of as many documents as the experiment asks for."""
    documents = cell.config.evals.documents
    assert documents is not None
    if documents.scored == "auto":
        assert documents.half_width is not None
        post, places, looks = until(suite, pre, list(references.values()), documents.half_width, evaluate)
        return post, Part(places, references, looks)
    places, chances = (
        by_margin(suite, documents.scored, pre, list(references.values()))
        if documents.draw == "margin"
        else (positions(suite, dict.fromkeys(by_document(suite, pre), documents.scored)), {})
    )
    notes = _drawn_equally(pre, places, chances) if documents.draw == "margin" else {}
    post = marked(evaluate(restricted(suite, places)), places, pre, chances)
    return post, Part(places, references, chances=chances, notes=notes)


def _drawn_equally(pre: Scores, places: Mapping[str, list[int]], chances: Mapping[str, Floats]) -> dict[str, str]:
    """Tasks of accuracies whose documents could not be drawn by margin."""
    metrics = {name: headline(list(pre.tasks[name].values)) for name in places if name not in chances}
    return {
        name: f"{name}: drawn with equal probabilities, as {metric} has no margin there or the references lost none of it"
        for name, metric in metrics.items() if metric.split(",")[0] in ACCURACIES
    }  # fmt: skip


def compared(
    pre: Scores, post: Scores, part: Part | None, only: Callable[[Scores], Scores], margins: Mapping[str, float]
) -> Result:
    """The forgetting between the two on the tasks that `only` leaves."""
    if part is None:
        return compare(only(pre), only(post), margins=margins)
    names = only(pre).tasks
    places = {name: found for name, found in part.places.items() if name in names}
    looks = {name: one for name, one in part.looks.items() if name in names}
    chances = {name: one for name, one in part.chances.items() if name in names}
    references = [only(one) for one in part.references.values()]
    result = compare_part(only(pre), only(post), references, places, chances=chances, looks=looks, margins=margins)
    return replace(result, notes=[*result.notes, *(note for name, note in part.notes.items() if name in names)])
