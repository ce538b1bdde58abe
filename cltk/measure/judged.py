"""Judgements -> numbers: scores by question and turn, paired, with intervals; position bias; how far judges agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats as distributions

from cltk.measure import stats
from cltk.measure.forgetting import Row, compare
from cltk.measure.judge_prompts import rating, winner
from cltk.measure.judge_questions import Question
from cltk.measure.judging import Item, Judges
from cltk.measure.results import finite
from cltk.measure.scores import Scores, TaskScores

RATING, WINS = "judge_rating", "judge_wins"  # a grade from 1 to 10; 1 where the tuned model wins, 0.5 a tie, 0 where it loses
Turn = tuple[int, int]  # question, turn
Sides = tuple[float, float]  # scores of the base and of the tuned model


@dataclass(frozen=True)
class Judged:
    """What judges say of a base and a model tuned from it. `rows`: all turns, then each turn alone; forgetting is positive
    where the tuned model's answers are worse, in grades, or as the share of wins that it is short of one half."""

    mode: str
    judges: list[str]
    rows: list[Row]
    turns: int  # that were to be judged
    unjudged: list[str]  # "question/turn" without a verdict of any reading: they are in no number
    readings: dict[str, dict[str, int]]  # judge#repeat -> {"asked": pairs, "no verdict": pairs without one}
    outcomes: dict[str, int] = field(default_factory=dict)  # of turns: won, tied, lost by the tuned model
    position: dict[str, Any] = field(default_factory=dict)  # of pairwise judging
    agreement: list[dict[str, Any]] = field(default_factory=list)  # of two readings of the same answers
    categories: dict[str, dict[str, float]] = field(default_factory=dict)  # category -> n, base, tuned
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return finite({**found, "rows": [row.to_json() for row in self.rows]})


def judged(
    judges: Judges, questions: Sequence[Question], asked: Sequence[Item], replies: Sequence[str], name: str = "judge"
) -> Judged:
    """The comparison that the replies make.

    A turn's score is the mean over the readings (judges and repeats) that have a verdict on both models, or in both orders;
    a turn without any counts in no number, and where no turn has one there are no rows. In pairwise judging a model wins a
    reading where it is preferred in both orders; all else is a tie (Zheng et al. 2023). Intervals take questions as clusters of
    their turns.
    """
    found = _verdicts(judges.mode, asked, replies)
    scores = {turn: sides for turn, by in found.items() if (sides := _mean(list(by.values()))) is not None}
    pairwise, pairs = judges.mode == "pairwise", list(combinations(judges.readings, 2))
    called = {reading: f"{reading[0]}#{reading[1] + 1}" for reading in judges.readings}
    return Judged(
        mode=judges.mode, judges=list(judges.models), turns=len(found),
        rows=_rows(questions, scores, name, judges.mode) if scores else [],
        unjudged=[f"{questions[i].id}/{turn + 1}" for i, turn in found if (i, turn) not in scores],
        readings={
            text: {"asked": len(found), "no verdict": sum(by[reading] is None for by in found.values())}
            for reading, text in called.items()
        },
        outcomes=dict(Counter(_outcome(sides) for sides in scores.values())),
        position=_position(asked, replies) if pairwise else {},
        agreement=[_agreement(questions, found, pair, called, 0.5 if pairwise else 1.0) for pair in pairs],
        categories=_categories(questions, scores), notes=_notes(found, scores),
    )  # fmt: skip


def _verdicts(mode: str, asked: Sequence[Item], replies: Sequence[str]) -> dict[Turn, dict[tuple[str, int], Sides | None]]:
    """Turn -> reading -> the scores of both models, None without a verdict on both."""
    said: dict[tuple[Turn, tuple[str, int]], dict[str, Any]] = {}
    for item, reply in zip(asked, replies, strict=True):
        said.setdefault(((item.question, item.turn), item.reading), {})[item.side] = (
            rating(reply) if mode == "single" else winner(reply)
        )
    found: dict[Turn, dict[tuple[str, int], Sides | None]] = {}
    for (turn, reading), by in said.items():
        whole = None not in by.values()
        pair = ((by["base"], by["tuned"]) if mode == "single" else _won(by["AB"], by["BA"])) if whole else None
        found.setdefault(turn, {})[reading] = pair
    return found


def _won(base_first: str, tuned_first: str) -> Sides:
    """(base, tuned): 1 for who is preferred in both orders, else one half each."""
    if (base_first, tuned_first) == ("A", "B"):
        return 1.0, 0.0
    return (0.0, 1.0) if (base_first, tuned_first) == ("B", "A") else (0.5, 0.5)


