"""lm-eval's tasks by what the user named: tasks, groups, tags, patterns ("mmlu_*") and task files, own and built-in."""

from __future__ import annotations

import difflib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jinja2

from cltk.errors import CltkError, InputError, reason
from cltk.files import shipped
from cltk.measure.building import Building
from cltk.measure.documents import clusters, unmeasurable
from cltk.measure.tasks import named_in, names_in, prepare, sandbox_templates
from cltk.measure.trust import check_generation, watched

CONSENT = "--confirm-run-unsafe-code"
Loaded = dict[str, dict[str, Any]]


class Scratch:
    """A folder that goes with this object: a task's functions may open files beside them as long as the task lives."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="cltk-tasks-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def load_tasks(
    names: Sequence[str], include_path: str | Path | None, out: Path, trust: bool = True, unsafe: bool = False
) -> Loaded:
    """What lm-eval's `TaskManager.load` returns, and `named`: name as the user gave it -> its group, or its tasks.

    lm-eval's own index is read only when it is needed, which takes seconds: for a name or a group's member that is not in
    `include_path`, and for patterns. The tasks that come with cltk (`local_*`) need no `include_path`.

    Args:
        out: an empty folder that lives as long as the tasks do: task folders are completed there.
        trust: whether the folders' own Python may run; see `cltk.measure.trust`.
        unsafe: consent to tasks that run code which the model writes.

    Raises:
        InputError: an unknown name, a task in two of the named groups, a task that cannot be built, or that is marked unsafe
            without consent.
    """
    sandbox_templates()
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"include_path: {include_path} is not a folder")
    folders = [] if include_path is None else [Path(include_path)]
    wanted = {}
    for name in names:
        wanted[name] = name
        if name.endswith((".yaml", ".yml")):
            if not Path(name).is_file():
                raise InputError(f"task {name}: no such file")
            wanted[name] = named_in(Path(name))
            folders += [] if any(Path(name).resolve().is_relative_to(f.resolve()) for f in folders) else [Path(name).parent]
    if any(_ours(name, folders) for name in wanted.values()):
        folders.append(shipped("evals") / "tasks")
    copies = [prepare(folder, out / str(i), list(wanted.values())) for i, folder in enumerate(folders)]
    manager = _manager(copies, list(wanted.values()))

    def guard(name: str) -> Any:
        """What may run while `name` is built: the Python of its folder, where that is trusted or cltk's own, and lm-eval's."""
        files = [index[one].yaml_path for one in (name, *_leaves(name, index)) if one in index and index[one].yaml_path]
        i = next((i for i, one in enumerate(copies) if files and Path(files[0]).resolve().is_relative_to(one.resolve())), None)
        own = i is not None and folders[i].resolve() == (shipped("evals") / "tasks").resolve()
        return watched(None, trust) if i is None else watched(copies[i], trust or own, folders[i])

    index = manager.task_index
    loaded, building = Loaded({"tasks": {}, "groups": {}, "group_map": {}, "named": {}}), Building(manager)
    for name, known in wanted.items():
        found = _matches(known, manager, folders)
        loaded["named"][name] = [row for one in found for row in _add(loaded, one, manager, guard, unsafe)]
    building.finish()
    for name, task in loaded["tasks"].items():
        check_generation(task.get_config("generation_kwargs") or {}, f"task {name}: generation_kwargs")
    return loaded


def _ours(name: str, folders: Sequence[Path]) -> bool:
    """Whether a name, or a pattern that begins with letters, is of the tasks that come with cltk and of no folder given."""
    ours = shipped("evals") / "tasks"
    if name[:1] in "*?[" or not any(fnmatchcase(file.stem, name) for file in ours.glob("*.yaml")):
        return False
    files = [file for folder in folders for file in folder.rglob("*.yaml")]
    return not any(fnmatchcase(file.stem, name) or name in _names(file) for file in files)


def _names(file: Path) -> list[str]:
    try:
        return names_in(file)
    except CltkError:  # said by `prepare`, where it matters
        return []


def _manager(folders: Sequence[Path], wanted: list[str]) -> Any:
    """The index of the folders alone when it is enough, else with lm-eval's own tasks, over which a folder's go."""
    from lm_eval.tasks import TaskManager

    paths = [str(folder) for folder in folders]
    try:
        if paths:
            own = TaskManager(include_defaults=False, include_path=paths)
            if all(_complete(name, own.task_index) for name in wanted):
                return own
        return TaskManager(include_path=paths)
    except Exception as error:
        raise InputError(f"include_path: lm-eval cannot list its tasks ({reason(error)})") from None


def _complete(name: str, index: Any) -> bool:
    """Whether the index holds `name` with all its members."""
    entry = index.get(name)
    return entry is not None and all(_complete(member, index) for member in _members(entry))


def _members(entry: Any) -> list[str]:
    """The members of a group, by name; none of a task or tag."""
    listed = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else None
    listed = listed if isinstance(listed, list) else [listed] if listed else []
    return [str(one.get("group") or one.get("task")) if isinstance(one, dict) else str(one) for one in listed]


def _matches(name: str, manager: Any, folders: Sequence[Path]) -> list[str]:
    """The name itself, or the tasks that the pattern matches, and such groups and tags as hold other tasks only."""
    index, known = manager.task_index, [one for one in manager.all_tasks if isinstance(one, str)]  # YAML has other names
    if name in index:
        return [name]
    found = [one for one in known if fnmatchcase(one, name)] if set(name) & set("*?[") else []
    if not found:
        for folder in folders:
            _refuse_unread(name, folder)
        near = difflib.get_close_matches(name, known, 3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise InputError(f"task {name!r} is unknown to lm-eval and to include_path{hint}")
    single = [one for one in found if not set(_leaves(one, index)) - {one}]
    taken, kept = set(single), []
    for one in (one for one in found if one not in single):
        leaves = set(_leaves(one, index))
        if not leaves & taken:
            taken |= leaves
            kept.append(one)
    return sorted([*single, *kept])


def _refuse_unread(name: str, folder: Path) -> None:
    """lm-eval leaves out a file that it cannot read: raises InputError with the reason."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for file in sorted(folder.rglob("*.yaml")):
        try:
            if name in names_in(file):
                load_yaml(file, resolve_func=False)
        except CltkError:
            continue
        except Exception as error:
            raise InputError(f"task {name!r}: lm-eval cannot read {file} ({reason(error)})") from error


