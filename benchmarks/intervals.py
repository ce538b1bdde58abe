"""What the intervals and verdicts of `cltk.measure` are worth: coverage and false claims on data whose truth is known.

    python -m benchmarks.intervals --draws 4000 --markdown docs/statistics.md

Every cell draws documents of one kind, again and again, and asks the functions that make the rows of `cltk measure`:

    coverage          share of 95 % intervals that hold the true mean
    t                 the same of the plain t interval (by cluster: CR2)
    false "forgets"   at a true mean of 0, at most 2.5 % (of McNemar's or of the interval's own p; a row's sign-flip test
                      can only lower it)
    false "does not"  "does not forget by more than M" at a true mean of M, at most 5 %
    cannot tell       share of verdicts at a true mean of 0
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cltk.measure import stats
from cltk.measure.stats import Estimate, Floats

Sample = Sequence[tuple[Floats, Any, float | None]]  # a task each: d, cluster labels or None, span
BEGIN, END = "<!-- simulation -->", "<!-- /simulation -->"


@dataclass(frozen=True)
class Cell:
    """One kind of data: `draw(rng, mean)` gives documents with this true mean."""

    group: str
    name: str
    draw: Callable[[np.random.Generator, float], Sample]
    margin: float
    exact: bool = False  # 0/1 scores of one task, independent: p is McNemar's


@dataclass(frozen=True)
class Rates:
    coverage: float
    plain: float
    forgets: float
    spared: float  # false "does not forget by more than M"
    untold: float


def estimate(sample: Sample) -> Estimate:
    """As `cltk.measure.forgetting` makes it: one task, or the mean over tasks."""
    tasks = [stats.paired_mean(d, labels, span=span) for d, labels, span in sample]
    return tasks[0] if len(tasks) == 1 else stats.combine(tasks)


def forgets(one: Estimate, sample: Sample, exact: bool) -> bool:
    p = stats.mcnemar(int((sample[0][0] > 0).sum()), int((sample[0][0] < 0).sum())) if exact else one.p
    return one.low > 0 and p < 0.05


def simulate(cell: Cell, draws: int, seed: int = 0) -> Rates:
    """The rates of a cell; half of the work is at a true mean of 0, half at the margin."""
    rng = np.random.default_rng([seed, *cell.name.encode()])
    hits = np.zeros((draws, 5))
    for row in hits:
        sample = cell.draw(rng, 0.0)
        none = stats.corrected(estimate(sample))
        claimed = forgets(none, sample, cell.exact)
        plain = estimate(cell.draw(rng, cell.margin))
        lost = stats.corrected(plain)
        row[:] = (
            lost.low <= cell.margin <= lost.high,
            plain.low <= cell.margin <= plain.high,
            claimed,
            stats.noninferiority(plain, cell.margin) < 0.05,
            not claimed and stats.noninferiority(none, cell.margin) >= 0.05,
        )
    return Rates(*hits.mean(axis=0).tolist())


SHAPES: dict[str, Callable[[np.random.Generator, int], Floats]] = {  # mean 0
    "normal": lambda rng, n: rng.normal(size=n),
    "exponential": lambda rng, n: rng.exponential(size=n) - 1,
    "exponential, left": lambda rng, n: 1 - rng.exponential(size=n),
    "lognormal": lambda rng, n: rng.lognormal(0, 1, n) - np.exp(0.5),
    "lognormal, left": lambda rng, n: np.exp(0.5) - rng.lognormal(0, 1, n),
}


def unbounded() -> Iterator[Cell]:
    for name, shape in SHAPES.items():
        for n in (10, 20, 50, 100, 400, 2000):
            yield Cell(
                "Independent documents, a metric without bounds (margin 0.3)", f"{name}, n = {n}",
                lambda rng, mean, shape=shape, n=n: [(shape(rng, n) + mean, None, None)], 0.3,
            )  # fmt: skip


def flips(rng: np.random.Generator, n: int, mean: float, gained: float, size: float = 1.0) -> Floats:
    """d of a score of which a share loses and a share gains `size`; no mean: both by half a margin of 0.01 more."""
    lost = gained + mean / size if mean else gained + 0.005
    return size * rng.choice([1.0, -1.0, 0.0], n, p=[lost, gained if mean else lost, 1 - lost - (gained if mean else lost)])


def binary() -> Iterator[Cell]:
    for gained in (0.0, 0.005, 0.02, 0.1):
        for n in (10, 50, 100, 200, 400, 1000, 2000):
            yield Cell(
                "Independent documents, scores of 0 and 1 (margin 0.01)", f"{gained:g} gain, {gained + 0.01:g} lose, n = {n}",
                lambda rng, mean, gained=gained, n=n: [(flips(rng, n, mean, gained), None, 1.0)], 0.01, True,
            )  # fmt: skip


def bounded() -> Iterator[Cell]:
    group = "Independent documents, scores between 0 and 1 (margin 0.01)"
    for size in (0.25, 0.5):
        for n in (20, 50, 100, 400, 2000):
            yield Cell(
                group, f"{0.01 / size:g} lose {size:g}, n = {n}",
                lambda rng, mean, size=size, n=n: [(flips(rng, n, mean, 0.0, size), None, 1.0)], 0.01,
            )  # fmt: skip
    for n in (20, 100, 400, 2000):

        def hidden(rng: np.random.Generator, mean: float, n: int = n) -> Sample:
            return [(mean + 0.01 - (rng.random(n) < 0.01), None, 1.0)]

        yield Cell(group, f"all lose 0.01, 0.01 gain 1 (mean 0), n = {n}", hidden, 0.01)
    for n in (20, 100, 400, 2000):

        def spread(rng: np.random.Generator, mean: float, n: int = n) -> Sample:
            return [(mean + rng.beta(0.5, 2, n) - rng.beta(0.5, 2, n), None, 1.0)]

        yield Cell(group, f"difference of two beta(0.5, 2), n = {n}", spread, 0.01)


def sizes_of(rng: np.random.Generator, groups: int, mean: int, uneven: bool) -> Floats:
    return np.maximum(1, np.round(mean * rng.lognormal(0, 1, groups))).astype(int) if uneven else np.full(groups, mean)


def clustered() -> Iterator[Cell]:
    for uneven in (False, True):
        for likeness in (0.1, 0.5):
            for groups in (2, 3, 5, 10, 20, 50, 200):

                def draw(
                    rng: np.random.Generator, mean: float, g: int = groups, rho: float = likeness, uneven: bool = uneven
                ) -> Sample:
                    labels = np.repeat(np.arange(g), sizes_of(rng, g, 8, uneven))
                    common, own = rng.normal(size=g)[labels], rng.normal(size=len(labels))
                    return [(mean + rho**0.5 * common + (1 - rho) ** 0.5 * own, labels, None)]

                kind = "lognormal" if uneven else "equal"
                yield Cell(
                    "Clusters, a metric without bounds (margin 0.3)",
                    f"{groups} {kind} clusters, likeness {likeness:g}",
                    draw,
                    0.3,
                )


def beta_flips(
    rng: np.random.Generator, mean: float, groups: int, size: int, likeness: float, gained: float, uneven: bool
) -> Sample:
    """Scores of 0 and 1 that are lost cluster by cluster (a beta-binomial), and gained anywhere."""
    sizes = sizes_of(rng, groups, size, uneven)
    share = gained + (mean or 0.005)
    odds = 1 / likeness - 1
    chance = rng.beta(share * odds, (1 - share) * odds, groups) if odds else (rng.random(groups) < share).astype(float)
    labels = np.repeat(np.arange(groups), sizes)
    lost = (rng.random(len(labels)) < chance[labels]).astype(float)
    back = gained if mean else share
    won = rng.random(len(labels)) < back / (1 - share)
    return [(np.where((lost == 0) & won, -1.0, lost), labels, 1.0)]


def clustered_flips() -> Iterator[Cell]:
    for groups, size, uneven in ((5, 40, False), (20, 20, True), (57, 60, False), (100, 10, True), (200, 5, False)):
        for likeness in (0.02, 0.3, 1.0):
            for gained in (0.0, 0.02):
                yield Cell(
                    "Clusters, scores of 0 and 1 (margin 0.01)",
                    f"{groups} {'lognormal' if uneven else 'equal'} clusters of {size}, likeness {likeness:g}, {gained:g} gain",
                    lambda rng, mean, a=groups, b=size, c=likeness, e=gained, u=uneven: beta_flips(rng, mean, a, b, c, e, u),
                    0.01,
                )


def macros() -> Iterator[Cell]:
    group = "Mean over tasks"

    def normal(counts: Sequence[int], groups: int | None = None) -> Callable[..., Sample]:
        def draw(rng: np.random.Generator, mean: float) -> Sample:
            tasks = []
            for n in counts:
                labels = None if groups is None else np.repeat(np.arange(groups), n // groups)
                common = 0.0 if labels is None else rng.normal(size=groups)[labels]
                tasks.append((mean + common + rng.normal(size=n), labels, None))
            return tasks

        return draw

    yield Cell(group, "5 tasks, normal, 3 clusters each (margin 0.3)", normal([30] * 5, 3), 0.3)
    yield Cell(group, "5 tasks, normal, 5 clusters each (margin 0.3)", normal([30] * 5, 5), 0.3)
    yield Cell(group, "2 tasks, normal, n = 20 and 2000 (margin 0.3)", normal([20, 2000]), 0.3)
    for n in (20, 50, 200):
        yield Cell(
            group, f"4 tasks, lognormal, n = {n} each (margin 0.3)",
            lambda rng, mean, n=n: [(SHAPES["lognormal"](rng, n) + mean, None, None) for _ in range(4)], 0.3,
        )  # fmt: skip
    for counts in ([100] * 5, [400] * 5, [100, 1000, 2000], [25] * 10):
        for gained in (0.0, 0.02):
            yield Cell(
                group, f"0 and 1, n = {', '.join(map(str, counts))}, {gained:g} gain (margin 0.01)",
                lambda rng, mean, all_n=counts, gained=gained: [(flips(rng, n, mean, gained), None, 1.0) for n in all_n], 0.01,
            )  # fmt: skip

    def one_task_loses(rng: np.random.Generator, mean: float) -> Sample:
        return [(flips(rng, n, 3 * mean if n == 100 else 0.0, 0.0), None, 1.0) for n in (100, 1000, 2000)]

    yield Cell(group, "0 and 1, n = 100, 1000, 2000, only the smallest loses (margin 0.01)", one_task_loses, 0.01)

    def mixed(rng: np.random.Generator, mean: float) -> Sample:
        return [(flips(rng, 100, mean, 0.0), None, 1.0), (mean + 0.05 * rng.normal(size=400), None, 1.0)]

    yield Cell(group, "0 and 1 with n = 100, and between 0 and 1 with n = 400 (margin 0.01)", mixed, 0.01)


def cells() -> list[Cell]:
    return [*unbounded(), *binary(), *bounded(), *clustered(), *clustered_flips(), *macros()]


def markdown(found: Sequence[tuple[Cell, Rates]], draws: int) -> str:
    error = 100 * (0.05 * 0.95 / draws) ** 0.5
    lines, group = [f"In percent; {draws} draws a row and truth: a rate of 95 or 5 has a standard error of {error:.1f}."], ""
    for cell, rates in found:
        if cell.group != group:
            group = cell.group
            lines += ["", f"### {group}", "", '| documents | coverage | t | false "forgets" | false "does not" | cannot tell |',
                      "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
        values = (rates.coverage, rates.plain, rates.forgets, rates.spared, rates.untold)
        lines.append(f"| {cell.name} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--markdown", type=Path, help="put the table between the marks of this file")
    options = parser.parse_args()
    found = [(cell, simulate(cell, options.draws)) for cell in cells()]
    table = markdown(found, options.draws)
    if options.markdown:
        text = options.markdown.read_text()
        options.markdown.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL))
    print(table)


if __name__ == "__main__":
    main()
