"""lm-eval task folders that name no absolute path: "lm_eval:FILE", "cltk:FILE" and "asset:NAME/FILE" in their YAML."""

from __future__ import annotations

import codecs
import glob
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from cltk.data import assets
from cltk.errors import InputError
from cltk.files import shipped

OWN = "lm_eval:"  # a file in lm-eval's own tasks folder; legal in `include`
SHIPPED = "cltk:"  # a file of the evals folder that comes with cltk
COPIED = ("*.py", "*.yaml", "*.yml", "*_yaml", "*.json", "*.jsonl", "*.txt", "*.csv")


def prepare(include_path: Path, out: Path, tasks: Collection[str] | None = None) -> Path:
    """A copy of the task folder in `out` whose lm_eval:, cltk: and asset: values are paths; the folder itself when it has none.

    Assets are fetched only for the tasks, groups, tags or patterns ("local_*") asked for (None: all of them), with what
    those include. Tags such as !function stay as they are: only the values' own characters are replaced.

    Raises InputError naming the file when the YAML is broken, or an asset or an included file does not exist.
    """
    if not include_path.is_dir():
        raise InputError(f"{include_path}: no such task folder")
    sources = {path: text for path in sorted(include_path.rglob("*")) if _is_yaml(path) and (text := _text(path)) is not None}
    nodes = {path: _compose(path, text) for path, text in sources.items()}
    wanted = set(sources) if tasks is None else _wanted(nodes, set(tasks))
    for path in wanted:
        _check_plain(path)
    if not any(_values(node) for node in nodes.values()):
        return include_path
    shutil.copytree(include_path, out, dirs_exist_ok=True, ignore=_ignore)
    for path, text in sources.items():
        (out / path.relative_to(include_path)).write_text(_resolved(path, text, nodes[path], path in wanted), encoding="utf-8")
    return out


def unreadable(include_path: Path) -> list[Path]:
    """The YAML files of a task folder that are in no encoding that YAML knows: lm-eval passes over them without a word."""
    return [path for path in sorted(include_path.rglob("*")) if _is_yaml(path) and _text(path) is None]


def names_in(file: Path) -> list[str]:
    """The group, then the task, that a task file defines."""
    node = _compose(file, _text(file) or "")
    return [*_plain(node, "group"), *_plain(node, "task")]


def named_in(file: Path) -> str:
    """The task or group that a task file defines; raises InputError when it defines none."""
    found = names_in(file)
    if not found:
        raise InputError(f"task {file}: the file has neither `task` nor `group`")
    return found[0]


def files_of(name: str) -> list[str]:
    """The task files that a path with a pattern ("tasks/*.yaml") or a folder ("./tasks") stands for; any other name itself.

    A bare name is a task, also where a folder has it: lm-evaluation-harness#2005.

    Raises:
        InputError: no file matches.
    """
    pattern, folder = name.endswith((".yaml", ".yml")) and set(name) & set("*?["), "/" in name and os.path.isdir(name)
    if not pattern and not folder:
        return [name]
    found = sorted(map(Path, glob.glob(name))) if pattern else sorted(Path(name).glob("*.yaml"))
    found = [file for file in found if names_in(file)]
    if not found:
        raise InputError(f"task {name}: no task file is there")
    return [str(file) for file in found]


def sandbox_templates() -> None:
    """Have lm-eval fill its templates in Jinja's sandbox: in its own environment a task's template can run any Python."""
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    own = lm_eval.utils.env
    if not isinstance(own, SandboxedEnvironment):
        env = SandboxedEnvironment(loader=own.loader, undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline)
        env.filters.update(own.filters)
        lm_eval.utils.env = env


def _text(path: Path) -> str | None:
    """As YAML decodes it: UTF-16 where it begins with that mark, else UTF-8; None where that fails."""
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError:
        return None


