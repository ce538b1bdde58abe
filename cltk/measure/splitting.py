"""The documents that a suite scores, in two parts: some to choose settings on, the others to report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

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

    About share x total documents are validation's, drawn at random by seed and name (`cltk.measure.sampling.choose`).

    Raises:
        InputError: one part would be empty.
    """
    chosen = set(choose(total, share, f"{seed} {name} validation", labels))
    parts = sorted(chosen), [at for at in range(total) if at not in chosen]
    if not all(parts):
        units = f"{len(set(labels))} clusters" if labels else f"{total} documents"
        empty = "validation" if not parts[0] else "test"
        raise InputError(
            f"{name}: of its {units} none is left for the {empty} part (search.validation, evals.split.validation: {share:g});"
            " measure more of them, or change the share"
        )
    return parts


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
        places[name] = halves(name, len(documents), share, seed, clusters(name, task.dump_config(), documents))[side]
    for text in suite.texts:
        sizes[text.name] = len(text.rows)
        places[text.name] = halves(text.name, len(text.rows), share, seed, text.labels())[side]
    notes = {
        name: f"{len(places[name])} of its {total} documents, the {'validation' if validation else 'test'} part of a split"
        f" ({share:g} validation, seed {seed})"
        for name, total in sizes.items()
    }
    other = restricted(suite, places)
    other.chosen = {name: replace(one, notes=[*one.notes, notes[name]]) for name, one in other.chosen.items()}
    other.texts = [replace(text, note="; ".join(filter(None, [text.note, notes[text.name]]))) for text in other.texts]
    return other
