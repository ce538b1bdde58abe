"""Reading a model while it is trained: whatever is done to it inside, training goes on as if nothing had been."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cltk import tensors


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Everything that hangs on the modules but the numbers of the parameters is as before afterwards.

    Modes, buffers and their values (rotary factors that grow with the longest text seen), hooks, replaced forwards, plain
    attributes, the configurations. Inside, ties are left as they are: lm-eval ties what the configuration says, and weights
    that training holds apart would be one.
    """
    kept = [(module, dict(vars(module)), _inner(vars(module))) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    configs = [vars(one) for name in ("config", "generation_config") if hasattr(one := getattr(model, name, None), "__dict__")]
    settings = [(one, copy.deepcopy(one)) for one in configs]
    if hasattr(model, "tie_weights"):
        object.__setattr__(model, "tie_weights", lambda *_, **__: None)
    try:
        yield
    finally:
        for module, attributes, inner in kept:
            _restore(vars(module), attributes)
            for name, content in inner.items():
                _restore(attributes[name], content)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for there, was in settings:
            _restore(there, was)


def _inner(attributes: dict[str, Any]) -> dict[str, dict[Any, Any]]:
    return {name: dict(value) for name, value in attributes.items() if isinstance(value, dict)}


def _restore(there: dict[Any, Any], was: dict[Any, Any]) -> None:
    there.clear()
    there.update(was)


class WholeCopy:
    """A sharded model's whole self, on every rank, for as long as it is read.

    Ranks that read their own batches would wait for each other in the collectives of FSDP2. The copy is made before sharding,
    without weights (on the meta device); each reading gathers them, and lets them go.

    Args:
        model: before it is sharded.
    """

    def __init__(self, model: nn.Module) -> None:
        empty: dict[int, Any] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()
        }
        self.model = copy.deepcopy(model, empty)

    @contextmanager
    def filled(self, model: nn.Module) -> Iterator[nn.Module]:
        """The copy with the weights that `model` has now. Every rank must call it."""
        named = {tensors.clean(name): p for name, p in model.named_parameters(remove_duplicate=False)}
        values = {id(p): tensors.whole(p.detach()) for p in {id(p): p for p in named.values()}.values()}
        buffers = {tensors.clean(name): value for name, value in model.named_buffers(remove_duplicate=False)}
        empty = [
            (module, name, parameter)
            for module in self.model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        full: dict[int, nn.Parameter] = {}
        for path, module in self.model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    value = values[id(named[f"{path}.{name}".lstrip(".")])]
                    module._parameters[name] = full.setdefault(id(parameter), nn.Parameter(value, requires_grad=False))
            for name in module._buffers:
                if (there := buffers.get(f"{path}.{name}".lstrip("."))) is not None:
                    module._buffers[name] = there.clone()
        try:
            yield self.model
        finally:
            for module, name, parameter in empty:
                module._parameters[name] = parameter


@contextmanager
def readable(model: nn.Module, copy: WholeCopy | None) -> Iterator[nn.Module]:
    """The model itself, undisturbed by whatever reads it; of one in pieces its whole copy."""
    inner = getattr(model, "_orig_mod", model)
    if sharded(inner):
        assert copy is not None
        with copy.filled(inner) as whole:
            yield whole
    else:
        with undisturbed(inner):
            yield inner


def sharded(model: nn.Module) -> bool:
    """Whether a parameter is in pieces on several ranks."""
    return any(hasattr(p, "full_tensor") for p in model.parameters())


def fingerprint(model: nn.Module) -> list[float]:
    """The sum of every parameter on this rank: equal where no weight has moved."""
    return [float(_sum(tensors.local(p.detach()))) for p in model.parameters()]


def _sum(tensor: Tensor) -> Tensor:
    return tensor.sum(dtype=torch.float64)
