"""Where EWC's importance comes from: an object, a file, or arguments to compute one (once, with a cache folder)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cltk import tensors
from cltk.errors import InputError
from cltk.files import leased
from cltk.forward.causal import check_causal
from cltk.importance.arguments import check_arguments
from cltk.importance.fisher import Importance, fisher
from cltk.importance.sequences import data_digest
from cltk.mitigate.interface import Plan
from cltk.mitigate.memory import old_rows
from cltk.models import config_digest
from cltk.ranks import agreed, ranks

DEFAULTS = {
    "kind": "mc", "samples": 500, "batch_size": 8, "normalize": "mean", "seed": 0, "floor": 0.0, "rtol": None,
    "autocast": False,
}  # fmt: skip
CONTROLS = ("shuffled", "uniform")  # what a paper compares a Fisher with
OWN = ("memory", "block", "control")  # of this room, not of fisher()
ARGUMENTS = (*OWN, *DEFAULTS, "clip")
Source = Importance | Mapping[str, Any] | str | Path | None


def check_source(source: Any, needed: bool = True) -> None:
    """Early, before any model is loaded: that `source` can become an importance.

    Raises:
        InputError: it is absent though `needed`, or a mapping with unknown or wrong arguments or without a memory.
    """
    if source is None and needed:
        raise InputError(
            "ewc: no importance; give an Importance, a path to a saved one, or {'memory': old data, 'samples': 500}"
        )
    if source is None or isinstance(source, Importance | str | Path) or _given(source):
        return
    if not isinstance(source, Mapping):
        raise InputError(f"ewc: importance is a {type(source).__name__}; give an Importance, a path or its arguments")
    for key in source:
        if key not in ARGUMENTS:
            raise InputError(f"ewc: importance has no argument {key!r}; there are {', '.join(ARGUMENTS)}")
    if "memory" not in source:
        raise InputError("ewc: importance has no memory; give {'memory': a path, texts or rows of the old data}")
    if source.get("control") not in (None, *CONTROLS):
        raise InputError(f"ewc: importance.control is {source['control']!r}; give one of {', '.join(CONTROLS)}")
    check_arguments(**{**DEFAULTS, **{key: value for key, value in source.items() if key not in OWN}})


def importance_of(source: Any, plan: Plan) -> Importance:
    """The importance at the start model `plan.model`, checked against it.

    Raises:
        InputError: it is of another model, or the file, the memory or an argument is wrong.
    """
    if isinstance(source, str | Path):
        source = Importance.load(source)
    elif _given(source) and not isinstance(source, Importance):
        source = Importance(source, {"kind": "given"})
    if isinstance(source, Importance):
        source.check(plan.model)
        return source
    arguments = {**DEFAULTS, **source}
    name = "mas" if arguments["kind"] == "mas" else "ewc"
    check_causal(plan.model, name)
    rows = old_rows(name, arguments.pop("memory"), plan, arguments.pop("block", 256), limit=arguments["samples"])
    control = arguments.pop("control", None)
    found = fisher(plan.model, rows, **arguments) if plan.cache is None else _cached(Path(plan.cache), plan, rows, arguments)
    return {"shuffled": found.shuffled, "uniform": found.uniform}[control]() if control else found


def summary(importance: Importance) -> dict[str, Any]:
    """What a record keeps of an importance; `digest` is that of its values, which a control changes and nothing else does."""
    keys = ["kind", "level", "tokens", "sequences", "relative_se", "normalize", "floor", "seed", "autocast", "seconds"]
    keys += ["largest_share", "largest_of", "largest_row", "clip", "clipped", "control", "data_digest", "anchor_digest"]
    kept = {key: importance.info[key] for key in keys if key in importance.info}
    return {**kept, "mean": importance.mean, "digest": tensors.digest(importance)}


def _cached(folder: Path, plan: Plan, rows: Sequence[Any], arguments: dict[str, Any]) -> Importance:
    anchor, held = tensors.digest(dict(tensors.trainable(plan.model))), list[Any]()
    if not all(parameter.requires_grad for parameter in plan.model.parameters()):  # new adapters are alike on every model
        adapters = {name: one.to_dict() for name, one in getattr(plan.model, "peft_config", {}).items()}
        held = [tensors.digest(plan.model), adapters]
    of = [anchor, config_digest(plan.model), data_digest(rows, arguments["samples"]), arguments, *held]
    key = json.dumps(of, sort_keys=True, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    path = folder / f"ewc-{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    found = _read(path, plan) if ranks()[0] == 0 else None
    if not agreed(found is not None):
        with leased(path.with_suffix(".lease")):
            found = _read(path, plan) if ranks()[0] == 0 else None  # another process may have made it meanwhile
            if not agreed(found is not None):
                found = fisher(plan.model, rows, **arguments)
                if ranks()[0] == 0:
                    found.save(path)
    return found if found is not None else Importance.load(path, _device(plan))


def _read(path: Path, plan: Plan) -> Importance | None:
    """The cached importance; None if there is none or it is damaged (it is then computed again)."""
    if not path.exists():
        return None
    try:
        return Importance.load(path, _device(plan))
    except InputError as error:
        logging.getLogger(__name__).warning("%s", error)
        return None


def _device(plan: Plan) -> Any:
    return next(plan.model.parameters()).device


def _given(source: Any) -> bool:
    """A plain mapping {parameter name: tensor}."""
    return isinstance(source, Mapping) and bool(source) and all(isinstance(value, Tensor) for value in source.values())
