"""Which tokens of a trainer's micro-batch count, also where the trainer keeps that from the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cltk.errors import InputError
from cltk.hosts.checks import HOSTS
from cltk.mitigate.interface import IGNORED


def called_with(trainer: Any, name: str, call: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """The model's inputs with the labels of the micro-batch.

    Args:
        name: the method that asks.
        call: what the model is called with.
        batch: what the collator made.

    Raises:
        InputError: the labels do not belong to the inputs, or a trainer of preferences does not say which tokens are answers.
    """
    inputs, ids, labels, host = dict(call), batch.get("input_ids"), _labels(batch), type(trainer).__name__
    if "input_ids" not in inputs:
        raise InputError(f"{name}: the model is called without input_ids, which its loss needs")
    if "labels" in inputs:
        return inputs
    if labels is None and any(cls.__name__ in HOSTS for cls in type(trainer).__mro__):
        raise InputError(
            f"{name}: this release of TRL does not say which tokens of a {host} are answers; update trl to 1.8 or newer"
        )
    if labels is not None:
        device = inputs["input_ids"].device
        if (
            not isinstance(ids, Tensor)
            or ids.shape != inputs["input_ids"].shape
            or bool((ids.to(device) != inputs["input_ids"]).any())
        ):
            raise InputError(
                f"{name}: {host} calls the model without labels and on other input_ids than the batch has, so that no one knows"
                " which tokens count; pass labels to the model"
            )
        inputs["labels"] = labels.to(device)
    return inputs


def _labels(batch: Mapping[str, Any]) -> Tensor | None:
    """The batch's labels, or those that its `completion_mask` stands for (TRL's DPOTrainer)."""
    ids, labels, mask = (batch.get(key) for key in ("input_ids", "labels", "completion_mask"))
    if isinstance(labels, Tensor):
        return labels
    if isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.shape == ids.shape:
        return ids.masked_fill(mask == 0, IGNORED)
    return None
