"""Scores of a whole corpus: lm-eval's own, with a paired document bootstrap whose intervals cover."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import sacrebleu
from lm_eval.api import metrics
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

import cltk.measure.corpus as corpus
from cltk.errors import InputError
from cltk.measure.bootstrap import paired
from cltk.measure.corpus import DRAWS, MISSING, NoIntervalError, corpus_scores
from cltk.measure.forgetting import compare
from cltk.measure.scores import Scores, TaskScores
from cltk.measure.stats import paired_mean
from tests.conftest import WORDS, sentences


def translations(n: int, kept: float, seed: int) -> list[tuple[str, str]]:
    """(reference, hypothesis) pairs in which a share of the words is as in the reference."""
    rng = random.Random(seed)
    return [(s, " ".join(w if rng.random() < kept else rng.choice(WORDS) for w in s.split())) for s in sentences(n, seed=9)]


def labels(n: int, right: float, seed: int) -> list[tuple[int, np.int64]]:
    rng = np.random.default_rng(seed)
    return [(i % 2, np.int64(i % 2 if rng.random() < right else 1 - i % 2)) for i in range(n)]


def likelihoods(n: int, seed: int) -> list[float]:
    return (-np.random.default_rng(seed).gamma(2, 2, n)).tolist()


KINDS: dict[str, Any] = {
    "bleu": (metrics.bleu, translations(40, 0.7, 1)),
    "chrf": (metrics.chrf, translations(40, 0.7, 1)),
    "ter": (metrics.ter, translations(40, 0.7, 1)),
    "f1": (metrics.f1_score, labels(40, 0.7, 1)),
    "mcc": (metrics.matthews_corrcoef, labels(40, 0.7, 1)),
    "perplexity": (metrics.perplexity, likelihoods(40, 1)),
    "word_perplexity": (metrics.weighted_perplexity, [(x, i % 7 + 1) for i, x in enumerate(likelihoods(40, 1))]),
}

if hasattr(metrics, "chrfpp"):  # lm-eval 0.4.13 brought it
    KINDS["chrf++"] = (metrics.chrfpp, translations(40, 0.7, 1))


@pytest.mark.parametrize("name", KINDS)
def test_sums_give_the_draws_of_lm_evals_own_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that is not recognised is called on resampled documents: slower, the same numbers."""
    monkeypatch.setattr(corpus, "DRAWS", 20)
    function, items = KINDS[name]
    fast = corpus_scores("t", items, function)
    slow = corpus_scores("t", items, lambda some: function(some))
    assert fast[0] == pytest.approx(function(items), rel=1e-12)
    assert len(fast) == len(slow) == 21
    assert fast == pytest.approx(slow, rel=1e-9, abs=1e-12)


def test_the_scores_are_sacrebleus_and_sklearns() -> None:
    pairs = KINDS["bleu"][1]
    refs, preds = [[ref for ref, _ in pairs]], [pred for _, pred in pairs]
    assert corpus_scores("t", pairs, metrics.bleu)[0] == pytest.approx(sacrebleu.corpus_bleu(preds, refs).score)
    assert corpus_scores("t", pairs, metrics.ter)[0] == pytest.approx(sacrebleu.corpus_ter(preds, refs).score)
    gold, guess = zip(*KINDS["f1"][1], strict=True)
    assert corpus_scores("t", KINDS["f1"][1], metrics.f1_score)[0] == pytest.approx(f1_score(gold, guess))
    assert corpus_scores("t", KINDS["mcc"][1], metrics.matthews_corrcoef)[0] == pytest.approx(matthews_corrcoef(gold, guess))


def test_two_models_are_resampled_together() -> None:
    """Equal answers differ by exactly 0 in every draw, and draws depend on the task."""
    _, items = KINDS["bleu"]
    one, again = (corpus_scores("t", items, metrics.bleu) for _ in range(2))
    assert one == again
    assert corpus_scores("u", items, metrics.bleu)[1:] != one[1:]
    estimate = paired(np.subtract(one, again), 40, 40)
    assert (estimate.mean, estimate.se, estimate.ci, estimate.p) == (0, 0, (0, 0), 1)


