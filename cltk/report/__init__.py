"""Reports: `cltk.report(runs, markdown=..., html=..., latex=..., lm_eval=...)`; see `cltk.report.api`."""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """The package is also the function: importing `cltk.report.x` binds `cltk.report` to the package in any case."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from cltk.report.api import report

        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
