"""The methods' learning rates in the host's optimizer, whoever makes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from cltk import tensors
from cltk.mitigate.interface import Plan


def factors(plan: Plan) -> dict[str, float]:
    """What each trained parameter's rate is multiplied by, by its name: the product of all `scale_lr`."""
    return {name: math.prod(scale(name) for scale in plan.lr_scales) for name, _ in tensors.trainable(plan.model)}


def rescale(optimizer: torch.optim.Optimizer, scales: Mapping[int, float], default: float = 1.0) -> None:
    """Multiply rates in place, splitting the groups whose parameters differ.

    Args:
        scales: factors by the `id` of the parameter.
        default: of parameters that are not in it.
    """
    for group in list(optimizer.param_groups):
        split: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            split.setdefault(scales.get(id(parameter), default), []).append(parameter)
        rate = group["lr"]
        for i, (scale, parameters) in enumerate(split.items()):
            if i == 0:
                group["params"], group["lr"] = parameters, rate * scale
                group.pop("initial_lr", None)
            else:
                optimizer.add_param_group({**group, "params": parameters, "lr": rate * scale})


def scale_rates(trainer: Any, plan: Plan, rate: float) -> None:
    """The methods' rates in the optimizer that `trainer.create_optimizer` will make, also where a subclass overrides it or
    `optimizer_cls_and_kwargs` brings a rate of its own.

    Args:
        rate: the learning rate of the arguments before the methods changed it: the optimizer is made at it, then rescaled.
    """
    wanted, named = plan.args.learning_rate, factors(plan)
    make = trainer.create_optimizer

    def create_optimizer(*args: Any, **kwargs: Any) -> Any:
        if trainer.optimizer is not None:  # rescaled in an earlier train()
            return make(*args, **kwargs)
        trainer.args.learning_rate = rate
        try:
            made = make(*args, **kwargs)
        finally:
            trainer.args.learning_rate = wanted
        for group in made.param_groups:  # the very number where the optimizer took the arguments' rate
            group["lr"] = wanted if group["lr"] == rate else group["lr"] * (wanted / rate)
        scales = {id(p): named[tensors.clean(n)] for n, p in trainer.model.named_parameters() if tensors.clean(n) in named}
        rescale(made, scales)
        return made

    trainer.create_optimizer = create_optimizer


def schedule_rates(trainer: Any, factor: Callable[[int, int], float]) -> None:
    """The method's schedule in place of `lr_scheduler_type`."""

    def create_scheduler(num_training_steps: int, optimizer: Any = None) -> Any:
        chosen = trainer.optimizer if optimizer is None else optimizer
        rule = partial(lambda steps, step: factor(step, steps), num_training_steps)
        trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, rule)
        return trainer.lr_scheduler

    trainer.create_scheduler = create_scheduler
