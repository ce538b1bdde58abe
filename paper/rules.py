"""The checks S0 to S13: the rule of each, and its statistics from the runs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from checks import CONTRADICTED, HOLDS, UNDECIDED, Check, Part, adjusted
from runs import DRAWS, EXPERIMENTS, OLD, Missing, Runs
from scipy import stats

from cltk.measure.stats import Estimate, Floats
from cltk.report.crossfit import split
from cltk.report.matched import against_frontier
from cltk.report.noise import combine, from_documents

RATES = ["plain lr 2e-5", "plain lr 1e-4", "plain", "plain lr 2.5e-3"]
FRONTIER = [*RATES, "plain lr 2e-4", "plain lr 3.5e-4"]
EXACT = 1e-5
Places = np.ndarray[Any, np.dtype[np.int64]]
SEEDS = 3  # that every setting of a check must have


def checks(runs: Runs, experiments: Path = EXPERIMENTS) -> list[Check]:
    """All of them, in order; one whose settings were not run says which."""
    found = []
    for key, (question, rule, confirmatory, compute) in RULES.items():
        check = Check(key, question, rule, confirmatory)
        try:
            answer = compute(runs, experiments)
        except Missing as error:
            found.append(replace(check, missing=error.names))
        else:
            found.append(replace(check, **answer))
    return adjusted(found)


def sanity(runs: Runs, _: Path) -> dict[str, Any]:
    """S0: settings whose result is known."""
    numbers = {}
    for key, name in (("rate", "plain lr 0"), ("alpha", "wise_ft 0"), ("endless", "ewc 1e14")):
        numbers[key] = max(float(np.abs(side.d).max()) for side in runs.sides([name])[name])
    both = runs.sides(["ewc 0", "plain again"])  # of the same machine: `plain` may be another's, whose rounding differs
    pairs = zip(both["ewc 0"], both["plain again"], strict=True)
    numbers["lambda"] = max(float(np.abs(a.after - b.after).max()) for a, b in pairs)
    return {"numbers": numbers, "decided": HOLDS if max(numbers.values()) < EXACT else CONTRADICTED, "seeds": 1}


def old_only(runs: Runs, _: Path) -> dict[str, Any]:
    """S0b: training on old text alone."""
    return _parts(runs, ["old text only"], Part("old", "rise of old NLL", -1, runs.forgetting({"old text only": 1})))


def rates(runs: Runs, _: Path) -> dict[str, Any]:
    """S1: forgetting against the learning rate."""
    steps = [
        Part(f"step{i}", f"{high} against {low}", 1, runs.forgetting({high: 1, low: -1}))
        for i, (low, high) in enumerate(itertools.pairwise(RATES), 1)
    ]
    return _parts(runs, RATES, *steps)


STEPS = [f"plain constant max_steps={n}" for n in (4, 8, 16)]


def steps(runs: Runs, _: Path) -> dict[str, Any]:
    """S2: F ~ N^b from the least and the most steps."""

    def exponent(means: Sequence[Floats]) -> float:
        few, many = means[0][0], means[0][-1]
        return math.log(many / few) / math.log(4) if min(few, many) > 0 else math.nan

    found = runs.of_means(exponent, STEPS)
    less = None if found is None else replace(found, mean=1 - found.mean, low=1 - found.high, high=1 - found.low)
    return _parts(
        runs, STEPS,
        Part("grows", "16 steps against 4", 1, runs.forgetting({STEPS[2]: 1, STEPS[0]: -1})),
        Part("exponent", "b", 1, found), Part("concave", "1 - b", 1, less),
    )  # fmt: skip


def linear(runs: Runs, _: Path) -> dict[str, Any]:
    """S3: R² of forgetting on new loss within plain fine-tuning: over its steps (the rule), and over its rates."""
    numbers: dict[str, float] = {}
    for key, names in (("steps", STEPS), ("rates", RATES)):
        found = runs.sides(names)
        x = np.concatenate([found[name][0].after.mean(axis=1) for name in names])
        y = np.concatenate([found[name][1].d.mean(axis=1) for name in names])
        low, high = np.quantile([_fit(x[k], y[k], 1) for k in _resampled(len(x))], [0.025, 0.975])
        numbers |= {key: _fit(x, y, 1), f"{key}.low": float(low), f"{key}.high": float(high), f"{key}.n": len(x)}
    verdict = HOLDS if numbers["steps.low"] >= 0.9 else CONTRADICTED if numbers["steps.high"] < 0.5 else UNDECIDED
    return {"numbers": numbers, "decided": verdict, "seeds": _seeds(runs, [*STEPS, *RATES])}


def _resampled(n: int) -> Iterator[Places]:
    """DRAWS bootstrap samples of n places."""
    rng = np.random.default_rng(0)
    return (rng.integers(n, size=n) for _ in range(DRAWS))


def _fit(x: Floats, y: Floats, degree: int) -> float:
    """R² of a polynomial; nan where too few places are distinct to fit one."""
    if len(np.unique(x)) <= degree + 1:
        return math.nan
    residuals = y - np.polynomial.Polynomial.fit(x, y, degree)(x)
    return float(1 - residuals.var() / y.var())


def replay(runs: Runs, _: Path) -> dict[str, Any]:
    """S4: a little replay removes most forgetting, with falling returns in log share."""
    few, some, much = (f"replay {share}" for share in (0.01, 0.05, 0.2))
    a, b = 1 / math.log(5), 1 / math.log(4)
    return _parts(
        runs, ["plain", few, some, much],
        Part("half", "5 % replay against half of plain's", -1, runs.forgetting({some: 1, "plain": -0.5})),
        Part("fifth", "1 % replay against four fifths of plain's", -1, runs.forgetting({few: 1, "plain": -0.8})),
        Part("returns", "fall per log share, 5 to 20 % less 1 to 5 %", -1,
             runs.forgetting({some: b + a, much: -b, few: -a})),
        numbers={name.replace("replay ", "share"): runs.forgetting({name: 1}).mean for name in (few, some, much)},
    )  # fmt: skip


def price(runs: Runs, _: Path) -> dict[str, Any]:
    """S5: replay costs the new task at most 2 %."""
    return _parts(
        runs, ["plain", "replay 0.05", "replay 0.2"],
        Part("margin", "new loss at 5 % replay less 1.02 of plain's", -1, runs.loss({"replay 0.05": 1, "plain": -1.02})),
        Part("more", "new loss at 20 % less that at 5 %", 1, runs.loss({"replay 0.2": 1, "replay 0.05": -1})),
        numbers={"percent": 100 * (runs.loss({"replay 0.05": 1}).mean / runs.loss({"plain": 1}).mean - 1)},
    )  # fmt: skip


TEXTS = (OLD, "other_text")


def corpus(runs: Runs, _: Path) -> dict[str, Any]:
    """S6: the share of forgetting that replay removes, on its own corpus and on another."""
    names = ["plain", "replay 0.2"]
    own, other = (1 - runs.forgetting({names[1]: 1}, old).mean / runs.forgetting({names[0]: 1}, old).mean for old in TEXTS)
    difference = runs.of_means(lambda means: float(means[1][1] / means[1][0] - means[0][1] / means[0][0]), names, *TEXTS)
    return _parts(
        runs, names, Part("share", "share removed, own corpus less other", 1, difference),
        numbers={"own": own, "other": other}, old="other_text",
    )  # fmt: skip


def lora(runs: Runs, _: Path) -> dict[str, Any]:
    """S7: LoRA learns less and forgets less, and its rank moves both. Plain's best rate is chosen on other seeds and documents
    than those it is compared on: the largest of several noisy gains is too large."""
    rates, small, large = [name for name in runs.names() if name in FRONTIER], "lora r2 x4", "lora x4"
    both = split(runs.sides([*rates, large]), [*rates, large])
    best = np.argmax(both.gain.apart[:-1], axis=0)
    weights = np.concatenate([-(best == np.arange(len(rates))[:, None, None]).astype(float), np.ones((1, *best.shape))])
    gain, forgetting = (combine([from_documents(task.chosen(weights), task.cluster)]) for task in (both.gain, both.forgetting))
    return _parts(
        runs, [*rates, small, large],
        Part("forgets", "forgetting, LoRA less plain at its best rate", -1, forgetting),
        Part("learns", "gain, LoRA less plain at its best rate", -1, gain),
        Part("rank_forgets", "forgetting, rank 16 less rank 2", 1, runs.forgetting({large: 1, small: -1})),
        Part("rank_learns", "gain, rank 16 less rank 2", 1, runs.gain({large: 1, small: -1})),
    )  # fmt: skip


def curve(runs: Runs, _: Path) -> dict[str, Any]:
    """S7b: LoRA against plain's frontier at its own gain."""
    ranks = {"lora x4": 16, "lora r2 x4": 2, "lora x1": 16}
    found = {name: _matched(runs, name, FRONTIER) for name in ranks}
    name = next((name for name in ranks if found[name] is not None), "lora x4")  # the first whose gain plain reaches
    matched = Part("matched", "forgetting at matched gain, LoRA less plain", -1, found[name])
    return _parts(runs, [name], matched, numbers={"rank": ranks[name]})


