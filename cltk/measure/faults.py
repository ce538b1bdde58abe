"""Errors that come from a task's own file, data or code: one line with the task's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jinja2
import torch

from cltk.errors import CltkError, InputError, out_of_memory, reason

PASSING = (CltkError, OSError, MemoryError, torch.OutOfMemoryError, Warning)  # no fault of a task or a model


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
        raise InputError(f"task {name}: its template cannot be filled ({reason(error)})") from error
    except Exception as error:
        raise InputError(f"task {name}: its prompts cannot be made ({reason(error)}){_hint(error)}") from error


def run(tasks: dict[str, Any], act: Callable[[], Any]) -> Any:
    """`act()`, which scores `tasks`; an error is one line with the task whose code it came from.

    Raises:
        InputError: what `act` raised. What the machine cannot do (memory, disk) passes as it is, and so do warnings.
    """
    try:
        return act()
    except PASSING:
        raise
    except jinja2.TemplateError as error:
        raise InputError(f"{_culprit(error, tasks)}: its template cannot be filled ({reason(error)})") from error
    except Exception as error:
        task = _from_task(error)
        if found := None if task else _of_model(error):
            raise found from error
        if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError | RecursionError) and not task:
            raise
        raise InputError(f"{_culprit(error, tasks)} cannot be scored ({reason(error)})") from error


@contextmanager
def forward() -> Iterator[None]:
    """What a model's own forward raises inside becomes an InputError of one line; the machine's errors pass as they are."""
    try:
        yield
    except PASSING:
        raise
    except Exception as error:
        found = _of_model(error)
        if found is None:
            raise
        raise found from error


def _of_model(error: Exception) -> InputError | None:
    """The line about an error in a model's forward (shapes, tokens, positions); None where no model or the memory made it."""
    frame, model, words = error.__traceback__, "", str(error).lower()
    while frame is not None:
        one = frame.tb_frame.f_locals.get("self")
        runs = isinstance(one, torch.nn.Module) and frame.tb_frame.f_code.co_name in ("forward", "_call_impl")
        model = model or (type(one).__name__ if runs else "")
        frame = frame.tb_next
    if out_of_memory(error) or not (model or words.startswith("cuda error")):
        return None
    return InputError(
        f"{model or 'model'}: its forward pass fails ({reason(error)}); its weights must fit its config, its embedding the"
        " tokens, and its positions the longest text"
    )


def _from_task(error: BaseException) -> str | None:
    """The task in whose methods, or for whom, an error was raised."""
    from lm_eval.api.task import Task

    frame, found = error.__traceback__, None
    while frame is not None:
        for name in ("self", "task"):
            one = frame.tb_frame.f_locals.get(name)
            if isinstance(one, Task) and (frame.tb_next is None or frame.tb_frame.f_code.co_name != "evaluate"):
                found = one.task_name
        frame = frame.tb_next
    return found


def _culprit(error: BaseException, tasks: dict[str, Any]) -> str:
    found = _from_task(error) or (next(iter(tasks)) if len(tasks) == 1 else None)
    return f"task {found}" if found else f"a task of {', '.join(tasks)}"


def _hint(error: Exception) -> str:
    if "larger than population" in str(error) or "fewshot samples" in str(error) or "for sampling" in str(error):
        return "; there are fewer documents for examples than num_fewshot asks for"
    return ""
