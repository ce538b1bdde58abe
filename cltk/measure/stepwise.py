"""Two models scored on more and more documents, until an interval is narrow enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cltk.errors import InputError
from cltk.measure.forgetting import Result, Row, compare
from cltk.measure.looks import Looks, next_look
from cltk.measure.partial import FIRST, over_looks
from cltk.measure.scores import Scores
from cltk.measure.subset import check_prompts, positions, restricted

if TYPE_CHECKING:
    from cltk.measure.evaluate import Suite


def stepwise(
    suite: Suite, score: Callable[[Suite], tuple[Scores, Scores]], half_width: float, *, every_task: bool = False,
    margins: Mapping[str, float] | None = None, tokenizer: Any = None,
) -> tuple[Result, Scores]:  # fmt: skip
    """Look by look, until the macro's interval has this half width or less; with `every_task` the interval of every headline.

    Every look scores random documents of each task, those of the look before among them, clusters whole. The intervals that
    decide hold over all looks (`cltk.measure.looks`), and so do their p. A note says how many documents were not needed.

    Args:
        suite: of all documents that may be scored.
        score: scores both models on a part of the suite; what was answered before should come from a journal.
        tokenizer: whose chat template makes the prompts, where one does.

    Returns:
        The comparison at the last look, and the start model's scores there.

    Raises:
        InputError: a half width that is no number above 0; a limit, a group, or prompts that depend on the documents before.
    """
    if suite.limit is not None:
        raise InputError("until: limit takes the first documents and looks take random ones; give sample in its place")
    total, n, taken, number = sum(suite.sizes().values()), FIRST, dict[str, Looks](), 0
    Looks(half_width)  # refused before anything is scored
    while True:
        number, places = number + 1, positions(suite, n)
        part = restricted(suite, places)
        if number == 1:
            check_prompts(suite, part, tokenizer)
        pre, post = score(part)
        result, needed = compare(pre, post, margins=margins), math.inf
        for row in _deciding(result, every_task):
            one = taken.setdefault(row.task, Looks(half_width))
            if not one.ended:
                needed = min(needed, _look(one, row, last=not places))
        if all(one.ended for one in taken.values()):
            return _told(result, taken, number, sum(part.sizes().values()), total, half_width), pre
        n = next_look(n, needed, max(suite.sizes().values()))


def _deciding(result: Result, every_task: bool) -> list[Row]:
    return [row for row in result.rows if result.headline[row.task] == row.metric] if every_task else [result.macro]


def _look(looks: Looks, row: Row, last: bool) -> float:
    """Take a look where the row's own interval is narrow enough; the information fraction that there is."""
    reach = max(row.ci[1] - row.forgetting, row.forgetting - row.ci[0])
    if reach <= looks.half_width or last:
        df = row.clusters - 1 if row.estimate is None else row.estimate.df
        looks.look(row.se, max(df, 1), last)
    return 0.0 if math.isinf(reach) else min(looks.fraction(row.se), (looks.half_width / reach) ** 2 if reach else math.inf)


def _told(result: Result, taken: Mapping[str, Looks], number: int, scored: int, total: int, half_width: float) -> Result:
    """With intervals and p over all looks, and what was not needed."""

    def wider(row: Row) -> Row:
        decides = row.task in taken and (row.task == "macro" or result.headline[row.task] == row.metric)
        return over_looks(row, taken[row.task]) if decides else row

    whole = replace(result, rows=[wider(row) for row in result.rows], macro=wider(result.macro))
    note = (
        f"until {half_width:g}: {scored} of {total} documents were scored in {number} looks, {total - scored} were not needed"
    )
    short = "" if scored < total else "; all of them may still be too few: see the intervals"
    return replace(whole, notes=[*whole.notes, note + short])
