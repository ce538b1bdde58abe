"""The methods. `MITIGATORS` is the whole plugin system: add `cltk.MITIGATORS["name"] = YourClass`."""

from cltk.mitigate.averaging import WiSEFT
from cltk.mitigate.distill import KL
from cltk.mitigate.importance import Importance, fisher
from cltk.mitigate.interface import Mitigator, Plan, Run
from cltk.mitigate.quadratic import EWC, L2SP
from cltk.mitigate.rates import EarlyStopping, LowLR
from cltk.mitigate.replay import Replay

MITIGATORS: dict[str, type[Mitigator]] = {
    "early_stopping": EarlyStopping,
    "ewc": EWC,
    "kl": KL,
    "l2_sp": L2SP,
    "low_lr": LowLR,
    "replay": Replay,
    "wise_ft": WiSEFT,
}

__all__ = [
    "EWC", "KL", "L2SP", "MITIGATORS", "EarlyStopping", "Importance", "LowLR", "Mitigator", "Plan", "Replay", "Run",
    "WiSEFT", "fisher",
]  # fmt: skip
