"""How lm-eval is driven: its tasks by name, its model, and quiet around both."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2

from cltk.errors import CltkError, InputError

Progress = Callable[[str, int, int, int], None]  # what, done, total, tokens


def load_tasks(names: Sequence[str], include_path: str | Path | None, trust: bool = True) -> Any:
    """lm-eval's own index is read only when a name is not in `include_path`: it takes seconds. `trust`: see `Suite`."""
    from lm_eval.tasks import TaskManager

    from cltk.measure.tasks import prepare, sandbox_templates
    from cltk.measure.trust import check_generation, watched

    sandbox_templates()
    missing = list(names)
    managers = []
    with tempfile.TemporaryDirectory(prefix="cltk-tasks-") as out:
        if include_path is not None:
            if not Path(include_path).is_dir():
                raise InputError(f"include_path: {include_path} is not a folder")
            folder = prepare(Path(include_path), Path(out), list(names))
            manager = TaskManager(include_defaults=False, include_path=str(folder))
            managers.append((manager, folder, [name for name in names if name in manager.all_tasks]))
            missing = [name for name in names if name not in manager.all_tasks]
        if missing:
            manager = TaskManager()
            unknown = [name for name in missing if name not in manager.all_tasks]
            if unknown:
                raise InputError(_unknown_task(unknown[0], manager.all_tasks + [t for m, *_ in managers for t in m.all_tasks]))
            managers.append((manager, None, missing))
        loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
        for manager, source, wanted in managers:
            for name in wanted:
                try:
                    with watched(source, trust, Path(include_path or "")):
                        part = manager.load([name])
                except InputError:
                    raise
                except Exception as error:
                    raise InputError(_no_data(name, error)) from None
                for key in loaded:
                    loaded[key].update(part.get(key) or {})
    for name, task in loaded["tasks"].items():
        check_generation(task.get_config("generation_kwargs") or {}, f"task {name}: generation_kwargs")
    order = {name: i for i, name in enumerate(names)}
    loaded["tasks"] = dict(sorted(loaded["tasks"].items(), key=lambda item: order.get(item[0], len(order))))
    return loaded


def attempt(name: str, act: Callable[..., Any], *given: Any) -> Any:
    """`act(*given)`; whatever goes wrong in a task's own file, data or code is one line with the task's name.

    Raises:
        InputError: what `act` raised, with its type and first line; the error itself is its cause.
    """
    try:
        return act(*given)
    except CltkError:
        raise
    except jinja2.TemplateError as error:
        raise InputError(f"task {name}: its template cannot be filled ({_reason(error)})") from error
    except Exception as error:
        raise InputError(f"task {name}: its prompts cannot be made ({_reason(error)}){_hint(error)}") from error


def _reason(error: Exception) -> str:
    first = next((line.strip() for line in str(error).split("\n") if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__


def _hint(error: Exception) -> str:
    if (isinstance(error, ValueError) and "larger than population" in str(error)) or "fewshot samples" in str(error):
        return "; there are fewer documents for examples than num_fewshot asks for"
    return ""


def _unknown_task(name: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"task {name!r} is unknown to lm-eval and to include_path{hint}"


def _no_data(name: str, error: Exception) -> str:
    reason = (str(error).strip().split("\n") or [""])[0][:200] or type(error).__name__
    return (
        f"task {name!r}: its documents cannot be loaded ({type(error).__name__}: {reason}); without a network use the"
        f" offline version: include path evals/tasks and task 'local_{name}'"
    )


def make_lm(model: Any, tokenizer: Any, digest: str, batch_size: Any, journal: Any, progress: Any, scorer: str) -> Any:
    """The lm-eval model: shared prefixes by default, lm-eval's own forward passes with scorer="stock"."""
    from cltk.measure.scoring import PrefixLM, options

    size = options(scorer, batch_size)
    trees = scorer == "prefix"
    return PrefixLM(model, tokenizer, batch_size=size, journal=journal, digest=digest, progress=progress, trees=trees)


def by_document(progress: Progress, documents: int) -> Callable[[int, int, int], None]:
    """Progress of requests, told in documents (each has its share of the requests)."""
    return lambda done, total, tokens: progress("documents", done * documents // max(total, 1), documents, tokens)


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval and datasets log and draw bars on their own; ours is the only progress shown. Bad templates are in one line."""
    import logging

    import datasets
    import jinja2
    import lm_eval.api.model
    import lm_eval.api.task

    names = ("lm_eval", "lm-eval", "datasets", "transformers", "huggingface_hub")
    levels = {name: logging.getLogger(name).level for name in names}
    bars, drawers = datasets.are_progress_bars_disabled(), (lm_eval.api.model, lm_eval.api.task)
    drawn = [module.tqdm for module in drawers]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in drawers:
        module.tqdm = _no_bar  # it passes `disable` itself, so that no setting reaches it
    datasets.disable_progress_bars()
    try:
        yield
    except jinja2.TemplateError as error:
        raise InputError(f"a task's template cannot be filled: {type(error).__name__}: {error}") from None
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for module, tqdm in zip(drawers, drawn, strict=True):
            module.tqdm = tqdm
        if not bars:
            datasets.enable_progress_bars()


def _no_bar(items: Any = (), *_: Any, **__: Any) -> Any:
    return items
