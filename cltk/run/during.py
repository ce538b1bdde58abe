"""`evals.during`: the watch of a cell, made of what its experiment measures anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cltk.errors import InputError
from cltk.hosts.order import check_order
from cltk.hosts.watch import Watch
from cltk.measure.evaluate import Suite
from cltk.run import records
from cltk.run.methods import nearest
from cltk.run.sources import prompting, text_task
from cltk.run.spec import TextSpec

if TYPE_CHECKING:
    from cltk.run.inputs import Inputs
    from cltk.run.plans import Cell


def watch_of(inputs: Inputs, cell: Cell) -> Watch | None:
    """A new watch of evals.retain (or of those that `during.retain` names), and of the row that is the score.

    Raises:
        InputError: it names something that evals does not have; what `Watch` refuses, by the keys of the YAML.
    """
    during = cell.config.evals.during
    if during is None:
        return None
    try:
        made = Watch(
            _suite(inputs, cell), every=during.every, stop_at=during.stop_at or None, keep_best=during.keep_best,
            score=during.score, batch_size=cell.config.evals.batch_size,
        )  # fmt: skip
    except InputError as error:
        raise _named(error) from None
    return made


def check_watch(inputs: Inputs, cell: Cell, mitigators: Sequence[Any]) -> None:
    """What can be found wrong before weights are loaded. Raises InputError."""
    made = watch_of(inputs, cell)
    if made is None:
        return
    try:
        made.check(inputs.tokenizer(cell) if cell.config.evals.chat_template else None)
        check_order([*mitigators, made])
    except InputError as error:
        raise _named(error) from None


def _named(error: InputError) -> InputError:
    text = str(error)
    return InputError(text.replace("watch.", "evals.during.", 1) if text.startswith("watch.") else f"evals.during: {text}")


def _suite(inputs: Inputs, cell: Cell) -> Suite:
    evals = cell.config.evals
    during = evals.during
    assert during is not None
    labels = {(e if isinstance(e, str) else e.label): e for e in evals.retain}
    for name in during.retain or ():
        if name not in labels:
            raise InputError(f"watch.retain: {name!r} is not in evals.retain{nearest(name, labels)}")
    chosen = [entry for name, entry in labels.items() if during.retain is None or name in during.retain]
    chosen += [entry for entry in evals.learn if (entry if isinstance(entry, str) else entry.label) == during.score]
    if not chosen:
        raise InputError("watch: evals.retain is empty, so there is nothing to watch")
    key = records.digest_of(["during", during.model_dump(), inputs.measured(cell)])
    if key not in inputs.suites:
        listed, seed = inputs.entries(chosen), evals.sample_seed or 0
        texts = [text_task(entry, evals, inputs.plan.folder) for entry in listed if isinstance(entry, TextSpec)]
        if during.sample is not None:
            texts = [text.sampled(during.sample, seed) for text in texts]
        tasks = [inputs.named(entry.task) for entry in listed if not isinstance(entry, TextSpec)]
        samples = dict.fromkeys(tasks, during.sample) if during.sample is not None else None
        inputs.suites[key] = Suite(
            tasks, texts=texts, sample=samples or None, sample_seed=seed, **prompting(evals, inputs.plan.folder, inputs.trust)
        )
    return inputs.suites[key]
