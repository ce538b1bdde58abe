"""The plane: families, the frontier, and the hypervolume against brute force."""

import numpy as np
import pytest
from study_cases import LABELS, base_scores, record, tuned_scores, write_study

from cltk.report import figures, noise, plane
from cltk.report.aggregate import summarize
from cltk.report.groups import learning_rate
from cltk.report.pairs import Study
from cltk.report.sources import Entry, read_entries
from cltk.run.records import write_json


def by_counting(points, corner, cells=400):
    """The share of a grid of cells in [min f, corner] x [0, max g] that any point dominates, times its area."""
    left, top = min(f for f, _ in points), max(max(g for _, g in points), 1e-9)
    if left >= corner:
        return 0.0
    x = left + (np.arange(cells) + 0.5) / cells * (corner - left)
    y = (np.arange(cells) + 0.5) / cells * top
    inside = sum(any(f <= a and g >= b for f, g in points) for a in x for b in y)
    return inside / cells**2 * (corner - left) * top


@pytest.mark.parametrize("seed", range(4))
def test_hypervolume_is_the_area_dominated(seed):
    rng = np.random.default_rng(seed)
    points = list(zip(rng.normal(0.2, 0.3, 4), rng.normal(0.5, 0.5, 4), strict=True))
    found = float(plane.hypervolume(*map(np.array, zip(*points, strict=True)), 0.5))
    assert found == pytest.approx(by_counting(points, 0.5), abs=0.01)


def test_hypervolume_of_simple_sets():
    def area(*points, corner=1.0):
        return float(plane.hypervolume(np.array([f for f, _ in points]), np.array([g for _, g in points]), corner))

    assert area((0.5, 2.0)) == 1.0
    assert area((0.5, 2.0), (0.0, 1.0)) == 1.5  # 0.5 x 1 and 0.5 x 2
    assert area((0.5, 2.0), (0.6, 1.0)) == 1.0  # the second is dominated
    assert area((1.5, 2.0)) == 0.0  # beyond the corner
    assert area((0.5, -1.0)) == 0.0  # learned nothing
    two = plane.hypervolume(np.array([[0.5, 0.0], [0.0, 0.5]]), np.ones((2, 2)), 1.0)
    assert two.tolist() == [1.0, 1.0]


def test_frontier_of_plain_training():
    assert plane.frontier([(3, 2), (1, 1), (2, 0.5), (2, 3)]) == [(1, 1), (2, 3)]


def entry(method, mitigators, seed=0, **train):
    base = base_scores()
    one = record(method, seed, 0, tuned_scores("plain", seed, base), base)
    one["config"] |= {"mitigators": mitigators, "train": {"learning_rate": 1e-3}}
    one["train"] |= {"notes": train}
    return Entry(one)


def test_a_low_rate_alone_is_plain_fine_tuning_at_another_rate():
    low = entry("plain lr 2e-4", [{"low_lr": {"factor": 0.2}}], low_lr={"factor": 0.2, "learning_rate": 2e-4})
    entries = [entry("plain", []), low, entry("a", [{"low_lr": {}}, "kl"]), entry("b", [{"replay": {"fraction": 0.1}}])]
    assert [one.family for one in summarize(entries)] == ["plain", "plain", "low_lr + kl", "replay"]
    assert [learning_rate(one.record) for one in entries[:2]] == [1e-3, 2e-4]
    assert [one.plain for one in summarize(entries)] == [True, False, False, False]
    drawn = figures.plane(summarize(entries)).axes[0]
    assert [text.get_text() for text in drawn.texts] == ["lr 0.001", "lr 0.0002"]


def test_one_setting_far_out_does_not_press_the_others_together(monkeypatch):
    """The axis is then linear up to where three quarters of the settings lie."""
    entries = [entry(name, [{name: {}}]) for name in ("ewc", "kl", "freeze", "l2_sp", "sam", "ema")]
    assert figures.plane(summarize(entries)).axes[0].get_xscale() == "linear"
    monkeypatch.setattr(plane.Point, "f", property(lambda point: 3.0 if point.number == 0 else 0.1))
    assert figures.plane(summarize(entries)).axes[0].get_xscale() == "symlog"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(summarize(read_entries(write_study(tmp_path_factory.mktemp("study")))))


