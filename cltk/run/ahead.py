"""What Trainer would refuse only once it trains, asked of the same functions before weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cltk.data.readers import Row
from cltk.data.tables import lengths
from cltk.errors import InputError
from cltk.forward.positions import check_length
from cltk.measure.evaluate import Suite
from cltk.measure.windows import named_positions
from cltk.ranks import ranks
from cltk.run.arguments import training_arguments
from cltk.run.methods import nearest
from cltk.run.needs import split
from cltk.run.plans import Cell

WHOLE = ("online_ewc", "reservoir", "self_replay")  # methods that draw from all rows
CHOICE = ("logprob", "margin")  # of every multiple-choice task, beside its own
EVALUATED = ("eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")  # what Trainer's evaluation gives


def check_training(cell: Cell) -> None:
    """That this machine has what a training's arguments and methods ask for, and that they fit together.

    Raises:
        InputError: an optimizer, reporter, kernel or adapter that is not installed; settings of the optimizer or the
            schedule that they do not take; a metric for the best model that no evaluation gives.
    """
    check_streamed(cell)
    args = training_arguments(cell.config.train, cell.config.seed, Path("unused"))
    for name in args.report_to:
        _reporter(name)
    if args.use_liger_kernel and find_spec("liger_kernel") is None:
        raise InputError("train.use_liger_kernel: the package liger-kernel is not installed; install it, or remove the key")
    if args.batch_eval_metrics:
        raise InputError("train.batch_eval_metrics: evaluations during training compute no metrics; remove the key")
    metric = args.metric_for_best_model
    if metric and str(args.eval_strategy.value) != "no" and "eval_" + metric.removeprefix("eval_") not in EVALUATED:
        raise InputError(f"train.metric_for_best_model: no evaluation gives {metric!r}{nearest(metric, EVALUATED)}")
    _schedule(args, _optimizer(args))
    adapters = any(name == "lora" and arguments.get("r", 1) for name, arguments in map(split, cell.config.mitigators))
    if adapters and find_spec("peft") is None:
        raise InputError("lora: needs the package peft; pip install peft")


def check_streamed(cell: Cell) -> None:
    """That a training's methods and ranks can do with a stream. Raises InputError."""
    if not cell.data.streamed:
        return
    if ranks()[1] > 1:
        raise InputError(
            "data.train.streaming: runs in one process; take `streaming` away, tokens are mapped from the disk then"
        )
    for name, arguments in map(split, cell.config.mitigators):
        if name in WHOLE or arguments.get("strength") == "auto" or arguments.get("setting") == "flow":
            raise InputError(f"{name}: draws from all rows to train on, and data.train is a stream; take `streaming` away")


def check_lengths(config: Any, spec: Any, *sets: Sequence[Row]) -> None:
    """That the model has positions for the rows that it trains on; one of computed positions has for any.

    Raises:
        InputError: it names the longest row.
    """
    from cltk.run.shape import meta_model

    said = named_positions(config) if config is not None else []
    for rows in sets if said else ():
        if max(lengths(rows), default=0) > min(said):
            check_length(meta_model(spec), rows, "data.max_length", "lower data.max_length")


def _reporter(name: str) -> None:
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for callback in get_reporting_integration_callbacks([name]):
            callback()
    except Exception as error:
        raise InputError(f"train.report_to: {name} cannot be used here ({_reason(error)}); install it, or remove it") from None


def _optimizer(args: Any) -> Any:
    """The optimizer on a parameter of its own; SGD in its place where it can only be made of the whole model."""
    import torch
    from transformers import Trainer

    parameters = [torch.nn.Parameter(torch.zeros(2, 2))]
    try:
        cls, settings = Trainer.get_optimizer_cls_and_kwargs(args, None)
        if (
            isinstance(cls, type)
            and issubclass(cls, torch.optim.Optimizer)
            and not {"params", "optimizer_dict"} & set(settings)
        ):
            return cls(parameters, **settings)
    except Exception as error:
        if isinstance(error, ImportError) or "model" not in str(error):  # some are made of the model's own layers
            raise InputError(f"train.optim: {args.optim.value} cannot be used here ({_reason(error)})") from None
    return torch.optim.SGD(parameters, lr=0.1)


def _schedule(args: Any, optimizer: Any) -> None:
    from transformers import get_scheduler

    steps = args.max_steps if args.max_steps > 0 else 100
    try:
        get_scheduler(
            args.lr_scheduler_type, optimizer=optimizer, num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps, scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )  # fmt: skip
    except Exception as error:
        raise InputError(
            f"train.lr_scheduler_type: {args.lr_scheduler_type.value} cannot be made with lr_scheduler_kwargs"
            f" {args.lr_scheduler_kwargs or {}} ({_reason(error)})"
        ) from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_roles(retain: Sequence[str], learn: Sequence[str]) -> None:
    """Raises InputError for a row that is of the old tasks and of the new one at once."""
    if twice := next((row for row in learn if row in retain), None):
        raise InputError(f"evals.learn: {twice!r} is in evals.retain too; a measure is of what is learned or of what is kept")


def check_margins(margins: Mapping[str, float], suite: Suite) -> None:
    """That every margin is of a metric that something measured has, and above 0.

    Raises:
        InputError: it names the nearest.
    """
    metrics = {metric for found in metrics_of(suite).values() for metric in found}
    for metric, margin in margins.items():
        if not margin > 0:
            raise InputError(f"evals.margins.{metric}: must be above 0, got {margin}")
        if metric.split(",")[0] not in metrics:
            raise InputError(f"evals.margins.{metric}: nothing that is measured has this metric{nearest(metric, metrics)}")


def metrics_of(suite: Suite) -> dict[str, list[str]]:
    """Row -> its metrics, by their names without a filter; of all that is measured."""
    tasks = (suite.load() or {"tasks": {}})["tasks"]
    found = {
        name: [*task.aggregation(), *(CHOICE if task.OUTPUT_TYPE == "multiple_choice" else ())] for name, task in tasks.items()
    }
    for group in suite.groups():
        found[group.name] = list(dict.fromkeys(metric for name in group.members for metric in found[name]))
    return found | {text.name: ["nll", "bits_per_byte"] for text in suite.texts}