def _matched(runs: Runs, name: str, reference: list[str]) -> Estimate | None:
    """D of `cltk matched` with the reference's settings that were run; None where it cannot be reached."""
    chosen = [one for one in reference if one in runs.names()]
    return against_frontier(runs.sides([name, *chosen]), name, chosen)


def path(runs: Runs, _: Path) -> dict[str, Any]:
    """S8: between the start and the tuned weights NLL is convex, and the middle keeps the gain."""
    half, bent = "wise_ft 0.5", []
    both = runs.sides([half, "plain"])
    for key, side, what in (("new", 0, "new"), ("old", 1, "old")):
        middle, end = both[half][side], both["plain"][side]
        below = middle.after - (middle.before + end.after) / 2
        found = combine([from_documents(below, middle.cluster)])
        bent.append(Part(key, f"{what} NLL in the middle less the mean of the ends", -1, found))
    return _parts(
        runs, [half, "plain"], *bent,
        Part("keeps", "gain in the middle less 0.8 of plain's", 1, runs.gain({half: 1, "plain": -0.8})),
    )  # fmt: skip


def predictor(runs: Runs, _: Path) -> dict[str, Any]:
    """S9: what predicts forgetting over methods, KL on new-task rows or the distance of the weights."""
    rows, labels = [], []
    for name in runs.names():
        for entry in runs.one(name).values():
            kl, moved = entry.record.get("divergence", {}).get("heldout"), entry.record.get("distance")
            if kl and moved:
                rows.append((kl["kl"], moved["l2"], entry.record["retain"]["rows"][0]["forgetting"]))
                labels.append(name)
    if len(rows) < 20:
        raise Missing(("20 runs with divergences",))
    table, groups = np.array(rows), np.array(labels)
    names = sorted(set(labels))
    of = [np.flatnonzero(groups == name) for name in names]
    drawn = []
    for places in _resampled(len(names)):  # settings, with all their runs
        some = table[np.concatenate([of[k] for k in places])]
        drawn.append([_fit(some[:, k], some[:, 2], 2) for k in (0, 1)])
    kl, moved = (_fit(table[:, k], table[:, 2], 2) for k in (0, 1))
    ends = np.nanquantile(np.array(drawn)[:, 0], [0.025, 0.975])
    differences = np.array(drawn)[:, 0] - np.array(drawn)[:, 1]
    low, high = (float(x) for x in np.nanquantile(differences, [0.025, 0.975]))
    p = 2 * min(float((differences <= 0).mean()), float((differences >= 0).mean()))
    se = float(np.nanstd(differences, ddof=1))
    difference = Estimate(kl - moved, se, low, high, max(p, 1 / DRAWS), len(rows), len(names))
    numbers = {
        "kl": kl, "kl.low": float(ends[0]), "kl.high": float(ends[1]), "distance": moved, "runs": len(rows),
        "settings": len(names),
    }  # fmt: skip
    enough = HOLDS if ends[0] >= 0.7 else CONTRADICTED if ends[1] < 0.4 else UNDECIDED
    return {"parts": (Part("more", "R² of KL less R² of distance", 1, difference),), "numbers": numbers, "decided": enough}


