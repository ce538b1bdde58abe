"""The simulations of benchmarks/studies.py at a smaller size: what docs/statistics.md promises of studies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import cltk

sys.path.insert(0, str(Path(cltk.__file__).parent.parent / "benchmarks"))

import studies

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seeds", studies.SEEDS)
@pytest.mark.parametrize("groups", [2, 5, 20, 200])
def test_coverage_of_seeds_and_documents(seeds: int, groups: int) -> None:
    """At least 93 % but for three of the simulation's own errors (sqrt(.93 x .07 / 800) = 0.009)."""
    for mix in studies.MIXES if seeds > 1 else ["documents"]:
        assert studies.coverage(seeds, groups, mix, 800) > 0.93 - 0.027, mix


@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("rates", list(studies.RATES))
def test_matched_gain_claims_nothing_where_nothing_is(rates: str, seeds: int) -> None:
    """Claims of both kinds in at most 5 % of studies (and three errors of 200 of them, 0.046); no bias beyond noise: 0.005."""
    found = studies.claims(rates, seeds, 200)
    assert found.less + found.more < 0.05 + 0.046
    assert abs(found.bias) < 0.005 + 3 * found.error


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_family_claims_no_more_than_one_method(seeds: int) -> None:
    """20 methods at the margin: most studies would say "does not forget" of one of them; adjusted at most 5 % do (+ 0.046)."""
    alone, together = studies.families(20, seeds, 200)
    assert alone > 0.15
    assert together < 0.05 + 0.046
