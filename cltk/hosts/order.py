"""A list of methods: what may stand in it, who has a hook, and in which order training ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cltk.errors import InputError
from cltk.mitigate.interface import Mitigator


def extra_loss(terms: Sequence[Mitigator], inputs: dict[str, Any], logits_NV: Tensor) -> Tensor | None:
    """The sum of the methods' extra losses in float32; None when none has one for this micro-batch."""
    found = [value.float() for m in terms if (value := m.loss(inputs, logits_NV)) is not None]
    return torch.stack(found).sum() if found else None


def overrides(mitigator: Mitigator, hook: str) -> bool:
    """Whether this method does anything in `hook`."""
    return getattr(type(mitigator), hook) is not getattr(Mitigator, hook)


def listed(mitigators: Iterable[Mitigator]) -> list[Mitigator]:
    """The methods as a list that can be read again and again.

    Raises:
        InputError: it is no list, something in it is no mitigator, cannot stand twice, or undoes what one before it did.
    """
    if not isinstance(mitigators, Iterable):
        raise InputError(f"attach: expected a list of mitigators, got {type(mitigators).__name__}; put it in brackets")
    found = list(mitigators)
    check_order(found)
    return found


def check_order(mitigators: Sequence[Mitigator]) -> None:
    """Raises InputError: something is no mitigator, cannot stand twice, or undoes what one before it did."""
    edited = chosen = ""
    seen: set[str] = set()
    for mitigator in mitigators:
        if not isinstance(mitigator, Mitigator):
            raise InputError(f"attach: {mitigator!r} is not a mitigator; pass instances such as cltk.LowLR(0.1)")
        name = type(mitigator).__name__
        if name in seen and (mitigator.once or mitigator.wraps or mitigator.repeats):
            raise InputError(f"{name} stands twice in the list, and the second would undo the first; give it once")
        seen.add(name)
        if mitigator.repeats and edited:
            raise InputError(f"{name} replaces the gradient, so what {edited} added to it would be lost; put {name} before it")
        if mitigator.replaces and chosen:
            raise InputError(f"{chosen} and {name} each end with weights of their own choice; keep one of them")
        if overrides(mitigator, "grad"):
            edited = edited or name
        if mitigator.replaces:
            chosen = name


def check_in_place(mitigators: Sequence[Mitigator], parameters: Iterable[nn.Parameter]) -> None:
    """Raises InputError: a hook steps as soon as a gradient is there, so that none is left for a method to edit."""
    editing = [type(m).__name__ for m in mitigators if overrides(m, "grad") or overrides(m, "step")]
    if editing and any(getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in parameters):
        raise InputError(
            f"{editing[0]}: the parameters have hooks that run when their gradients are made (an optimizer that steps inside"
            " backward), so gradients and updates cannot be edited; step after backward"
        )


def finishing(mitigators: Sequence[Mitigator]) -> list[Mitigator]:
    """The order in which training ends: the list's; then those that wrapped the model, the last first; then averages of it."""
    rest = [m for m in mitigators if not m.wraps and not m.averages]
    return rest + [m for m in reversed(mitigators) if m.wraps] + [m for m in mitigators if m.averages]