@pytest.mark.parametrize("clusters", [[], [str(i // 4) for i in range(40)]])
def test_of_a_mean_it_is_the_paired_t_interval(clusters: list[str]) -> None:
    """What is known exactly: its standard error within four of the draws' own errors, 4 / sqrt(2 B)."""
    rng = np.random.default_rng(0)
    pre, post = rng.normal(0, 1, 40), rng.normal(0.3, 1, 40)
    drawn = [corpus_scores("t", side.tolist(), lambda some: sum(some) / len(some), clusters) for side in (pre, post)]
    groups = 10 if clusters else 40
    found, exact = paired(np.subtract(*drawn), 40, groups), paired_mean(pre - post, clusters)
    assert found.mean == pytest.approx(exact.mean)
    assert found.se == pytest.approx(exact.se, rel=4 / math.sqrt(2 * DRAWS))
    assert found.low == pytest.approx(exact.low, abs=0.2 * exact.se)
    assert found.high == pytest.approx(exact.high, abs=0.2 * exact.se)
    assert found.p == pytest.approx(exact.p, abs=0.06)


def test_what_has_no_interval_says_why() -> None:
    with pytest.raises(NoIntervalError, match="no finite number"):
        corpus_scores("t", [1.0, 2.0], lambda some: float("nan"))
    with pytest.raises(NoIntervalError, match=r"on 3[0-9] % of the resamples"):
        corpus_scores("t", list(range(9)), lambda some: 1.0 if 0 in some else float("nan"))
    assert math.isnan(paired([0.5] * 9, 8, 1).se)
    there = corpus_scores("t", [1.0, MISSING, 3.0], lambda some: sum(some) / len(some))
    assert there[0] == 2


def side(name: str, items: Any, order: int = 1) -> Scores:
    hashes = list(map(str, range(40)))[::order]
    drawn = {"bleu": corpus_scores("t", items, metrics.bleu)}
    return Scores(name, {"t": TaskScores("t", {}, {"bleu": True}, hashes, hashes, corpus=drawn)})


def test_a_task_that_has_a_corpus_score_only_is_a_row_and_the_mean() -> None:
    pre, post = side("a", translations(40, 0.9, 1)), side("b", translations(40, 0.4, 2))
    result = compare(pre, Scores.from_json(post.to_json()))
    (row,) = result.rows
    assert (row.metric, row.test, row.n, row.lost, row.margin) == ("bleu", "bootstrap", 40, None, 1.0)
    assert row.verdict == "forgets"
    assert result.macro.forgetting == row.forgetting
    assert result.macro.ci == row.ci
    assert list(result.samples["t"][0]) == ["doc_hash", "prompt_hash", "cluster"]
    with pytest.raises(InputError, match=r"t: bleu is left out: the documents stand in another order"):
        compare(pre, side("b", translations(40, 0.4, 2), order=-1))


def coverage(n: int, rounds: int, draw: Any, function: Any, truth: float) -> tuple[float, float]:
    """(share of intervals that hold the truth, share that miss it on the side of a false claim of forgetting)."""
    rng, inside, false = np.random.default_rng(3), 0, 0
    for i in range(rounds):
        pre, post = draw(rng, n)
        found = paired(np.subtract(*(np.asarray(corpus_scores(f"t{i}", one, function), float) for one in (pre, post))), n, n)
        inside += found.low <= truth <= found.high
        false += found.low > truth
    return inside / rounds, false / rounds


def two_answers(rng: Any, n: int) -> Any:
    """Labels that two equally good models get right with probability 0.8, alike on three documents of four."""
    gold, alike = rng.random(n) < 0.5, rng.random(n) < 0.75
    one, other = rng.random(n) < 0.8, rng.random(n) < 0.8
    other = np.where(alike, one, other)
    return [[(int(g), int(g == r)) for g, r in zip(gold, right, strict=True)] for right in (one, other)]


def two_likelihoods(rng: Any, n: int) -> Any:
    """Skewed log-probabilities of two equally good models, correlated."""
    common = rng.gamma(1, 1, n)
    return [(-common - rng.gamma(1, 1, n)).tolist() for _ in range(2)]


def two_lengths(rng: Any, n: int) -> Any:
    """(log p, bytes) with lengths of three orders of magnitude."""
    sizes = np.exp(rng.normal(4, 1, n)).round() + 1
    return [list(zip((-sizes * (1 + 0.2 * rng.normal(0, 1, n))).tolist(), sizes.tolist(), strict=True)) for _ in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "function", "n", "least"),
    [
        (two_answers, metrics.f1_score, 30, 0.93),
        (two_answers, metrics.f1_score, 200, 0.93),
        (two_answers, metrics.matthews_corrcoef, 50, 0.93),
        (two_likelihoods, metrics.perplexity, 20, 0.93),
        (two_likelihoods, metrics.perplexity, 100, 0.93),
        (two_lengths, metrics.weighted_perplexity, 50, 0.91),
    ],
)
def test_intervals_cover(draw: Any, function: Any, n: int, least: float) -> None:
    """Of 95 %: at least `least`, less four binomial standard errors of 400 rounds (4 x 0.011)."""
    inside, false = coverage(n, 400, draw, function, 0.0)
    assert inside >= least - 4 * math.sqrt(0.95 * 0.05 / 400)
    assert false <= 0.025 + 4 * math.sqrt(0.025 * 0.975 / 400)


def test_its_p_is_uniform_where_nothing_is_lost() -> None:
    rng, found = np.random.default_rng(5), []
    for i in range(120):
        pre, post = two_likelihoods(rng, 60)
        drawn = [np.asarray(corpus_scores(f"t{i}", one, metrics.perplexity), float) for one in (pre, post)]
        found.append(paired(np.subtract(*drawn), 60, 60).p)
    assert stats.kstest(found, "uniform").pvalue > 0.001
