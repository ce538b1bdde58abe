"""What every quadratic penalty shares: its anchor, its weights, and when it is due."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from cltk import tensors
from cltk.errors import InputError, RunError
from cltk.mitigate.blockwise import pull_, value
from cltk.mitigate.interface import Mitigator, Plan, Run


class Anchored(Mitigator):
    """Keeps the start weights, and sets them beside the parameters once these are placed."""

    name = ""

    def __init__(self, strength: float, offload: bool, log_every: int) -> None:
        self.strength, self.offload, self.log_every = strength, offload, log_every
        self.anchors: dict[str, Tensor] = {}
        self.importance: Mapping[str, Tensor] | None = None
        self.names: list[str] = []  # of the columns' rows
        self.columns: tuple[list[Tensor], list[Tensor], list[Tensor] | None] = ([], [], None)

    def setup(self, plan: Plan) -> None:
        """The start model is here and nowhere else: a resumed run begins training with other weights."""
        if self.strength:
            self.anchors = {name: self._parked(tensor) for name, tensor in tensors.snapshot(plan.model).items()}

    def start(self, run: Run) -> None:
        """Columns (parameters, anchors, importance) in one order, each on its parameter's device and shard.

        Under FSDP the whole anchors and importance then wait on the CPU, for another training with the same object.
        """
        named = dict(tensors.trainable(run.model)) if self.strength or self.anchors else {}
        for name in named:
            if name not in self.anchors:
                raise RunError(f"{self.name}: {name} is trained but was frozen or absent at setup; unfreeze before attach")
        self.names = list(named)
        # weights that the engine rounded since (DeepSpeed's bf16) are at theta* when they are theta*'s rounding
        anchors = [
            self._placed(p, self.anchors[name].to(p.dtype) if p.itemsize < self.anchors[name].itemsize else self.anchors[name])
            for name, p in named.items()
        ]
        self.columns = (list(named.values()), anchors, None)
        if self.importance is not None:
            self._weigh(self.importance)
        if any(tensors.local(parameter) is not parameter for parameter in named.values()):
            self.anchors = {name: anchor.cpu() for name, anchor in self.anchors.items()}
            if self.importance is not None:
                self.importance = {name: weight.cpu() for name, weight in self.importance.items()}

    def _weigh(self, importance: Mapping[str, Tensor]) -> None:
        """Take this importance, at the start or from a checkpoint."""
        self.importance, (params, anchors, _) = importance, self.columns
        placed = [self._placed(p, importance[name]) for p, name in zip(params, self.names, strict=True)]
        self.columns = (params, anchors, placed)

    def _parked(self, tensor: Tensor) -> Tensor:
        return tensor.cpu() if self.offload else tensor

    def _placed(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        if not self.offload or tensors.local(parameter) is not parameter:
            tensor = tensors.local(tensors.like(parameter, tensor))
        tensor = self._parked(tensor)
        return tensor.pin_memory() if self.offload and parameter.is_cuda else tensor

    def _pull(self, run: Run) -> None:
        """Add the penalty's gradient to the gradients. When due, log the penalty and its share of the gradient."""
        chosen = [i for i, parameter in enumerate(self.columns[0]) if parameter.grad is not None]
        if not chosen:
            return
        params, anchors, weights = ([column[i] for i in chosen] if column else None for column in self.columns)
        assert params is not None
        assert anchors is not None
        grads = [parameter.grad for parameter in params if parameter.grad is not None]
        norms = torch.zeros(3, dtype=torch.float64, device=tensors.local(params[0]).device) if self._due(run) else None
        pull_(grads, params, anchors, self.strength, weights, norms=norms)
        if norms is not None:
            energy, pulled, task = _over_shards(norms, params)
            run.log(f"{self.name}_penalty", self.strength / 2 * energy)
            if task:
                run.log(f"{self.name}_ratio", self.strength * math.sqrt(pulled / task))

    def _log_penalty(self, run: Run) -> None:
        if self._due(run):
            params, anchors, weights = self.columns
            here = torch.tensor([value(params, anchors, self.strength, weights)], dtype=torch.float64)
            run.log(f"{self.name}_penalty", _over_shards(here.to(tensors.local(params[0]).device), params)[0])

    def _due(self, run: Run) -> bool:
        """At steps 1, 1 + log_every, ...: at step 0 nothing has moved."""
        return bool(self.log_every) and run.step % self.log_every == 1 % self.log_every and bool(self.columns[0])


def _over_shards(sums: Tensor, params: list[Tensor]) -> list[float]:
    """This rank's sums -> those of the whole model, however often each shard is replicated."""
    held = [tensors.local(parameter) for parameter in params]
    if all(part is parameter for part, parameter in zip(held, params, strict=True)):
        return sums.tolist()
    both = torch.cat([sums, sums.new_tensor([sum(part.numel() for part in held)])])
    dist.all_reduce(both)
    copies = float(both[-1]) / sum(parameter.numel() for parameter in params)
    return (both[:-1] / copies).tolist()


def rates(run: Run, params: list[Tensor]) -> list[float]:
    """The learning rate of each parameter's group, as it was in the step just taken."""
    if run.optimizer is None:
        raise RunError("this form steps with the optimizer's learning rate; set run.optimizer, or use form='gradient'")
    rates = {id(p): float(group["lr"]) for group in run.optimizer.param_groups for p in group["params"]}
    return [rates.get(id(p), 0.0) for p in params]


def check_penalty(name: str, strength: float, form: str, forms: tuple[str, ...]) -> None:
    """Raises InputError unless strength is a finite number >= 0 and form one of `forms`."""
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength < math.inf:
        raise InputError(f"{name}: strength is {strength!r}; give a finite number >= 0")
    if form not in forms:
        raise InputError(f"{name}: form is {form!r}; give one of {', '.join(forms)}")
