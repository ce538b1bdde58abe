"""The gate against scipy, statsmodels and counting: who is within a budget, who is over, and how often that is wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import stats as ref
from statsmodels.stats.multitest import multipletests

from cltk.errors import InputError
from cltk.measure import stats
from cltk.measure.enough import needed, spread, with_noise
from cltk.measure.forgetting import compare
from cltk.measure.gate import Budget, gate
from cltk.measure.looks import Looks
from cltk.measure.margins import exceeds, noninferiority
from cltk.measure.partial import over_looks
from cltk.measure.scores import Scores, TaskScores

HIGHER = {"acc": True, "acc_norm": True, "exact_match": True, "exact_match,flexible": True, "nll": False}


def task(name, clusters=(), **values):
    values = {metric.replace("__", ","): [float(x) for x in given] for metric, given in values.items()}
    hashes = [f"{name}{i}" for i in range(len(next(iter(values.values()))))]
    return TaskScores(name, values, {m: HIGHER[m] for m in values}, hashes, hashes, cluster=list(clusters), settings={"v": 1})


def scores(*tasks):
    return Scores("digest", {one.task: one for one in tasks})


def flipped(n, lost, gained, name="quiz", metric="acc"):
    """Before and after, as 0 and 1: so many lost and gained of n documents, half of which were right."""
    right = n // 2
    before = [1] * right + [0] * (n - right)
    after = [0] * lost + [1] * (right - lost) + [1] * gained + [0] * (n - right - gained)
    return task(name, **{metric: before}), task(name, **{metric: after})


def quiz(n, lost, gained):
    before, after = flipped(n, lost, gained)
    return compare(scores(before), scores(after), draws=200)


def moved(d, before=2.0, name="text", clusters=()):
    """A text whose nll rises by d."""
    d = np.asarray(d, dtype=float)
    return compare(
        scores(task(name, clusters, nll=np.full(len(d), before))), scores(task(name, clusters, nll=before + d)), draws=200
    )


def only(found):
    (checks,) = found.models.values()
    return checks


def test_three_answers_and_their_exit_codes():
    assert (gate(quiz(1000, 3, 4), {"acc": 0.02}).answer(), gate(quiz(1000, 3, 4), {"acc": 0.02}).code()) == ("within", 0)
    assert (gate(quiz(1000, 80, 10), {"acc": 0.02}).answer(), gate(quiz(1000, 80, 10), {"acc": 0.02}).code()) == ("over", 3)
    unknown = gate(quiz(100, 4, 2), {"acc": 0.02})
    assert (unknown.answer(), unknown.code(), unknown.code("pass")) == ("unknown", 4, 0)
    assert gate(quiz(1000, 80, 10), {"acc": 0.02}).code("pass") == 3


@pytest.mark.parametrize(("errors", "answer"), [(-2.5, "over"), (0.5, "unknown"), (2.5, "within")])
def test_p_is_the_one_sided_t_test_at_the_budget(errors, answer):
    d = np.random.default_rng(0).normal(0.05, 0.3, 500)
    budget = d.mean() + errors * ref.sem(d)
    (check,) = only(gate(moved(d), {"nll": budget}))
    assert check.answer == answer
    below = ref.ttest_1samp(d, budget, alternative="less").pvalue
    above = ref.ttest_1samp(d, budget, alternative="greater").pvalue
    assert below <= check.p_within <= 2 * below + 0.02  # and Hall's, whose skewness is taken larger than the sample's
    assert above <= check.p_over <= 2 * above + 0.02


def test_documents_that_never_flip_exclude_a_loss_from_363_on():
    """docs/statistics.md: the exact binomial test needs 299 documents, with half a document for continuity 363."""
    (few,) = only(gate(quiz(362, 0, 0), {"acc": 0.01}))
    (enough,) = only(gate(quiz(364, 0, 0), {"acc": 0.01}))
    assert (few.answer, enough.answer) == ("unknown", "within")
    assert abs(few.needed - 363) <= 1
    assert 0.99**363 < 0.05 < 0.99**200


def test_one_document_and_one_cluster_tell_nothing():
    (alone,) = only(gate(moved([0.5]), {"nll": 0.1}))
    (cluster,) = only(gate(moved(np.full(30, 0.5), clusters=["a"] * 30), {"nll": 0.1}))
    assert (alone.answer, alone.needed, cluster.answer, cluster.needed) == ("unknown", None, "unknown", None)
    (few,) = only(gate(moved(np.linspace(-0.001, 0.001, 19)), {"nll": 0.1}))
    assert (few.answer, few.needed) == ("unknown", 20)  # an unbounded metric needs 20 documents


def test_over_the_budget_also_forgets_by_the_row_s_own_test():
    """5 lost of 5 that changed: McNemar's p is 0.0625, so nobody is told that 5 documents are a loss of more than nothing."""
    result = quiz(40, 5, 0)
    (check,) = only(gate(result, {"acc": 1e-9}))
    assert check.p_over == pytest.approx(max(check.p_over, result.rows[0].p / 2))
    assert check.p_over >= 0.0625 / 2


