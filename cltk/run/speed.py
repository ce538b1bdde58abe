"""What makes training fast without changing what is trained; each choice is proven on the machine and the model at start-up.

    packing     rows end to end instead of padding, where the losses are equal     (cltk.forward.packing.PackedCollator)
    grouping    batches of like lengths, where packing is not exact                (TrainingArguments' own)
    attention   of packed rows one sequence after the other, on processors         (cltk.forward.attention)
    label_head  the output head only where a label is, where the loss is equal     (cltk.forward.packing.label_head)
    autocast    bfloat16 where the processor has units for it                      (TrainingArguments' bf16)
    fused       AdamW in one kernel                                                (TrainingArguments' optim)
    onednn      float32 products through oneDNN, where they are float32 and faster
    allocator   glibc keeps freed memory; in `cltk run` only

`speed:` in the YAML sets each to auto (on where exact and faster), true (on, or an error where it is not exact) or false.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from cltk.data.rows import Collator, pad_id
from cltk.errors import InputError
from cltk.forward.attention import attention_by_sequence
from cltk.forward.packing import PackedCollator, label_head
from cltk.forward.products import available
from cltk.run import machine
from cltk.run.proven import TOLERANCE, Choice, attention_choice, head_choice, packing_choice, sample_rows

if TYPE_CHECKING:
    from cltk.run.agreed_speed import Measured

WIDEST = {"cpu": 512, "cuda": 4096}  # tokens of a packed row
WIDEST_BY_SEQUENCE = 4096  # where only its mask grows with the row's square


@dataclass(frozen=True)
class Speed:
    """All choices of one training; `arguments` go under the user's own TrainingArguments."""

    choices: tuple[Choice, ...]
    arguments: dict[str, Any]

    def on(self, what: str) -> bool:
        return any(choice.on for choice in self.choices if choice.what == what)

    def notes(self) -> list[dict[str, Any]]:
        """For the record."""
        return [asdict(choice) for choice in self.choices]

    def collator(self, model: Any, tokenizer: Any) -> PackedCollator | Collator:
        """What makes the training batches."""
        if not self.on("packing"):
            return Collator(pad_id(tokenizer))
        device = next(model.parameters()).device.type
        if self.on("attention"):
            return PackedCollator(pad_id(tokenizer), WIDEST_BY_SEQUENCE, None)
        width = getattr(model.config.get_text_config(), "hidden_size", None) or 512
        return PackedCollator(pad_id(tokenizer), WIDEST.get(device, WIDEST["cuda"]), width)

    @contextmanager
    def running(self, model: Any) -> Iterator[None]:
        """Around training: the head's hooks and the process-wide settings, both taken back at the end."""
        with (
            machine.products(self.on("onednn")),
            label_head(model) if self.on("label_head") else nullcontext(),
            attention_by_sequence() if self.on("attention") else nullcontext(),
        ):
            yield


def choose(model: Any, tokenizer: Any, config: Any, found: Measured | None = None) -> Speed:
    """Decide everything for this model, machine and experiment (`config`: cltk.run.config.Experiment).

    What `found` says was measured is not measured again. The model's weights, mode and all random states are left as they are.

    Raises:
        InputError: something is set to true that is not exact here; the message says why.
    """
    wanted, train = config.speed, config.train
    rows = sample_rows(tokenizer, model.config.get_text_config().vocab_size)
    device = next(model.parameters()).device.type
    packing = packing_choice(wanted.packing, model, rows)
    choices = [
        packing,
        attention_choice(wanted.attention, packing, model, rows, train),
        _grouping(wanted.grouping, packing, wanted.packing, train),
        head_choice(wanted.label_head, model, rows, train),
        _autocast(wanted.autocast, next(model.parameters()).dtype, device, train, found),
        _fused(wanted.fused, device, train),
        _onednn(wanted.onednn, device, found),
        _allocator,
    ]
    speed = Speed(tuple(choices), {})
    if speed.on("grouping"):
        speed.arguments["train_sampling_strategy"] = "group_by_length"
    if speed.on("autocast"):
        speed.arguments["bf16"] = True
    if "optim" not in train:
        speed.arguments["optim"] = "adamw_torch_fused" if speed.on("fused") else "adamw_torch"
    return speed


GUEST = Choice("allocator", False, "only in `cltk run`: it is the process's, not the library's")
_allocator = GUEST
_said: set[str] = set()


