"""What a check is: a rule, written down before its runs, and what the runs say.

A part is an estimate with its 95 % interval and the sign that the rule asks for. A check holds when every part's interval
lies on its side of 0; it is contradicted when one lies on the other side; else it is undecided. Confirmatory checks are one
family, and both answers need its adjusted p as well: p of a check is the largest of its parts' (two-sided, 1 where a sign is
wrong), p against it the least of the wrong signs' times the number of parts, each adjusted by Holm over the checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from cltk.measure.stats import Estimate, holm

HOLDS, CONTRADICTED, UNDECIDED, ABSENT = "holds", "contradicted", "undecided", "not run"
ALPHA = 0.05


@dataclass(frozen=True)
class Part:
    """One estimate, and the side of 0 that the rule wants it on; None where the design cannot give it."""

    key: str
    what: str
    sign: int
    estimate: Estimate | None

    @property
    def verdict(self) -> str:
        """By its interval."""
        if self.estimate is None:
            return UNDECIDED
        low, high = sorted((self.sign * self.estimate.low, self.sign * self.estimate.high))
        return HOLDS if low > 0 else CONTRADICTED if high < 0 else UNDECIDED

    @property
    def p(self) -> float:
        """Two-sided; 1 where the sign is wrong."""
        return self._p(self.sign)

    @property
    def against(self) -> float:
        """Two-sided; 1 where the sign is right."""
        return self._p(-self.sign)

    def _p(self, sign: int) -> float:
        return self.estimate.p if self.estimate is not None and sign * self.estimate.mean > 0 else 1.0


@dataclass(frozen=True)
class Check:
    """A question, its rule and its answer. `numbers` are what the text may quote beside the parts."""

    key: str
    question: str
    rule: str
    confirmatory: bool
    parts: tuple[Part, ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)
    decided: str | None = None  # the verdict of a rule that is not about signs
    adjusted: float | None = None  # p over the confirmatory checks
    adjusted_against: float | None = None
    seeds: int | None = None
    missing: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """holds, contradicted, undecided, not run."""
        if self.missing:
            return ABSENT
        found = [part.verdict for part in self.parts] + ([self.decided] if self.decided else [])
        answer = CONTRADICTED if CONTRADICTED in found else UNDECIDED if UNDECIDED in found else HOLDS
        p = self.adjusted_against if answer == CONTRADICTED else self.adjusted
        return UNDECIDED if p is not None and p >= ALPHA else answer

    @property
    def p(self) -> float:
        """Of all parts together: the intersection-union test."""
        return max(part.p for part in self.parts)

    @property
    def against(self) -> float:
        """Of the part that speaks most against it, times the number of parts."""
        return min(1.0, len(self.parts) * min(part.against for part in self.parts))


def adjusted(found: list[Check]) -> list[Check]:
    """With Holm's p over the confirmatory checks that were run."""
    family = [one for one in found if one.confirmatory and one.parts]
    sides = (holm([one.p for one in family]), holm([one.against for one in family]))
    p = {one.key: both for one, *both in zip(family, *sides, strict=True)}
    return [replace(one, adjusted=p[one.key][0], adjusted_against=p[one.key][1]) if one.key in p else one for one in found]


def numbers(found: list[Check]) -> Iterator[tuple[str, float]]:
    """Everything that the text may quote, by name: S1.step1, S1.step1.low, S1.step1.high, S1.p, S12.ratio."""
    for check in found:
        for name, value in check.numbers.items():
            yield f"{check.key}.{name}", value
        for one in check.parts:
            if one.estimate is not None:
                yield from (
                    (f"{check.key}.{one.key}{end}", value)
                    for end, value in (("", one.estimate.mean), (".low", one.estimate.low), (".high", one.estimate.high))
                )
        if check.adjusted is not None and check.adjusted_against is not None:
            yield f"{check.key}.p", check.adjusted
            yield f"{check.key}.against", check.adjusted_against
