"""The instrument: `cltk.measure(base, tuned, tasks=[...])` compares two checkpoints; see `cltk.measure.compare`."""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """The package is also the function: importing `cltk.measure.x` binds `cltk.measure` to the package in any case."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from cltk.measure.compare import measure

        return measure(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
