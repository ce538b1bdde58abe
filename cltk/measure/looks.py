"""Looks at data that are still coming in: how much surer one must be each time for 95 % to hold over all of them.

Pure functions of numbers. A look has an information fraction t, its information (1 / SE^2) over that of the last planned look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from cltk.errors import InputError
from cltk.measure.stats import Floats

NODES = 96  # of the quadrature over one continuation region
PLANNED = 2.05  # about the boundary of the last look at alpha .05: what the planned information is computed with
MOST = 0.9  # of the planned information that a look counts as which is not the last one: alpha is left for that


def spent(t: float, alpha: float = 0.05) -> float:
    """Two-sided error spent up to information fraction t: 2 [2 - 2 Phi(z_{1-alpha/4} / sqrt(t))], all of alpha from t = 1 on.

    O'Brien-Fleming's shape: next to nothing early, so that the last look costs little. Source: Lan and DeMets (1983),
    Biometrika 70(3), for each side at alpha/2.
    """
    return alpha if t >= 1 else 0.0 if t <= 0 else 4 * float(stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(t)))


def boundaries(information: Sequence[float], alpha: float = 0.05, last: bool = False, most: float = 1.0) -> list[float]:
    """|Z| that each look must reach, two-sided, so that looks 1 to k cross by chance with probability spent(t_k).

    Z_k = B(t_k) / sqrt(t_k) for a Brownian motion B; its density within the boundaries is carried from look to look by
    quadrature (Armitage, McPherson and Rowe 1969). A look that adds no information decides nothing: infinity.

    Args:
        information: t_1, t_2, ...; above 1 where more came than was planned.
        last: whether the last of them is the last there will be, so that all of alpha is spent there.
        most: what a look that is not the last spends at most, as a fraction.

    Raises:
        InputError: no look, a fraction that is not above 0, or an alpha outside (0, 1).
    """
    if not information or not all(t > 0 and math.isfinite(t) for t in information) or not 0 < alpha < 1:
        raise InputError(f"looks: expected information fractions above 0 and 0 < alpha < 1, got {list(information)}, {alpha}")
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    places, mass = np.zeros(1), np.ones(1)  # B before the first look: 0, surely
    now, used, found = 0.0, 0.0, []
    for k, t in enumerate(information):
        goal = alpha if last and k + 1 == len(information) else spent(min(t, most), alpha)
        step, left = math.sqrt(max(t - now, 0.0)), goal - used
        if step < 1e-6 or left < 1e-15:
            found.append(math.inf)
            continue
        bound = _bound(places, mass, step, left)
        found.append(bound / math.sqrt(t))
        inner = bound * nodes
        density = stats.norm.pdf((inner[:, None] - places) / step) @ mass / step
        places, mass, now, used = inner, bound * weights * density, t, goal
    return found


def _bound(places: Floats, mass: Floats, step: float, left: float) -> float:
    """b with P(|B + step N(0, 1)| > b) = left, for B spread over `places` with `mass`."""

    def outside(b: float) -> float:
        return float(mass @ (stats.norm.sf((b - places) / step) + stats.norm.cdf((-b - places) / step)))

    high = float(np.abs(places).max()) + 10 * step
    return float(brentq(lambda b: outside(b) - left, 0.0, high, xtol=1e-10)) if outside(0.0) > left else 0.0


@dataclass
class Looks:
    """Repeated intervals (Jennison and Turnbull 1989) of one mean: all of them hold together, so any of them may be the last.

    The information that a half width h needs is taken to be (2.05 / h)^2. Whether a look is the last one follows from its
    standard error alone: it is when the interval that spends all of alpha there is narrow enough.
    """

    half_width: float  # h, in the unit of the mean
    alpha: float = 0.05
    information: list[float] = field(default_factory=list)  # t of every look, rising
    ended: bool = False
    width: float = math.inf  # half width of the interval of the look just taken
    df: float = math.nan  # its degrees of freedom

    def __post_init__(self) -> None:
        if not (self.half_width > 0 and math.isfinite(self.half_width)):
            raise InputError(f"half width: expected a number above 0, got {self.half_width}")

    def fraction(self, se: float) -> float:
        """t of a look with this standard error; 0 where there is none."""
        return 0.0 if math.isnan(se) else math.inf if se == 0 else (self.half_width / (PLANNED * se)) ** 2

    def look(self, se: float, df: float, last: bool = False) -> float:
        """Take a look; its interval's half width. `ended` says whether it is the last one: narrow enough, or `last`.

        A boundary z becomes the t quantile with z's tail. SE nan, or 0 (documents that are all alike so far): infinity.
        Information that seems to shrink is taken to have grown by 2 %.
        """
        self.ended, self.width, self.df = last, math.inf, df
        t = self.fraction(se)
        if not 0 < t < math.inf:
            return self.width
        t = max(t, 1.02 * self.information[-1]) if self.information else t
        self.information.append(t)
        self.width = self._quantile(self.alpha, df, last=True) * se
        self.ended = last or self.width <= self.half_width
        if not self.ended:
            self.width = self._quantile(self.alpha, df, last=False) * se
        return self.width

    def p(self, mean: float, se: float) -> float:
        """Two-sided p at the look just taken: the smallest alpha whose repeated interval leaves 0 out."""
        low, high = 1e-12, 1 - 1e-9
        if not self.information or not se > 0 or self._quantile(high, self.df, self.ended) * se > abs(mean):
            return 1.0
        for _ in range(40):
            middle = math.sqrt(low * high)
            missed = self._quantile(middle, self.df, self.ended) * se > abs(mean)
            low, high = (middle, high) if missed else (low, middle)
        return high

    def _quantile(self, alpha: float, df: float, last: bool) -> float:
        z = boundaries(self.information, alpha, last, MOST)[-1]
        return math.inf if math.isinf(z) else float(stats.t.isf(stats.norm.sf(z), df))


def next_look(n: int, fraction: float, most: int) -> int:
    """Documents of the next look: what the half width is expected to need and a tenth more, from 1.25 to 4 times n."""
    expected = 1.1 * n / fraction if fraction > 0 else math.inf
    return min(most, math.ceil(min(max(expected, 1.25 * n), 4 * n)))
