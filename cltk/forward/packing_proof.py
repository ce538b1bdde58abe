"""Proofs that packing and a narrow head change nothing: losses and gradients side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cltk.data.readers import Row
from cltk.data.rows import IGNORED, Collator
from cltk.errors import InputError
from cltk.forward.packing import label_head, pack, place, predicting
from cltk.forward.probe import evaluating


def packing_error(model: Any, rows: Sequence[Row]) -> float:
    """How far packed rows are from padded ones: the largest difference of a counted token's loss and of the model's own
    loss, relative to the largest loss; packed into one row, and into two, of which one has a rest.

    Eval mode, the random states are left alone. Any exception of the model's forward passes through.

    Raises:
        InputError: a mixture of experts with its load-balancing loss in the loss: that counts the rest of packed rows and moves
            the routers' gradients by far more than the loss shows.
    """
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False) and getattr(config, "router_aux_loss_coef", 1.0):
        raise InputError("its routers' load-balancing loss counts the fill of packed rows (config.output_router_logits)")
    device = next(model.parameters()).device
    lengths = [len(row["input_ids"]) for row in rows]
    padded = _on(device, Collator(0)(rows)) | {"use_cache": False}
    with _quiet(model):
        expected, loss = _losses(model, padded)
        wanted = [expected[i, 1:n] for i, n in enumerate(lengths)]
        scale = max(float(expected.abs().max()), 1e-30)
        worst = 0.0
        for layout in (place(lengths, 1), place(lengths, 2)):
            found, packed_loss = _losses(model, _on(device, pack(rows, layout, 0)))
            worst = max(worst, abs(float(packed_loss - loss)) / scale)
            for r, line in enumerate(layout):
                at = 0
                for i in line:
                    gap = (found[r, at + 1 : at + lengths[i]] - wanted[i]).abs()
                    worst, at = max(worst, _largest(gap) / scale), at + lengths[i]
    return worst


def head_error(model: Any, rows: Sequence[Row]) -> float:
    """How far the loss under `label_head` is from the stock one, relative, for padded rows; eval mode, random states left
    alone. Any exception of the model's forward passes through."""
    batch = _on(next(model.parameters()).device, Collator(0)(rows))
    with _quiet(model):
        stock = float(model(**batch, use_cache=False).loss)
        with label_head(model, always=True):
            output = model(**batch, use_cache=False)
    if output.logits.shape[1] != int(predicting(batch["labels"]).sum()):
        raise InputError(f"{type(model).__name__}: the head does not get the decoder's output")
    return _largest(torch.tensor([abs(float(output.loss) - stock) / max(abs(stock), 1e-30)]))


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)), evaluating(model):
        yield


def _on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _losses(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The loss of every token under the one before it [R, L] (0 where it is not counted), and the model's own loss."""
    output = model(**batch)
    labels = F.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]
    losses_RL = F.cross_entropy(output.logits.double().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return F.pad(losses_RL, (1, 0))[:, :-1], output.loss.double()


def _largest(gaps: Tensor) -> float:
    """The maximum; infinite where a value is not finite, 0 for none."""
    return 0.0 if not gaps.numel() else float(gaps.nan_to_num(nan=float("inf")).max())
