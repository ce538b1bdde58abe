"""What an experiment must not say: checks across its keys, each with file and line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cltk.errors import InputError, shown
from cltk.run.arguments import check_train
from cltk.run.methods import nearest, resolve_path
from cltk.run.plans import Cell, Plan, Where
from cltk.run.spec import Experiment, TextSpec
from cltk.run.spec_data import DataSpec, Source
from cltk.run.yaml import Keys

UPLOADS = ("push_to_hub", "trackio_space_id")


def checked(train: dict[str, Any], where: Where) -> dict[str, Any]:
    """`train` as it will be used; `where` places its keys.

    Raises:
        InputError: with file, line and key, for what TrainingArguments would refuse.
    """
    checked = check_train(train, where)
    if "seed" in checked:
        raise InputError(f"{where(('seed',))}: train.seed: use the top-level key `seed`")
    return checked


def check_stages(experiment: Experiment, where: Where) -> None:
    """One task or a stream of them."""
    stages = experiment.stages
    if (experiment.data is None) == (not stages):
        both = "not both" if stages else "one of them is required"
        raise InputError(f"{where(('stages',) if stages else ())}: data, stages: give `data` (one task) or `stages`, {both}")
    learned = [entry if isinstance(entry, str) else entry.label for entry in experiment.evals.learn]
    for i, stage in enumerate(stages):
        if "output_dir" in stage.train:
            raise InputError(f"{where(('stages', i, 'train'))}: stages.{i}.train.output_dir: give it in the file's own `train`")
        if stage.score is not None and stage.score not in learned:
            known = nearest(stage.score, learned) if learned else "; evals.learn is empty"
            raise InputError(
                f"{where(('stages', i, 'score'))}: stages.{i}.score: {shown(stage.score)} is not in evals.learn{known}"
            )


def check_documents(cells: list[Cell], where: Where) -> None:
    """What two-phase measuring needs: references that are cells of this file, and one training a cell."""
    methods = {cell.method for cell in cells}
    for cell in cells:
        documents, at = cell.config.evals.documents, where(("evals", "documents"))
        if documents and cell.config.stages:
            raise InputError(f"{at}: evals.documents: a stream is scored whole, stage by stage; use sample instead")
        for name in documents.references if documents else ():
            if name not in methods:
                raise InputError(
                    f"{at}: evals.documents.reference: no cell has the method {shown(name)}{nearest(name, methods)}"
                )


def check_names(experiment: Experiment, where: Where) -> None:
    """Tables and records know measures and stages by their names, so each has its own."""
    named: list[tuple[Keys, str]] = [
        (("evals", role, i), entry if isinstance(entry, str) else entry.label)
        for role in ("retain", "learn")
        for i, entry in enumerate(getattr(experiment.evals, role))
    ]
    named += [(("stages", i, "name"), stage.name) for i, stage in enumerate(experiment.stages)]
    taken = {} if experiment.stages else {"heldout": "the new task's held-out rows have it"}
    if taken and (experiment.search or experiment.evals.split):
        taken["validation"] = "the new task's validation rows have it"
    for keys, name in named:
        dotted = ".".join(map(str, keys))
        if name in taken:
            raise InputError(f"{where(keys)}: {dotted}: the name {shown(name)} is taken ({taken[name]}); give another `name`")
        taken[name] = f"{where(keys)}: {dotted}"


def check_files(experiment: Experiment, folder: Path, where: Where) -> None:
    """Raises InputError, with file, line and key, for a file or folder that is named and not there."""
    evals = experiment.evals
    tasks: list[tuple[Keys, DataSpec]] = [(("stages", i, "data"), stage.data) for i, stage in enumerate(experiment.stages)]
    tasks += [(("data",), experiment.data)] if experiment.data else []
    places: list[tuple[Keys, str]] = []
    for at, data in tasks:
        alone = isinstance(data.train, Source)
        places += [((*at, "train", *(() if alone else (i,)), "path"), s.path) for i, (_, s) in enumerate(data.sources)]
        others = {key: getattr(data, key) for key in ("validation", "heldout")}
        places += [((*at, key, "path"), source.path) for key, source in others.items() if isinstance(source, Source)]
    for role, entries in (("retain", evals.retain), ("learn", evals.learn)):
        places += [(("evals", role, i, "text"), e.text) for i, e in enumerate(entries) if isinstance(e, TextSpec)]
    if evals.include_path:
        places.append((("evals", "include_path"), evals.include_path))
        if not os.path.isdir(folder / evals.include_path):
            raise InputError(f"{where(places[-1][0])}: evals.include_path: {folder / evals.include_path} is not a folder")
    for keys, value in places:
        try:
            resolve_path(value, folder, ".".join(map(str, keys)))
        except InputError as error:
            raise InputError(f"{where(keys)}: {error}") from None


def check_stream(data: DataSpec, train: dict[str, Any], where: Callable[[str], str]) -> None:
    """That a training on a stream says how long it is.

    Args:
        where: "data" or "train" -> file and line.

    Raises:
        InputError: no max_steps, or epochs.
    """
    if not data.streamed:
        return
    if train.get("num_train_epochs"):
        raise InputError(
            f"{where('train')}: train.num_train_epochs: data.train is a stream, whose epochs have no known length;"
            " give max_steps"
        )
    if int(train.get("max_steps") or -1) < 1:
        raise InputError(f"{where('data')}: data.train.streaming: the length of a stream is not known; give train.max_steps")


def check_trust(plan: Plan) -> None:
    """A file that came from elsewhere runs no code unless the user says so outside of it. Raises InputError."""
    where, configs = plan.file, [cell.config for cell in plan.cells]
    if any(config.model.trust_remote_code for config in configs):
        raise InputError(f"{where}: model.trust_remote_code runs the Python of the model; add --trust if you trust it")
    if any(getattr(config.evals, "confirm_run_unsafe_code", False) for config in configs):
        raise InputError(f"{where}: evals.confirm_run_unsafe_code runs what the model writes; add --trust if you trust it")
    for train in [config.train for config in configs] + [stage.train for config in configs for stage in config.stages]:
        if key := next((key for key in UPLOADS if train.get(key)), None):
            raise InputError(f"{where}: train.{key} uploads to a hub in your name; add --trust if you trust the file")