def say(speed: Speed) -> None:
    """Print every choice once a process, on the standard error."""
    for line in map(str, speed.choices):
        if line not in _said:
            _said.add(line)
            print(f"speed: {line}", file=sys.stderr)


def _grouping(wanted: Any, packing: Choice, packing_wanted: Any, train: dict[str, Any]) -> Choice:
    if wanted is False:
        return Choice("grouping", False, "speed.grouping: false")
    if "train_sampling_strategy" in train:
        return Choice("grouping", False, "train.train_sampling_strategy says how rows are drawn")
    if wanted is True:
        return Choice("grouping", True, "speed.grouping: true")
    if packing.on:
        return Choice("grouping", False, "packing leaves nothing to pad")
    if packing_wanted is False:
        return Choice("grouping", False, "the plain order, as packing was switched off")
    return Choice("grouping", True, "instead of packing; another random order of the same rows")


def _autocast(wanted: Any, dtype: torch.dtype, device: str, train: dict[str, Any], found: Measured | None) -> Choice:
    given = next((key for key in ("bf16", "fp16") if key in train), None)
    if given:
        return Choice("autocast", False, f"train.{given}: {str(train[given]).lower()} decides")
    if wanted is not True and wanted != "auto":
        return Choice("autocast", False, "speed.autocast: false")
    if wanted is True:
        return Choice("autocast", True, "speed.autocast: true")
    if dtype != torch.float32:
        return Choice("autocast", False, f"the weights are {str(dtype).removeprefix('torch.')}")
    faster, where = (found.bfloat16, found.where) if found else (machine.faster_in_bfloat16(device), "on this machine")
    return Choice("autocast", faster, f"bfloat16 products are {'' if faster else 'not '}faster {where}")


def _fused(wanted: Any, device: str, train: dict[str, Any]) -> Choice:
    if "optim" in train:
        return Choice("fused", "fused" in str(train["optim"]), f"train.optim: {train['optim']}")
    if wanted is False:
        return Choice("fused", False, "speed.fused: false")
    if not machine.runs_fused(device):
        if wanted is True:
            raise InputError(f"speed.fused: true, but torch has no such kernel on {device}; use auto or false")
        return Choice("fused", False, f"torch has no such kernel on {device}")
    return Choice("fused", True, "one kernel for the whole AdamW step")


def _onednn(wanted: Any, device: str, found: Measured | None = None) -> Choice:
    if wanted is False:
        return Choice("onednn", False, "speed.onednn: false")
    if device != "cpu" or not available():
        reason = f"training is on {device}" if device != "cpu" else "this build of torch has no such setting"
    elif (error := machine.onednn_error()) > TOLERANCE:
        reason = f"a product differs from float64 by {error:.0e}"
        reason += f", and the folder's other cells have it on ({found.where})" if found and found.onednn else ""
    elif found and wanted == "auto":
        return Choice("onednn", found.onednn, f"a product is {'' if found.onednn else 'not '}float32 and faster {found.where}")
    else:
        ratio = machine.onednn_gain()
        if wanted is True or ratio >= machine.GAIN:
            return Choice("onednn", True, f"a product equals float64's to {error:.0e}, and takes 1/{ratio:.2f} of the time")
        return Choice("onednn", False, f"a product takes 1/{ratio:.2f} of the time: not faster")
    if wanted is True:
        raise InputError(f"speed.onednn: true, but {reason}; use auto or false")
    return Choice("onednn", False, reason)


def possible(found: dict[str, bool]) -> dict[str, bool]:
    """Of an earlier training's choices those that were measured, and that this machine can repeat."""
    kept = {what: on for what, on in found.items() if what in machine.MEASURED}
    try:
        _onednn(kept.get("onednn", False), "cuda" if torch.cuda.is_available() else "cpu")
    except InputError:
        del kept["onednn"]
    return kept


def tune_allocator(wanted: Any = "auto") -> Choice:
    """Called by the command line, once, before models are loaded; a library leaves its host's allocator alone.

    Raises:
        InputError: it is set to true where the process does not run on glibc.
    """
    global _allocator
    if wanted is False:
        _allocator = Choice("allocator", False, "speed.allocator: false")
    elif machine.keep_memory():
        _allocator = Choice("allocator", True, "glibc keeps freed memory")
    elif wanted is True:
        raise InputError("speed.allocator: true, but this process does not run on glibc; use auto or false")
    else:
        _allocator = Choice("allocator", False, "this process does not run on glibc")
    return _allocator
