"""Documents drawn with unequal probabilities: who is in, what a mean of them is, and what holds no more.

What people met: a floor under the probabilities, without which a wrong surrogate misses losses (jlko/active-testing#1);
draws with replacement, estimated as if without (facebookarchive/ml_sampler#3); a variance that a correction
left out (stan-dev/loo#237); a draw that fell back to equal probabilities unsaid (samplics-org/svy#81); parts that do not
say how they were chosen (proffesor-for-testing/agentic-qe#709).
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cltk.measure import subset
from cltk.measure.forgetting import compare
from cltk.measure.inclusion import draw, flip_sizes, inclusion
from cltk.measure.partial import DRAWN, compare_part, marked, restrict
from cltk.measure.scores import Scores, TaskScores
from cltk.measure.stats import corrected
from cltk.measure.subset import by_margin
from cltk.measure.twophase import two_phase

N, n = 400, 100


def task(margin: np.ndarray, cluster: list[str] | None = None) -> TaskScores:
    values = {"acc": (margin > 0) * 1.0, "margin": margin, "bytes": 1 - 0.1 * margin}
    return TaskScores(
        "quiz", {name: found.tolist() for name, found in values.items()}, dict.fromkeys(values, True),
        [f"d{i}" for i in range(len(margin))], [f"p{i}" for i in range(len(margin))], cluster=cluster or [],
        settings={"limit": None}, weights={"bytes": list(map(float, range(10, len(margin) + 10)))},
    )  # fmt: skip


def models(seed: int, size: int = N) -> tuple[Scores, Scores, Scores]:
    """Start, reference and tuned model: margins that move alike."""
    rng = np.random.default_rng(seed)
    start, moved = rng.normal(0.5, 2, size), rng.normal(-0.3, 0.6, size)
    margins = (start, start + moved + 0.3 * rng.normal(size=size), start + moved + 0.3 * rng.normal(size=size))
    return tuple(Scores(f"m{i}", {"quiz": task(one)}) for i, one in enumerate(margins))  # type: ignore[return-value]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """by_margin of the start model and the reference, at n of N documents."""
    whole = {"quiz": list(range(n)), "text": [0, 1]}
    monkeypatch.setattr(
        subset, "positions", lambda suite, wanted: {name: found[: wanted[name]] for name, found in whole.items()}
    )
    suite: Any = SimpleNamespace(selection=SimpleNamespace(seed=0), sizes=lambda: whole)
    return lambda pre, *references: by_margin(suite, n, pre, references)


def test_documents_near_the_boundary_come_more_often(drawn: Any) -> None:
    pre, reference, _ = models(1)
    places, chances = drawn(pre, reference)
    lost = np.array(pre.tasks["quiz"].values["acc"]) - reference.tasks["quiz"].values["acc"]
    assert chances["quiz"] == pytest.approx(inclusion(flip_sizes(pre.tasks["quiz"].values["margin"], lost), n))
    assert chances["quiz"].sum() == pytest.approx(n)
    assert len(places["quiz"]) == n
    assert places["quiz"] == sorted(set(places["quiz"]))
    near = np.abs(pre.tasks["quiz"].values["margin"])
    assert near[places["quiz"]].mean() < 0.8 * near.mean()
    assert places["text"] == [0, 1]  # no accuracy: as `positions` has it
    assert "text" not in chances
    again = drawn(pre, reference)
    assert again[0] == places


def test_what_has_no_margin_of_its_own_is_drawn_equally(drawn: Any) -> None:
    pre = models(1)[0]
    for change in ({"acc_norm": [0.0, 1.0] * (N // 2)}, {}):  # the headline is acc_norm, whose margin is not there
        values = {**pre.tasks["quiz"].values, **change} if change else {"acc": pre.tasks["quiz"].values["acc"]}
        other = Scores("m", {"quiz": replace(pre.tasks["quiz"], values=values)})
        places, chances = drawn(other, other)
        assert (places["quiz"], chances) == (list(range(n)), {})
    same = drawn(pre, pre)  # a reference that lost nothing says nothing of who may flip
    assert same[1] == {}
    assert len(same[0]["quiz"]) == n


def test_clusters_are_drawn_whole() -> None:
    rng = np.random.default_rng(3)
    labels = [f"c{i}" for i in np.repeat(np.arange(150), rng.integers(1, 5, 150))]
    size = rng.exponential(size=len(labels))
    places, chance = draw(size, 90, labels, "a")
    inside = {labels[i] for i in places}
    assert places == [i for i, label in enumerate(labels) if label in inside]
    by_cluster = {label: chance[i] for i, label in enumerate(labels)}
    assert [by_cluster[label] for label in labels] == chance.tolist()
    assert sum(by_cluster.values()) == pytest.approx(len(inside), abs=1)
    counts = np.zeros(len(labels))
    for seed in range(2000):
        counts[draw(size, 90, labels, str(seed))[0]] += 1
    assert np.abs(counts / 2000 - chance).max() < 4.5 * np.sqrt(0.25 / 2000)


def test_rows_are_two_phase_estimates_with_their_probabilities(drawn: Any) -> None:
    pre, reference, tuned = models(2)
    places, chances = drawn(pre, reference)
    del places["text"]
    at, pi = places["quiz"], chances["quiz"]
    post = restrict(tuned, places, chances)
    assert post.tasks["quiz"].settings == {"limit": None, "scored": f"{n} of {N}", DRAWN: "by margin"}
    result = compare_part(pre, post, [reference], places, chances=chances)
    rows = {row.metric: row for row in result.rows}
    before, other, after = (np.array(one.tasks["quiz"].values["acc"]) for one in (pre, reference, tuned))
    x = np.column_stack([before, pre.tasks["quiz"].values["margin"], before - other])
    found = two_phase((before - after)[at], at, x, probability=pi, span=1.0)
    row = rows["acc"]
    assert (row.forgetting, row.se, row.ci) == (
        pytest.approx(found.estimate.mean), pytest.approx(found.estimate.se), pytest.approx(corrected(found.estimate).ci),
    )  # fmt: skip
    assert (row.test, row.lost, row.gained, row.flips) == ("two-phase t", None, None, None)  # no McNemar, no count of flips
    assert row.documents is not None
    assert row.documents[DRAWN] == "by margin"
    assert row.documents["size"] == pytest.approx(N * pi.min(), rel=0.01)
    weight = np.arange(10, N + 10)[at] / pi[at]  # a ratio of sums: its own weights and those of the draw
    for side, scores in (("pre", pre), ("post", tuned)):
        expected = weight @ np.array(scores.tasks["quiz"].values["bytes"])[at] / weight.sum()
        assert getattr(rows["bytes"], side) == pytest.approx(expected)
    assert any(note.endswith("drawn by margin") for note in result.notes)


def test_two_models_on_one_draw_are_weighted_and_never_meet_a_whole(drawn: Any) -> None:
    pre, reference, tuned = models(4)
    places, chances = drawn(pre, reference)
    del places["text"]
    one, other = (restrict(scores, places, chances) for scores in (reference, tuned))
    row = next(row for row in compare(one, other).rows if row.metric == "acc")
    heavy = 1 / chances["quiz"][places["quiz"]]
    lost = np.array(reference.tasks["quiz"].values["acc"]) - tuned.tasks["quiz"].values["acc"]
    d = lost[places["quiz"]]
    mean = heavy @ d / heavy.sum()
    assert row.forgetting == pytest.approx(mean)
    assert row.se == pytest.approx(np.sqrt((heavy**2) @ (d - mean) ** 2 * n / (n - 1)) / heavy.sum())
    assert row.test != "mcnemar exact"
    equal = marked(replace(other, tasks={"quiz": replace(other.tasks["quiz"], weights={})}), places, tuned)
    assert "drawn" in other.tasks["quiz"].settings
    for whole in (reference, replace(equal, tasks={"quiz": replace(equal.tasks["quiz"], settings={"limit": None})})):
        with pytest.raises(Exception, match="differ"):
            compare(whole, other)


def test_no_loss_among_documents_that_were_drawn_seldom_excludes_little() -> None:
    """500 of 1,500 documents and 60 of 1,500, none of them lost: all alike they exclude a loss of 1 pp, as 363 do.

    By weight they are worth sum(w) / max(w) = 120. Scores that are all right are no flips either, in spite of being 0 or 1.
    """
    at = {"quiz": [*range(0, 1500, 3), *range(1500, 3000, 25)]}
    pi = np.repeat([1 / 3, 1 / 25], 1500)
    whole = Scores("m", {"quiz": task(np.ones(3000))})
    for chances, words, flips in (({}, "does not forget by more than 1 pp", 0), ({"quiz": pi}, "cannot tell at this n", None)):
        one = restrict(whole, at, chances)
        row = next(row for row in compare(one, replace(one, digest="other")).rows if row.metric == "acc")
        assert (row.verdict, row.lost, row.gained) == (words, flips, flips)


def test_intervals_of_a_draw_by_margin_hold_what_they_promise() -> None:
    """400 studies of 100 of 400 documents: the mean loss of all documents like these, drawn, predicted and weighted anew.

    Their flips are by the margin, so that equal draws waste documents; the standard error of a rate of 95 % is 1.1 points.
    """
    truth, errors, plain, covered, weighted = _truth(), [], [], 0, 0
    rng = np.random.default_rng(0)
    for seed in range(400):
        pre, reference, tuned = models(1000 + seed)
        before, other, after = (np.array(one.tasks["quiz"].values["acc"]) for one in (pre, reference, tuned))
        margin, d = np.array(pre.tasks["quiz"].values["margin"]), before - after
        at, pi = draw(flip_sizes(margin, before - other), n, (), str(seed))
        found = two_phase(d[at], at, np.column_stack([before, margin, before - other]), probability=pi, span=1.0)
        errors.append(found.estimate.mean - truth)
        plain.append(d[rng.permutation(N)[:n]].mean() - truth)
        covered += abs(errors[-1]) <= found.estimate.high - found.estimate.mean
        heavy = 1 / pi[at]
        mean = heavy @ d[at] / heavy.sum()
        weighted += abs(mean - truth) <= 1.984 * np.sqrt(heavy**2 @ (d[at] - mean) ** 2) / heavy.sum()
    assert 0.92 < covered / 400 < 0.985
    assert 0.91 < weighted / 400 < 0.985
    assert abs(np.mean(errors)) < 4 * np.std(errors) / 20
    assert np.var(plain) > 1.3 * np.var(errors)


def test_rows_are_narrower_than_of_documents_drawn_equally() -> None:
    """The floor is not so low that what rarely drawn documents may hide takes back what the draw gains."""
    widths, rng = np.zeros((20, 2)), np.random.default_rng(0)
    for row in widths:
        start, moved = rng.normal(0.5, 2, 1000), rng.normal(-0.1, 0.4, 1000)
        before, other, after = (
            np.where(start + add > 0, 1.0, 0.0) for add in (0 * moved, moved, moved + 0.2 * rng.normal(size=1000))
        )
        x, sizes = np.column_stack([before, start, before - other]), flip_sizes(start, before - other)
        for i, (at, pi) in enumerate((draw(sizes, 250, (), "a"), (np.sort(rng.permutation(1000)[:250]), None))):
            low, high = corrected(two_phase((before - after)[at], at, x, probability=pi, span=1.0).estimate).ci
            row[i] = high - low
    assert np.median(widths[:, 0]) < 0.95 * np.median(widths[:, 1])


def _truth() -> float:
    """P(start right) - P(tuned right): 0.5 + 2 z > 0 and 0.2 + sqrt(4 + 0.36 + 0.09) z > 0."""
    from scipy.stats import norm

    return float(norm.cdf(0.25) - norm.cdf(0.2 / np.sqrt(4.45)))