PATH = ["plain", "ewc 1e1", "ewc 1e3", "ewc 1e5"]


def strength(runs: Runs, _: Path) -> dict[str, Any]:
    """S10: with lambda, forgetting falls."""
    parts = [
        Part(f"old{i}", f"forgetting, {weak} less {strong}", 1, runs.forgetting({weak: 1, strong: -1}))
        for i, (weak, strong) in enumerate(itertools.pairwise(PATH), 1)
    ]
    return _parts(runs, PATH, *parts)


def stiffness(runs: Runs, _: Path) -> dict[str, Any]:
    """S10b: with lambda, new loss rises."""
    parts = [
        Part(f"new{i}", f"new loss, {strong} less {weak}", 1, runs.loss({strong: 1, weak: -1}))
        for i, (weak, strong) in enumerate(itertools.pairwise(PATH), 1)
    ]
    return _parts(runs, PATH, *parts)


def elastic(runs: Runs, _: Path) -> dict[str, Any]:
    """S11: EWC against L2-SP at matched new loss, and against a shuffled Fisher."""
    reference = [f"l2_sp 1e{k}" for k in (1, 2, 3)]
    return _parts(
        runs, ["ewc 1e1", "shuffled 1e1", *reference],
        Part("shuffled", "forgetting, EWC less shuffled Fisher, strength 10", -1,
             runs.forgetting({"ewc 1e1": 1, "shuffled 1e1": -1})),
        Part("matched", "forgetting at matched gain, EWC (strength 10) less L2-SP", -1, _matched(runs, "ewc 1e1", reference)),
    )  # fmt: skip


