"""Part of a suite's documents: which they are, and the suite of them alone."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cltk.errors import InputError
from cltk.measure.documents import clusters
from cltk.measure.forgetting import headline
from cltk.measure.inclusion import draw, flip_sizes
from cltk.measure.sampling import choose
from cltk.measure.scores import Scores, TaskScores
from cltk.measure.stats import Floats
from cltk.measure.twophase import MARGIN_OF

if TYPE_CHECKING:
    from cltk.measure.evaluate import Suite


def positions(suite: Suite, n: int | Mapping[str, int]) -> dict[str, list[int]]:
    """Task or text -> places of about n among the documents that the suite scores of it, drawn at random, clusters whole.

    A task with no more than n is left out, as one that a mapping does not name: all of it is scored. A larger n has the
    documents of a smaller one, but for what whole clusters of unequal size make of it.

    Raises:
        InputError: a group, whose row is not of one list of documents.
    """
    loaded = suite.load()
    if groups := suite.groups():
        raise InputError(f"{groups[0].name} is a group; name its tasks to score part of their documents")
    found: dict[str, tuple[int, list[str]]] = {}
    for name, task in loaded["tasks"].items() if loaded else ():
        documents = suite.chosen[name].of(task.eval_docs)
        found[name] = len(documents), clusters(name, task.dump_config(), documents)
    found |= {text.name: (len(text.rows), text.labels()) for text in suite.texts}
    seed = suite.selection.seed
    wanted = dict.fromkeys(found, n) if isinstance(n, int) else n
    drawn = {
        name: choose(total, wanted[name], f"{seed} {name} part", labels)
        for name, (total, labels) in found.items()
        if wanted.get(name, total) < total
    }
    return {name: places for name, places in drawn.items() if len(places) < found[name][0]}


def by_document(suite: Suite, pre: Scores) -> list[str]:
    """The tasks and texts that have scores document by document: corpus metrics and what failed need all of them, or none."""
    return [name for name in suite.sizes() if name not in pre.tasks or pre.tasks[name].values]


def by_margin(
    suite: Suite, n: int, pre: Scores, references: Sequence[Scores]
) -> tuple[dict[str, list[int]], dict[str, Floats]]:
    """`positions`, but for accuracies: documents that another model may flip come more often, by the start model's margin.

    Args:
        pre, references: scores of the start model and of other models on all documents of the suite.

    Returns:
        Task -> places of about n documents, and of the tasks that were drawn by margin task -> every document's probability
        [N]. The others, texts among them, have no margin of the metric that stands for them, and equal probabilities.
    """
    places = positions(suite, dict.fromkeys(by_document(suite, pre), n))
    chances: dict[str, Floats] = {}
    for name in list(places):
        if name not in pre.tasks or (sizes := _sizes(pre.tasks[name], [one.tasks[name] for one in references])) is None:
            continue
        places[name], chance = draw(sizes, n, pre.tasks[name].cluster, f"{suite.selection.seed} {name} part by margin")
        if len(places[name]) == len(sizes):
            del places[name]  # whole
        elif np.ptp(chance):
            chances[name] = chance
    return places, chances


def _sizes(start: TaskScores, references: Sequence[TaskScores]) -> Floats | None:
    """How likely another model flips each document [N]; None where the headline is no accuracy with a margin, or not of all."""
    metric = headline(list(start.values))
    margin = MARGIN_OF.get(metric.split(",")[0], "")
    if margin not in start.values or metric in start.weights or margin in start.weights:
        return None
    before = np.asarray(start.values[metric], np.float64)
    lost = [before - np.asarray(one.values[metric], np.float64) for one in references if metric in one.values]
    if not lost:
        return None
    return flip_sizes(start.values[margin], np.sqrt(np.mean(np.square(lost), axis=0)))


def restricted(suite: Suite, places: Mapping[str, Sequence[int]]) -> Suite:
    """The suite of the documents at `places` alone, of whole tasks where they are not named."""
    suite.load()
    other = copy.copy(suite)
    other.chosen = {name: one.part(places.get(name)) for name, one in suite.chosen.items()}
    if suite.limit is not None:  # lm-eval takes a limit or places, and these are of its documents already
        other.limit = None
        other.chosen = {name: one.part(range(one.count)) if one.indices is None else one for name, one in other.chosen.items()}
    other.texts = [
        replace(text, rows=[text.rows[i] for i in places[text.name]]) if text.name in places else text for text in suite.texts
    ]
    return other


def check_prompts(suite: Suite, part: Suite, tokenizer: Any = None) -> None:
    """Raises InputError where a document has another prompt in the part than in the whole, as drawn examples may make it."""
    whole = suite._requests(tokenizer)
    for name, asked in part._requests(tokenizer).items():
        if Counter(map(repr, asked)) - Counter(map(repr, whole[name])):
            raise InputError(
                f"task {name}: its examples are drawn document by document, so that part of the documents has other prompts;"
                " set num_fewshot: 0, or score all of them"
            )
