"""The list of mitigators in an experiment's YAML -> checked arguments -> objects."""

from __future__ import annotations

import difflib
import inspect
import os
import typing
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from cltk.data.assets import find
from cltk.data.readers import READERS
from cltk.errors import InputError, shown


def method_name(mitigators: list[Any]) -> str:
    """ "plain" for an empty list, else the names joined by +."""
    names = [next(iter(entry)) if isinstance(entry, dict) and entry else str(entry) for entry in mitigators]
    return "+".join(map(str, names)) or "plain"


def check_mitigators(entries: list[Any], folder: Path, where: Any) -> None:
    """Names, arguments and their types, and whatever the constructors object to."""
    build_mitigators(entries, folder, where)


def build_mitigators(entries: Any, folder: Path, where: Any = None) -> list[Any]:
    """New mitigators from `[{name: arguments}, ...]`; relative paths in the arguments start at `folder`."""
    from cltk.mitigate import MITIGATORS

    def at(*keys: str | int) -> str:
        return f"{where(keys)}: " if where else ""

    if not isinstance(entries, list):
        raise InputError(f"{at()}mitigators: expected a list such as [low_lr: {{factor: 0.1}}], got {shown(entries)}")
    built = []
    for i, entry in enumerate(entries):
        name, arguments = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, {})
        if not isinstance(name, str):
            raise InputError(f"{at(i)}mitigators: expected one name with its arguments, got {shown(entry)}")
        if name not in MITIGATORS:
            raise InputError(f"{at(i)}mitigators: unknown mitigator {shown(name)}{nearest(name, MITIGATORS)}")
        arguments = {} if arguments is None else arguments
        if not isinstance(arguments, dict):
            raise InputError(f"{at(i)}{name}: expected named arguments, got {shown(arguments)}")
        checked = _check_arguments(name, MITIGATORS[name], arguments, lambda *keys, i=i: at(i, *keys))
        try:
            built.append(MITIGATORS[name](**_resolve(checked, folder)))
        except InputError as error:
            raise InputError(f"{at(i)}{error}") from None
        except TypeError as error:
            raise InputError(f"{at(i)}{name}: {error}") from None
    return built


def _check_arguments(name: str, cls: Any, arguments: dict[str, Any], at: Any) -> dict[str, Any]:
    parameters = {key: p for key, p in inspect.signature(cls.__init__).parameters.items() if key != "self"}
    for key in arguments:
        if key not in parameters:
            raise InputError(f"{at(name, key)}{name}.{key}: unknown argument{nearest(str(key), parameters)}")
    try:
        hints = typing.get_type_hints(cls.__init__)
    except NameError:
        hints = {}
    checked = {}
    for key, value in arguments.items():
        one = create_model("One", __config__=ConfigDict(arbitrary_types_allowed=True), value=(hints.get(key, Any), ...))
        try:
            checked[key] = one.model_validate({"value": value}).value  # type: ignore[attr-defined]
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise InputError(f"{at(name, key)}{name}.{key}: {message[0].lower()}{message[1:]}, got {shown(value)}") from None
    return checked


PATH_KEYS = ("memory", "importance", "validation", "prompts", "path")
PATH_LISTS = ("memories", "models", "others")  # of several paths: a list, or by name


def _resolve(arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    resolved: dict[str, Any] = {}
    for key, value in arguments.items():
        if key in PATH_LISTS:
            named = value.items() if isinstance(value, dict) else enumerate(value)
            found = {name: _resolve({"path": one}, folder)["path"] for name, one in named}
            resolved[key] = found if isinstance(value, dict) else list(found.values())
        elif isinstance(value, dict):
            resolved[key] = _resolve(value, folder)
        else:
            resolved[key] = resolve_path(value, folder, key) if key in PATH_KEYS and isinstance(value, str) else value
    return resolved


def resolve_path(value: str, folder: Path, key: str) -> str:
    """An asset or hub id as it is; a path relative to the YAML's folder. A file that must exist and does not: InputError."""
    if value.startswith("asset:"):
        find(value.removeprefix("asset:").partition("/")[0])  # an unknown name is an error now, not after training
        return value
    path = folder / value
    if os.path.exists(path):  # False, not an error, for a name that is too long
        return str(path)
    if path.suffix in (*READERS, ".safetensors", ".yaml") or value.startswith(("/", ".")) or value.count("/") > 1:
        raise InputError(f"{key}: {path}: no such file")
    return value


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """ "; did you mean ...?" for an unknown name, or the list of what there is, or where to find it."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1, 0.5) or difflib.get_close_matches(name.lower(), known, 1, 0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; valid keys are {', '.join(known)}" if len(known) <= 60 else "; `cltk schema` lists the valid keys"


def signature_schema(cls: Any) -> dict[str, Any]:
    """The JSON schema of a constructor's arguments."""
    parameters = [p for key, p in inspect.signature(cls.__init__).parameters.items() if key != "self"]
    names = {p.name: {"description": str(p)} for p in parameters}
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    title = (inspect.getdoc(cls) or "").split("\n")[0]
    return {"type": "object", "description": title, "properties": names, "required": required, "additionalProperties": False}
