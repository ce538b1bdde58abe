"""Which values the next trial takes: Optuna's TPE sampler, as a pure function of the trials before it.

A study is made anew for every trial, of what is known, with a sampler that is seeded by seed + number: a search that was killed
and goes on asks what it would have asked (optuna#3255, #3526: a sampler that is made again repeats its first trials). Nothing
is kept in a database, so no trial can be left in it as running (optuna#3215, #4234).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from cltk.errors import InputError
from cltk.run.spec_search import SpaceSpec

RANDOM = 5  # trials before the first that looks at the others
DIGITS = 4  # of a value that is drawn
AGAIN = 20  # times that TPE is asked for values that no trial had


@dataclass(frozen=True)
class Past:
    """A trial that is done. `over`: budget -> (lost - budget) / budget, at most 0 where it is within."""

    values: dict[str, Any]
    gain: float
    over: dict[str, float] = field(default_factory=dict)

    @property
    def within(self) -> bool:
        return all(excess <= 0 for excess in self.over.values())


def check_optuna(at: str = "") -> None:
    """Raises InputError where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise InputError(f"{at}needs Optuna; pip install 'cltk-forgetting[search]'")


def suggest(
    space: Mapping[str, SpaceSpec], past: Sequence[Past], seed: int, tried: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """The values of a trial, of which `space` has some that nobody tried: equal arguments, equal values.

    TPE (Bergstra et al. 2011; with constraints: arXiv 2606.09889) over all keys together; at random while fewer than `RANDOM`
    trials are known. Numbers of a range are rounded to 4 digits. What was tried is drawn again (optuna#2021: TPE on few choices
    repeats the best of them), at random where TPE knows no other.

    Args:
        space: key -> its values.
        past: the trials that are known; a larger gain is better, and what is over a budget is worse than all within.
        seed: of this trial.
        tried: the values of all trials before, those that failed too; they are not drawn once more.

    Raises:
        InputError: Optuna is not installed.
    """
    check_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = {key: _distribution(one) for key, one in sorted(space.items())}
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=RANDOM, multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for one in past:
        study.add_trial(optuna.trial.create_trial(params=one.values, distributions=found, value=one.gain, constraints=one.over))
    for _ in range(AGAIN):
        drawn = study.ask(found).params
        values = {key: _rounded(drawn[key], space[key]) for key in space}
        if values not in tried:
            return values
    rng = random.Random(seed)
    while True:
        values = {key: _any(one, rng) for key, one in space.items()}
        if values not in tried:
            return values


def best(past: Sequence[Past]) -> int | None:
    """The place of the largest gain within all budgets, the first of equal ones; None where none is within."""
    within = [at for at, one in enumerate(past) if one.within]
    return max(within, key=lambda at: past[at].gain, default=None)


def _distribution(space: SpaceSpec) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.choices is not None:
        return CategoricalDistribution(space.choices)
    low, high = space.ends
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=bool(space.log))
    return FloatDistribution(low, high, log=bool(space.log))


def _any(space: SpaceSpec, rng: random.Random) -> Any:
    if space.choices is not None:
        return rng.choice(space.choices)
    low, high = space.ends
    whole = isinstance(low, int) and isinstance(high, int)
    return rng.randint(int(low), int(high)) if whole else rng.uniform(low, high)  # more of them than 4 digits have


def _rounded(value: Any, space: SpaceSpec) -> Any:
    if space.choices is not None or isinstance(value, int):
        return value
    low, high = space.ends
    return min(max(float(f"{value:.{DIGITS}g}"), float(low)), float(high))