def estimators(_: Runs, experiments: Path) -> dict[str, Any]:
    """S12: what three estimators of the Fisher give on average."""
    file = experiments / "shapes" / "results" / "fisher.json"
    if not file.exists():
        raise Missing(("shapes/fisher.py",))
    found = json.loads(file.read_text())
    truth = np.array(found["per_sequence"])
    gnb = _t(np.array(found["batched_gradient"]) / truth)
    means = {f"mean{size}": float(np.mean(value / truth)) for size, value in found["mean_gradient"].items()}
    shares = list(means.values())
    small = max(shares) <= 0.2 and shares == sorted(shares, reverse=True)
    bug = gnb.high < 0.8 or gnb.low > 1.25
    equal = gnb.low >= 0.9 and gnb.high <= 1.1
    numbers = {**means, "ratio": gnb.mean, "ratio.low": gnb.low, "ratio.high": gnb.high, "sequences": found["sequences"]}
    return {
        "numbers": numbers, "decided": CONTRADICTED if bug else HOLDS if equal and small else UNDECIDED, "seeds": len(truth),
    }  # fmt: skip


def _t(values: Floats) -> Estimate:
    se = float(values.std(ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * se
    mean = float(values.mean())
    return Estimate(mean, se, mean - reach, mean + reach, 1.0, len(values), len(values))


WEIGHTS = ["stm", "talr", "flow", "eaft"]


def tokens(runs: Runs, _: Path) -> dict[str, Any]:
    """S13: token reweighting against plain and against a random mask."""
    parts = [
        Part(f"{name}.{other.split()[0]}", f"forgetting, {name} less {other}", -1, runs.forgetting({name: 1, other: -1}))
        for name in WEIGHTS
        for other in ("plain", "random 0.87")
    ]
    return _parts(runs, [*WEIGHTS, "plain", "random 0.87"], *parts)


def _seeds(runs: Runs, names: list[str], old: str = OLD) -> int:
    """The seeds that all have. Raises Missing below three: training noise would be left out, or a guess."""
    seeds = len(next(iter(runs.sides(names, old).values()))[0].d)
    if seeds < SEEDS:
        raise Missing((f"{SEEDS} seeds of {', '.join(names)}",))
    return seeds


def _parts(
    runs: Runs, names: list[str], *parts: Part, numbers: dict[str, float] | None = None, old: str = OLD
) -> dict[str, Any]:
    return {"parts": parts, "numbers": numbers or {}, "seeds": _seeds(runs, names, old)}


Compute = Callable[[Runs, Path], dict[str, Any]]
RULES: dict[str, tuple[str, str, bool, Compute]] = {
    "S0": (
        "Do settings with a known result give it?",
        "rate 0, alpha 0, an endless strength: the start model; strength 0: plain fine-tuning; to 1e-5 nats", False, sanity,
    ),
    "S0b": ("Does training on old text alone lower old NLL?", "rise below 0", False, old_only),
    "S1": ("Does forgetting grow with the learning rate?", "at each of three steps of the rate by 5 or more", True, rates),
    "S2": ("Is forgetting concave in steps?", "F ~ N^b, 0 < b < 1", False, steps),
    "S3": (
        "Is forgetting linear in new loss within one method?",
        "R² over steps and runs: interval above 0.9; below 0.5 contradicts", False, linear,
    ),
    "S4": (
        "Does a little replay remove most of it?",
        "5 % leaves at most half, 1 % at most four fifths; returns fall in the logarithm of the share", True, replay,
    ),
    "S5": (
        "Is replay cheap for the new task?", "5 % costs at most 2 % of new loss; 20 % costs more than 5 %", True, price,
    ),
    "S6": (
        "Does replay help less off its own corpus?", "share of forgetting removed: larger on the replayed corpus", False,
        corpus,
    ),
    "S7": (
        "Does LoRA learn less and forget less?", "both, against plain at its best rate; both rise with the rank", True, lora,
    ),
    "S7b": ("Does LoRA forget less at matched gain?", "against plain's frontier over rates", False, curve),
    "S8": (
        "Does interpolating the weights pay?",
        "half way, NLL is below the mean of the ends, new and old (so less than half is forgotten), and 80 % of the gain is"
        " kept", True, path,
    ),
    "S9": (
        "Does KL on new-task rows predict forgetting?",
        "R² of a parabola: interval above 0.7 (below 0.4 contradicts), and above that of the distance of the weights", False,
        predictor,
    ),
    "S10": ("Does EWC's strength lower forgetting?", "at each of three steps of the strength", True, strength),
    "S10b": ("Does EWC's strength cost new loss?", "at each of three steps of the strength", False, stiffness),
    "S11": (
        "Does the Fisher matter?", "EWC forgets less than with a shuffled Fisher, and than L2-SP at matched gain", True,
        elastic,
    ),
    "S12": (
        "Which Fisher estimators agree?",
        "squared batch gradients of sampled labels within 10 % of per-sequence ones; squared mean gradients at most a fifth,"
        " less with larger batches", False, estimators,
    ),
    "S13": (
        "Do token weights protect, beyond masking at random?",
        "STM, TALR, FLOW, EAFT: less forgetting than plain and than a random mask of STM's share", True, tokens,
    ),
}  # fmt: skip
