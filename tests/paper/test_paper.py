"""The paper: verdicts from a known truth, and a text that cannot say what the runs do not."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cltk
from cltk.errors import InputError
from cltk.report.sources import Entry, Losses
from cltk.run.records import read_json, write_json

ROOT = Path(cltk.__file__).parent.parent
sys.path.insert(0, str(ROOT / "paper"))

import build  # noqa: E402
import rules  # noqa: E402
from checks import CONTRADICTED, HOLDS, UNDECIDED, Check, Part, adjusted  # noqa: E402
from runs import Missing, Runs  # noqa: E402

SEEDS, DOCUMENTS = 5, 40


def losses(rise: float, key: int, noise: float = 0.02, before: float = 3.0) -> Losses:
    """A rise of the loss with noise of seeds and documents that all settings share, and some of its own."""
    common = np.random.default_rng(1)
    shared = common.normal(size=(1, DOCUMENTS)) * 0.3 + common.normal(size=(SEEDS, 1)) * 0.1
    shared -= shared.mean()
    own = np.random.default_rng(key).normal(size=(SEEDS, DOCUMENTS)) * noise
    start = np.full((SEEDS, DOCUMENTS), before)
    d = rise + rise * shared + own
    return Losses(d, [], None, [f"{i}" for i in range(DOCUMENTS)], start, start + d)


class Known(Runs):
    """Settings of a known truth: name -> (fall of new loss, rise of old loss)."""

    def __init__(self, truth: dict[str, tuple[float, float]]) -> None:
        self.truth = {name: (losses(-g, 2 * i), losses(f, 2 * i + 1)) for i, (name, (g, f)) in enumerate(truth.items())}
        super().__init__([])

    def names(self, old: str = "old_text") -> list[str]:
        return list(self.truth)

    def sides(self, names: Sequence[str], old: str = "old_text") -> dict[str, tuple[Losses, Losses]]:
        if missing := [name for name in names if name not in self.truth]:
            raise Missing(tuple(missing))
        return {name: self.truth[name] for name in names}


def verdict(compute: Any, truth: dict[str, tuple[float, float]]) -> str:
    return Check("S", "?", "?", True, **compute(Known(truth), ROOT)).verdict


def test_contrasts_are_means_of_paired_differences() -> None:
    known = Known({"a": (1.0, 0.5), "b": (2.0, 0.2)})
    (new_a, old_a), (new_b, old_b) = known.truth["a"], known.truth["b"]
    assert known.forgetting({"a": 1, "b": -0.5}).mean == pytest.approx((old_a.d - 0.5 * old_b.d).mean())
    assert known.gain({"a": 1, "b": -1}).mean == pytest.approx((new_b.d - new_a.d).mean())
    assert known.loss({"a": 1, "b": -1.02}).mean == pytest.approx((new_a.after - 1.02 * new_b.after).mean())


def test_rates() -> None:
    names = rules.RATES
    grows = dict(zip(names, [(1, 0.01), (2, 0.1), (2, 0.5), (1, 2.0)], strict=True))
    assert verdict(rules.rates, grows) == HOLDS
    assert verdict(rules.rates, {**grows, "plain lr 2.5e-3": (1, 0.2)}) == CONTRADICTED
    assert verdict(rules.rates, {**grows, "plain lr 2e-5": (1, 0.1)}) == UNDECIDED


@pytest.mark.parametrize(("b", "expected"), [(0.5, HOLDS), (1.5, CONTRADICTED)])
def test_the_exponent_of_steps_is_found(b: float, expected: str) -> None:
    truth = {name: (1.0, 0.1 * n**b) for name, n in zip(rules.STEPS, (4, 8, 16), strict=True)}
    assert verdict(rules.steps, truth) == expected
    found = rules.steps(Known(truth), ROOT)["parts"]
    assert next(part for part in found if part.key == "exponent").estimate.mean == pytest.approx(b, abs=0.05)


def test_replay() -> None:
    good = {"plain": (2.0, 1.0), "replay 0.01": (2.0, 0.7), "replay 0.05": (2.01, 0.3), "replay 0.2": (1.8, 0.2)}
    assert verdict(rules.replay, good) == HOLDS
    assert verdict(rules.price, good) == HOLDS
    assert verdict(rules.replay, {**good, "replay 0.05": (2.0, 0.6)}) == CONTRADICTED
    assert verdict(rules.price, {**good, "replay 0.05": (1.8, 0.3)}) == CONTRADICTED


LADDER = {"plain": (2.0, 1.0), "ewc 1e1": (1.8, 0.5), "ewc 1e3": (1.5, 0.2), "ewc 1e5": (1.0, 0.05)}
PULLED = {
    **LADDER, "shuffled 1e1": (1.8, 0.9), "l2_sp 1e1": (1.9, 0.9), "l2_sp 1e2": (1.85, 0.8), "l2_sp 1e3": (1.0, 0.4),
}  # fmt: skip
RANKS = {"plain": (1.8, 0.9), "plain lr 1e-4": (2.0, 0.5), "lora r2 x4": (1.0, 0.1), "lora x4": (1.5, 0.3)}
MASKS = {"plain": (2.0, 1.0), "random 0.87": (1.5, 0.8), "stm": (1, 0.3), "talr": (1, 0.3), "flow": (1, 0.3), "eaft": (1, 0.3)}


@pytest.mark.parametrize(
    ("compute", "truth", "worse"),
    [
        (rules.strength, LADDER, {"ewc 1e3": (1.5, 0.7)}),
        (rules.stiffness, LADDER, {"ewc 1e3": (1.9, 0.2)}),
        (rules.elastic, PULLED, {"shuffled 1e1": (1.8, 0.3)}),
        (rules.elastic, PULLED, {"l2_sp 1e2": (1.85, 0.1)}),
        (rules.lora, RANKS, {"lora x4": (1.5, 0.8)}),
        (rules.lora, RANKS, {"lora x4": (2.5, 0.3)}),
        (rules.lora, RANKS, {"lora r2 x4": (1.0, 0.45)}),
        (rules.tokens, MASKS, {"flow": (1, 0.9)}),
        (rules.tokens, MASKS, {"eaft": (1, 1.2)}),
        (rules.old_only, {"old text only": (0.1, -0.2)}, {"old text only": (0.1, 0.2)}),
    ],
)
def test_a_rule_holds_and_is_contradicted(compute: Any, truth: dict[str, Any], worse: dict[str, Any]) -> None:
    assert verdict(compute, truth) == HOLDS
    assert verdict(compute, {**truth, **worse}) == CONTRADICTED


def test_known_results_must_come_to_the_last_digits() -> None:
    known = Known({"plain again": (2.0, 1.0)} | dict.fromkeys(("plain lr 0", "wise_ft 0", "ewc 1e14"), (0.0, 0.0)))
    for name in ("plain lr 0", "wise_ft 0", "ewc 1e14"):
        known.truth[name] = tuple(replace(side, d=0 * side.d, after=side.before) for side in known.truth[name])
    known.truth["ewc 0"] = known.truth["plain again"]
    assert Check("S0", "?", "?", False, **rules.sanity(known, ROOT)).verdict == HOLDS
    new, old = known.truth["plain again"]
    known.truth["ewc 0"] = (new, replace(old, after=old.after + 1e-4 * (np.arange(DOCUMENTS) == 3)))
    assert Check("S0", "?", "?", False, **rules.sanity(known, ROOT)).verdict == CONTRADICTED


def test_linear_in_new_loss_over_steps() -> None:
    rates = {name: (1.0 + 0.1 * i, 0.1) for i, name in enumerate(rules.RATES)}
    straight = dict(zip(rules.STEPS, [(1.0, 0.1), (1.5, 0.35), (2.0, 0.6)], strict=True))
    bent = dict(zip(rules.STEPS, [(1.0, 0.1), (1.02, 0.9), (1.0, 0.5)], strict=True))
    found = rules.linear(Known(straight | rates), ROOT)
    assert found["decided"] == HOLDS
    assert found["numbers"]["steps"] > 0.99
    assert (
        rules.linear(Known(bent | {k: (v[0] + 0.1 * i, v[1]) for i, (k, v) in enumerate(rates.items())}), ROOT)["decided"]
        != HOLDS
    )


def test_r_squared_is_that_of_a_least_squares_fit() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = 1 + 2 * x - x**2 + 0.5 * rng.normal(size=30)
    design = np.stack([np.ones(30), x, x**2], axis=1)
    residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    assert rules._fit(x, y, 2) == pytest.approx(1 - residuals @ residuals / ((y - y.mean()) @ (y - y.mean())))
    assert np.isnan(rules._fit(np.array([1.0, 1.0, 2.0]), np.ones(3), 2))


@pytest.mark.parametrize(("bent_by", "expected"), [("kl", HOLDS), ("distance", CONTRADICTED)])
def test_what_predicts_forgetting(bent_by: str, expected: str) -> None:
    rng = np.random.default_rng(0)
    entries = []
    for k in range(16):
        for seed in (0, 1):
            kl, moved = rng.uniform(0, 2, size=2)
            rise = (kl if bent_by == "kl" else moved) ** 2 + 0.01 * rng.normal()
            entries.append(Entry({
                "method": f"m{k}", "seed": seed, "divergence": {"heldout": {"kl": kl}}, "distance": {"l2": moved},
                "retain": {"rows": [{"task": "old_text", "forgetting": rise}]},
            }))  # fmt: skip
    found = rules.predictor(Runs(entries), ROOT)
    assert Check("S9", "?", "?", False, **found).verdict == expected
    assert found["numbers"]["runs"] == 32
    with pytest.raises(InputError, match="m0 with seed 0 is there twice"):
        Runs([*entries, replace(entries[0])])
    with pytest.raises(Missing):
        rules.predictor(Runs(entries[:19]), ROOT)


@pytest.mark.parametrize(
    ("batched", "means", "expected"),
    [
        ([1.01, 0.99, 1.0, 1.02], {"2": [0.1], "8": [0.05]}, HOLDS),
        ([1.5, 1.52, 1.49, 1.51], {"2": [0.1], "8": [0.05]}, CONTRADICTED),
        ([1.3, 0.7, 1.1, 0.9], {"2": [0.1], "8": [0.05]}, UNDECIDED),
        ([1.01, 0.99, 1.0, 1.02], {"2": [0.3], "8": [0.05]}, UNDECIDED),
        ([1.01, 0.99, 1.0, 1.02], {"2": [0.1], "8": [0.15]}, UNDECIDED),
    ],
)
def test_estimators(batched: list[float], means: dict[str, list[float]], expected: str, tmp_path: Path) -> None:
    file = tmp_path / "shapes" / "results" / "fisher.json"
    file.parent.mkdir(parents=True)
    body = {"per_sequence": [1.0] * 4, "batched_gradient": batched, "mean_gradient": means, "sequences": 16}
    file.write_text(json.dumps(body))
    assert rules.estimators(Known({}), tmp_path)["decided"] == expected


def test_replay_off_its_own_corpus() -> None:
    class Two(Known):
        def sides(self, names: Sequence[str], old: str = "old_text") -> dict[str, tuple[Losses, Losses]]:
            return Known(self.others if old == "other_text" else self.own).sides(names)

    known = Two({})
    known.own = {"plain": (2.0, 1.0), "replay 0.2": (2.0, 0.1)}
    known.others = {"plain": (2.0, 1.0), "replay 0.2": (2.0, 0.6)}
    found = rules.corpus(known, ROOT)
    assert Check("S6", "?", "?", False, **found).verdict == HOLDS
    assert (found["numbers"]["own"], found["numbers"]["other"]) == (pytest.approx(0.9, abs=0.02), pytest.approx(0.4, abs=0.02))
    known.own, known.others = known.others, known.own
    assert Check("S6", "?", "?", False, **rules.corpus(known, ROOT)).verdict == CONTRADICTED


def test_the_middle_of_the_path() -> None:
    assert verdict(rules.path, {"plain": (2.0, 1.0), "wise_ft 0.5": (1.8, 0.2)}) == HOLDS
    assert verdict(rules.path, {"plain": (2.0, 1.0), "wise_ft 0.5": (0.8, 0.2)}) == CONTRADICTED


def test_matched_forgetting_uses_the_frontier() -> None:
    plain = dict(zip(rules.RATES, [(1.0, 0.0), (2.0, 0.1), (1.8, 0.6), (1.0, 2.0)], strict=True))
    found = rules.curve(Known({**plain, "lora x4": (1.5, 0.2), "lora r2 x4": (1.2, 0.1), "lora x1": (1, 0)}), ROOT)
    assert found["parts"][0].estimate.mean == pytest.approx(0.2 - 0.05, abs=0.02)  # half way between the first two rates
    assert found["numbers"] == {"rank": 16}


def test_two_seeds_are_not_enough() -> None:
    known = Known(dict(zip(rules.RATES, [(1, 0.01), (2, 0.1), (2, 0.5), (1, 2.0)], strict=True)))
    for name, sides in known.truth.items():
        known.truth[name] = tuple(replace(side, d=side.d[:2], before=side.before[:2], after=side.after[:2]) for side in sides)
    with pytest.raises(Missing, match="3 seeds of plain lr 2e-5"):
        rules.rates(known, ROOT)


def test_what_was_not_run_is_said() -> None:
    found = {one.key: one for one in rules.checks(Known({"plain": (2.0, 1.0)}), ROOT / "nowhere")}
    assert found["S13"].verdict == "not run"
    assert "stm" in found["S13"].missing


def test_holm_over_the_confirmatory_checks_alone() -> None:
    def check(key: str, p: float, confirmatory: bool, mean: float = 1.0) -> Check:
        from cltk.measure.stats import Estimate

        return Check(key, "?", "?", confirmatory, (Part("a", "?", 1, Estimate(mean, 0.1, mean - 0.2, mean + 0.2, p, 9, 9)),))

    found = adjusted([check("A", 0.01, True), check("B", 0.04, True), check("C", 0.001, False), check("D", 0.001, True, -1.0)])
    assert [one.adjusted for one in found] == [pytest.approx(0.03), pytest.approx(0.08), None, 1.0]


TEXT = r"""
\claim{S1}{holds}{It grows by \est{S1.step1}.} Table~\ref{tab:1}
% 12 is a comment's
"""


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("", ""), None),
        (("{holds}", "{contradicted}"), "line 2: the text says that S1 is 'contradicted'; the runs say 'holds'"),
        (("S1.step1", "S1.step2"), "line 2: there is no number 'S1.step2'"),
        (("grows", "grows 12-fold"), "line 2: a number of its own"),
        ((r"\claim{S1}{holds}", ""), "nothing is said of S1"),
    ],
)
def test_the_text_is_held_against_the_runs(edit: tuple[str, str], message: str | None) -> None:
    values = {"S1.step1": 0.1, "S1.step1.low": 0.0, "S1.step1.high": 0.2}
    found = list(build.faults(TEXT.replace(*edit), [Check("S1", "?", "?", True, decided="holds")], values))
    assert any(one.startswith(message) for one in found) if message else found == []


def test_numbers_as_printed() -> None:
    shown = [build.shown(value) for value in (0.12345, -1.5, 12.345, 3.0, 4, 0.00012, "a_b")]
    assert shown == ["0.123", "-1.500", "12.3", "3", "4", r"1.2\cdot 10^{-4}", r"a\_b"]


@pytest.mark.slow
def test_the_paper_agrees_with_the_records_and_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["build.py", "--out", str(tmp_path / "out")])
    assert build.main() == 0
    assert (tmp_path / "out" / "numbers.tex").stat().st_size > 1000
    if shutil.which("pdflatex"):
        assert (tmp_path / "out" / "paper.pdf").read_bytes().startswith(b"%PDF")
        log = (tmp_path / "out" / "paper.log").read_text(errors="replace")
        assert "undefined" not in log


@pytest.mark.slow
def test_other_results_do_not_build(tmp_path: Path) -> None:
    for folder in ("ewc-path", "methods-study", "shapes"):
        shutil.copytree(ROOT / "experiments" / folder / "results", tmp_path / folder / "results")
    for file in (tmp_path / "ewc-path" / "results").rglob("plain_seed=*.scores.json"):
        scores = read_json(file)
        values = scores["tasks"]["old_text"]["values"]
        values["nll"] = [value - 1.0 for value in values["nll"]]
        write_json(file, {key: value for key, value in scores.items() if key != "sha256"})
    with pytest.raises(build.TextError, match="the text says that"):
        build.build(tmp_path / "out", tmp_path)
