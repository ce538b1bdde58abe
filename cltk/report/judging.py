"""What judges say, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cltk.report.effects import Effect
from cltk.report.tables import P, Table, named, number, p_value, quantity

METRICS = {"single": "grades from 1 to 10", "pairwise": "share of wins, a tie is one half"}


def tables(found: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Model or cell -> `Judged` as JSON. The comparison, and how far the judges can be trusted."""
    made = [_scores(found), _trust(found), _agreement(found), _categories(found)] if found else []
    return [table for table in made if table is not None]


def of_records(records: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Of the cells whose record has a judge's part."""
    return tables({f"{one['method']} seed {one['seed']}": one["judge"] for one in records if one.get("judge")})


def _scores(found: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for name, one in found.items():
        for row in one["rows"]:
            effect = Effect.of(row, row["task"])
            rows.append([
                name, effect.task, named(effect.metric), str(effect.n), number(effect.pre, effect.metric),
                number(effect.post, effect.metric), quantity(effect), p_value(effect.rests_on[0]), row["verdict"],
            ])  # fmt: skip
    heads = ["method", "text", "metric", "n", "base", "tuned", "worse by", "p", "verdict"]
    modes = "; ".join(METRICS[mode] for mode in dict.fromkeys(one["mode"] for one in found.values()))
    return Table("What the judge says", heads, rows, f"{modes}; n turns, questions are clusters; {P}")


def _trust(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Verdicts that are missing, and what the place of an answer did."""
    rows = []
    for name, one in found.items():
        place = one["position"]
        counts = one["outcomes"]
        for reading, said in one["readings"].items():
            rows.append([name, reading, str(said["asked"]), str(said["no verdict"])])
            rows[-1] += ["/".join(str(counts.get(key, 0)) for key in ("won", "tied", "lost"))]
            rows[-1] += [f"{place['first']}/{place['second']}/{place['ties']}", p_value(place["p"])] if place else ["", ""]
            rows[-1] += [f"{place['inconsistent']} of {place['pairs']}"] if place else [""]
    heads = ["method", "text", "turns", "no verdict", "won/tied/lost", "first/second/tie", "p", "orders disagree"]
    note = "text: the judge and which repeat; first/second: which place was preferred, p of both being as likely"
    return Table("How it was judged", heads, rows, note)


def _agreement(found: Mapping[str, Mapping[str, Any]]) -> Table | None:
    rows = []
    for name, one in found.items():
        for pair in one["agreement"]:
            row = [name, f"{pair['one']} and {pair['other']}", str(pair["n"])]
            if pair["n"]:
                ends = [end for end in pair["noise_ci"] if end is not None]
                span = f" ({ends[0]:+.3f} to {ends[1]:+.3f})" if len(ends) == 2 else " (no interval)"
                row += [f"{100 * pair['same outcome']:.0f} %", f"{pair['mean difference']:.3f}", f"{pair['noise']:+.3f}{span}"]
            rows.append(row + [""] * (6 - len(row)))
    heads = ["method", "text", "turns", "same outcome", "mean difference", "difference of what is lost"]
    note = "two readings of the same answers; what is lost differs by so much between them (95 %): the judge's own noise"
    return Table("How far judges agree", heads, rows, note) if rows else None


def _categories(found: Mapping[str, Mapping[str, Any]]) -> Table | None:
    rows = [
        [name, category, f"{said['n']:.0f}", f"{said['base']:.2f}", f"{said['tuned']:.2f}"]
        for name, one in found.items()
        for category, said in one["categories"].items()
    ]
    note = "means; too few for intervals"
    return Table("By category", ["method", "text", "turns", "base", "tuned"], rows, note) if rows else None
