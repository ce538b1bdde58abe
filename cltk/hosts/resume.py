"""The methods' states beside a checkpoint, by name and settings: another list of methods does not take them for its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cltk import tensors
from cltk.errors import InputError
from cltk.mitigate.interface import Mitigator

STATE_FILE = "cltk.safetensors"


def settings(mitigator: Mitigator) -> dict[str, Any]:
    """What the method was made with, defaults included: numbers, switches and words; no data, and no places of files."""
    args, kwargs = mitigator.given
    try:
        bound = inspect.signature(type(mitigator).__init__).bind(mitigator, *args, **kwargs)
    except TypeError:  # a copy, or an object made in another way
        return {}
    bound.apply_defaults()
    return {name: value for name, value in _plain(bound.arguments).items() if name != "self"}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): plain for key, part in value.items() if (plain := _plain(part)) is not None}
    word = isinstance(value, str) and value.isidentifier()
    return value if word or isinstance(value, bool | int | float) else None


def keys(mitigators: Sequence[Mitigator]) -> list[str]:
    """A name for each: the class and its settings, with a count where two agree."""
    found: list[str] = []
    for mitigator in mitigators:
        told = ", ".join(f"{name}={value}" for name, value in settings(mitigator).items())
        key = f"{type(mitigator).__name__}({told})"
        same = sum(other == key or other.startswith(f"{key} #") for other in found)
        found.append(f"{key} #{same + 1}" if same else key)
    return found


def save(folder: Path, mitigators: Sequence[Mitigator], rest: dict[str, Any]) -> None:
    """Write the states, and `rest`, into the checkpoint's folder. All ranks call it with the states gathered; one writes."""
    states = dict(zip(keys(mitigators), (m.state_dict() for m in mitigators), strict=True))
    if rest.pop("writes") and folder.is_dir():
        tensors.save_tree(folder / STATE_FILE, {"states": states, **rest})


def check_weights(folder: Path, mitigators: Sequence[Mitigator], model: Any) -> None:
    """Raises InputError where the checkpoint's weights are adapters and the model has none, or the other way round.

    transformers fails late, or leaves the new adapters as they are and says what is missing in a log line.
    """
    there = any(folder.glob("**/adapter_config.json"))
    name = next((type(m).__name__ for m in mitigators if m.wraps), None)
    if name and not there and any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: holds a whole model and no adapters, and {name} trains adapters; start anew")
    if there and not hasattr(model, "peft_config"):
        raise InputError(f"{folder}: holds adapters, and the model has none; resume with the method that made them (LoRA)")


def load(folder: Path, mitigators: Sequence[Mitigator]) -> dict[str, Any]:
    """Give every method its state of the checkpoint; what else `save` wrote is returned.

    Raises:
        InputError: the file is missing though a method keeps a state, or it is of other methods or settings.
    """
    file = folder / STATE_FILE
    if not file.exists():
        if keeping := [type(m).__name__ for m in mitigators if m.state_dict()]:
            raise InputError(
                f"{folder}: has no {STATE_FILE}, so that {keeping[0]} would lose its state; resume from another checkpoint,"
                " or start anew"
            )
        return {}
    tree = tensors.load_tree(file)
    states = tree.pop("states", {})
    names = keys(mitigators)
    for here, there, what in ((names, states, "is not in the checkpoint"), (states, names, "is in the checkpoint only")):
        if odd := [name for name in here if name not in there]:
            raise InputError(
                f"{folder}: was written with other methods: {odd[0]} {what}; resume with the same methods and settings"
                f" ({'; '.join(states) or 'none'}), or start anew"
            )
    for name, mitigator in zip(names, mitigators, strict=True):
        if state := states[name]:
            mitigator.load_state_dict(state)
    return tree
