"""Documents that changed sides, and how many of them guessing alone turns over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cltk.errors import InputError
from cltk.measure.intervals import cluster_sums


@dataclass(frozen=True)
class Flips:
    """Documents that changed sides; `_rate` fields and below are shares of all n documents, in 0..1."""

    n: int
    lost: int  # 1 -> 0
    gained: int  # 0 -> 1
    lost_rate: float  # F
    gained_rate: float  # BT, backward transfer
    chance_rate: float  # F_chance = BT_chance: flips of either kind that guessing alone makes
    lost_true: float  # F_true
    gained_true: float  # BT_true
    losable: float  # F_max: what is known before, beyond guessing


def flips(pre: ArrayLike, post: ArrayLike, choices: Sequence[float] | None = None) -> Flips:
    """Count 1 -> 0 (forgetting F) and 0 -> 1 (backward transfer BT) and take out what guessing explains.

    F_chance = BT_chance = (1 - a_pre) (1 - a_post) / (k - 1);  F_true = max(F - F_chance, 0);
    F_max = max((k a_pre - 1) / (k - 1), 0) = max(1 - (1 - a_pre) k / (k - 1), 0), for accuracies a and k choices.
    Where k differs per document, 1 / (k - 1) and k / (k - 1) are means over documents. Without choices nothing can be
    guessed: F_chance = 0, F_max = a_pre. Assumes uniform guesses, independent before and after: models that repeat
    their guesses flip less than F_chance. Source: Harmon et al. (2025), arXiv 2510.17776.

    Raises:
        InputError: scores other than 0 and 1, different lengths, or fewer than two choices.
    """
    before, after = cluster_sums(pre)[0], cluster_sums(post)[0]
    if len(before) != len(after):
        raise InputError(f"{len(before)} scores before and {len(after)} after; score the same documents")
    if not np.isin(np.concatenate([before, after]), (0, 1)).all():
        raise InputError("flips need scores of 0 and 1; use the difference of means for continuous metrics")
    n = len(before)
    lost, gained = int((before > after).sum()), int((before < after).sum())
    a_pre, a_post = float(before.mean()), float(after.mean())
    odds = guess_odds(choices)
    chance = (1 - a_pre) * (1 - a_post) * odds
    F, BT = lost / n, gained / n
    known = max(1 - (1 - a_pre) * (1 + odds), 0.0)
    return Flips(n, lost, gained, F, BT, chance, max(F - chance, 0.0), max(BT - chance, 0.0), known)


def guess_odds(choices: Sequence[float] | None) -> float:
    """Mean of 1 / (k - 1) over documents: right guesses for each wrong one. 0 when there is nothing to choose from.

    With r right answers of m choices, k = m / r, and 1 / (k - 1) = r / (m - r).
    """
    if choices is None or len(choices) == 0:
        return 0.0
    if min(choices) <= 1:
        raise InputError(f"a document has {min(choices)} choices; multiple choice needs at least 2")
    return float(np.mean(1 / (np.asarray(choices, dtype=np.float64) - 1)))


def churn(one: ArrayLike, other: ArrayLike, choices: Sequence[float] | None = None) -> Flips:
    """The empirical null of flips: two seeds of the same method, scored 0 or 1 on the same documents.

    Neither seed is "before", so a loss of (lost_rate + gained_rate) / 2 is what a method's F must exceed to be more than
    training noise.
    """
    return flips(one, other, choices)
