"""Random documents instead of the first ones: every document as likely as any other, clusters whole, spread over strata."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy.stats import hypergeom

from cltk.errors import InputError

Sample = int | float  # documents, or a fraction of them between 0 and 1
SCALE = 2**64  # of the numbers that a hash stands for


def check_sample(sample: object, name: str = "sample") -> None:
    """Raises InputError for what is neither a whole number from 1 nor a fraction between 0 and 1."""
    whole = isinstance(sample, int) and not isinstance(sample, bool) and sample >= 1
    if not whole and not (isinstance(sample, float) and 0 < sample < 1):
        raise InputError(
            f"{name}: expected a whole number of documents from 1, or a fraction of them between 0 and 1, got {sample!r}"
        )


def documents_in(n_documents: int, sample: Sample) -> int:
    """Documents that a sample asks for: a fraction is rounded up, as lm-eval's limit; never more than there are."""
    return min(n_documents, math.ceil(n_documents * sample) if sample < 1 else int(sample))


def spread(rows: Iterable[Any], limit: float | None) -> list[Any]:
    """All rows, or so many of them (a fraction below 1), evenly spread; no others are kept. They are read twice."""
    if limit is None:
        return list(rows)
    total = sum(1 for _ in rows)
    n = documents_in(total, limit)
    wanted = {i * total // n for i in range(n)}
    return [row for i, row in enumerate(rows) if i in wanted]


def choose(
    n_documents: int,
    sample: Sample,
    seed: int | str = 0,
    clusters: Sequence[Hashable] = (),
    strata: Sequence[Hashable] = (),
) -> list[int]:
    """Indices of the documents to score, in ascending order. Equal arguments, equal indices, on every machine and version.

    A unit is a cluster, or a document where there are no clusters. Of the K units of N documents m = K n / N are drawn (at
    least one): every unit, so every document, is in with the probability m / K, over seeds. Units stand in cells of one
    stratum and size; of a cell's K_c units, floor or ceil of m K_c / K are drawn, by one random start for all cells (systematic
    sampling of the counts: Cochran 1977, Sampling Techniques, chapter 8), so that without clusters n are drawn exactly. Within
    a cell the order is that of a hash of seed and unit: without strata, a larger sample of one seed holds the smaller ones.

    Where a stratum is one cluster (`clusters` and `strata` are one column), documents are drawn within it.

    Args:
        n_documents: N.
        sample: n, or a fraction of N (see `documents_in`). With clusters of unequal size about n documents are drawn.
        seed: of the draw; give tasks seeds of their own by their names.
        clusters: label of each document's cluster; empty where documents are independent.
        strata: label of the stratum (subject, source) of each document; empty where there are none. A cluster belongs to
            the stratum of its first document.

    Raises:
        InputError: a sample that is no number of documents; lists of labels of another length than N.
    """
    check_sample(sample)
    for name, labels in (("clusters", clusters), ("strata", strata)):
        if len(labels) not in (0, n_documents):
            raise InputError(f"{name}: {len(labels)} labels for {n_documents} documents")
    asked = documents_in(n_documents, sample)
    if asked == n_documents:
        return list(range(n_documents))
    if not clusters and not strata:  # one cell of single documents, of which the first by their hash are drawn
        hashes = np.fromiter((_hash(f"{seed} unit {i}") for i in range(n_documents)), np.uint64, n_documents)
        return sorted(np.argsort(hashes, kind="stable")[:asked].tolist())
    units = _units(n_documents, clusters, strata)
    part, whole = (asked, n_documents) if len(units) * asked >= n_documents else (1, len(units))  # probability of a unit
    cells: dict[tuple[int, str, int], list[list[int]]] = {}
    for unit in sorted(units, key=lambda unit: _hash(f"{seed} unit {unit[0]}")):
        stratum = str(strata[unit[0]]) if strata else ""
        cells.setdefault((_hash(f"{seed} stratum {stratum}"), stratum, len(unit)), []).append(unit)
    start, seen, drawn, found = _hash(f"{seed} start"), 0, 0, []
    for _, cell in sorted(cells.items()):
        seen += len(cell)
        upto = (seen * part * SCALE + start * whole) // (whole * SCALE)  # floor(seen m / K + start), in whole numbers
        found += [i for unit in cell[: upto - drawn] for i in unit]
        drawn = upto
    return sorted(found)


def described(
    sample: Sample, seed: int, indices: Sequence[int], total: int, clusters: Sequence[Hashable] = (),
    strata: Sequence[Hashable] = (), what: str = "documents",
) -> str:  # fmt: skip
    """One line about a sample: how much of what it is."""
    if len(indices) == total:
        return f"all of its {total} {what} (sample {sample})"
    parts = [f"{len(indices)} of {total} {what}, drawn at random (sample {sample}, seed {seed})"]
    if clusters:
        parts.append(f"in {len({clusters[i] for i in indices})} of {len(set(clusters))} clusters")
    if strata:
        parts.append(f"spread over {len({strata[i] for i in indices})} of {len(set(strata))} strata")
    return ", ".join(parts)


def _units(n_documents: int, clusters: Sequence[Hashable], strata: Sequence[Hashable]) -> list[list[int]]:
    """The documents of every cluster that can be drawn whole; single documents elsewhere."""
    if not clusters or (strata and len(set(zip(strata, clusters, strict=True))) == len(set(strata))):
        return [[i] for i in range(n_documents)]
    units: dict[Hashable, list[int]] = {}
    for i, label in enumerate(clusters):
        units.setdefault(label, []).append(i)
    return list(units.values())


def _hash(text: str) -> int:
    """A number from 0 to `SCALE` - 1 that looks random and is the same everywhere, unlike a generator's across versions."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big")


def unlike_the_whole(labels: Sequence[Hashable], first: int) -> tuple[Hashable, int, int, float] | None:
    """The label that the first documents hold most surprisingly often, were they drawn at random.

    Returns:
        (label, how often among the first, how often in all, p): p = L min_l P(X_l >= x_l), X_l hypergeometric, for the L
        labels (Bonferroni); None where there is nothing to compare.
    """
    names, which = np.unique(np.asarray([str(label) for label in labels]), return_inverse=True)
    if len(names) < 2 or not 0 < first < len(labels):
        return None
    whole, begin = np.bincount(which), np.bincount(which[:first], minlength=len(names))
    p = np.asarray(hypergeom.sf(begin - 1, len(labels), whole, first))
    worst = int(np.argmin(p))
    return str(names[worst]), int(begin[worst]), int(whole[worst]), min(1.0, float(p[worst]) * len(names))
