"""The one table that every method must be in: settings that change nothing, and settings that do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cltk

Texts = list[str]
AGAINST = [{"input_ids": [299] * 8}]  # a token that learning the new task makes less likely: projections have work to do


@dataclass(frozen=True)
class Case:
    """How the common tests build a method.

    nothing: strength 0 in this method's words; None when it has none.
    place: where it stands in the list of all methods: parameters before what keeps copies of them.
    moves: whether the active settings must change the weights of a short training.
    """

    active: Callable[[Texts], Any]
    nothing: Callable[[Texts], Any] | None
    place: int = 5
    moves: bool = True


CASES: dict[str, Case] = {
    "a_gem": Case(lambda old: cltk.AGEM(AGAINST), lambda old: cltk.AGEM(old, batch_size=0)),
    "dare": Case(lambda old: cltk.DARE(0.5), lambda old: cltk.DARE(0.0)),
    "der_pp": Case(
        lambda old: cltk.DERPP(old, top_k=8, samples=6, length=16), lambda old: cltk.DERPP(old, alpha=0.0, beta=0.0)
    ),
    "early_stopping": Case(
        lambda old: cltk.EarlyStopping(patience=1, every=2, budget=10.0, memory=old, limit=4),
        lambda old: cltk.EarlyStopping(every=0),
        moves=False,  # it may stop late and keep the last weights: what it must do is probe
    ),
    "ema": Case(lambda old: cltk.EMA(0.5), lambda old: cltk.EMA(0.0)),
    "ewc": Case(
        lambda old: cltk.EWC(3.0, {"memory": old, "samples": 4, "block": 16, "normalize": "mean"}),
        lambda old: cltk.EWC(0.0, {"memory": old, "samples": 4}),
    ),
    "freeze": Case(lambda old: cltk.Freeze(1), lambda old: cltk.Freeze(0, embeddings=False), place=0),
    "gem": Case(
        lambda old: cltk.GEM({"old": old, "against": AGAINST}, batch_size=2, length=16),
        lambda old: cltk.GEM([old], batch_size=0),
    ),
    "hft": Case(lambda old: cltk.HFT(every=2), lambda old: cltk.HFT(fraction=1.0)),
    "kl": Case(lambda old: cltk.KL(0.5), lambda old: cltk.KL(0.0)),
    "l2_sp": Case(lambda old: cltk.L2SP(5.0), lambda old: cltk.L2SP(0.0)),
    "lm_cocktail": Case(lambda old: cltk.LMCocktail(limit=4), None),
    "lora": Case(lambda old: cltk.LoRA(4, rate=5.0), lambda old: cltk.LoRA(0), place=0),
    "low_lr": Case(lambda old: cltk.LowLR(0.5), lambda old: cltk.LowLR(1.0)),
    "lwf": Case(lambda old: cltk.LwF(0.5), lambda old: cltk.LwF(0.0)),
    "mas": Case(lambda old: cltk.MAS(3.0, old, samples=4, block=16), lambda old: cltk.MAS(0.0)),
    "mofo": Case(lambda old: cltk.MoFO(0.15), lambda old: cltk.MoFO(1.0)),
    "online_ewc": Case(
        lambda old: cltk.OnlineEWC(3.0, {"memory": old, "samples": 4, "block": 16}, samples=4),
        lambda old: cltk.OnlineEWC(0.0),
    ),
    "osft": Case(lambda old: cltk.OSFT(0.5), lambda old: cltk.OSFT(0.0), place=4),
    "replay": Case(lambda old: cltk.Replay(old, 0.25), lambda old: cltk.Replay(old, 0.0)),
    "replay_loss": Case(lambda old: cltk.ReplayLoss(old, 0.5, length=16), lambda old: cltk.ReplayLoss(old, 0.0)),
    "reservoir": Case(lambda old: cltk.Reservoir(8, 0.25, memory=old, length=16), lambda old: cltk.Reservoir(8, 0.25), place=1),
    "rewarm": Case(lambda old: cltk.Rewarm(0.3), None),
    "rwalk": Case(
        lambda old: cltk.RWalk(3.0, {"memory": old, "samples": 4, "block": 16}, alpha=0.5, interval=4),
        lambda old: cltk.RWalk(0.0),
    ),
    "sam": Case(lambda old: cltk.SAM(0.05), lambda old: cltk.SAM(0.0), place=2),
    "self_replay": Case(
        lambda old: cltk.SelfReplay(0.25, samples=4, max_new_tokens=6), lambda old: cltk.SelfReplay(0.0, samples=4), place=1
    ),
    "si": Case(lambda old: cltk.SI(3.0, memory=old, memory_steps=2, memory_lr=1e-3), lambda old: cltk.SI(0.0)),
    "task_arithmetic": Case(lambda old: cltk.TaskArithmetic(0.5), lambda old: cltk.TaskArithmetic(1.0)),
    "ties": Case(lambda old: cltk.TIES(), lambda old: cltk.TIES(density=1.0)),
    "token_weights": Case(lambda old: cltk.TokenWeights("talr"), lambda old: cltk.TokenWeights("none")),
    "ulmfit": Case(  # cut_frac 0: one method alone may set the schedule
        lambda old: cltk.ULMFiT(1.3, cut_frac=0.0), lambda old: cltk.ULMFiT(1.0, cut_frac=0.0, unfreeze=False), place=4
    ),
    "wise_ft": Case(lambda old: cltk.WiSEFT(0.5), lambda old: cltk.WiSEFT(1.0)),
}
