"""An experiment's YAML -> validated objects. Nothing is loaded or written here.

`base:` names a file whose keys are taken where this one has none (mappings merge, everything else replaces); it is the
only inheritance. An unknown key is an error that names the file, the line, the key and the nearest valid one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cltk import secrets
from cltk.errors import InputError
from cltk.run.arguments import flatten, train_model
from cltk.run.checked import check_documents, check_files, check_names, check_stages, check_stream, checked
from cltk.run.grid import product
from cltk.run.methods import check_mitigators, method_name, nearest, signature_schema
from cltk.run.overrides import overridden, put
from cltk.run.plans import Cell, Plan, Where
from cltk.run.search_plan import check_search, with_split
from cltk.run.spec import Experiment
from cltk.run.yaml import Keys, read_yaml


def load_config(file: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Read and validate an experiment, with `key=value` as if it said so.

    Raises:
        InputError: with file, line, key and what would be right.
    """
    file = Path(file)
    data, lines, files = overridden(*read_with_base(file, ()), overrides)
    try:
        return replace(validate(data, file, lines, files), overrides=tuple(overrides))
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
        line = lines.get(known, 1)
        return f"{files.get(known, file)}" + (f":{line}" if line else "")

    secrets.refuse(data, where)
    experiment = model_of(Experiment, data, (), where)
    check_stages(experiment, where)
    check_names(experiment, where)
    cells = []
    for labels, name, at_mitigators, values in product(experiment.grid, where):
        changed = data
        for key, value in values.items():
            changed = _set(changed, key, value, where)
        config = experiment if not values else model_of(Experiment, changed, ("grid",), where)
        check_names(config, lambda keys: where(("grid",)))
        check_mitigators(config.mitigators, file.parent, lambda keys, inside=at_mitigators: where((*inside, *keys)))
        train = checked(config.train, partial(_placed, where, values))
        config = with_split(config.model_copy(update={"train": train, "grid": {}, "base": None}), experiment.search)
        if config.data is not None:
            check_stream(config.data, config.train, lambda key: where((key, "train") if key == "data" else (key,)))
        stages = []
        for i, stage in enumerate(config.stages):
            train = checked({**config.train, **stage.train}, partial(_of_stage, where, i))
            check_stream(stage.data, train, partial(_inside, where, i))
            stages.append(stage.model_copy(update={"train": {key: train.get(key, stage.train[key]) for key in stage.train}}))
        config = config.model_copy(update={"stages": stages})
        cells.append(Cell(name or method_name(config.mitigators), labels, config))
    if len({cell.config.train.get("output_dir") for cell in cells}) > 1:
        raise InputError(f"{where(('grid',))}: grid: train.output_dir: all cells of a file go to one folder; use --out")
    check_files(experiment, file.parent, where)
    check_documents(cells, where)
    check_search(experiment, cells, file.parent, where)
    duplicates = [cell.name for cell in cells if sum(cell.name == other.name for other in cells) > 1]
    if duplicates:
        raise InputError(f"{where(('grid',))}: grid: two cells have the name {duplicates[0]!r}; name them (name: value)")
    return Plan(file, experiment, cells)


def _inside(where: Where, stage: int, key: str) -> str:
    return where(("stages", stage, key))


def _of_stage(where: Where, stage: int, keys: Keys) -> str:
    return where(("stages", stage, "train", *keys))


def _placed(where: Where, axes: dict[str, Any], keys: Keys) -> str:
    """Where a training argument stands: in the grid, if an axis sets it (or may have), else in `train`."""
    in_grid = any(axis == "train" or (axis.startswith("train.") and (not keys or axis == f"train.{keys[0]}")) for axis in axes)
    return where(("grid",) if in_grid else ("train", *keys))


def model_of(cls: type[BaseModel], data: Any, above: Keys, where: Where) -> Any:
    """Plain data as a section. Raises InputError: the first key at fault, behind its place."""
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


def _set(data: dict[str, Any], dotted: str, value: Any, where: Where) -> dict[str, Any]:
    head, _, rest = dotted.partition(".")
    if head == "search":
        raise InputError(f"{where(('grid', dotted))}: grid.{dotted}: a grid does not vary a search; give it a file of its own")
    if head not in Experiment.model_fields or head in ("grid", "base"):
        raise InputError(f"{where(('grid', dotted))}: grid.{dotted}: unknown key{nearest(head, Experiment.model_fields)}")
    if not rest:
        return {**data, head: value}
    return put(data, dotted.split("."), value, f"{where(('grid', dotted))}: grid.{dotted}")


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
