"""How skewed a mean over clusters is, and how well they show it: few large clusters say little, all of them together more."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def skewness(sums: Floats, spread: Floats) -> tuple[float, float]:
    """(skewness of the sum of r_c, its standard error / sqrt(6)), where r_c = s_c z_c and the z_c are alike; both 0 for G < 3.

        skewness = sqrt(G (G - 1)) / (G - 2) mean(z^3) / mean(z^2)^(3/2) L,    z centred,   L = sum s_c^3 / (sum s_c^2)^(3/2)
        error    = sqrt(6 / G) L

    sqrt(6 / G) is the standard error of the skewness of G normal z; what z has counts in the sum by L, as third moments add
    up by s^3 and variances by s^2. Of equal clusters it is sqrt(G (G - 1)) / (G - 2) sum r^3 / (sum r^2)^(3/2) and sqrt(6) / G.
    Of unequal ones that formula asks the few largest alone; its error is sqrt(6 sum s^6) / (sum s^2)^(3/2), never less.

    Args:
        sums: r_c [G], of residuals.
        spread: s_c [G], the standard deviations of r_c up to a factor.

    Source: Joanes and Gill (1998), The Statistician 47(1), for the skewness of independent z and its standard error.
    """
    groups = len(sums)
    if groups < 3:
        return 0.0, 0.0
    lump = float((spread**3).sum()) / float((spread**2).sum()) ** 1.5
    z = sums / spread
    z = z - z.mean()
    square = float((z**2).mean())
    shown = math.sqrt(groups * (groups - 1)) / (groups - 2) * float((z**3).mean()) / square**1.5 if square else 0.0
    return shown * lump, lump / math.sqrt(groups)


def cluster_spread(sums: Floats, counts: Floats, squares: float) -> Floats:
    """Standard deviations s_c [G] of the sums of m_c documents: s_c^2 = m_c W + m_c^2 B.

        W = (squares - sum r_c^2 / m_c) / (n - G)                           within a cluster
        B = max(0, (A (1 + sqrt(2 / (G - 1))) - W) / m0)                    in common
        A = sum r_c^2 / (m_c (G - 1)),   m0 = (n - sum m_c^2 / n) / (G - 1)

    The mean square A is taken one standard error too large: more in common makes large clusters count for more.

    Args:
        sums: r_c [G], sums of the residuals of all documents.
        counts: m_c [G].
        squares: the sum of the documents' squared residuals.

    Source: Searle, Casella and McCulloch (1992), Variance Components, chapter 3 (one-way layout, unequal numbers).
    """
    n, groups = float(counts.sum()), len(counts)
    if groups in (1, n) or squares == 0:
        return counts
    between = float((sums**2 / counts).sum())
    within = max(squares - between, 0.0) / (n - groups)
    common = between / (groups - 1) * (1 + math.sqrt(2 / (groups - 1))) - within
    alike = max(common, 0.0) * (groups - 1) / (n - float((counts**2).sum()) / n)
    return np.sqrt(counts * within + counts**2 * alike)