def _leaves(name: str, index: Any) -> Iterator[str]:
    """The tasks that a task, group or tag stands for."""
    entry = index.get(name)
    below = [] if entry is None else sorted(entry.tags) if entry.kind.name == "TAG" else _members(entry)
    for member in below:
        yield from _leaves(member, index)
    if not below:
        yield name


def _add(loaded: Loaded, name: str, manager: Any, guard: Callable[[str], Any], unsafe: bool) -> list[str]:
    """Build a task, group or tag into `loaded`; returns the rows it will have: the group, or the tasks."""
    index = manager.task_index
    for leaf in _leaves(name, index):
        entry = index.get(leaf)
        if entry is not None and (entry.cfg or {}).get("unsafe_code") and not unsafe:
            raise InputError(_unsafe(leaf))
    part = _attempt(name, manager, guard)
    if not part["tasks"]:
        raise InputError(f"task {name!r}: it is a group without tasks; list some under `task`")
    for task in part["tasks"]:
        others = [group for group in loaded["groups"] if task in _tasks_of(loaded, group)]
        if (task in loaded["tasks"] and name in part["groups"]) or others:
            raise InputError(f"task {task!r} is named twice, in {name!r} and {(others or [task])[0]!r}; name it once")
    for key in ("groups", "group_map"):
        loaded[key].update(part.get(key) or {})
    for leaf, task in part["tasks"].items():
        if leaf not in loaded["tasks"]:
            loaded["tasks"][leaf] = task
    return [name] if name in part["groups"] else list(part["tasks"])


def _tasks_of(loaded: Loaded, group: str) -> list[str]:
    return [task.task_name for task in loaded["groups"][group].get_all_tasks()]


def _attempt(name: str, manager: Any, guard: Callable[[str], Any]) -> Any:
    try:
        with guard(name):
            return manager.load([name])
    except CltkError:
        raise
    except jinja2.TemplateError as error:
        raise InputError(f"task {name!r}: its template cannot be filled ({reason(error)})") from error
    except ImportError as error:
        raise InputError(f"task {name!r}: it needs a package that is not here ({reason(error)})") from error
    except OSError as error:
        raise InputError(_no_data(name, error)) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("datasets", "huggingface_hub", "requests", "httpx", "pyarrow"):
            raise InputError(_no_data(name, error)) from error
        raise InputError(f"task {name!r}: lm-eval cannot build it ({reason(error)}); look at its file") from error


def check(name: str, task: Any, unsafe: bool) -> None:
    """Raises InputError, before weights are loaded, for a task that could not be measured."""
    if getattr(task, "UNSAFE_CODE", False) and not unsafe:
        raise InputError(_unsafe(name))
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"task {name}: it needs images or sound, which a causal language model does not read")
    for metric, aggregation in task.aggregation().items():
        if not callable(aggregation):
            raise InputError(f"task {name}: metric {metric}: lm-eval does not know its aggregation")
    documents = task.eval_docs
    if len(documents) == 0:
        raise InputError(f"task {name}: it has no documents")
    clusters(name, task.dump_config(), [documents[0]])


def something(tasks: dict[str, Any]) -> None:
    """Raises InputError when no metric of any task can be compared."""
    reasons = {name: unmeasurable(task) for name, task in tasks.items()}
    if all(reasons.values()):
        raise InputError("; ".join(f"task {name}: {reason}" for name, reason in reasons.items()))


def _unsafe(name: str) -> str:
    return f"task {name}: it is marked unsafe: it runs code that the model writes; consent with {CONSENT} to run it"


def _no_data(name: str, error: Exception) -> str:
    local = shipped("evals") / "tasks" / f"local_{name}.yaml"
    hint = f"; without a network use the offline version: task 'local_{name}'" if local.exists() else ""
    return f"task {name!r}: its documents cannot be loaded ({reason(error)}){hint}"
