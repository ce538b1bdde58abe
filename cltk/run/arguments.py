"""The YAML's `train`: every field of transformers.TrainingArguments, by its name and type."""

from __future__ import annotations

import os
import typing
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from cltk.errors import InputError
from cltk.run.methods import nearest

KEPT_CHECKPOINTS = 2  # the newest is read; the one before it where the newest was damaged


@cache
def train_model() -> type[BaseModel]:
    """A pydantic model with every field of transformers.TrainingArguments, under its own name and type."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments) | {"fsdp": bool | str}  # documented as `fsdp=True`, and annotated as str
    definitions: dict[str, Any] = {
        field.name: (_plain_type(hints[field.name]), Field(None, description=field.metadata.get("help")))
        for field in fields(TrainingArguments)
        if field.init
    }
    return create_model("TrainingArguments", __config__=ConfigDict(extra="forbid", protected_namespaces=()), **definitions)


def _plain_type(hint: Any) -> Any:
    """The part of a type that YAML can hold."""
    plain = [t for t in flatten(hint) if t in (str, int, float, bool)]
    if any(
        origin in (dict, list) for origin in [typing.get_origin(hint), *map(typing.get_origin, typing.get_args(hint))]
    ) or any(t in (dict, list) for t in flatten(hint)):
        return Any
    if not plain:
        return str | bool | int | float | None  # an enum, given by its value
    union: Any = None
    for t in (bool, int, float, str):
        if t in plain:
            union = t if union is None else union | t
    return union | None


def check_train(train: dict[str, Any], where: Any) -> dict[str, Any]:
    """Names and types of the training arguments, then what TrainingArguments itself has to say."""
    cls = train_model()
    unknown = [key for key in train if key not in cls.model_fields]
    if unknown:
        key = unknown[0]
        raise InputError(f"{where((key,))}: train.{key}: unknown training argument{nearest(str(key), cls.model_fields)}")
    try:
        checked = cls.model_validate(train).model_dump(exclude_unset=True)
    except ValidationError as error:
        problem = error.errors()[0]
        field = problem["loc"][0]
        got = repr(problem["input"])[:60]
        raise InputError(
            f"{where((field,))}: train.{field}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {got}"
        ) from None
    training_arguments(checked, 0, Path("unused"), where)
    return checked


def training_arguments(train: dict[str, Any], seed: int, output: Path, where: Any = None) -> Any:
    """transformers.TrainingArguments from the YAML's `train`. Ours by default: no reports, a log line every 10 steps."""
    import torch
    from transformers import TrainingArguments

    if train.get("fp16") and not torch.cuda.is_available():  # accelerate casts to float16 on GPUs only, and says nothing
        place = where(("fp16",)) + ": " if where else ""
        raise InputError(f"{place}train.fp16: there is no GPU, so it would have no effect; remove it, or use bf16")
    defaults = {
        "report_to": "none", "logging_steps": 10, "disable_tqdm": True, "seed": seed, "remove_unused_columns": False,
        "save_total_limit": KEPT_CHECKPOINTS,
        "dataloader_pin_memory": torch.cuda.is_available(), "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip
    try:
        return TrainingArguments(**{**defaults, **train, "output_dir": str(output)})
    except Exception as error:
        reason = next((line.strip() for line in str(error).split("\n") if line.strip()), type(error).__name__)
        raise InputError(f"{where(()) + ': ' if where else ''}train: {reason}") from None


def check_sharding(train: dict[str, Any], where: str) -> None:
    """Ask of accelerate whether it will shard; call it when the ranks have joined, on every one.

    Raises:
        InputError: FSDP is asked for, in `train` or by the launcher, and one process or ranks without accelerators would
            train something else: accelerate then makes whole replicas (DDP) and does not say so.
    """
    from accelerate.state import DistributedType, PartialState

    from cltk.ranks import ranks

    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    asked = "train.fsdp" if train.get("fsdp") else "FSDP in the launcher's configuration"
    if train.get("fsdp") and ranks()[1] == 1:
        raise InputError(
            f"{where}: {asked}: there is one process, nothing to shard over; start one a GPU (torchrun --nproc-per-node N"
            " -m cltk run ...), or remove it"
        )
    if (train.get("fsdp") or launched) and ranks()[1] > 1 and PartialState().distributed_type == DistributedType.MULTI_CPU:
        raise InputError(f"{where}: {asked}: there is no GPU, and without one every rank would hold the whole model; remove it")


def flatten(annotation: Any) -> list[Any]:
    """The types inside a type."""
    arguments = typing.get_args(annotation)
    return [annotation] if not arguments else [x for a in arguments for x in flatten(a)]
