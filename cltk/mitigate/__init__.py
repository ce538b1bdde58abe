"""The methods. `MITIGATORS` is the whole plugin system: add `cltk.MITIGATORS["name"] = YourClass`."""

from cltk.importance.fisher import Importance, fisher
from cltk.mitigate.adapters import LoRA
from cltk.mitigate.averaging import EMA, WiSEFT
from cltk.mitigate.cocktail import LMCocktail
from cltk.mitigate.distill import KL, LwF
from cltk.mitigate.freezing import Freeze, ULMFiT
from cltk.mitigate.generate import SelfReplay
from cltk.mitigate.interface import Mitigator, Plan, Run
from cltk.mitigate.online import MAS, OnlineEWC
from cltk.mitigate.path import SI
from cltk.mitigate.projection import AGEM, GEM
from cltk.mitigate.quadratic import EWC, L2SP
from cltk.mitigate.rates import EarlyStopping, LowLR, Rewarm
from cltk.mitigate.rehearsal import DERPP, ReplayLoss
from cltk.mitigate.replay import Replay
from cltk.mitigate.reservoir import Reservoir
from cltk.mitigate.rwalk import RWalk
from cltk.mitigate.sharpness import SAM
from cltk.mitigate.sparse import HFT, MoFO
from cltk.mitigate.subspace import OSFT
from cltk.mitigate.tokens import TokenWeights
from cltk.mitigate.vectors import DARE, TIES, TaskArithmetic, merge

MITIGATORS: dict[str, type[Mitigator]] = {
    "a_gem": AGEM,
    "dare": DARE,
    "der_pp": DERPP,
    "early_stopping": EarlyStopping,
    "ema": EMA,
    "ewc": EWC,
    "freeze": Freeze,
    "gem": GEM,
    "hft": HFT,
    "kl": KL,
    "l2_sp": L2SP,
    "lm_cocktail": LMCocktail,
    "lora": LoRA,
    "low_lr": LowLR,
    "lwf": LwF,
    "mas": MAS,
    "mofo": MoFO,
    "online_ewc": OnlineEWC,
    "osft": OSFT,
    "replay": Replay,
    "replay_loss": ReplayLoss,
    "reservoir": Reservoir,
    "rewarm": Rewarm,
    "rwalk": RWalk,
    "sam": SAM,
    "self_replay": SelfReplay,
    "si": SI,
    "task_arithmetic": TaskArithmetic,
    "ties": TIES,
    "token_weights": TokenWeights,
    "ulmfit": ULMFiT,
    "wise_ft": WiSEFT,
}

__all__ = [
    "AGEM", "DARE", "DERPP", "EMA", "EWC", "GEM", "HFT", "KL", "L2SP", "MAS", "MITIGATORS", "OSFT", "SAM", "SI", "TIES",
    "EarlyStopping", "Freeze", "Importance", "LMCocktail", "LoRA", "LowLR", "LwF", "Mitigator", "MoFO", "OnlineEWC",
    "Plan", "RWalk", "Replay", "ReplayLoss", "Reservoir", "Rewarm", "Run", "SelfReplay", "TaskArithmetic", "TokenWeights",
    "ULMFiT", "WiSEFT", "fisher", "merge",
]  # fmt: skip
