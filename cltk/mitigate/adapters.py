"""Adapters: LoRA, through peft."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from cltk import tensors
from cltk.errors import InputError
from cltk.mitigate.interface import Mitigator, Plan, Run
from cltk.mitigate.subspace import fused_experts


class LoRA(Mitigator):
    """Train a low-rank update of the linear layers, and add it to the weights at the end.

        W = W_0 + (alpha / r) B A          B [out, r] starts at 0, A [r, in] at random (drawn from the training's seed)

    Only A and B train. Checkpoints hold them alone; after training the model is a plain one again, with W in place of
    W_0. Put it first in the list: methods that keep copies of parameters must see the adapters.

    Args:
        r: rank; 0 changes nothing.
        alpha: the scale; 2 r when not given.
        targets: names of the linear layers ("q_proj"), or "all-linear": all but the head, experts that are fused in one
            tensor included.
        dropout: on the adapters' input.
        rate: factor on the learning rate of the adapters. They take about ten times the rate of full fine-tuning.

    Raises:
        InputError: a number out of its range, a target that the model does not have, peft not installed, or FSDP.

    Source: Hu et al. 2022 (arXiv 2106.09685); against forgetting: Biderman et al. 2024 (arXiv 2405.09673).
    """

    wraps = True

    def __init__(
        self, r: int = 16, alpha: float | None = None, targets: str | list[str] = "all-linear", dropout: float = 0.0,
        rate: float | None = None,
    ) -> None:  # fmt: skip
        if r < 0 or not 0 <= dropout < 1 or (alpha is not None and not alpha > 0) or (rate is not None and not rate > 0):
            raise InputError(
                "lora: r must be at least 0, dropout at least 0 and below 1, alpha and rate above 0;"
                f" got {r}, {dropout}, {alpha}, {rate}"
            )
        self.r, self.alpha, self.targets, self.dropout, self.rate = r, alpha, targets, dropout, rate
        self.wraps = r > 0
        self.trained: list[str] = []

    def setup(self, plan: Plan) -> None:
        if not self.r:
            return
        if self.rate is not None:
            rate = self.rate
            plan.scale_lr(lambda name: rate if ".lora_" in name else 1.0)
        self.trained = [name for name, _ in tensors.trainable(plan.model)]
        plan.model = self._wrap(plan.model, int(getattr(plan.args, "seed", 0) or 0))
        adapters = sum(parameter.numel() for _, parameter in tensors.trainable(plan.model))
        total = sum(parameter.numel() for parameter in plan.model.parameters())
        plan.notes["lora"] = {"r": self.r, "alpha": self._alpha, "trained": adapters, "share": adapters / total}

    @property
    def _alpha(self) -> float:
        return 2 * self.r if self.alpha is None else self.alpha

    def _wrap(self, model: Any, seed: int) -> Any:
        """The model with adapters; the random state is left alone, so that the order of data is that of other methods."""
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise InputError("lora: needs the package peft; pip install peft") from None
        experts = list(fused_experts(model)) if self.targets == "all-linear" else []
        if experts and self.dropout:
            raise InputError("lora.dropout: peft has none for experts fused in one tensor; set 0, or name the layers (targets)")
        config = LoraConfig(
            r=self.r, lora_alpha=self._alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=self.dropout, target_modules=self.targets, task_type="CAUSAL_LM",
            target_parameters=experts or None,
            fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
        )  # fmt: skip
        if hasattr(model, "peft_config"):
            raise InputError("lora: the model has adapters already; merge them first")
        devices = sorted({p.device for p in model.parameters() if p.is_cuda}, key=str)
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft's own use
            torch.manual_seed(seed)
            try:
                return get_peft_model(model, config)
            except ValueError as error:
                raise InputError(f"lora.targets: {self.targets!r} cannot be adapted ({str(error).splitlines()[0]})") from None

    def start(self, run: Run) -> None:
        if self.r and any(tensors.local(parameter) is not parameter for parameter in run.model.parameters()):
            raise InputError("lora: adapters are merged into whole weights, which FSDP shards; use DDP for this method")

    @torch.no_grad()
    def finish(self, run: Run) -> None:
        if not self.r:
            return
        model: Any = run.model
        merged = model.merge_and_unload()
        if hasattr(merged, "peft_config"):
            del merged.peft_config
        trained = set(self.trained)
        for name, parameter in merged.named_parameters():
            parameter.requires_grad_(tensors.clean(name) in trained)
        run.model = merged
