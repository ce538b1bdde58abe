"""What a study can show, against closed forms, scipy and a simulation of the power."""

import json

import numpy as np
import pytest
from scipy import stats as ref

from cltk.errors import InputError
from cltk.measure import stats
from cltk.measure.power import at_chance, plan


def test_rows_and_warnings():
    rows = plan({"hellaswag": 200, "piqa": 1838}, {"hellaswag": 0.43}, {"hellaswag": 4, "piqa": 2}, effect=0.03)
    assert [row.task for row in rows] == ["hellaswag", "piqa", "macro"]
    small, large, macro = rows
    assert (100 * small.mde, 100 * large.mde) == pytest.approx((6.40, 2.11), abs=0.01)
    assert small.warnings == ("cannot show an effect of 3.0 pp at n=200: the smallest detectable is 6.4 pp",)
    assert large.warnings == ()
    assert small.losable == pytest.approx((4 * 0.43 - 1) / 3)
    assert (large.base, large.losable, macro.losable) == (None, None, None)
    z = ref.norm.ppf(0.975) + ref.norm.ppf(0.8)
    assert macro.mde == pytest.approx(z * np.sqrt(0.1 / 200 + 0.1 / 1838) / 2, rel=0.03)
    assert json.loads(json.dumps([row.to_json() for row in rows]))[0]["warnings"] == list(small.warnings)


def test_needed_documents_are_the_first_that_show_the_effect():
    for discordance, effect in ((0.1, 0.03), (0.02, 0.03), (0.4, 0.01)):
        needed = plan({"t": 10}, discordance=discordance, effect=effect)[0].needed
        assert plan({"t": needed}, discordance=discordance)[0].mde <= effect + 1e-12
        assert plan({"t": needed - 1}, discordance=discordance)[0].mde > effect


def test_the_power_is_real():
    """At the smallest detectable effect the exact McNemar test says so in about 80 % of studies (less: it is exact)."""
    n, discordance = 1000, 0.1
    effect = plan({"t": n}, discordance=discordance)[0].mde
    p = [(discordance + effect) / 2, (discordance - effect) / 2, 1 - discordance]
    outcomes = np.random.default_rng(3).multinomial(n, p, size=2000)
    assert np.mean([stats.mcnemar(lost, gained) < 0.05 for lost, gained, _ in outcomes]) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(
    ("accuracy", "n", "k", "chance"),
    [
        (0.277, 100, 4, True),  # above a quarter to the eye, but not with 100 documents
        (0.277, 1172, 4, False),
        (0.575, 100, 2, True),
        (0.20, 5000, 4, True),  # below chance
        (0.004, 500, None, False),
        (0.0, 500, None, True),
    ],
)
def test_chance_is_decided_by_a_test(accuracy, n, k, chance):
    assert at_chance(accuracy, n, k) is chance
    rows = plan({"t": n}, {"t": accuracy}, {"t": k} if k else None)
    assert ("base score is at chance: nothing can be lost" in rows[0].warnings) is chance


def test_chance_tail_is_the_binomial_one():
    limit = next(right for right in range(101) if ref.binom.sf(right - 1, 100, 0.25) < 0.05)
    assert not at_chance(limit / 100, 100, 4)
    assert at_chance((limit - 1) / 100, 100, 4)


def test_little_to_lose():
    row = plan({"arc": 300}, {"arc": 0.30}, {"arc": 4})[0]
    assert row.losable == pytest.approx(0.0667, abs=1e-3)
    assert plan({"arc": 100}, {"arc": 0.34}, {"arc": 4}, discordance=0.3)[0].warnings == (
        "only 12.0 pp above chance can be lost: less than the smallest detectable",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": {}}, "no task"),
        ({"n": {"t": 0}}, "task t: n is 0"),
        ({"n": {"t": 9}, "base": {"t": 43}}, "task t: base accuracy is 43"),
        ({"n": {"t": 9}, "base": {"u": 0.4}}, "base names u"),
        ({"n": {"t": 9}, "choices": {"t": 1}}, "task t: 1 choices"),
        ({"n": {"t": 9}, "discordance": 0}, "discordance is 0"),
        ({"n": {"t": 9}, "effect": 3.0}, "effect is 3.0"),
        ({"n": {"t": 9}, "power": 1.0}, "power is 1.0"),
        ({"n": {"t": 9}, "alpha": 0.0}, "alpha is 0.0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        plan(**arguments)


def test_documents_in_clusters_show_less():
    alone, together = (plan({"t": 600}, effect=0.05, clusters=some)[0] for some in (None, {"t": [6] * 100}))
    assert together.mde == stats.mde(0.1, 600 / (1 + 5 * 0.05), binary=True) > alone.mde
    assert together.needed == pytest.approx(1.25 * alone.needed, abs=1)
    few = plan({"t": 90}, clusters={"t": [30] * 5})[0]
    assert few.mde is None
    assert few.warnings == ("n=90 shows no loss at all: 6 documents, or clusters of them, have to be lost",)
    assert "their power is lower" in plan({"t": 90}, clusters={"t": [9] * 10})[0].warnings[0]


def test_too_few_documents_show_no_loss():
    row, other, macro = plan({"t": 5, "u": 500}, {"t": 0.8, "u": 0.8}, effect=0.1)
    assert (row.mde, "no loss at all" in row.warnings[0]) == (None, True)
    assert other.mde is not None
    assert macro.mde == stats.mde(0.1, 4 / (1 / 5 + 1 / 500), binary=True)
    assert json.loads(json.dumps(row.to_json()))["mde"] is None


def test_the_clusters_of_a_suite_are_known_before_it_runs(monkeypatch, tmp_path):
    """The first 90 documents of a task in the order of its subjects are one subject, about which nothing can be said."""
    from cltk.measure.evaluate import Suite

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = "".join(json.dumps({"q": f"q{i}", "s": f"s{i // 10}"}) + "\n" for i in range(100))
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: [a, b]\ndoc_to_target: 0\n"
        "metadata: {cluster: s}\n"
    )
    assert Suite(["mine"], include_path=tmp_path, limit=35).cluster_sizes() == {"mine": [10, 10, 10, 5]}
    suite = Suite(["mine"], include_path=tmp_path, limit=10)
    assert plan(suite.sizes(), clusters=suite.cluster_sizes())[0].mde is None
