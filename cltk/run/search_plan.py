"""What `search:` asks of an experiment, before anything runs: whose cells it is about, and a cell with some values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cltk.errors import InputError
from cltk.ranks import first
from cltk.run import records
from cltk.run.checked import checked
from cltk.run.methods import check_mitigators, nearest
from cltk.run.needs import split
from cltk.run.overrides import put
from cltk.run.plans import Cell, Where
from cltk.run.spec import Experiment
from cltk.run.spec_data import Source
from cltk.run.spec_search import SearchSpec, SplitSpec
from cltk.run.yaml import Keys

if TYPE_CHECKING:
    from cltk.run.experiment import ExperimentRun

PLACES = "train.KEY or mitigators.NAME.KEY, such as mitigators.ewc.strength"


def searched(cells: Sequence[Cell], search: SearchSpec) -> list[Cell]:
    """The cells that are to have the values of the search: all of one method, one a seed."""
    method = search.method or cells[0].method
    return [cell for cell in cells if cell.method == method]


def restate(run: ExperimentRun, cells: Sequence[Cell]) -> None:
    """Records that stand there have the search's present rules: a record is no other for another budget, its verdict is."""
    for cell in cells if first() else ():
        file = run.folder(cell) / records.RECORD
        if cell.search and file.exists() and (old := records.read_json(file)).get("search") != cell.search:
            records.write_json(file, {**old, "search": cell.search})


def with_split(config: Experiment, search: SearchSpec | None) -> Experiment:
    """A cell's configuration beside a search: what the search has looked at is not measured."""
    if search is None:
        return config
    evals = config.evals.model_copy(update={"split": SplitSpec(validation=search.validation)})
    return config.model_copy(update={"search": None, "evals": evals})


def with_values(cell: Cell, values: Mapping[str, Any], folder: Path, where: Where | None = None) -> Cell:
    """The cell with these values, checked as a file's.

    Raises:
        InputError: a key that is neither a training argument nor an argument of a method of the cell, or a value it refuses.
    """
    config, entries = cell.config, list(cell.config.mitigators)
    train = dict(config.train)
    for key, value in values.items():
        at = f"{where(('search', 'over', key))}: search.over.{key}" if where else f"search.over.{key}"
        head, _, rest = key.partition(".")
        if head == "train" and rest and rest not in ("output_dir", "seed"):
            train[rest] = value
        elif head == "mitigators" and "." in rest:
            name, argument = rest.split(".", 1)
            names = [split(entry)[0] for entry in entries]
            if name not in names:
                has = f"the method has {', '.join(names)}" if names else "the method is plain"
                raise InputError(f"{at}: {has}, and no {name}{nearest(name, names) if names else ''}")
            place = names.index(name)
            entries[place] = {name: put(split(entries[place])[1], argument.split("."), value, at)}
        else:
            raise InputError(f"{at}: cannot be searched; keys are {PLACES}")

    def placed(keys: Keys) -> str:  # a training argument or mitigator -> the key of the search that sets it
        words = [one for one in keys if isinstance(one, str)]
        own = next((key for key in values if words and set(words) <= set(key.split("."))), next(iter(values)))
        return where(("search", "over", own)) if where else f"search.over.{own}"

    train = checked(train, placed)
    check_mitigators(entries, folder, placed)
    return replace(cell, config=config.model_copy(update={"train": train, "mitigators": entries}))


def check_search(experiment: Experiment, cells: Sequence[Cell], folder: Path, where: Where) -> None:
    """What the file alone says of a search.

    Raises:
        InputError: with file, line and key: what cannot stand beside a search, an unknown method, a key or value that the
            method does not take.
    """
    search = experiment.search
    if search is None:
        return
    own = f"{where(('search',))}: search"
    if experiment.stages:
        raise InputError(f"{own}: a stream has no one gain; search each training by itself, with `data`")
    for key in ("split", "documents", "during"):
        if getattr(experiment.evals, key) is not None:
            raise InputError(f"{where(('evals', key))}: evals.{key}: cannot stand beside `search`, which splits the documents")
    if not experiment.evals.retain:
        raise InputError(f"{own}: evals.retain is empty, so that nothing is forgotten and no budget binds; name old tasks")
    for data in (cell.data for cell in cells):
        sources = [one for one in (data.validation, data.heldout) if isinstance(one, Source)]
        if len({(one.path, one.name, one.split, one.revision) for one in sources}) < len(sources):
            raise InputError(
                f"{where(('data', 'heldout'))}: data.heldout: is data.validation, on which the search chooses; give other rows"
            )
    methods = list(dict.fromkeys(cell.method for cell in cells))
    at = f"{where(('search', 'method'))}: search.method"
    if search.method is None and len(methods) > 1:
        raise InputError(f"{at}: say which of the methods is searched: {', '.join(methods)}")
    if search.method is not None and search.method not in methods:
        raise InputError(f"{at}: no cell has the method {search.method!r}{nearest(search.method, methods)}")
    found = searched(cells, search)
    apart = {key for cell in found for key, value in cell.labels.items() if key != "seed" and value != found[0].labels.get(key)}
    if apart:
        raise InputError(f"{own}: the grid gives {found[0].method} several {', '.join(sorted(apart))}; put it into search.over")
    for key, space in search.over.items():
        for value in space.extremes:
            with_values(found[0], {key: value}, folder, where)
