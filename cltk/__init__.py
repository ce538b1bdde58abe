"""cltk: measure what a language model forgets when it is fine-tuned, and prevent it.

Forgetting(task) = Perf_pre(task) - Perf_ft(task): positive is bad; on the original tasks, paired document by document.
Names are loaded on first use, so that `import cltk` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "attach": "cltk.hosts.trainer",
    "fisher": "cltk.mitigate",
    "load": "cltk.run.experiment",
    "merge": "cltk.mitigate",
    "session": "cltk.hosts.loop",
    "Watch": "cltk.hosts.watch",
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


if TYPE_CHECKING:  # what `__getattr__` below finds, for type checkers
    from cltk import assets as assets
    from cltk.errors import CltkError as CltkError
    from cltk.errors import InputError as InputError
    from cltk.errors import RunError as RunError
    from cltk.hosts.loop import session as session
    from cltk.hosts.trainer import attach as attach
    from cltk.hosts.watch import Watch as Watch
    from cltk.measure.compare import measure as measure
    from cltk.mitigate import AGEM as AGEM
    from cltk.mitigate import DARE as DARE
    from cltk.mitigate import DERPP as DERPP
    from cltk.mitigate import EMA as EMA
    from cltk.mitigate import EWC as EWC
    from cltk.mitigate import GEM as GEM
    from cltk.mitigate import HFT as HFT
    from cltk.mitigate import KL as KL
    from cltk.mitigate import L2SP as L2SP
    from cltk.mitigate import MAS as MAS
    from cltk.mitigate import MITIGATORS as MITIGATORS
    from cltk.mitigate import OSFT as OSFT
    from cltk.mitigate import SAM as SAM
    from cltk.mitigate import SI as SI
    from cltk.mitigate import TIES as TIES
    from cltk.mitigate import EarlyStopping as EarlyStopping
    from cltk.mitigate import Freeze as Freeze
    from cltk.mitigate import Importance as Importance
    from cltk.mitigate import LMCocktail as LMCocktail
    from cltk.mitigate import LoRA as LoRA
    from cltk.mitigate import LowLR as LowLR
    from cltk.mitigate import LwF as LwF
    from cltk.mitigate import Mitigator as Mitigator
    from cltk.mitigate import MoFO as MoFO
    from cltk.mitigate import OnlineEWC as OnlineEWC
    from cltk.mitigate import Replay as Replay
    from cltk.mitigate import ReplayLoss as ReplayLoss
    from cltk.mitigate import Reservoir as Reservoir
    from cltk.mitigate import Rewarm as Rewarm
    from cltk.mitigate import RWalk as RWalk
    from cltk.mitigate import SelfReplay as SelfReplay
    from cltk.mitigate import TaskArithmetic as TaskArithmetic
    from cltk.mitigate import TokenWeights as TokenWeights
    from cltk.mitigate import ULMFiT as ULMFiT
    from cltk.mitigate import WiSEFT as WiSEFT
    from cltk.mitigate import fisher as fisher
    from cltk.mitigate import merge as merge
    from cltk.report.api import report as report
    from cltk.run.experiment import load as load


if not TYPE_CHECKING:  # a name that is not there must be an error there, too

    def __getattr__(name: str) -> Any:
        if name in _NAMES:
            return getattr(import_module(_NAMES[name]), name)
        if name in _PACKAGES:
            return import_module(f"cltk.{name}")
        raise AttributeError(f"module 'cltk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
