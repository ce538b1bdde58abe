"""Several methods at once: how much more one forgets than another, and which claims stand over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cltk.measure import stats
from cltk.measure.forgetting import compare, with_unit
from cltk.measure.results import Result, Row
from cltk.measure.scores import Scores


def difference(
    post_a: Scores, post_b: Scores, *, margins: Mapping[str, float] | None = None, draws: int = 10_000, seed: int = 0
) -> Result:
    """How much more method a forgets than method b: forgetting_a - forgetting_b, paired on the same documents.

    (pre - a) - (pre - b) = b - a: the scores before cancel document by document, so the rows are those of `compare` with
    b in the place of `pre` and a in that of `post`. Raises as `compare` does.
    """
    result = compare(post_b, post_a, margins=margins, draws=draws, seed=seed)

    def reword(row: Row) -> Row:
        unit = with_unit(row.margin, row.metric, row.lost is not None)
        return replace(row, verdict=stats.verdict(row.ci, row.p, row.noninferiority_p, unit, more=True))

    return replace(result, rows=[reword(row) for row in result.rows], macro=reword(result.macro))


def confirm(results: Mapping[str, Result]) -> dict[str, float]:
    """Method -> Holm-adjusted p of its macro forgetting: the confirmatory family, one claim a method."""
    return {method: row.p for method, row in confirmed(results).items()}


def confirmed(results: Mapping[str, Result]) -> dict[str, Row]:
    """Method -> its macro row with Holm-adjusted p and noninferiority_p and the verdict that rests on these.

    "forgets" and "does not forget by more than M" are two families over the methods: of each the chance of a single false
    claim among all methods stays below 5 %.
    """
    rows = [result.macro for result in results.values()]
    adjusted = zip(results, rows, stats.holm([r.p for r in rows]), stats.holm([r.noninferiority_p for r in rows]), strict=True)
    done = {}
    for method, row, p, p_margin in adjusted:
        words = stats.verdict(row.ci, p, p_margin, with_unit(row.margin, row.metric, row.lost is not None))
        done[method] = replace(row, p=p, noninferiority_p=p_margin, verdict=words)
    return done


def explore(results: Mapping[str, Result]) -> dict[str, dict[str, float]]:
    """Method -> task -> Benjamini-Hochberg-adjusted p of the task's headline metric, over all methods and tasks at once."""
    heads = [(m, row) for m, result in results.items() for row in result.rows if result.headline[row.task] == row.metric]
    adjusted = stats.benjamini_hochberg([row.p for _, row in heads])
    out: dict[str, dict[str, float]] = {method: {} for method in results}
    for (method, row), p in zip(heads, adjusted, strict=True):
        out[method][row.task] = p
    return out
