"""A model scored on part of the documents: rows against `two_phase` on numbers laid out by hand; what must not pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cltk.errors import InputError
from cltk.measure import stats
from cltk.measure.forgetting import compare
from cltk.measure.looks import Looks
from cltk.measure.partial import compare_part, marked, restrict
from cltk.measure.scores import Scores, TaskScores
from cltk.measure.twophase import two_phase

N, n = 300, 60


def model(seed: int, *, like: np.ndarray | None = None, cluster: bool = False) -> Scores:
    """acc with its margin and nll of 300 documents, and bits_per_byte with weights; `like` moves them together."""
    rng, base = np.random.default_rng(seed), np.random.default_rng(0).normal(size=N)
    moved = 0.0 if like is None else like + 0.3 * rng.normal(size=N)
    margin = 2 * base + 0.5 + moved
    values = {"acc": (margin > 0) * 1.0, "margin": margin, "nll": 3 - 0.5 * margin, "bits_per_byte": 1 - 0.1 * margin}
    quiz = TaskScores(
        "quiz", {name: list(map(float, found)) for name, found in values.items()},
        {"acc": True, "margin": True, "nll": False, "bits_per_byte": False},
        [f"d{i}" for i in range(N)], [f"p{i}" for i in range(N)], [4.0] * N,
        [f"c{i // 3}" for i in range(N)] if cluster else [], {"limit": None},
        {"bits_per_byte": list(map(float, range(10, N + 10)))},
    )  # fmt: skip
    few = replace(
        quiz, task="few", values={"acc": quiz.values["acc"][:40]}, higher_is_better={"acc": True}, weights={},
        doc_hash=quiz.doc_hash[:40], prompt_hash=quiz.prompt_hash[:40], choices=quiz.choices[:40], cluster=[],
    )  # fmt: skip
    return Scores(f"m{seed}", {"quiz": quiz, "few": few})


SHIFT = np.random.default_rng(1).normal(-0.4, 0.8, N)
PLACES = {"quiz": sorted(np.random.default_rng(2).permutation(N)[:n].tolist())}


def part(whole: Scores, places: dict[str, list[int]] = PLACES) -> Scores:
    """What a model has that was scored at these places and nowhere else."""
    kept = restrict(whole, places)
    bare = {name: replace(task, settings=whole.tasks[name].settings) for name, task in kept.tasks.items()}
    return marked(replace(kept, tasks=bare), places, whole)


def test_rows_are_two_phase_estimates_and_say_what_they_are_worth() -> None:
    pre, reference, tuned = model(1), model(2, like=SHIFT), model(3, like=SHIFT)
    result = compare_part(pre, part(tuned), [reference], PLACES)
    rows = {(row.task, row.metric): row for row in result.rows}
    at = np.array(PLACES["quiz"])
    for metric, sign in (("acc", 1), ("margin", 1), ("nll", -1)):
        before, other, after = (np.array(one.tasks["quiz"].values[metric]) for one in (pre, reference, tuned))
        columns = [before, before - other] if metric != "acc" else [before, pre.tasks["quiz"].values["margin"], before - other]
        found = two_phase(sign * (before - after)[at], at, np.column_stack(columns), span=1.0 if metric == "acc" else None)
        row = rows["quiz", metric]
        assert (row.forgetting, row.se) == pytest.approx((found.estimate.mean, found.estimate.se))
        assert (row.n, row.test, row.pre) == (n, "two-phase t", pytest.approx(before.mean()))
        assert sign * (row.pre - row.post) == pytest.approx(row.forgetting)
        assert row.ci == pytest.approx(stats.corrected(found.estimate).ci)
        assert row.documents == {"scored": n, "total": N, "r2": pytest.approx(found.r2), "n_eff": pytest.approx(found.n_eff)}
    assert rows["quiz", "nll"].se < 0.6 * np.std(np.array(tuned.tasks["quiz"].values["nll"])[at]) / np.sqrt(n)
    assert rows["quiz", "bits_per_byte"].documents is None  # a ratio of sums: of the scored documents alone
    whole = compare(replace(pre, tasks={"few": pre.tasks["few"]}), replace(tuned, tasks={"few": tuned.tasks["few"]}))
    assert rows["few", "acc"] == whole.rows[0]
    assert any(note.startswith(f"quiz: {n} scored of {N}, R^2 0.") and "worth" in note for note in result.notes)
    assert result.macro.forgetting == pytest.approx((rows["quiz", "acc"].forgetting + rows["few", "acc"].forgetting) / 2)
    assert result.macro.se == pytest.approx(np.hypot(rows["quiz", "acc"].se, rows["few", "acc"].se) / 2)
    assert "mcnemar" not in {row.test for row in result.rows if row.task == "quiz"}
    result.to_json()


def test_clusters_are_whole() -> None:
    pre, reference, tuned = model(1, cluster=True), model(2, like=SHIFT, cluster=True), model(3, like=SHIFT, cluster=True)
    whole = {"quiz": [3 * c + i for c in range(0, 100, 5) for i in range(3)]}
    row = next(row for row in compare_part(pre, part(tuned, whole), [reference], whole).rows if row.metric == "nll")
    assert (row.n, row.clusters) == (60, 20)
    with pytest.raises(InputError, match="scored in part"):
        compare_part(pre, part(tuned), [reference], PLACES)


def test_a_part_pairs_with_no_whole() -> None:
    pre, tuned = model(1), model(3, like=SHIFT)
    alone = [replace(one, tasks={"quiz": one.tasks["quiz"]}) for one in (pre, part(tuned), restrict(pre, PLACES))]
    with pytest.raises(InputError, match="differ"):
        compare(alone[0], alone[1])
    compare(alone[2], alone[1])  # two parts of the same documents do
    elsewhere = {"quiz": list(range(n))}
    with pytest.raises(InputError, match="documents differ"):
        compare_part(replace(pre, tasks={"quiz": pre.tasks["quiz"]}), alone[1], [], elsewhere)
    other = model(2)
    other.tasks["quiz"].doc_hash[7] = "another"
    with pytest.raises(InputError, match="1 documents differ"):
        compare_part(pre, part(tuned), [other], PLACES)


def test_looks_widen_the_headline() -> None:
    pre, reference, tuned = model(1), model(2, like=SHIFT), model(3, like=SHIFT)
    looks = Looks(0.01)
    plain = compare_part(pre, part(tuned), [reference], PLACES)
    acc = next(row for row in plain.rows if row.metric == "acc" and row.task == "quiz")
    looks.look(1.5 * acc.se, 30)
    looks.look(acc.se, n - 4, last=True)
    wider = compare_part(pre, part(tuned), [reference], PLACES, looks={"quiz": looks})
    row = next(row for row in wider.rows if row.metric == "acc" and row.task == "quiz")
    assert row.ci[0] <= acc.forgetting - looks.width
    assert row.ci[1] >= acc.forgetting + looks.width
    assert row.p >= acc.p
    assert [r for r in wider.rows if r.metric == "nll"] == [r for r in plain.rows if r.metric == "nll"]
