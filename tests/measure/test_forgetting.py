"""Scores in, forgetting out: signs, joins, refusals, and each row against scipy on the same numbers."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as ref
from statsmodels.stats.multitest import multipletests

from cltk.errors import InputError
from cltk.measure import stats
from cltk.measure.confirming import confirm, confirmed, difference, explore
from cltk.measure.forgetting import compare, span
from cltk.measure.scores import Scores, TaskScores

HIGHER = {"acc": True, "acc_norm": True, "exact_match": True, "nll": False, "err": False, "bleu": True, "bits_per_byte": False}


def task(name, values, cluster=(), choices=(), **settings):
    n = len(next(iter(values.values())))
    values = {metric: [float(x) for x in scores] for metric, scores in values.items()}
    hashes = [f"{name}{i}" for i in range(n)]
    higher = {metric: HIGHER[metric] for metric in values}
    return TaskScores(name, values, higher, hashes, [f"p{h}" for h in hashes], list(choices), list(cluster), settings)


def scores(digest, *tasks):
    return Scores(digest, {t.task: t for t in tasks})


def quiz(seed, n=120, name="quiz", accuracy=0.6, **metrics):
    """acc and nll of a random model; the same seed gives the same model."""
    rng = np.random.default_rng(seed)
    return task(name, {"acc": rng.random(n) < accuracy, "nll": rng.normal(2, 0.5, n), **metrics}, choices=[4] * n)


@pytest.fixture
def two():
    return (
        scores("before", quiz(0), quiz(1, 200, "other")),
        scores("after", quiz(2, accuracy=0.4), quiz(3, 200, "other", 0.4)),
    )


def rows(result):
    return {(row.task, row.metric): row for row in result.rows}


def test_rows_against_scipy(two):
    pre, post = two
    result = compare(pre, post)
    assert list(rows(result)) == [("quiz", "acc"), ("quiz", "nll"), ("other", "acc"), ("other", "nll")]
    a, b = (np.array(side.tasks["quiz"].values["acc"]) for side in two)
    acc = rows(result)["quiz", "acc"]
    test = ref.ttest_rel(a, b)
    assert (acc.pre, acc.post, acc.forgetting) == pytest.approx((a.mean(), b.mean(), a.mean() - b.mean()))
    assert (acc.se, acc.ci) == (pytest.approx(ref.sem(a - b)), pytest.approx(test.confidence_interval(), abs=0.03 * acc.se))
    assert acc.ci[0] <= test.confidence_interval().low  # the union of the t interval and of one that follows the skew
    assert acc.ci[1] >= test.confidence_interval().high
    assert (acc.lost, acc.gained) == (sum(a > b), sum(a < b))
    assert acc.p == pytest.approx(ref.binomtest(acc.lost, acc.lost + acc.gained).pvalue)
    assert (acc.n, acc.clusters, acc.test, acc.margin) == (120, 120, "mcnemar exact", 0.01)
    assert acc.flips == stats.flips(a, b, [4] * 120)
    assert acc.mde == pytest.approx((ref.norm.ppf(0.975) + ref.norm.ppf(0.8)) * acc.se, rel=0.15)  # McNemar's is larger
    assert acc.mde == stats.mde((acc.lost + acc.gained) / 120, 120, binary=True)


def test_nll_forgets_when_it_rises(two):
    pre, post = two
    a, b = (np.array(side.tasks["quiz"].values["nll"]) for side in two)
    nll = rows(compare(pre, post))["quiz", "nll"]
    assert nll.forgetting == pytest.approx(b.mean() - a.mean())
    assert (nll.pre, nll.post) == pytest.approx((a.mean(), b.mean()))
    assert (nll.lost, nll.gained, nll.flips, nll.test) == (None, None, None, "sign-flip")
    assert nll.p >= max(stats.sign_flip(b - a), ref.ttest_1samp(b - a, 0).pvalue)
    assert nll.p == pytest.approx(ref.ttest_1samp(b - a, 0).pvalue, abs=0.05)
    assert not nll.higher_is_better


def test_a_binary_error_rate_loses_when_it_rises():
    result = compare(scores("a", task("t", {"err": [0, 0, 1, 0]})), scores("b", task("t", {"err": [1, 1, 0, 0]})))
    row = result.rows[0]
    assert (row.forgetting, row.lost, row.gained) == (0.25, 2, 1)
    assert row.flips.lost_rate - row.flips.gained_rate == row.forgetting


def test_macro_is_the_unweighted_mean_over_tasks(two):
    result = compare(*two)
    accs = [row for row in result.rows if row.metric == "acc"]
    macro = result.macro
    assert macro.forgetting == pytest.approx(np.mean([row.forgetting for row in accs]))
    assert (macro.pre, macro.post) == pytest.approx((np.mean([r.pre for r in accs]), np.mean([r.post for r in accs])))
    assert (macro.task, macro.metric, macro.n, macro.clusters) == ("macro", "acc", 320, 320)
    assert (macro.lost, macro.gained) == (sum(r.lost for r in accs), sum(r.gained for r in accs))
    assert macro.se == pytest.approx(math.sqrt(sum(r.se**2 for r in accs)) / 2)
    z = macro.forgetting / macro.se
    assert macro.ci == pytest.approx((macro.forgetting - 1.96 * macro.se, macro.forgetting + 1.96 * macro.se), abs=0.005)
    assert macro.p == pytest.approx(2 * ref.norm.sf(z), abs=0.02)
    assert macro.verdict == "forgets"


def test_macro_of_one_task_is_its_row():
    result = compare(scores("a", quiz(0)), scores("b", quiz(2, accuracy=0.5)))
    acc, macro = rows(result)["quiz", "acc"], result.macro
    assert macro == replace(acc, task="macro", flips=None)


def test_macro_p_weighs_documents_by_their_task(monkeypatch):
    """Brute force over all signs of the flipped documents; one of 4 weighs five times one of 20. 24 documents are few for
    a t test, whose p is larger."""
    before = [task("small", {"acc": [1] * 4}), task("large", {"acc": [1, 1, 1, 1] + [0] * 16})]
    after = [task("small", {"acc": [0, 0, 0, 1]}), task("large", {"acc": [1, 1, 0, 0] + [1] * 3 + [0] * 13})]
    weights = [1 / 8] * 3 + [1 / 40] * 2 + [-1 / 40] * 3
    sums = [abs(np.dot(signs, weights)) for signs in itertools.product((1, -1), repeat=8)]
    expected = np.mean(np.array(sums) >= abs(sum(weights)) - 1e-12)
    macro = compare(scores("a", *before), scores("b", *after)).macro
    assert expected < macro.p
    seen, sign_flip = [], stats.sign_flip
    monkeypatch.setattr(stats, "sign_flip", lambda *args: seen.append(sign_flip(*args)) or seen[-1])
    compare(scores("a", *before), scores("b", *after))
    assert seen[-1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tasks", "metric", "n"),
    [
        ([{"acc": 4, "acc_norm": 4}, {"nll": 9}], "acc_norm", 4),
        ([{"acc": 4}, {"exact_match": 5}, {"bleu": 9}], "accuracy", 9),
        ([{"bleu": 4, "nll": 4}, {"nll": 3}], "nll", 7),
        ([{"nll": 4}, {"nll": 3, "bits_per_byte": 3}], "nll", 3),  # nats a document and nats a token have no mean
        ([{"bleu": 4}, {"err": 3}, {"bleu": 2}], "bleu", 6),
    ],
)
def test_what_the_macro_averages(tasks, metric, n):
    side = scores("a", *(task(f"t{i}", {m: np.arange(k) % 2 for m, k in values.items()}) for i, values in enumerate(tasks)))
    macro = compare(side, side, draws=50).macro
    assert (macro.metric, macro.n) == (metric, n)


def test_filter_suffixes_are_accuracies():
    both = {"exact_match,strict": [1, 0], "exact_match,flexible": [1, 1]}
    t = replace(task("t", {"acc": [0, 0]}), values=both, higher_is_better=dict.fromkeys(both, True))
    assert compare(scores("a", t), scores("b", t), draws=50).macro.metric == "exact_match,strict"


def test_a_model_against_itself_forgets_nothing(two):
    pre = two[0]
    result = compare(pre, pre)
    for row in [*result.rows, result.macro]:
        assert (row.forgetting, row.se, row.p) == (0, 0, 1)
        n = {"quiz": 120, "other": 200, "macro": 120 * 2}[row.task]  # the macro's loss may all be in the smaller task
        most = ref.t.ppf(0.975, 318 if row.task == "macro" else n - 1) ** 2
        wide = most / (n + (2 if row.task == "macro" else 1) * most)  # (M / sqrt(M (1 - M) / n) = t, Wilson's interval
        assert row.ci == ((0, 0) if row.metric == "nll" else pytest.approx((-wide, wide), rel=1e-6))
        assert row.pre == row.post
        assert row.lost in (0, None)
        assert row.gained in (0, None)
    assert all(line["acc_d"] == 0 for table in result.samples.values() for line in table)
    assert result.pre_digest == result.post_digest == "before"


def test_verdict_needs_documents():
    """No flip among 120 documents does not exclude a loss of 1 pp; none among 400 does."""
    few, many = scores("a", quiz(0)), scores("a", quiz(0, 400))
    assert rows(compare(few, few))["quiz", "acc"].verdict == "cannot tell at this n"
    assert rows(compare(few, few, margins={"acc": 0.05}))["quiz", "acc"].verdict == "does not forget by more than 5 pp"
    assert compare(many, many).macro.verdict == "does not forget by more than 1 pp"
    assert rows(compare(many, many))["quiz", "nll"].verdict == "does not forget by more than 0.01 nats"


def test_clusters_widen_the_interval_and_flip_together():
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(30), 5)
    before = np.ones(150)
    after = 1.0 - (rng.random(30) < 0.3)[labels]  # whole clusters are lost
    cluster = [f"c{label}" for label in labels]
    plain = compare(scores("a", task("t", {"acc": before})), scores("b", task("t", {"acc": after}))).rows[0]
    result = compare(
        scores("a", task("t", {"acc": before}, cluster)), scores("b", task("t", {"acc": after}, cluster)), draws=20_000
    )
    row = result.rows[0]
    assert row.se == pytest.approx(plain.se * math.sqrt(5), rel=0.03)
    assert (row.clusters, row.lost, row.test) == (30, plain.lost, "sign-flip")
    lost_clusters = row.lost // 5
    assert row.p > 2 * 0.5**lost_clusters  # all signs equal; the t test of 30 clusters is less sure
    assert plain.p < row.p < 0.05
    assert result.macro == replace(row, task="macro", flips=None)


def test_samples_hold_every_document(two):
    result = compare(*two)
    table = result.samples["quiz"]
    assert len(table) == 120
    assert set(table[0]) == {
        *("doc_hash", "prompt_hash", "cluster", "acc_pre", "acc_post", "acc_d", "nll_pre", "nll_post", "nll_d")
    }
    assert np.mean([line["nll_d"] for line in table]) == pytest.approx(rows(result)["quiz", "nll"].forgetting)
    assert table[7]["doc_hash"] == "quiz7"


def reorder(t, order):
    pick = lambda values: [values[i] for i in order]  # noqa: E731
    values = {metric: pick(column) for metric, column in t.values.items()}
    return replace(
        t, values=values, doc_hash=pick(t.doc_hash), prompt_hash=pick(t.prompt_hash), choices=pick(t.choices), cluster=t.cluster
    )


def test_documents_are_joined_not_lined_up(two):
    pre, post = two
    order = np.random.default_rng(0).permutation(120)
    shuffled = scores("after", reorder(post.tasks["quiz"], order), post.tasks["other"])
    assert compare(pre, shuffled).to_json() == compare(pre, post).to_json()


def test_duplicates_stay():
    before = replace(task("t", {"acc": [1, 0, 1]}), doc_hash=["x", "x", "y"], prompt_hash=["p", "p", "q"])
    after = replace(task("t", {"acc": [1, 1, 0]}), doc_hash=["y", "x", "x"], prompt_hash=["q", "p", "p"])
    result = compare(scores("a", before), scores("b", after))
    assert [(line["doc_hash"], line["acc_pre"], line["acc_post"]) for line in result.samples["t"]] == [
        ("x", 1, 1),
        ("x", 0, 0),
        ("y", 1, 1),
    ]


def test_json_is_plain_and_strict(two):
    data = json.loads(json.dumps(compare(*two).to_json(), allow_nan=False))
    assert data["rows"][0]["ci"][0] < data["rows"][0]["forgetting"]
    assert data["rows"][0]["flips"]["lost"] == data["rows"][0]["lost"]
    assert (data["pre_digest"], data["post_digest"]) == ("before", "after")
    lone = compare(scores("a", task("t", {"acc": [1]})), scores("b", task("t", {"acc": [0]})))
    assert lone.macro.p == 1
    assert lone.rows[0].verdict == lone.macro.verdict == "cannot tell at this n"
    data = json.loads(json.dumps(lone.to_json(), allow_nan=False))
    assert (data["rows"][0]["se"], data["rows"][0]["ci"], data["rows"][0]["mde"]) == (None, [None, None], None)


BASE = task("t", {"acc": [1, 0, 1], "nll": [1, 2, 3]}, num_fewshot=0)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(BASE, doc_hash=["t0", "t1", "new"]), ["task t", "1 documents differ", "3 and 3"]),
        (task("t", {"acc": [1, 0], "nll": [1, 2]}, num_fewshot=0), ["task t", "1 documents differ", "3 and 2"]),
        (replace(BASE, prompt_hash=["pt0", "x", "y"]), ["task t", "2 documents differ in prompt_hash"]),
        (replace(BASE, choices=[4, 4, 4]), ["task t", "3 documents differ in choices"]),
        (replace(BASE, settings={"num_fewshot": 5}), ["task t", "all 3 documents", "num_fewshot 0 and 5"]),
        (replace(BASE, settings={"num_fewshot": 0, "dtype": "bf16"}), ["task t", "dtype None and bf16"]),
        (task("t", {"acc": [1, 0, 1]}, num_fewshot=0), ["task t", "metric nll"]),
        (replace(BASE, higher_is_better={"acc": True, "nll": True}), ["task t", "higher_is_better of nll"]),
        (replace(BASE, values={"acc": [1, 0, 1], "nll": [1, math.nan, 3]}), ["task t (after)", "nll of document 1 is nan"]),
        (replace(BASE, values={"acc": [1, 0, 1], "nll": [1, 2, math.inf]}), ["nll of document 2 is inf"]),
        (replace(BASE, values={"acc": [1, 0], "nll": [1, 2, 3]}), ["task t (after)", "2 entries in acc for 3 documents"]),
        (replace(BASE, choices=[4, 1, 4]), ["task t (after)", "1 choices"]),
        (replace(BASE, cluster=["a"]), ["1 entries in cluster for 3 documents"]),
        (TaskScores("t", {"acc": []}, {"acc": True}, [], []), ["task t (after) has no documents"]),
        (task("u", {"acc": [1]}), ["different tasks (t, u)"]),
    ],
)
def test_refusals(other, words):
    with pytest.raises(InputError) as error:
        compare(scores("a", BASE), scores("b", other))
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_the_side_before_is_named_too():
    bad = replace(BASE, values={"acc": [math.nan, 0, 1], "nll": [1, 2, 3]})
    with pytest.raises(InputError, match=r"task t \(before\): acc of document 0 is nan"):
        compare(scores("a", bad), scores("b", BASE))
    with pytest.raises(InputError, match="no task"):
        compare(scores("a"), scores("b"))


@pytest.mark.parametrize("margins", [{"acc_norm": 0.01}, {"acc": 0.0}, {"acc": -1}])
def test_margins_are_checked(margins):
    with pytest.raises(InputError, match="margin"):
        compare(scores("a", BASE), scores("b", BASE), margins=margins)


def test_difference_of_two_methods(two):
    """forgetting_a - forgetting_b, with the error of the paired difference and not that of the two rows."""
    pre, a = two
    b = scores("gentle", quiz(4, accuracy=0.55), quiz(5, 200, "other", 0.55))
    forget_a, forget_b, gap = compare(pre, a), compare(pre, b), difference(a, b)
    for row, row_a, row_b in zip(gap.rows, forget_a.rows, forget_b.rows, strict=True):
        assert row.forgetting == pytest.approx(row_a.forgetting - row_b.forgetting)
    paired = [x["nll_d"] - y["nll_d"] for x, y in zip(forget_a.samples["quiz"], forget_b.samples["quiz"], strict=True)]
    assert rows(gap)["quiz", "nll"].se == pytest.approx(ref.sem(paired))
    assert gap.macro.forgetting == pytest.approx(forget_a.macro.forgetting - forget_b.macro.forgetting)
    assert gap.macro.verdict == "forgets more"
    assert difference(b, a).macro.verdict != "forgets more"


def test_families_of_claims(two):
    pre, post = two
    results = {f"m{i}": compare(pre, scores("x", quiz(i + 9, accuracy=0.6 - i / 20), post.tasks["other"])) for i in range(4)}
    holm = multipletests([result.macro.p for result in results.values()], method="holm")[1]
    assert list(confirm(results).values()) == pytest.approx(holm)
    margin = multipletests([result.macro.noninferiority_p for result in results.values()], method="holm")[1]
    assert [row.noninferiority_p for row in confirmed(results).values()] == pytest.approx(margin)
    raw = [row.p for result in results.values() for row in result.rows if row.metric == "acc"]
    explored = explore(results)
    assert [p for tasks in explored.values() for p in tasks.values()] == pytest.approx(multipletests(raw, method="fdr_bh")[1])
    assert list(explored["m3"]) == ["quiz", "other"]


def test_a_claim_of_many_is_adjusted():
    """Twenty methods, each alone just sure that it loses less than 1 pp: together none is."""
    quiet = scores("a", quiz(0, 400))
    results = {f"m{i}": compare(quiet, quiet) for i in range(20)}
    assert {result.macro.verdict for result in results.values()} == {"does not forget by more than 1 pp"}
    rows = confirmed(results)
    assert {row.verdict for row in rows.values()} == {"cannot tell at this n"}
    assert rows["m0"].noninferiority_p == pytest.approx(min(1, 20 * results["m0"].macro.noninferiority_p))
    assert confirmed({"m0": results["m0"]})["m0"] == results["m0"].macro


def test_five_documents_never_show_that_nothing_was_forgotten():
    for metric in ("bleu", "nll", "acc"):
        same = scores("x", replace(task("t", {"acc": [0.5, 0.5, 0.5, 0.5, 0.5]}), values={metric: [0.5] * 5},
                                   higher_is_better={metric: True}))  # fmt: skip
        assert compare(same, same).rows[0].verdict == "cannot tell at this n"


def test_one_task_neither_lends_nor_takes_the_others_caution():
    """20 documents of 0 and 1 do not exclude a loss of 1 pp, alone or beside a task of scores between 0 and 1."""
    rng = np.random.default_rng(0)
    few = task("few", {"acc": [1, 0] * 10})
    many = replace(task("many", {"acc": rng.random(4000)}), higher_is_better={"acc": True})
    assert compare(scores("x", many), scores("x", many)).macro.verdict == "does not forget by more than 0.01"
    for tasks in ([few], [few, many]):
        assert compare(scores("x", *tasks), scores("x", *tasks)).macro.verdict == "cannot tell at this n"


def test_bounds_of_a_metric():
    one, far = np.array([0.2, 0.9]), np.array([0.0, 40.0])
    assert [span("f1", one, one), span("bleu", far), span("bits_per_byte", far), span("nll,none", one)] == [1, 100, None, None]
    assert span("squad_f1", one, far) == 40


def test_metrics_behind_a_filter_have_their_own_margin():
    """bleu has points: 1, not 0.01 of one, whatever filter its name says."""
    hashes = [f"d{i}" for i in range(30)]
    draws = [30.0, *(30 + np.random.default_rng(0).normal(0, 1, 200)).tolist()]

    def side(shift):
        moved = [value + shift for value in draws]
        return Scores("m", {"t": TaskScores("t", {}, {"bleu,second": True}, hashes, hashes, corpus={"bleu,second": moved})})

    (row,) = compare(side(0.0), side(-0.5)).rows
    assert row.margin == 1.0


@pytest.mark.parametrize("order", [("one", "other"), ("other", "one")])
def test_macro_over_documents_and_a_whole_corpus(order):
    """An accuracy that is a mean of documents beside one that a task takes of all of them (masakhapos): it was a KeyError."""
    hashes, rng = [f"d{i}" for i in range(40)], np.random.default_rng(0)

    def side(lost, moved):
        right = [float(i >= lost) for i in range(40)]
        draws = [0.7 - moved, *(0.7 - moved + rng.normal(0, 0.02, 200)).tolist()]
        tasks = {
            "one": TaskScores("one", {"acc": right}, {"acc": True}, hashes, hashes),
            "other": TaskScores("other", {}, {"acc": True}, hashes, hashes, corpus={"acc": draws}),
        }
        return Scores("m", {name: tasks[name] for name in order})

    found = compare(side(0, 0.0), side(4, 0.05))
    assert found.macro.forgetting == pytest.approx((0.1 + 0.05) / 2)
    assert found.macro.ci[0] < 0.075 < found.macro.ci[1]
    by_task = {row.task: row for row in found.rows}
    assert found.macro.se == pytest.approx(math.hypot(by_task["one"].se, by_task["other"].se) / 2, rel=1e-6)


def test_a_task_of_one_side_is_left_out_and_said():
    """A group of which a member failed after training has its members' rows there: all other tasks were lost with it."""
    hashes = [f"d{i}" for i in range(10)]

    def one(name):
        return TaskScores(name, {"acc": [1.0, 0.0] * 5}, {"acc": True}, hashes, hashes)

    found = compare(
        Scores("a", {"both": one("both"), "group": one("group")}),
        Scores("b", {"both": one("both"), "member": one("member")}),
    )
    assert {row.task for row in found.rows} == {"both"}
    assert found.left_out == {
        "group": "task group: only the model before training has it",
        "member": "task member: only the model after training has it",
    }
    with pytest.raises(InputError, match="different tasks"):
        compare(Scores("a", {"group": one("group")}), Scores("b", {"member": one("member")}))
