"""An experiment's YAML -> validated objects. Nothing is loaded or written here.

`base:` names a file whose keys are taken where this one has none (mappings merge, everything else replaces); it is the
only inheritance. An unknown key is an error that names the file, the line, the key and the nearest valid one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cltk import secrets
from cltk.errors import InputError
from cltk.run.arguments import check_train, flatten, train_model
from cltk.run.methods import check_mitigators, method_name, nearest, resolve_path, signature_schema
from cltk.run.spec import DataSpec, Experiment, Source, TextSpec
from cltk.run.yaml import Keys, read_yaml

Where = Callable[[Keys], str]  # key path -> "file:line"


@dataclass(frozen=True)
class Cell:
    """One training run of an experiment."""

    method: str  # the name of its mitigators in tables
    labels: dict[str, Any]  # grid key -> value or its name
    config: Experiment  # without grid
    stage: str = ""  # of one training of a stream

    @property
    def data(self) -> DataSpec:
        """The new task of a cell that is one training."""
        assert self.config.data is not None
        return self.config.data

    @property
    def trainings(self) -> list[Cell]:
        """A cell of one training for every stage; this cell itself where there are none."""
        config = self.config
        changes = [{"data": stage.data, "train": {**config.train, **stage.train}, "stages": []} for stage in config.stages]
        cells = [replace(self, config=config.model_copy(update=change)) for change in changes]
        return [replace(cell, stage=stage.name) for cell, stage in zip(cells, config.stages, strict=True)] or [self]

    @property
    def name(self) -> str:
        """A folder name: method, seed and other grid values."""
        parts = [self.method] + [f"{key.split('.')[-1]}={value}" for key, value in self.labels.items() if key != "mitigators"]
        text = "_".join(parts) if self.labels.get("seed") is not None else "_".join([*parts, f"seed={self.config.seed}"])
        return (
            "".join(c if c.isalnum() or c in "-_=.+" else "-" for c in text).lstrip(".").encode()[:120].decode(errors="ignore")
        )


@dataclass(frozen=True)
class Plan:
    """A validated file: its experiment and cells. `folder` is what relative paths start from."""

    file: Path
    experiment: Experiment
    cells: list[Cell]

    @property
    def folder(self) -> Path:
        return self.file.parent


def load_config(file: str | Path) -> Plan:
    """Read and validate an experiment. Raises InputError with file, line, key and what would be right."""
    file = Path(file)
    data, lines, files = read_with_base(file, ())
    try:
        return validate(data, file, lines, files)
    except InputError as error:
        if data.get("base") is None or not any(words in str(error) for words in ("no such file", "not a folder")):
            raise
        raise InputError(
            f"{error}; relative paths start at {file.parent}, the folder of {file.name}, those of its base too"
        ) from None


def read_with_base(file: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], dict[Keys, int], dict[Keys, Path]]:
    """A file's data over that of its `base`; the line of every key, and the file it stands in. `above`: files under way."""
    if file.resolve() in above:
        raise InputError(f"{file}: `base` leads back to this file")
    data, lines = read_yaml(file)
    files = dict.fromkeys(lines, file)
    base = data.get("base")
    if base is None:
        return data, lines, files
    if not isinstance(base, str):
        raise InputError(f"{file}:{lines[('base',)]}: base: expected a file name")
    under, base_lines, base_files = read_with_base(file.parent / base, (*above, file.resolve()))
    return _merge(under, data), {**base_lines, **lines}, {**base_files, **files}


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) and key != "grid" else value
    return merged