def _check_plain(path: Path) -> None:
    """Raises InputError where lm-eval's index would pass over a file without a word. Nothing in it is run."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        load_yaml(path, resolve_func=False, recursive=False)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: lm-eval cannot read it ({getattr(error, 'problem', None) or error})") from None


def _is_yaml(path: Path) -> bool:
    return path.is_file() and path.name.endswith(("yaml", "yml"))


def _ignore(folder: str, names: list[str]) -> set[str]:
    kept = {name for name in names if Path(folder, name).is_dir() or any(fnmatchcase(name, glob) for glob in COPIED)}
    return (set(names) - kept) | {"__pycache__"}


def _compose(path: Path, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from None


def _scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Every value in the document, also inside lists and mappings, once and in order; not the keys. A list may hold itself."""
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            yield node
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
        elif isinstance(node, yaml.MappingNode):
            waiting += [child for _, child in reversed(node.value)]


def _plain(node: yaml.Node | None, key: str) -> list[str]:
    """The strings under a top-level key: one, a list of them, or none."""
    found = [child for name, child in node.value if name.value == key] if isinstance(node, yaml.MappingNode) else []
    return [scalar.value for child in found for scalar in _scalars(child)]


def _values(node: yaml.Node | None) -> list[yaml.ScalarNode]:
    """The values to resolve, each place once (an alias is the same place), last first so that replacing keeps the marks."""
    places = {
        scalar.start_mark.index: scalar for scalar in _scalars(node) if scalar.value.startswith((OWN, SHIPPED, assets.PREFIX))
    }
    return [places[index] for index in sorted(places, reverse=True)]


def _wanted(nodes: dict[Path, yaml.Node | None], names: set[str]) -> set[Path]:
    """The files that define one of `names` (a task, group, tag or pattern), the members of those groups, and their includes."""
    wanted: set[Path] = set()
    while True:
        before = len(wanted)
        for path, node in nodes.items():
            group = _plain(node, "group")
            own = [*group, *_plain(node, "tag"), *([] if group else _plain(node, "task"))]
            if path not in wanted and any(fnmatchcase(name, asked) for name in own for asked in names):
                wanted.add(path)
                names = names | set(_plain(node, "task")) | set(_plain(node, "group"))
        for path in list(wanted):
            included = {(path.parent / include).resolve() for include in _plain(nodes[path], "include")}
            wanted |= {other for other in nodes if other.resolve() in included}
        if len(wanted) == before:
            return wanted


def _resolved(path: Path, text: str, node: yaml.Node | None, with_assets: bool) -> str:
    for scalar in _values(node):
        if scalar.value.startswith(OWN):
            target = _lm_eval_file(path, scalar)
        elif scalar.value.startswith(SHIPPED):
            target = _shipped_file(path, scalar)
        elif with_assets:
            target = assets.resolve(scalar.value)
        else:
            continue
        start, end = scalar.start_mark.index, scalar.end_mark.index
        anchor = re.match(r"&\S+\s+", text[start:end])  # belongs to the marked text, and stays
        start += anchor.end() if anchor else 0
        text = text[:start] + json.dumps(str(target)) + text[end:]
    return text


def _lm_eval_file(path: Path, scalar: yaml.ScalarNode) -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("lm-eval is not installed: pip install lm-eval")
    found = Path(spec.submodule_search_locations[0]) / "tasks" / scalar.value.removeprefix(OWN)
    if not found.is_file():
        raise InputError(
            f"{path}:{scalar.start_mark.line + 1}: lm-eval has no {scalar.value.removeprefix(OWN)} in its tasks folder"
        )
    return found


def _shipped_file(path: Path, scalar: yaml.ScalarNode) -> Path:
    found = shipped("evals") / scalar.value.removeprefix(SHIPPED)
    if not found.is_file():
        raise InputError(
            f"{path}:{scalar.start_mark.line + 1}: no {scalar.value.removeprefix(SHIPPED)} comes with cltk's evals"
        )
    return found