def several(**changed):
    """Two tasks with acc and acc_norm, one with exact_match under two filters, and a text."""
    rng, n = np.random.default_rng(3), 300
    before, after = [], []
    for name, metrics in {
        "arc": ["acc", "acc_norm"],
        "piqa": ["acc", "acc_norm"],
        "gsm8k": ["exact_match", "exact_match__flexible"],
    }.items():
        one = {metric: rng.integers(0, 2, n) for metric in metrics}
        before.append(task(name, **one))
        after.append(task(name, **{metric: np.where(np.arange(n) < changed.get(name, 0), 0, v) for metric, v in one.items()}))
    base = rng.normal(2, 0.1, n)
    return compare(scores(*before, task("text", nll=base)), scores(*after, task("text", nll=base + 0.001)), draws=100)


RESULT = several(gsm8k=120)


def budgets_of(result, budgets):
    return {(check.task, check.metric): check.budget for check in only(gate(result, budgets))}


def test_the_most_specific_budget_counts():
    acc = {("arc", "acc"): 0.1, ("piqa", "acc"): 0.1}
    assert budgets_of(RESULT, {"acc": 0.1}) == acc
    assert budgets_of(RESULT, {"acc": 0.1, "arc": 0.2}) == {("arc", "acc_norm"): 0.2, ("piqa", "acc"): 0.1}
    assert budgets_of(RESULT, {"acc": 0.1, "arc/acc": 0.3}) == acc | {("arc", "acc"): 0.3}
    flexible = ("gsm8k", "exact_match,flexible")
    assert budgets_of(RESULT, {"exact_match": 0.1}) == {("gsm8k", "exact_match"): 0.1, flexible: 0.1}
    assert budgets_of(RESULT, {"exact_match,flexible": 0.1}) == {flexible: 0.1}
    assert budgets_of(RESULT, {"gsm8k/exact_match,flexible": 0.1}) == {flexible: 0.1}
    macro = {("macro", "accuracy"): 0.4, ("text", "nll"): 0.02}
    assert budgets_of(RESULT, {"macro": 0.4, "nll": 0.02}) == macro


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ({}, "name at least one budget"),
        ({"acc": 0}, "a number above 0"),
        ({"acc": -0.1}, "a number above 0"),
        ({"acc": math.nan}, "a number above 0"),
        ({"acc": math.inf}, "a number above 0"),
        ({"acc": True}, "a number above 0"),
        ({"acc": "1%"}, "a number above 0"),
        ({"acc": 1}, "1 pp is 0.01"),
        ({"gsm8k": 3}, "1 pp is 0.01"),
        ({"macro": 1}, "1 pp is 0.01"),
        ({"aca": 0.1}, "nothing measured has this name; the tasks are arc, piqa, gsm8k, text"),
        ({"arc/exact_match": 0.1}, "nothing measured has this name"),
        ([Budget("aca", 0.1, "budget.yaml:3")], "budget.yaml:3: budget aca"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(budgets, said):
    with pytest.raises(InputError, match=r"gate|budget") as caught:
        gate(RESULT, budgets)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_of_a_task_and_of_a_metric_is_refused():
    both = moved(np.zeros(30), name="nll")
    with pytest.raises(InputError, match="write nll/METRIC"):
        gate(both, {"nll": 0.1})
    assert only(gate(both, {"nll/nll": 0.1}))


def test_a_task_that_could_not_be_compared_is_not_passed():
    """Gates that skip a metric which is gone let the worst models pass (arXivisual#55, academic-research-skills#283)."""
    ours, theirs = flipped(1000, 0, 0)
    other = task("piqa", acc=[1] * 1000)
    nan = task("piqa", acc=[math.nan] * 1000)
    result = compare(scores(ours, other), scores(theirs, nan), draws=100)
    assert list(result.left_out) == ["piqa"]
    for budgets in ({"acc": 0.02}, {"piqa": 0.02}, {"macro": 0.02}, {"acc": 0.02, "piqa": 0.5}):
        found = gate(result, budgets)
        assert found.answer() == "unknown", budgets
        assert "nan" in only(found)[-1].why
    assert gate(result, {"quiz": 0.02}).answer() == "within"
    with pytest.raises(InputError, match=r"left out: piqa: .*nan"):
        gate(result, {"exact_match": 0.02})


def test_a_metric_that_could_not_be_compared_is_not_passed():
    before, after = flipped(1000, 0, 0)
    gone = TaskScores(**{**after.__dict__, "left_out": {"acc_norm": "that of document 3 is nan"}})
    before.values["acc_norm"], before.higher_is_better["acc_norm"] = before.values["acc"], True
    result = compare(scores(before), scores(gone), draws=100)
    assert gate(result, {"acc": 0.02}).answer() == "within"
    assert [c.answer for c in only(gate(result, {"acc": 0.02, "acc_norm": 0.02}))] == ["within", "unknown"]
    assert only(gate(result, {"quiz/acc_norm": 0.02}))[0].why == "that of document 3 is nan"


def test_several_models_are_a_family():
    """Three models with one check each: p_within is Holm's over models, p_over Holm's over all checks."""
    results = {f"m{lost}": quiz(500, lost, 8) for lost in (8, 12, 30)}
    raw = {name: only(gate(result, {"acc": 0.02}))[0] for name, result in results.items()}
    found = gate(results, {"acc": 0.02}).models
    for which in ("p_within", "p_over"):
        adjusted = multipletests([getattr(one, which) for one in raw.values()], method="holm")[1]
        assert [getattr(checks[0], which) for checks in found.values()] == pytest.approx(list(adjusted))


def test_checks_of_one_model_are_one_claim_of_passing_and_many_of_failing():
    alone = {name: only(gate(RESULT, {name: 0.04}))[0] for name in ("arc", "piqa", "gsm8k")}
    together = {check.task: check for check in only(gate(RESULT, dict.fromkeys(alone, 0.04)))}
    assert [c.p_within for c in together.values()] == [alone[name].p_within for name in together]
    assert together["gsm8k"].p_over == pytest.approx(min(3 * alone["gsm8k"].p_over, 1))
    assert together["gsm8k"].answer == "over"


def test_noise_between_equal_runs_is_added_to_the_variance():
    """Two seeds that differ by 2 pp where documents explain 0.4: a loss of 3 pp is no claim against a budget of 1 pp."""
    tuned, seeds = quiz(2000, 70, 10), quiz(2000, 42, 2)
    assert gate(tuned, {"acc": 0.01}).answer() == "over"
    found = gate(tuned, {"acc": 0.01}, [seeds])
    row = seeds.rows[0]
    assert only(found)[0].noise == pytest.approx(math.sqrt(0.02**2 - row.se**2))
    assert (found.answer(), only(found)[0].needed) == ("unknown", None)  # no number of documents is another seed
    quiet = quiz(2000, 5, 4)
    assert spread([quiet], quiet.rows[0]) == (0.0, 1.0)
    assert gate(tuned, {"acc": 0.01}, [quiet]).answer() == "over"
    with pytest.raises(InputError, match="no text nll"):
        gate(moved(np.zeros(30)), {"nll": 0.1}, [quiet])


def test_several_looks_are_held_to_their_own_interval():
    """What `--until` stopped at is judged by the interval over all looks, not as if there had been one look."""
    result = quiz(400, 24, 4)
    looks = Looks(0.03)
    looks.look(0.03, 100)
    looks.look(result.macro.se, 399, last=True)
    wide = over_looks(result.macro, looks)
    budget = {"macro": wide.ci[1]}
    one, all_looks = (only(gate(replace(result, macro=row), budget))[0].p_within for row in (result.macro, wide))
    assert one < all_looks
    assert 0.025 <= all_looks < 0.05  # an end of the interval, and what care a claim takes beside it
    by_hand = replace(wide, estimate=None)
    assert only(gate(replace(result, macro=by_hand), budget))[0].p_within == pytest.approx(0.025, abs=1e-3)


def test_json_is_plain_and_complete():
    found = json.loads(json.dumps(gate({"a": RESULT}, {"acc": 0.05, "gsm8k": 0.05}).to_json(), allow_nan=False))
    assert found["answer"] == found["models"]["a"]["answer"] == "over"
    check = found["models"]["a"]["checks"][-1]
    assert (check["task"], check["metric"], check["answer"]) == ("gsm8k", "exact_match", "over")
    assert {"budget", "forgetting", "ci", "p_over", "p_within", "needed", "n", "lost", "gained"} <= set(check)
    row = next(row for row in RESULT.rows if (row.task, row.metric) == ("gsm8k", "exact_match"))
    assert "estimate" not in row.to_json()


# how often the gate is wrong, and how often it cannot tell


@cache
def answer(n: int, lost: int, gained: int, budget: float) -> str:
    return gate(quiz(n, lost, gained), {"acc": budget}).answer()


def shares(n: int, loss: float, churn: float, budget: float, draws: int, seed: int = 0) -> dict[str, float]:
    """How often which answer, of models that lose `loss` and flip `churn` of the documents."""
    lost, gained = (churn + loss) / 2, (churn - loss) / 2
    counts = np.random.default_rng(seed).multinomial(n, [lost, gained, 1 - churn], size=draws)
    said = [answer(n, int(a), int(b), budget) for a, b, _ in counts]
    return {name: said.count(name) / draws for name in ("within", "over", "unknown")}


def limit(share: float, draws: int) -> float:
    """What a rate of `share` stays below in 99.9 % of simulations."""
    return float(ref.binom.isf(1e-3, draws, share)) / draws


@pytest.mark.parametrize("n", [100, 500, pytest.param(2000, marks=pytest.mark.slow)])
def test_false_alarms_of_models_that_did_not_change(n):
    """Nothing lost, 6 % of the documents flip: never more than 5 % are called over; at the budget itself neither claim is."""
    draws = 600 if n < 2000 else 1500
    assert shares(n, 0.0, 0.06, 0.02, draws)["over"] <= limit(0.05, draws)
    at = shares(n, 0.02, 0.06, 0.02, draws, seed=1)
    assert at["over"] <= limit(0.05, draws)
    assert at["within"] <= limit(0.05, draws)


@pytest.mark.parametrize(
    ("n", "loss"), [(500, 0.06), *(pytest.param(*at, marks=pytest.mark.slow) for at in [(1000, 0.05), (4000, 0.035)])]
)
def test_misses_as_the_power_says(n, loss):
    """P(over) of a real loss is Phi((loss - budget) / SE - 1.645), SE^2 = (churn - loss^2) / n, less what caution costs."""
    churn, budget, draws = 0.12, 0.02, 500
    found = shares(n, loss, churn, budget, draws)["over"]
    se = math.sqrt((churn - loss**2) / n)
    expected = ref.norm.cdf((loss - budget) / se - ref.norm.isf(0.05))
    assert expected - 0.08 <= found <= expected + 0.04
    assert 0.3 < expected < 0.97


@pytest.mark.parametrize(("lost", "gained", "budget"), [(12, 8, 0.03), (5, 5, 0.015), (22, 6, 0.03), (3, 0, 0.02)])
def test_the_number_of_documents_that_would_decide_does(lost, gained, budget):
    """Of fresh draws of so many documents 4 in 5 are decided, of half as many fewer."""
    n, draws = 300, 400
    (check,) = only(gate(quiz(n, lost, gained), {"acc": budget}))
    assert check.answer == "unknown"
    assert check.needed is not None
    assert check.needed > n

    def decided(size):
        """By the tests alone: a comparison of so many documents takes longer."""
        counts = np.random.default_rng(1).multinomial(size, [lost / n, gained / n, 1 - (lost + gained) / n], size=draws)
        seen = {}
        for a, b, _ in counts.tolist():
            if (a, b) not in seen:
                one = stats.paired_mean(np.repeat([1.0, -1.0, 0.0], [a, b, size - a - b]), span=1.0)
                seen[a, b] = min(noninferiority(one, budget), exceeds(one, budget)) < 0.05
        return sum(seen[a, b] for a, b, _ in counts.tolist()) / draws

    assert 0.75 <= decided(check.needed) <= 0.92
    assert decided(check.needed // 2) < 0.72


def test_no_number_of_documents_is_named_at_the_budget_itself():
    assert only(gate(quiz(300, 9, 0), {"acc": 0.03}))[0].needed is None
    assert needed(quiz(300, 9, 0).rows[0].estimate, 0.03 + 1e-7) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "lognormal", "clusters"])
