"""YAML in, plain data and line numbers out. Only safe types; nothing in a file can run code."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from cltk.errors import InputError, shown

Keys = tuple[str | int, ...]
TEXT = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")  # what a key may be
MOST_NODES = 100_000  # aliases can unfold a small file into billions of nodes


def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[Keys, int]]:
    """The mapping in `path` and the line (from 1) of every key path in it, e.g. ("grid", "seed", 0).

    Raises InputError naming file and line: not YAML, not a mapping, a key twice, a tag that is not plain data.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    data, lines = _parsed(text, path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a mapping of keys, found {'nothing' if data is None else type(data).__name__}")
    return data, lines


def read_value(text: str, name: str) -> Any:
    """What `text` says as YAML. Raises InputError, after `name`, as `read_yaml` does."""
    try:
        return _parsed(text, Path(name))[0]
    except InputError as error:
        raise InputError(str(error).replace(f"{Path(name)}:1: ", f"{name}: ", 1)) from None


def _parsed(text: str, path: Path) -> tuple[Any, dict[Keys, int]]:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines: dict[Keys, int] = {}
        if node is not None:
            _check(node, path, (), lines, [0], ())
        data = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    except (ValueError, TypeError, RecursionError, OverflowError, AttributeError) as error:
        raise InputError(f"{path}: not plain YAML ({type(error).__name__}: {error})") from None
    return data, lines


def _check(node: yaml.Node, path: Path, keys: Keys, lines: dict[Keys, int], seen: list[int], above: tuple[int, ...]) -> None:
    seen[0] += 1
    if seen[0] > MOST_NODES or id(node) in above:
        raise InputError(f"{path}:{node.start_mark.line + 1}: aliases unfold into too much or into themselves")
    lines.setdefault(keys, node.start_mark.line + 1)
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            _check(child, path, (*keys, i), lines, seen, above)
    elif isinstance(node, yaml.MappingNode):
        names: set[Hashable] = set()
        for key, child in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            line = key.start_mark.line + 1
            if name is None:
                raise InputError(f"{path}:{line}: a key must be a word")
            if key.tag not in TEXT:
                kind = key.tag.rpartition(":")[2]
                raise InputError(f'{path}:{line}: the key {name} is read as {kind}, not as text; put it in quotes: "{name}"')
            if name in names:
                raise InputError(f"{path}:{line}: the key {shown(name)} stands twice")
            names.add(name)
            lines[(*keys, name)] = line
            _check(child, path, (*keys, name), lines, seen, above)
