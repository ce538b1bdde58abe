"""cltk: measure what a language model forgets when it is fine-tuned, and prevent it.

Forgetting(task) = Perf_pre(task) - Perf_ft(task): positive is bad; on the original tasks, paired document by document.
Names are loaded on first use, so that `import cltk` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "attach": "cltk.trainer",
    "fisher": "cltk.mitigate",
    "load": "cltk.run.experiment",
    "merge": "cltk.mitigate",
    "session": "cltk.loop",
    "CltkError": "cltk.errors",
    "InputError": "cltk.errors",
    "RunError": "cltk.errors",
    **dict.fromkeys(
        [
            "AGEM", "DARE", "DERPP", "EMA", "EWC", "GEM", "HFT", "KL", "L2SP", "MAS", "MITIGATORS", "OSFT", "SAM", "SI",
            "TIES", "EarlyStopping", "Freeze", "Importance", "LMCocktail", "LoRA", "LowLR", "LwF", "Mitigator", "MoFO",
            "OnlineEWC", "RWalk", "Replay", "ReplayLoss", "Reservoir", "Rewarm", "SelfReplay", "TaskArithmetic",
            "TokenWeights", "ULMFiT", "WiSEFT",
        ],
        "cltk.mitigate",
    ),
}  # fmt: skip
_PACKAGES = ("assets", "measure", "report")  # the last two can be called: cltk.measure(base, tuned, tasks), cltk.report(runs)

__all__ = ["__version__", *sorted([*_NAMES, *_PACKAGES])]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _PACKAGES:
        return import_module(f"cltk.{name}")
    raise AttributeError(f"module 'cltk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
