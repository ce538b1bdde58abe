"""What is switched on because it was proven on the model at hand: packing, attention by sequence, a narrow head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cltk.data.readers import Row
from cltk.errors import InputError
from cltk.forward.attention import attention_by_sequence
from cltk.forward.packing_proof import head_error, packing_error

TOLERANCE = 1e-5  # relative, float32

NARROW_TOLERANCE = 5e-2  # relative, in weights of 16 bits: rounding alone is that large; a wrong mask is larger


@dataclass(frozen=True)
class Choice:
    """One thing that is on or off, and why."""

    what: str
    on: bool
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {'on' if self.on else 'off'} ({self.why})"


def sample_rows(tokenizer: Any, vocabulary: int) -> list[Row]:
    """Three short rows of different lengths, of the tokeniser's own ids, with and without prompt masks."""
    text = "The heart pumps blood through the arteries; the veins carry it back to the heart. It never rests."
    ids = [i for i in tokenizer(text, add_special_tokens=False)["input_ids"] if i < vocabulary]
    ids = (ids or [1 % vocabulary]) * (-(-23 // max(len(ids), 1)))
    rows = [list(ids[:n]) for n in (23, 11, 6)]
    return [{"input_ids": row, "labels": [-100] * masked + row[masked:]} for row, masked in zip(rows, (0, 5, 3), strict=True)]


def _proven(what: str, wanted: Any, error: Callable[[], float], dtype: torch.dtype) -> Choice:
    """On where `error()` is small; InputError where it is not and the user insists."""
    if wanted is False:
        return Choice(what, False, f"speed.{what}: false")
    limit = TOLERANCE if dtype in (torch.float32, torch.float64) else NARROW_TOLERANCE
    try:
        found = error()
    except Exception as failure:  # whatever an unknown architecture raises: it is then trained the stock way
        reason = " ".join(str(failure).split())[:200] or type(failure).__name__
    else:
        if found <= limit:
            return Choice(what, True, f"losses equal to {found:.0e}")
        reason = f"losses differ by {found:.0e}"
    if wanted is True:
        raise InputError(f"speed.{what}: true, but for this model {reason}; use auto or false")
    return Choice(what, False, f"not exact for this model: {reason}")


def packing_choice(wanted: Any, model: Any, rows: Sequence[Row]) -> Choice:
    """Several sequences in a row, where losses stay the same. Raises InputError where it is insisted on."""

    def error() -> float:
        from transformers.loss.loss_utils import ForCausalLMLoss

        if getattr(model, "loss_function", None) is not ForCausalLMLoss:
            raise InputError("its loss is not that of a causal language model")
        return packing_error(model, rows)

    return _proven("packing", wanted, error, next(model.parameters()).dtype)


def attention_choice(wanted: Any, packing: Choice, model: Any, rows: Sequence[Row], train: dict[str, Any]) -> Choice:
    """Packed rows attend one sequence after the other. Raises InputError where it is insisted on and not possible."""
    device = next(model.parameters()).device.type
    reason = "rows are not packed" if not packing.on else f"training is on {device}" if device != "cpu" else ""
    reason = reason or ("train.torch_compile takes the model's own" if train.get("torch_compile") else "")
    if wanted is True and reason:
        raise InputError(f"speed.attention: true, but {reason}; use auto or false")
    if wanted is not False and reason:
        return Choice("attention", False, reason)

    def error() -> float:
        with attention_by_sequence() as calls:
            found = packing_error(model, rows)
        if not calls.count:
            raise InputError(f"its attention is {getattr(model.config, '_attn_implementation', 'its own')}, not sdpa")
        return found

    return _proven("attention", wanted, error, next(model.parameters()).dtype)


def head_choice(wanted: Any, model: Any, rows: Sequence[Row], train: dict[str, Any]) -> Choice:
    """The head at labelled positions only, where losses stay the same. Raises InputError where it is insisted on."""

    def error() -> float:
        for key in ("label_smoothing_factor", "torch_compile", "use_liger_kernel"):
            if train.get(key):
                raise InputError(f"train.{key} takes all logits")
        return head_error(model, rows)

    return _proven("label_head", wanted, error, next(model.parameters()).dtype)
