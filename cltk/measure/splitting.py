"""The documents that a suite scores, in two parts: some to choose settings on, the others to report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cltk.data.messages import words
from cltk.errors import InputError
from cltk.measure.documents import clusters
from cltk.measure.sampling import choose
from cltk.measure.subset import restricted

if TYPE_CHECKING:
    from cltk.measure.evaluate import Suite


def halves(
    name: str, total: int, share: float, seed: int, labels: Sequence[str] = ()
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Places of the validation and of the test documents: each of `total` is one of the two, and clusters are whole.

    About share x total documents are validation's, drawn at random by the seed (`cltk.measure.sampling.choose`): of two tasks
    on the same documents, or on translations of them, a document is in the same part.

    Raises:
        InputError: one part would be empty.
    """
    chosen = set(choose(total, share, f"{seed} validation", labels))
    parts = sorted(chosen), [at for at in range(total) if at not in chosen]
    if not all(parts):
        units = f"{len(set(labels))} clusters" if labels else f"{total} documents"
        empty = "validation" if not parts[0] else "test"
        raise InputError(
            f"{name}: of its {units} none is left for the {empty} part (search.validation, evals.split.validation: {share:g});"
            " measure more of them, or change the share"
        )
    return parts


def whole(documents: Sequence[Any], labels: Sequence[str] = ()) -> list[str]:
    """Labels of what goes into one part together: clusters, and those that share a document with equal words; [] for none."""
    keys = [json.dumps(one, sort_keys=True, default=str) for one in documents]
    labels = list(labels) or [str(at) for at in range(len(keys))]
    above: dict[str, str] = {}
    seen: dict[str, str] = {}

    def root(label: str) -> str:
        while label in above:
            label = above[label]
        return label

    for key, label in zip(keys, labels, strict=True):
        one, other = root(label), root(seen.setdefault(key, label))
        if one != other:
            above[one] = other
    found = [root(label) for label in labels]
    return found if len(set(found)) < len(found) else []


def part_of(suite: Suite, share: float, validation: bool) -> Suite:
    """The suite of the validation part, or of the other, of every task and text; groups by the parts of their tasks.

    Raises:
        InputError: a part would be empty.
    """
    loaded, seed, side = suite.load(), suite.selection.seed, 0 if validation else 1
    places: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for name, task in loaded["tasks"].items() if loaded else ():
        documents = suite.chosen[name].of(task.eval_docs)
        sizes[name] = len(documents)
        labels = whole(documents, clusters(name, task.dump_config(), documents))
        places[name] = halves(name, len(documents), share, seed, labels)[side]
    for text in suite.texts:
        sizes[text.name] = len(text.rows)
        said = [row if "input_ids" in row else words(row, text.name) for row in text.rows]
        places[text.name] = halves(text.name, len(text.rows), share, seed, whole(said, text.labels()))[side]
    notes = {
        name: f"{len(places[name])} of its {total} documents, the {'validation' if validation else 'test'} part of a split"
        f" ({share:g} validation, seed {seed})"
        for name, total in sizes.items()
    }
    other = restricted(suite, places)
    other.chosen = {name: replace(one, notes=[*one.notes, notes[name]]) for name, one in other.chosen.items()}
    other.texts = [replace(text, note="; ".join(filter(None, [text.note, notes[text.name]]))) for text in other.texts]
    return other
