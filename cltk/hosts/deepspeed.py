"""What can be done under DeepSpeed, which steps inside backward: no gradient and no update can be edited from outside.

- A quadratic penalty comes with each parameter's own gradient: a hook adds it to every micro-batch's, as backward of the
  penalty in the loss would. DeepSpeed then reduces, clips and steps with it.
- Final weights are edited whole: ZeRO-3 keeps pieces, which are gathered and put back.

Anchors and importance are whole tensors on every rank. In bf16 the penalty sees the rounded weights, not the
float32 masters, and anchors rounded as they are: at the start it is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

from torch import Tensor, nn

from cltk.errors import InputError, RunError
from cltk.mitigate.anchored import Anchored
from cltk.mitigate.blockwise import pull_
from cltk.mitigate.interface import Mitigator
from cltk.mitigate.quadratic import EWC, L2SP

_PULLS = (EWC.grad, L2SP.grad)  # all that these do to the gradients is to add the penalty's


def active(trainer: Any) -> bool:
    """Whether DeepSpeed runs this trainer."""
    return bool(getattr(trainer, "is_deepspeed_enabled", False))


def hooked(mitigator: Mitigator) -> bool:
    """Whether the method's whole work on gradients is a quadratic penalty, which a hook can add."""
    return type(mitigator).grad in _PULLS and getattr(mitigator, "form", "") == "gradient"


def check(mitigator: Mitigator) -> None:
    """Raises InputError: the method edits gradients or updates, and says what to use instead."""
    edits = [hook for hook in ("grad", "step") if getattr(type(mitigator), hook) is not getattr(Mitigator, hook)]
    if edits and not hooked(mitigator):
        form = "form='gradient', or " if type(mitigator).grad in _PULLS else ""
        raise InputError(
            f"{type(mitigator).__name__}: DeepSpeed steps inside backward, so gradients and updates cannot be edited;"
            f" use {form}DDP or FSDP2 (accelerate's fsdp_version: 2) for this method"
        )


def pull(mitigator: Anchored, scale: Callable[[], float]) -> list[Any]:
    """Hooks that add strength F (theta - theta*) to every micro-batch's gradient; call it after `mitigator.start`.

    Args:
        mitigator: one that is `hooked`.
        scale: what a micro-batch's loss is multiplied by in backward: 1 / accumulation, times the loss scale of fp16.

    Returns:
        The handles; `remove()` ends it.
    """
    if not mitigator.strength:
        return []
    return [parameter.register_hook(partial(_pulled, mitigator, scale, i)) for i, parameter in enumerate(mitigator.columns[0])]


def _pulled(mitigator: Anchored, scale: Callable[[], float], i: int, grad: Tensor) -> Tensor:
    params, anchors, weights = mitigator.columns
    if params[i].shape != anchors[i].shape:
        raise RunError(f"{mitigator.name}: {mitigator.names[i]} was in pieces when its gradient came; use ZeRO stage 1 or 2")
    total = grad.clone()
    weight = None if weights is None else weights[i : i + 1]
    pull_([total], params[i : i + 1], anchors[i : i + 1], mitigator.strength * scale(), weight)
    return total


def loss_scale(trainer: Any) -> float:
    """What DeepSpeed multiplies the loss by in fp16; 1 elsewhere."""
    return float(getattr(getattr(trainer.model_wrapped, "optimizer", None), "cur_scale", None) or 1.0)


def end(trainer: Any) -> None:
    """Release the engine: nothing else does, and its hooks keep weights, optimizer states and process groups alive for ever."""
    if active(trainer):
        with suppress(Exception):  # of a device that failed; the first failure is the one that is told
            trainer.accelerator.free_memory()


def whole(model: nn.Module, edit: bool = False) -> AbstractContextManager[Any]:
    """Inside, the parameters are whole where ZeRO-3 keeps pieces; with `edit`, rank 0's are kept. Nothing elsewhere."""
    pieces = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    if not pieces:
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters(pieces, modifier_rank=0 if edit else None)
