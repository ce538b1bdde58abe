"""What studies claim that is not so: intervals over seeds and documents, matched gain, and families of methods, simulated.

    python benchmarks/studies.py [--repeats 1000]

Noise is normal, of trainings, of clusters, and of both; the truth is no effect, or the margin itself. Prints the tables of
docs/statistics.md, section Studies. Each row is drawn from a seed of its own.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cltk.measure.stats import Floats, holm, noninferiority, verdict
from cltk.report import noise
from cltk.report.matched import against_frontier
from cltk.report.sources import Losses

MIXES = {  # shares of the mean's variance: trainings, clusters, both
    "documents": (0.0, 1.0, 0.0), "0.3 training": (0.3, 0.7, 0.0), "0.7 training": (0.7, 0.3, 0.0),
    "a third each": (1 / 3, 1 / 3, 1 / 3),
}  # fmt: skip
GROUPS, SEEDS, METHODS, MARGIN = (2, 5, 20, 200), (1, 2, 3, 4, 5), (1, 5, 20), 0.02
RATES = {
    "two rates, the second better": {"p1": (1, 0.11), "p2": (3, 0.10), "m": (2, 0.10)},
    "two rates that forget alike": {"p1": (1, 0.10), "p2": (3, 0.10), "m": (2, 0.10)},
    "six nearly equal rates": {**{f"p{i}": (2 + 0.01 * (i - 2.5), 0.10) for i in range(6)}, "m": (2, 0.10)},
    "rising line": {"p1": (1, 0.05), "p2": (1.5, 0.10), "p3": (2, 0.15), "p4": (2.5, 0.20), "m": (1.8, 0.13)},
    "a rate too high": {
        "p1": (1.5, 0.005), "p2": (2.4, 0.01), "p3": (2.5, 0.04), "p4": (2.42, 0.15), "p5": (2.2, 0.27), "m": (2.45, 0.025),
    },
}  # fmt: skip


def drawn(rng: np.random.Generator, seeds: int, groups: int, mix: tuple[float, float, float]) -> Floats:
    """d [S, G] whose mean has variance 1, in these shares; one seed has no training noise to draw."""
    training, documents, both = (math.sqrt(share) for share in mix)
    return np.asarray(
        training * math.sqrt(seeds) * rng.normal(size=(seeds, 1))
        + documents * math.sqrt(groups) * rng.normal(size=(1, groups))
        + max(both, 0.01) * math.sqrt(seeds * groups) * rng.normal(size=(seeds, groups))
    )


def coverage(seeds: int, groups: int, mix: str, repeats: int) -> float:
    """Share of intervals that hold the truth."""
    rng = np.random.default_rng(seeds * 1000 + groups)
    found = [noise.combine([noise.from_documents(drawn(rng, seeds, groups, MIXES[mix]))], total=True) for _ in range(repeats)]
    return float(np.mean([one.low < 0 < one.high for one in found]))


@dataclass(frozen=True)
class Claims:
    """Of `cltk matched` at no difference: in reach, mean D with its error, and claims that are false."""

    reach: float
    bias: float
    error: float
    less: float
    more: float


def study(rng: np.random.Generator, settings: dict[str, tuple[float, float]], seeds: int) -> dict[str, tuple[Losses, Losses]]:
    """Losses on 40 documents a task: trainings differ by 0.05 (gain) and 0.01 (forgetting), documents by 0.3 and 0.06."""
    found, documents = {}, [str(i) for i in range(40)]
    for name, (gain, rise) in settings.items():
        sides = []
        for mean, training, spread in ((-gain, 0.05, 0.3), (rise, 0.01, 0.06)):
            d = mean + training * (seeds > 1) * rng.normal(size=(seeds, 1)) + spread * rng.normal(size=(1, 40))
            d = d + spread / 2 * rng.normal(size=(seeds, 40))
            sides.append(Losses(d, [], None, documents, d, d))
        found[name] = (sides[0], sides[1])
    return found


def claims(rates: str, seeds: int, repeats: int) -> Claims:
    """`cltk matched` of a method that forgets what plain training does at its gain."""
    rng, truth = np.random.default_rng(seeds), RATES[rates]
    plain = [name for name in truth if name != "m"]
    tried = [against_frontier(study(rng, truth, seeds), "m", plain) for _ in range(repeats)]
    found = [one for one in tried if one is not None]
    d = np.array([one.mean for one in found])
    less, more = (float(np.mean(hits)) for hits in ([one.high < 0 for one in found], [one.low > 0 for one in found]))
    return Claims(len(found) / repeats, float(d.mean()), float(d.std(ddof=1)) / math.sqrt(len(d)), less, more)


def families(methods: int, seeds: int, repeats: int) -> tuple[float, float]:
    """Share of studies with any "does not forget by more than the margin", alone and in their family: all forget the margin."""
    rng, words = np.random.default_rng(methods), f"{MARGIN:g} nats"
    alone, together, mix = [], [], MIXES["0.3 training" if seeds > 1 else "documents"]
    for _ in range(repeats):
        rows = [MARGIN + 0.01 * drawn(rng, seeds, 60, mix) for _ in range(methods)]
        found = [noise.combine([noise.from_documents(d)], total=True) for d in rows]
        p = [noninferiority(one, MARGIN) for one in found]
        for adjusted, hits in ((p, alone), (holm(p), together)):
            said = [verdict(one.ci, 1.0, q, words) for one, q in zip(found, adjusted, strict=True)]
            hits.append(any(word.startswith("does not") for word in said))
    return float(np.mean(alone)), float(np.mean(together))


def tables(repeats: int) -> Iterator[str]:
    """Markdown, line by line."""
    yield "| seeds | noise | " + " | ".join(f"{groups} clusters" for groups in GROUPS) + " |"
    yield "| ---: | --- |" + " ---: |" * len(GROUPS)
    for seeds in SEEDS:
        for mix in MIXES if seeds > 1 else ["documents"]:
            cells = [f"{100 * coverage(seeds, groups, mix, 2 * repeats):.1f}" for groups in GROUPS]
            yield f"| {seeds} | {mix} | " + " | ".join(cells) + " |"
    yield "\n| plain training | seeds | in reach, % | mean D | forgets less, % | forgets more, % |"
    yield "| --- |" + " ---: |" * 5
    for rates in RATES:
        for seeds in (1, 3, 5):
            one = claims(rates, seeds, repeats)
            yield (
                f"| {rates} | {seeds} | {100 * one.reach:.0f} | {one.bias:+.4f} ± {one.error:.4f} | {100 * one.less:.1f} |"
                f" {100 * one.more:.1f} |"
            )
    yield "\n| methods | seeds | unadjusted, % | Holm, % |"
    yield "| ---: | ---: | ---: | ---: |"
    for methods in METHODS:
        for seeds in (1, 3):
            alone, together = families(methods, seeds, repeats)
            yield f"| {methods} | {seeds} | {100 * alone:.1f} | {100 * together:.1f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    for line in tables(parser.parse_args().repeats):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