def validate(data: dict[str, Any], file: Path, lines: dict[Keys, int], files: dict[Keys, Path]) -> Plan:
    """Check all of `data`: sections, training arguments, mitigators, every cell of the grid, files that must exist."""

    def where(keys: Keys) -> str:
        known = next((keys[:n] for n in range(len(keys), -1, -1) if keys[:n] in lines), ())
        return f"{files.get(known, file)}:{lines.get(known, 1)}"

    secrets.refuse(data, where)
    experiment = _model(Experiment, data, (), where)
    _check_stages(experiment, where)
    _check_names(experiment, where)
    cells = []
    for labels, name, at_mitigators, values in _product(experiment.grid, where):
        changed = data
        for key, value in values.items():
            changed = _set(changed, key, value, where)
        config = experiment if not values else _model(Experiment, changed, ("grid",), where)
        _check_names(config, lambda keys: where(("grid",)))
        check_mitigators(config.mitigators, file.parent, lambda keys, inside=at_mitigators: where((*inside, *keys)))
        at: Keys = ("grid",) if any(key.startswith("train") for key in values) else ("train",)
        config = config.model_copy(update={"train": _checked(config.train, at, where), "grid": {}, "base": None})
        for i, stage in enumerate(config.stages):
            _checked({**config.train, **stage.train}, ("stages", i, "train"), where)
        cells.append(Cell(name or method_name(config.mitigators), labels, config))
    if len({cell.config.train.get("output_dir") for cell in cells}) > 1:
        raise InputError(f"{where(('grid',))}: grid: train.output_dir: all cells of a file go to one folder; use --out")
    _check_files(experiment, file.parent, where)
    _check_documents(cells, where)
    duplicates = [cell.name for cell in cells if sum(cell.name == other.name for other in cells) > 1]
    if duplicates:
        raise InputError(f"{where(('grid',))}: grid: two cells have the name {duplicates[0]!r}; name them (name: value)")
    return Plan(file, experiment, cells)


def _model(cls: type[BaseModel], data: Any, above: Keys, where: Where) -> Any:
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(error.errors()[0], cls, above, where)) from None


def _explain(problem: Any, cls: type[BaseModel], above: Keys, where: Where) -> str:
    unknown = problem["type"] == "extra_forbidden"  # then the last is a key of the file, whatever it looks like
    last = len(problem["loc"]) - 1
    keys = tuple(key for at, key in enumerate(problem["loc"]) if (unknown and at == last) or not _is_branch(key))
    dotted = ".".join(map(str, (*above, *keys))) or "file"
    if unknown:
        return f"{where(keys)}: {dotted}: unknown key{nearest(str(keys[-1]), _names_at(cls, keys[:-1]))}"
    if problem["type"] == "missing":
        return f"{where(keys[:-1])}: {dotted}: this key is required"
    words = problem["msg"].removeprefix("Value error, ")
    got = "" if problem["type"] == "value_error" and isinstance(problem["input"], dict) else f", got {problem['input']!r:.60}"
    return f"{where(keys)}: {dotted}: {words[0].lower()}{words[1:]}{got}"


def _is_branch(key: Any) -> bool:
    """pydantic puts the name of a union's branch into the path; those are no keys of the file."""
    return isinstance(key, str) and (key in ("Source", "TaskSpec", "TextSpec", "str", "float", "int") or "[" in key)


