"""Does a two-phase estimate keep its promise? Populations of N documents drawn anew, n of them scored, 3 predictors.

    python benchmarks/twophase.py [--draws 4000]

coverage   share of 95 % intervals that hold the mean of all documents like these
here       the same, of the interval for the N documents
bias       (mean error) / (its standard error over the draws): noise is within 3
said       mean of the variance that was reported / the variance of the estimates
gain       variance of the plain mean of n random documents / that of the estimate
n_eff      median of the documents it says it is worth, / n

Losses are normal, or binary (1, 0, -1 by two thresholds); clusters have 4 documents with a correlation of .33. In "margins"
documents flip with probability exp(-|margin|) / 2, two thirds of the flips are losses, a reference flips where d does in 6 of
10, and inclusion goes by margin. Writes a Markdown table and results/twophase.json.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from driver import arguments_of, write
from scipy import stats

from cltk.measure.inclusion import flip_sizes, inclusion, systematic
from cltk.measure.twophase import two_phase

UP, DOWN = 1.2, 1.6  # thresholds of binary losses, in standard deviations: 12 % lost, 5 % gained
MEANS = {"normal": 0.0, "binary": float(stats.norm.sf(UP) - stats.norm.sf(DOWN)), "margins": 0.0}


def population(kind: str, total: int, r2: float, clusters: bool, rng: np.random.Generator) -> tuple[Any, Any, Any, Any]:
    """(d, predictors, labels, start margin) of N documents."""
    if kind == "margins":
        return _margins(total, rng)
    x = rng.normal(size=(total, 3))
    labels = np.arange(total) // 4 if clusters else np.arange(total)
    noise = rng.normal(size=total) + (np.sqrt(0.5) * rng.normal(size=total)[labels] if clusters else 0.0)
    latent = np.sqrt(r2) * x[:, 0] + np.sqrt(1 - r2) * noise / np.sqrt(1.5 if clusters else 1.0)
    d = latent if kind == "normal" else (latent > UP) * 1.0 - (latent < -DOWN)
    return d, x, [str(label) for label in labels] if clusters else None, None


def _margins(total: int, rng: np.random.Generator) -> tuple[Any, Any, Any, Any]:
    margin = 3 * rng.normal(size=total)
    flips = rng.uniform(size=total) < np.exp(-np.abs(margin)) / 2
    d = flips * np.where(rng.uniform(size=total) < 2 / 3, 1.0, -1.0)
    reference = np.where(rng.uniform(size=total) < 0.6, d, 0.0)
    return d, np.column_stack([margin > 0, margin, reference]), None, margin


def expected(kind: str) -> float:
    """The mean loss of all documents."""
    if kind != "margins":
        return MEANS[kind]
    share = 2 * np.exp(4.5) * stats.norm.cdf(-3.0) / 2  # E exp(-|margin|) / 2 for a margin of standard deviation 3
    return float(share / 3)


def measure(kind: str, n: int, total: int, r2: float, clusters: bool, unequal: bool, draws: int) -> dict[str, Any]:
    rng = np.random.default_rng([n, total, int(100 * r2), clusters, unequal])
    mean, errors, plain, said, worth, covered, here = expected(kind), [], [], [], [], 0, 0
    for _ in range(draws):
        d, x, labels, margin = population(kind, total, r2, clusters, rng)
        pi = inclusion(flip_sizes(margin, x[:, 2]), n, 0.25) if unequal else None
        if pi is not None:
            scored = systematic(pi, int(rng.integers(1 << 31)))
        elif clusters:
            scored = np.flatnonzero(np.isin(np.arange(total) // 4, rng.permutation(total // 4)[: n // 4]))
        else:
            scored = rng.permutation(total)[:n]
        found = two_phase(d[scored], scored, x, labels, pi)
        covered += bool(found.estimate.low <= mean <= found.estimate.high)
        here += bool(found.here.low <= d.mean() <= found.here.high)
        errors.append(found.estimate.mean - mean)
        plain.append(d[scored if pi is None else rng.permutation(total)[:n]].mean())
        said.append(found.estimate.se**2)
        worth.append(found.n_eff / n)
    return {
        "loss": kind, "n": n, "N": total, "R^2": r2, "clusters": clusters, "unequal": unequal,
        "coverage": covered / draws, "here": here / draws, "bias": float(np.mean(errors) / np.std(errors) * draws**0.5),
        "said": float(np.mean(said) / np.var(errors)), "gain": float(np.var(plain) / np.var(errors)),
        "n_eff": float(np.median(worth)),
    }  # fmt: skip


def table(draws: int, reduced: bool = False) -> list[dict[str, Any]]:
    cells: list[tuple[str, int, int, float, bool, bool]] = []
    for kind in ("normal", "binary"):
        for clusters in (False, True):
            for n, total in [(40, 500), (200, 1000)] if reduced else [(20, 500), (40, 500), (100, 1000), (400, 2000)]:
                if kind == "binary" and n < 100:
                    continue  # fewer than 20 flips: no t interval holds, `noninferiority` has the floor
                cells += [(kind, n, total, r2, clusters, False) for r2 in ([0.7] if reduced else [0.0, 0.5, 0.9])]
    sizes = [(200, 1000)] if reduced else [(100, 1000), (200, 1000), (400, 2000)]
    cells += [("margins", n, total, 0.0, False, True) for n, total in sizes]
    return [measure(*cell, draws) for cell in cells]


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--draws", type=int, default=4000)
    arguments = parser.parse_args()
    rows = table(arguments.draws, arguments.quick)
    write("twophase", arguments, rows)
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(_shown(value) for value in row.values()) + " |")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
