"""Multiple choice out of samples: which choice is right, where the log says it without doubt."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from cltk.logs.samples import Documents
from cltk.measure.choices import Choice

Reading = Callable[[int, str, list[str]], frozenset[int] | None]


def choices_of(found: Documents, delimiter: str, acc: Sequence[float | None] | None, doubled: bool) -> list[Choice]:
    """The choices of every document; empty where the log does not say which are right.

    Samples hold the right answer as text, whatever it was: "1" may be an index or a choice's own text. A reading counts
    that explains every logged accuracy: the likeliest choice is right where it is 1, and only there. Two readings that say
    different things of a document and both do are none. Where all have two choices, the accuracy itself says it.

    Args:
        delimiter: what lm-eval puts before every choice.
        acc: the accuracy of each document, where it was logged.
        doubled: whether the unconditional log-probabilities stand behind the choices (acc_mutual_info).
    """
    logprobs = [one[: len(one) // 2] if doubled else one for one in found.logprobs]
    texts = [_texts(one[: len(one) // 2] if doubled else one, delimiter) for one in found.endings]
    if any(len(one) != len(text) or len(one) < 2 for one, text in zip(logprobs, texts, strict=True)):
        return []
    several = [count > (2 if doubled else 1) for count in found.contexts]
    readings: list[Reading] = [] if any(several) else [_index, _list, _text]
    said = [right for reading in readings if (right := _read(reading, found.target, texts, logprobs, acc)) is not None]
    if acc is not None and not said and all(len(one) == 2 for one in logprobs) and all(value in (0, 1) for value in acc):
        best = [_best(one) for one in logprobs]
        said = [[frozenset({i if value else 1 - i}) for i, value in zip(best, acc, strict=True)]]
    if not said or any(one != said[0] for one in said):
        return []
    sizes = [[] if many else [len(one.encode()) for one in text] for text, many in zip(texts, several, strict=True)]
    return [Choice(*parts) for parts in zip(logprobs, said[0], sizes, strict=True)]


def _texts(endings: list[str], delimiter: str) -> list[str]:
    """The choices themselves, without what stands before each."""
    return [one[len(delimiter) :] for one in endings] if all(one.startswith(delimiter) for one in endings) else endings


def _read(
    reading: Reading, targets: Sequence[str], texts: Sequence[list[str]], logprobs: Sequence[list[float]],
    acc: Sequence[float | None] | None,
) -> list[frozenset[int]] | None:  # fmt: skip
    """The right choices of every document by one reading; None where it does not fit one of them."""
    found = []
    for i, (target, text) in enumerate(zip(targets, texts, strict=True)):
        right = reading(len(text), target, text)
        if right is None or (acc is not None and acc[i] in (0, 1) and (_best(logprobs[i]) in right) != bool(acc[i])):
            return None
        found.append(right)
    return found


def _best(logprobs: list[float]) -> int:
    """The first of the likeliest."""
    return max(range(len(logprobs)), key=logprobs.__getitem__)


def _index(count: int, target: str, texts: list[str]) -> frozenset[int] | None:
    return frozenset({int(target)}) if target.isdecimal() and int(target) < count else None


def _list(count: int, target: str, texts: list[str]) -> frozenset[int] | None:
    try:
        listed = ast.literal_eval(target) if target.startswith(("[", "(")) else None
    except (ValueError, SyntaxError):
        return None
    if not isinstance(listed, list | tuple) or not all(isinstance(one, int) and 0 <= one < count for one in listed):
        return None
    return frozenset(listed)


def _text(count: int, target: str, texts: list[str]) -> frozenset[int] | None:
    return frozenset({texts.index(target)}) if target in texts else None