def test_false_claims_about_a_text(kind):
    """NLL that rises by exactly the budget, 1,000 texts a kind: neither claim is made in more than 5 % (a skewed one: 6.5)."""
    rng, n, budget, draws = np.random.default_rng(5), 120, 0.05, 1000
    said = []
    for _ in range(draws):
        clusters = [str(i // 4) for i in range(n)] if kind == "clusters" else []
        if kind == "lognormal":
            d = budget + 0.1 * (np.exp(rng.normal(0, 1, n)) - math.exp(0.5))
        else:
            d = budget + rng.normal(0, 0.1, n) + (np.repeat(rng.normal(0, 0.1, n // 4), 4) if clusters else 0)
        said.append(gate(moved(d, clusters=clusters), {"nll": budget}).answer())
    most = limit(0.065 if kind == "lognormal" else 0.05, draws)
    assert said.count("over") / draws <= most
    assert said.count("within") / draws <= most


@pytest.mark.parametrize("df", [2.5, 3.0, 3.5])
def test_noise_is_beside_losses_that_no_document_shows(df):
    """Nothing flips on 1000 documents: what may have been missed has a variance that repeated runs' noise comes on top of."""
    estimate, extra = stats.paired_mean(np.zeros(1000), span=1.0), 0.003**2
    noisy = with_noise(estimate, extra, df)
    hidden, half = 0.01 * 0.99 / 1000, 0.5 / 1000  # of a loss of the budget, 1 pp, and half a document
    p = noninferiority(noisy, 0.01)
    assert p == pytest.approx(ref.t.sf((0.01 - half) / math.sqrt(hidden + extra), noisy.df))
    assert p > 0.05
    assert noninferiority(replace(noisy, beside=0.0), 0.01) < 0.05  # as it was: "within", of noise alone
