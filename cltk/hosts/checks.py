"""What a host cannot run, said at attach in one line: silence would mean a method that does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cltk.errors import InputError
from cltk.hosts import deepspeed
from cltk.hosts.order import overrides
from cltk.mitigate import MITIGATORS
from cltk.mitigate.catalog import card
from cltk.mitigate.interface import Mitigator

STEPS_IN_BACKWARD = ("lomo", "adalomo", "layerwise")  # TrainingArguments.optim: how it ends


def check_host(trainer: Any, mitigators: Sequence[Mitigator]) -> None:
    """Raises InputError: this trainer, or how it is set up, cannot run one of the methods."""
    if getattr(trainer, "model_init", None) is not None:
        raise InputError(
            "attach: model_init makes a new model when training begins, which the methods would not see; give Trainer the"
            " model itself (model=...)"
        )
    if getattr(trainer.args, "n_gpu", 1) > 1:
        raise InputError(
            f"attach: DataParallel on {trainer.args.n_gpu} GPUs runs copies of the model in threads, which the methods do not"
            " follow; start with torchrun (DDP), or show one GPU (CUDA_VISIBLE_DEVICES=0)"
        )
    for mitigator in mitigators:
        name = type(mitigator).__name__
        if deepspeed.active(trainer):
            deepspeed.check(mitigator)
            if overrides(mitigator, "look"):
                raise InputError(
                    f"{name}: reads the model between two steps, which DeepSpeed may hold in pieces; use DDP or FSDP2"
                )
        _check_compiled(trainer, mitigator, name)
        _check_sharded(trainer, mitigator, name)
        _check_kind(trainer, mitigator, name)
        _check_optim(trainer, mitigator, name)
        if mitigator.wraps:
            check_no_optimizer(trainer, name, "adds parameters that it does not hold")
        if mitigator.replaces == "average" and trainer.args.load_best_model_at_end:
            raise InputError(
                f"{name}: load_best_model_at_end loads one checkpoint, which the average of all steps would then replace;"
                " switch one of the two off"
            )


def _check_compiled(trainer: Any, mitigator: Mitigator, name: str) -> None:
    if trainer.args.torch_compile and overrides(mitigator, "loss"):
        raise InputError(
            f"{name}: its loss is tied to the hidden states by hooks, which a compiled model does"
            " not call; train without torch_compile, or in a loop of your own with cltk.session"
        )


def _check_sharded(trainer: Any, mitigator: Mitigator, name: str) -> None:
    if not getattr(trainer, "is_fsdp_enabled", False):
        return
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if getattr(plugin, "fsdp_version", 1) != 2 and any(
        overrides(mitigator, h) for h in ("loss", "grad", "step", "look", "finish")
    ):
        raise InputError(f"{name}: FSDP version 1 flattens the parameters; set fsdp_version: 2 in fsdp_config, or use DDP")


HOSTS = {  # trainers of TRL in which not every method runs, and why
    "DPOTrainer": "whose loss is one of pairs and no sum over tokens, and whose rows are pairs",
    "KTOTrainer": "whose loss is one of judged answers and no sum over tokens, and whose rows are judged answers",
    "GRPOTrainer": "whose rows are prompts, and whose loss is one of answers that it samples itself, by their rewards",
    "RewardTrainer": "whose model judges texts and writes none, so that nothing of what is measured here can be forgotten",
    "DistillationTrainer": "whose loss is a distance from a teacher, on answers that it may sample itself",
}
HOSTS["RLOOTrainer"] = HOSTS["GRPOTrainer"]
LIKE = {"RLOOTrainer": "GRPOTrainer"}  # what runs in the one runs in the other: both sample answers and sum no loss over tokens


def _check_kind(trainer: Any, mitigator: Mitigator, name: str) -> None:
    key = next((key for key, cls in MITIGATORS.items() if cls is type(mitigator)), None)
    host = next((cls.__name__ for cls in type(trainer).__mro__ if cls.__name__ in HOSTS), None)
    if key is None or host is None:
        if LIKE.get(host or "", host) == "GRPOTrainer" and (overrides(mitigator, "loss") or mitigator.repeats):
            raise InputError(f"{name}: not in a {host}, {HOSTS[str(host)]}; give it `grad` or `step` in place of `loss`")
        return
    if LIKE.get(host, host) not in card(key).engines:
        raise InputError(
            f"{name}: not in a {host}, {HOSTS[host]}; use it in Trainer or SFTTrainer (`cltk methods {key}` lists where it"
            " runs)"
        )


def _check_optim(trainer: Any, mitigator: Mitigator, name: str) -> None:
    optim = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if optim.endswith(STEPS_IN_BACKWARD) and (overrides(mitigator, "grad") or overrides(mitigator, "step")):
        raise InputError(
            f"{name}: optim={optim} steps inside backward, so gradients and updates cannot be edited; use adamw_torch, or"
            " the variant that is not layerwise"
        )


def check_no_optimizer(trainer: Any, name: str, why: str) -> None:
    """Raises InputError: the trainer has its optimizer already, so that the method `name` would do nothing."""
    if trainer.optimizer is not None:
        raise InputError(
            f"{name}: {why}, and this trainer has its optimizer already (optimizers=..., or an earlier train());"
            " give the optimizer as optimizer_cls_and_kwargs=(cls, {'lr': ...}) or TrainingArguments.optim"
        )


def check_rates(trainer: Any, name: str) -> None:
    """Raises InputError: the method changes learning rates that this trainer's optimizer would not take."""
    check_no_optimizer(trainer, name, "changes learning rates")
    optim = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if optim.endswith("layerwise"):
        raise InputError(f"{name}: optim={optim} keeps one optimizer a layer, whose rates cannot be changed; use adamw_torch")
    if deepspeed.active(trainer):
        config = trainer.accelerator.state.deepspeed_plugin.hf_ds_config
        if config.get_value("optimizer") is not None:
            raise InputError(
                f"{name}: the optimizer in the DeepSpeed configuration has one rate for all; take it out of there, so that"
                " TrainingArguments.optim makes it"
            )


def check_schedule(trainer: Any, name: str) -> None:
    """Raises InputError: the method sets the schedule of the rates, and so does the caller's scheduler."""
    if trainer.lr_scheduler is not None and not getattr(trainer, "_created_lr_scheduler", False):
        raise InputError(f"{name}: sets the schedule of the learning rate, and optimizers=(..., scheduler) brings another")