def _mean(sides: Sequence[Sides | None]) -> Sides | None:
    there = [one for one in sides if one is not None]
    return (float(np.mean([a for a, _ in there])), float(np.mean([b for _, b in there]))) if there else None


def _outcome(sides: Sides) -> str:
    return "tied" if sides[0] == sides[1] else "won" if sides[1] > sides[0] else "lost"


def _rows(questions: Sequence[Question], scores: dict[Turn, Sides], name: str, mode: str) -> list[Row]:
    """All turns, then each turn alone where there are several."""
    turns = sorted({turn for _, turn in scores})
    sets = {name: list(scores)}
    if len(turns) > 1:
        sets |= {f"{name} turn {turn + 1}": [one for one in scores if one[1] == turn] for turn in turns}
    pre, post = (
        Scores("", {task: _side(questions, task, {one: scores[one][side] for one in chosen}, mode, side)
                    for task, chosen in sets.items()})
        for side in (0, 1)
    )  # fmt: skip
    return compare(pre, post).rows


def _side(questions: Sequence[Question], task: str, scores: dict[Turn, float], mode: str, side: int) -> TaskScores:
    """One model's scores. Of pairwise judging the base has one half everywhere: it would tie with itself."""
    metric = RATING if mode == "single" else WINS
    values = [0.5] * len(scores) if mode == "pairwise" and side == 0 else list(scores.values())
    hashes = [f"{questions[i].digest}/{turn}" for i, turn in scores]
    return TaskScores(task, {metric: values}, {metric: True}, hashes, hashes, cluster=[questions[i].id for i, _ in scores])


def _position(asked: Sequence[Item], replies: Sequence[str]) -> dict[str, Any]:
    """How often the answer that stood first, or second, was preferred; p: exact binomial test of both being as likely."""
    said = [(item, winner(reply)) for item, reply in zip(asked, replies, strict=True)]
    count = Counter(verdict for _, verdict in said)
    by: dict[Any, dict[str, str | None]] = {}
    for item, verdict in said:
        by.setdefault((item.question, item.turn, item.reading), {})[item.side] = verdict
    pairs = [(one["AB"], one["BA"]) for one in by.values() if one["AB"] and one["BA"]]
    first, second = count["A"], count["B"]
    p = float(distributions.binomtest(first, first + second).pvalue) if first + second else 1.0
    agree = sum(pair in (("A", "B"), ("B", "A"), ("C", "C")) for pair in pairs)
    return {
        "first": first,
        "second": second,
        "ties": count["C"],
        "p": p,
        "pairs": len(pairs),
        "inconsistent": len(pairs) - agree,
    }


def _agreement(
    questions: Sequence[Question], found: dict[Turn, Any], pair: tuple[Any, Any], called: dict[Any, str], scale: float
) -> dict[str, Any]:
    """Two readings of the same answers: the share of equal outcomes, and what their difference says of a forgetting.

    `noise` is the mean difference of the two readings' forgetting with its 95 % interval by question: a forgetting of this
    size may be the judge's own.
    """
    both = [(turn, by[pair[0]], by[pair[1]]) for turn, by in found.items() if by[pair[0]] and by[pair[1]]]
    row: dict[str, Any] = {"one": called[pair[0]], "other": called[pair[1]], "n": len(both)}
    if not both:
        return row
    d = [scale * ((a[0] - a[1]) - (b[0] - b[1])) for _, a, b in both]
    estimate = stats.paired_mean(d, [questions[turn[0]].id for turn, _, _ in both])
    same = sum(_outcome(a) == _outcome(b) for _, a, b in both) / len(both)
    size = float(np.mean([abs(a[i] - b[i]) for _, a, b in both for i in (0, 1)]))
    return {**row, "same outcome": same, "mean difference": size, "noise": estimate.mean, "noise_ci": list(estimate.ci)}


def _categories(questions: Sequence[Question], scores: dict[Turn, Sides]) -> dict[str, dict[str, float]]:
    """Means by category, in the order of the questions; too few for intervals."""
    by: dict[str, list[Sides]] = {}
    for (i, _), sides in scores.items():
        if questions[i].category:
            by.setdefault(questions[i].category, []).append(sides)
    return {
        name: {
            "n": len(rows),
            "base": math.fsum(a for a, _ in rows) / len(rows),
            "tuned": math.fsum(b for _, b in rows) / len(rows),
        }
        for name, rows in by.items()
    }


def _notes(found: dict[Turn, Any], scores: dict[Turn, Sides]) -> list[str]:
    lost, partly = len(found) - len(scores), sum(None in by.values() for turn, by in found.items() if turn in scores)
    notes = [f"{lost} of {len(found)} turns have no verdict and are in no number"] if lost else []
    return notes + ([f"{partly} turns have no verdict in some of their readings, and the mean of the others"] if partly else [])