def _names_at(cls: Any, keys: Keys) -> list[str]:
    for key in keys:
        if isinstance(key, str) and key in getattr(cls, "model_fields", {}):
            inner = [a for a in flatten(cls.model_fields[key].annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
            cls = inner[0] if inner else None
    return list(getattr(cls, "model_fields", {}))


def _product(grid: dict[str, Any], where: Where) -> list[tuple[dict[str, Any], str, Keys, dict[str, Any]]]:
    """Every combination: labels, the method's given name, where its mitigators stand in the file, key -> value."""
    axes = []
    for key, values in grid.items():
        if not values:
            raise InputError(f"{where(('grid', key))}: grid.{key}: give at least one value")
        named = list(values.items()) if isinstance(values, dict) else list(enumerate(values))
        axes.append([(key, name, value) for name, value in named])
    done: list[tuple[dict[str, Any], str, Keys, dict[str, Any]]] = []
    for combination in itertools.product(*axes):
        labels = {key: name if isinstance(name, str) else _label(key, value) for key, name, value in combination}
        at: Keys = next((("grid", key, name) for key, name, _ in combination if key == "mitigators"), ("mitigators",))
        method = str(at[2]) if len(at) == 3 and isinstance(at[2], str) else ""
        done.append((labels, method, at, {key: value for key, _, value in combination}))
    return done


def _label(key: str, value: Any) -> Any:
    return method_name(value) if key == "mitigators" and isinstance(value, list) else value


def _set(data: dict[str, Any], dotted: str, value: Any, where: Where) -> dict[str, Any]:
    head, _, rest = dotted.partition(".")
    if head not in Experiment.model_fields or head in ("grid", "base"):
        raise InputError(f"{where(('grid', dotted))}: grid.{dotted}: unknown key{nearest(head, Experiment.model_fields)}")
    if not rest:
        return {**data, head: value}
    return _put(data, dotted.split("."), value, f"{where(('grid', dotted))}: grid.{dotted}")


def _put(data: dict[str, Any], keys: list[str], value: Any, at: str) -> dict[str, Any]:
    """`data` with `value` at the nested `keys`."""
    key, *deeper = keys
    if not deeper:
        return {**data, key: value}
    inner = data.get(key) or {}
    if not isinstance(inner, dict):
        raise InputError(f"{at}: {key} is {str(inner)[:40]!r} and has no keys")
    return {**data, key: _put(inner, deeper, value, at)}


def _checked(train: dict[str, Any], at: Keys, where: Where) -> dict[str, Any]:
    checked = check_train(train, lambda keys: where((*at, *keys)))
    if "seed" in checked:
        raise InputError(f"{where((*at, 'seed'))}: train.seed: use the top-level key `seed`")
    return checked


def _check_stages(experiment: Experiment, where: Where) -> None:
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
            raise InputError(f"{where(('stages', i, 'score'))}: stages.{i}.score: {stage.score!r} is not in evals.learn{known}")


def _check_documents(cells: list[Cell], where: Where) -> None:
    """What two-phase measuring needs: references that are cells of this file, and one training a cell."""
    methods = {cell.method for cell in cells}
    for cell in cells:
        documents, at = cell.config.evals.documents, where(("evals", "documents"))
        if documents and cell.config.stages:
            raise InputError(f"{at}: evals.documents: a stream is scored whole, stage by stage; use sample instead")
        for name in documents.references if documents else ():
            if name not in methods:
                raise InputError(f"{at}: evals.documents.reference: no cell has the method {name!r}{nearest(name, methods)}")


def _check_names(experiment: Experiment, where: Where) -> None:
    """Tables and records know measures and stages by their names, so each has its own."""
    named: list[tuple[Keys, str]] = [
        (("evals", role, i), entry if isinstance(entry, str) else entry.label)
        for role in ("retain", "learn")
        for i, entry in enumerate(getattr(experiment.evals, role))
    ]
    named += [(("stages", i, "name"), stage.name) for i, stage in enumerate(experiment.stages)]
    taken = {} if experiment.stages else {"heldout": "the new task's held-out rows have it"}
    for keys, name in named:
        dotted = ".".join(map(str, keys))
        if name in taken:
            raise InputError(f"{where(keys)}: {dotted}: the name {name!r} is taken ({taken[name]}); give another `name`")
        taken[name] = f"{where(keys)}: {dotted}"


def _check_files(experiment: Experiment, folder: Path, where: Where) -> None:
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


def schema() -> dict[str, Any]:
    """The JSON schema of an experiment file, with every training argument and mitigator."""
    from cltk.mitigate import MITIGATORS

    document = Experiment.model_json_schema()
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    arguments = train_model().model_json_schema()
    document.setdefault("$defs", {}).update(arguments.pop("$defs", {}))
    document["properties"]["train"] = arguments
    methods = [
        {"type": "object", "properties": {name: signature_schema(cls)}, "required": [name], "additionalProperties": False}
        for name, cls in sorted(MITIGATORS.items())
    ]
    document["properties"]["mitigators"]["items"] = {"anyOf": [*methods, {"enum": sorted(MITIGATORS)}]}
    return document
