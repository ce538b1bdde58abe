"""The smallest loss that so many documents show, with the power that is said."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import binom


def mde(
    variance: float, n: float, alpha: float = 0.05, power: float = 0.8, binary: bool = False, df: float = math.inf
) -> float:
    """Smallest mean loss that a two-sided paired test on n documents shows with this power; inf when none is.

    `variance` is that of d. Continuous metrics: (t_{df, 1-alpha/2} + t_{df, power}) sqrt(variance / n). With `binary` it is
    the share of documents that flip, and the exact McNemar test has the power (`mcnemar_power`): an effect cannot be larger
    than the share of documents that flip, so the share is at least the effect. Fewer than 6 documents never show a loss.
    """
    if binary:
        return _mcnemar_mde(int(n), min(round(variance, 9), 1.0), alpha, power)
    reach = float(stdtrit(df, 1 - alpha / 2) + stdtrit(df, power))
    return reach * math.sqrt(variance / n)


def mcnemar_power(n: int, discordance: float, effect: float, alpha: float = 0.05) -> float:
    """Chance that an exact McNemar test on n documents shows a loss of this size: p < alpha, and more lost than gained.

        sum_D Bin(D; n, q) P(L >= c_D),   L ~ Bin(D, (1 + effect / q) / 2),   q = max(discordance, effect)

    over the number D of documents that flip, of which more than c_D - 1 must be lost for a p below alpha. Not conditional
    on D. Source: Connett, Smith and McHugh (1987), Statistics in Medicine 6(6).
    """
    q = max(discordance, effect)
    if q <= 0:
        return 0.0
    reach = 9 * math.sqrt(n * q * (1 - q)) + 1
    flips = np.arange(max(math.floor(n * q - reach), 0), min(math.ceil(n * q + reach), n) + 1)
    critical = binom.isf(alpha / 2, flips, 0.5)  # the test needs more than this many lost
    return float(binom.pmf(flips, n, q) @ binom.sf(critical, flips, (1 + effect / q) / 2))


@lru_cache(maxsize=4096)
def _mcnemar_mde(n: int, discordance: float, alpha: float, power: float) -> float:
    if mcnemar_power(n, discordance, 1.0, alpha) < power:
        return math.inf
    return float(brentq(lambda effect: mcnemar_power(n, discordance, effect, alpha) - power, 0.0, 1.0, xtol=1e-7))