def losses(method, task):
    base = base_scores()
    ((metric, before),) = base.tasks[task].values.items()
    after = [tuned_scores(method, seed, base).tasks[task].values[metric] for seed in range(3)]
    return np.asarray(after) - before


def test_areas_and_their_corner(study):
    found = {one.family: one for one in plane.volumes(study)}
    f = {name: losses(name, "brown").mean() for name in ("plain", "ewc", "replay")}
    g = {name: -losses(name, "heldout").mean() for name in f}
    corner = max(f.values()) + (max(f.values()) - min(0, *f.values())) / 10
    assert {name: one.area.value for name, one in found.items()} == pytest.approx(
        {name: (corner - f[name]) * g[name] for name in f}
    )
    assert found["ewc"].more.value == pytest.approx(found["ewc"].area.value - found["plain"].area.value)
    assert found["plain"].more is None
    assert all(one.area.low < one.area.value < one.area.high for one in found.values())


def test_interval_is_that_of_the_tangent_on_common_seeds_and_documents(study):
    """d[(F - f) g] = (F - f) dg - g df by hand, document by document; the interval is cut at 0."""
    d = {(m, t): losses(m, t) for m in ("plain", "ewc", "replay") for t in ("brown", "heldout")}
    corner = 1.1 * max(d[m, "brown"].mean() for m in ("plain", "ewc", "replay"))
    old = {m: d[m, "heldout"].mean() * d[m, "brown"] for m in ("plain", "ewc")}  # g is minus the new task's loss
    new = {m: -(corner - d[m, "brown"].mean()) * d[m, "heldout"] for m in ("plain", "ewc")}
    found = {one.family: one for one in plane.volumes(study)}
    for area, parts in (
        (found["ewc"].area, (old["ewc"], new["ewc"])),
        (found["ewc"].more, (old["ewc"] - old["plain"], new["ewc"] - new["plain"])),
    ):
        expected = noise.combine([noise.from_documents(one, LABELS) for one in parts], total=True)
        assert area.high - area.value == pytest.approx(expected.high - expected.mean, rel=1e-3)
        assert (
            area.low == pytest.approx(max(area.value - (expected.mean - expected.low), 0.0), rel=1e-3)
            or area is not found["ewc"].area
        )


def test_a_family_is_all_settings_of_a_method(tmp_path):
    base, out = base_scores(), tmp_path / "out"
    write_json(out / "base-0/scores.json", base.to_json())
    for i, (method, rate) in enumerate([("plain", 1e-4), ("plain", 1e-5), ("ewc", 1e-4)]):
        post = tuned_scores(method, i, base)
        write_json(out / f"{i}/record.json", record(method, 0, i, post, base, **{"train.learning_rate": rate}))
        write_json(out / f"{i}/scores.json", post.to_json())
    study = Study(summarize(read_entries(out)))
    assert [(one.family, one.settings) for one in plane.volumes(study)] == [("plain", 2), ("ewc", 1)]
    rows = plane.area_table(study).rows
    assert [row[:2] for row in rows] == [["plain", "2"], ["ewc", "1"]]
    assert rows[0][3] == ""
    assert "[" in rows[1][3]


def test_without_scores_there_is_no_interval(tmp_path):
    study = Study(summarize(read_entries(write_study(tmp_path / "out", scores=False))))
    assert all("[" not in cell for row in plane.area_table(study).rows for cell in row)


def test_nothing_new_was_learned(tmp_path):
    one = record("ewc", 0, 0, tuned_scores("ewc", 0, base_scores()), base_scores())
    del one["learn"]
    assert plane.area_table(Study(summarize([Entry(one)]))) is None
    assert figures.plane(summarize([Entry(one)])) is None
