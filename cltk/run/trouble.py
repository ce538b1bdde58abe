"""What a machine cannot do, in one line with what to lower: out of memory, full disks, checkpoints that are no data."""

from __future__ import annotations

import gc
import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EIO
from pathlib import Path
from typing import Any

from cltk.errors import CltkError, RunError, out_of_memory
from cltk.files import CLOSED, FULL, disk_error
from cltk.run.plans import Cell

LONGEST = 400  # characters of an error that is not cltk's


class OutOfMemoryError(RunError):
    """The machine's memory, or the GPU's, is not enough; the message has the estimate and what to lower."""


@contextmanager
def explained(config: Any, folder: Path, model_config: Any = None, step: Callable[[], int] | None = None) -> Iterator[None]:
    """Turns what the machine cannot do inside into a RunError of one line; other errors pass.

    Args:
        config: the experiment (cltk.run.config.Experiment).
        folder: where files are written, named when a disk is full.
        model_config: transformers' config of the model in training; None outside of training.
        step: the training step under way.

    Raises:
        OutOfMemoryError, DiskError: see there.
        RunError: a checkpoint holds more than plain data.
    """
    try:
        yield
    except CltkError:
        raise
    except Exception as error:
        found = _explanation(error, config, folder, model_config, step() if step else None)
        if found is None:
            raise
        found.step = step() if step else None
        raise found from error


def _explanation(error: Exception, config: Any, folder: Path, model_config: Any, step: int | None) -> RunError | None:
    if out_of_memory(error):
        where = f" in training step {step}" if step is not None else ""
        reason = next(iter(str(error).strip().split("\n")), "")[:160] or type(error).__name__
        estimate = f"; {estimated(config, model_config)}" if model_config is not None else ""
        return OutOfMemoryError(f"out of memory{where} ({reason}){estimate}; {advice(config, model_config is not None)}")
    if isinstance(error, pickle.UnpicklingError):
        reason = str(error).strip().split("\n")[0][:160]
        return RunError(
            f"{folder}: a checkpoint holds more than plain data, and was not read ({reason}); it was not written by this"
            " run: move the folder away to train from the start"
        )
    if not isinstance(error, OSError) or error.errno in (*FULL, *CLOSED, EIO):
        return disk_error(error, Path(getattr(error, "filename", None) or folder))
    return None


def estimated(config: Any, model_config: Any) -> str:
    """What `cltk estimate` says of this training, in a clause."""
    import torch
    from transformers import AutoModelForCausalLM

    from cltk.run.estimate import estimate
    from cltk.run.estimates import setup_of
    from cltk.run.shape import shape_of

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config)
        narrow = bool(config.train.get("bf16") or config.train.get("fp16"))
        found = estimate(shape_of(model, config.mitigators), setup_of(config, narrow), config.mitigators)
    except Exception:  # an optimiser or an architecture that the formulas do not know: memory is the news, not this
        return "there is no estimate for this model and optimiser"
    parts = ("weights", "gradients", "optimizer", "mitigators", "activations")
    held = ", ".join(f"{part} {getattr(found, part) / 1e9:.2f}" for part in parts)
    return f"`cltk estimate` expects {found.training / 1e9:.2f} GB with rows of {config.data.max_length} tokens ({held})"


def advice(config: Any, training: bool) -> str:
    """What to lower, of what is not lowered yet."""
    if not training:
        return f"lower evals.batch_size (now {config.evals.batch_size}), or free memory, and run again"
    train, tips = config.train, []
    if (batch := int(train.get("per_device_train_batch_size", 8))) > 1:
        steps = train.get("gradient_accumulation_steps", 1)
        tips.append(
            f"lower train.per_device_train_batch_size (now {batch}) and raise train.gradient_accumulation_steps"
            f" (now {steps}) by the same factor"
        )
    if not any(train.get(f"{what}_checkpointing") for what in ("activation", "gradient")):
        tips.append("set train.activation_checkpointing: true")
    if not any(isinstance(entry, dict) and "lora" in entry for entry in config.mitigators):
        tips.append("train adapters (mitigators: [lora: {r: 16}])")
    return ", or ".join([*tips, f"lower data.max_length (now {config.data.max_length})"])


def failure_of(cell: Cell, error: Exception) -> dict[str, Any]:
    """What `failed.json` says: of an exception that is not cltk's its kind too, in one line."""
    text = " ".join(str(error).split())
    if not isinstance(error, CltkError):
        short = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        text = f"{type(error).__name__}: {short}"
    return {
        "cell": cell.name, "method": cell.method, "error": text.rstrip(": "), "kind": type(error).__name__,
        "step": getattr(error, "step", None), "traceback": traceback.format_exception(error),
    }  # fmt: skip


def let_go(error: BaseException) -> None:
    """Drop the frames of an exception and of those behind it: they hold a training, and the group that other ranks wait in."""
    behind: BaseException | None = error
    while behind is not None:
        behind.__traceback__ = None
        behind = behind.__cause__ or behind.__context__
    gc.collect()
