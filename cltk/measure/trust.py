"""What a task may run and load. lm-eval's own doors to Python are watched while it builds tasks: whatever way a YAML is
written, a function, a metric or a data set comes in through one of these three, with its final value."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from cltk import secrets
from cltk.errors import InputError
from cltk.measure import checkers

PLAIN = ("json", "csv", "parquet", "arrow", "text")  # builders of `datasets` that read files and do nothing else
ELSEWHERE = ("cache_dir", "download_config", "storage_options")  # arguments of load_dataset that write or reach elsewhere
CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "import_module", "sympify", "parse_expr"}
MODULES = {"subprocess", "pickle", "dill", "joblib", "evaluate", "ctypes"}  # what can run what it is given
LONGEST = 200  # characters of a file's own words in a message
ADD = "add --trust if you trust it"


@contextmanager
def watched(folder: Path | None, own: bool, shown: Path | None = None) -> Iterator[None]:
    """While lm-eval builds tasks inside, Python from elsewhere is refused before it is imported.

    Args:
        folder: where the tasks come from; None for lm-eval's own.
        own: whether the folder's own Python may run, and whatever lm-eval's own tasks call.
        shown: what messages call the folder.

    Raises:
        InputError: inside, naming file and line, for a function, metric or data set that may not be loaded.
    """
    import datasets
    import lm_eval.api.task as task
    from lm_eval.tasks import _yaml_loader as loader

    guard = _Guard(folder.resolve() if folder else None, own, shown)
    kept = (loader._mk_function_ctor, task.get_metric, datasets.load_dataset)
    loader._mk_function_ctor = guard.functions(loader._mk_function_ctor)
    task.get_metric = guard.metric(task.get_metric)
    datasets.load_dataset = guard.dataset(datasets.load_dataset)
    try:
        yield
    finally:
        loader._mk_function_ctor, task.get_metric, datasets.load_dataset = kept


def check_generation(settings: Mapping[str, Any], where: str) -> None:
    """Raises InputError for a setting of generation that loads another model or Python, and for tokens."""
    secrets.refuse(dict(settings), lambda keys: where)
    if key := next((key for key in ("custom_generate", "trust_remote_code", "assistant_model") if key in settings), None):
        raise InputError(f"{where}: {key}: generation runs nothing but the model itself; leave it out")


class _Guard:
    def __init__(self, folder: Path | None, own: bool, shown: Path | None) -> None:
        self.folder, self.own, self.shown = folder, own, shown

    def functions(self, original: Any) -> Any:
        """Around lm-eval's constructor of `!function`, however the tag is spelt."""

        def make(base: Path, resolve: bool) -> Any:
            construct = original(base, resolve)

            def checked(loader: Any, node: Any) -> Any:
                if resolve:
                    where = f"{self.name(node.start_mark.name)}:{node.start_mark.line + 1}"
                    self.check_function(str(node.value), base, where)
                    checkers.ready(base)
                return construct(loader, node)

            return checked

        return make

    def check_function(self, value: str, base: Path, where: str) -> None:
        shown = value[:LONGEST]
        module = Path(os.path.normpath(base / (value.rpartition(".")[0].replace(".", "/") + ".py")))
        if base.is_relative_to(_stock()):
            if not self.own and (call := _dangerous(module.parent)):
                raise InputError(f"{where}: lm-eval's task calls {call} on what the data or the model says; {ADD}")
        elif not self.own:
            raise InputError(f"{where}: runs Python (!function {shown}); {ADD}")
        elif self.folder is None or not all(path.is_relative_to(self.folder) for path in (base, module)):
            raise InputError(
                f"{where}: runs Python (!function {shown}) that is not in {self.name(self.folder)}; copy it there to trust it"
            )

    def metric(self, original: Any) -> Any:
        """Around the look-up of a metric's name: `evaluate.load` imports a local script or one of a hub."""

        def checked(name: str, hf_evaluate_metric: bool = False) -> Any:
            import lm_eval.api.metrics  # noqa: F401  fills the registry
            from lm_eval.api.registry import METRIC_REGISTRY

            if hf_evaluate_metric or name not in METRIC_REGISTRY:
                shown = repr(str(name)[:LONGEST])
                if not self.own:
                    raise InputError(f"metric {shown} is not lm-eval's own: the `evaluate` library would run its Python; {ADD}")
                local = os.path.exists(name) or os.path.exists(f"{name}.py")
                roots = [root.resolve() for root in (self.folder, self.shown) if root]
                if local and not any(Path(name).resolve().is_relative_to(root) for root in roots):
                    raise InputError(
                        f"metric {shown}: runs Python that is not in the task folder; copy it there if you trust it"
                    )
            return original(name, hf_evaluate_metric)

        return checked

    def dataset(self, original: Any) -> Any:
        """Around `datasets.load_dataset`, with what the task's YAML gives it."""
        from datasets import packaged_modules

        def checked(path: Any = None, *arguments: Any, **settings: Any) -> Any:
            secrets.refuse(settings, lambda keys: f"dataset_kwargs: {'.'.join(map(str, keys))}")
            if not self.own:
                if path in packaged_modules._PACKAGED_DATASETS_MODULES and path not in PLAIN:
                    raise InputError(f"dataset_path: {path}: only {', '.join(PLAIN)} and data sets by name are read; {ADD}")
                for key in ELSEWHERE:
                    if key in settings:
                        raise InputError(f"dataset_kwargs: {key}: reaches outside of the cache of data sets; {ADD}")
            return original(path, *arguments, **settings)

        return checked

    def name(self, path: Any) -> str:
        """As the user knows it: the folder may be a copy."""
        text = str(path)
        return text.replace(str(self.folder), str(self.shown), 1) if self.folder and self.shown else text


@cache
def _stock() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).resolve().parent


@cache
def _dangerous(folder: Path) -> str:
    """The first thing in the Python of one of lm-eval's task folders that can run what it is given, or ""."""
    for file in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = {alias.name.partition(".")[0] for alias in node.names} & MODULES
            elif isinstance(node, ast.ImportFrom):
                found = {(node.module or "").partition(".")[0]} & MODULES
            elif isinstance(node, ast.Call):
                found = {_called(node.func)} & CALLS
            else:
                continue
            if found:
                return f"{found.pop()} ({file.name}:{node.lineno})"
    return ""


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Name):
        return function.id
    named = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
    if not isinstance(function, ast.Attribute) or named in ("re", "regex") or function.attr == "eval":  # model.eval() is none
        return ""
    return function.attr
