"""Where a model comes from and how it is loaded: its name, "org/model@revision", and arguments by lm-eval's names."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.models.thinking import KINDS as THINKING
from cltk.models.thinking import Thinking

KINDS: dict[str, type | tuple[type, ...]] = {
    "revision": (str, int, float),
    "subfolder": str,
    "gguf_file": str,
    "attn_implementation": str,
    "dtype": str,
    "trust_remote_code": bool,
    "tokenizer": str,
    "base": str,
    "device_map": (str, dict),
    "parallelize": bool,
    "max_memory": dict,
    "offload_folder": str,
    "load_in_4bit": bool,
    "load_in_8bit": bool,
    "bnb_4bit_quant_type": str,
    "bnb_4bit_compute_dtype": str,
    "bnb_4bit_use_double_quant": bool,
    "quantization_config": dict,
    **THINKING,
}  # argument -> what it is; all but `base` are lm-eval's or transformers' own names
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Origin:
    """A model's name and the arguments it is loaded with.

    Args:
        name: "asset:NAME", a folder, or a hub id.
        args: revision, subfolder, gguf_file, attn_implementation, dtype, trust_remote_code, tokenizer (a name), device_map
            (with transformers' max_memory and offload_folder; parallelize: auto), load_in_4bit and load_in_8bit (with
            bnb_4bit_...), quantization_config (transformers' mapping); those of `Thinking`; `base`, the model under an
            adapter. Names and meaning are lm-eval's.

    Raises:
        InputError: an unknown argument, a value of another kind, thinking without an end, or a revision of a folder.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in self.args.items():
            _check(str(self), key, value)
        self.thinking.check(f"model {self}")
        if self.revision and (self.name.startswith("asset:") or os.path.exists(self.name)):
            raise InputError(f"model {self.name}: revision={self.revision} is of models on a hub, and this is none of them")

    @classmethod
    def of(cls, given: str | Path | Origin, args: Mapping[str, Any] | None = None) -> Origin:
        """From a name, "NAME@REVISION", or another origin whose arguments go before `args`."""
        if isinstance(given, Origin):
            return cls(given.name, {**(args or {}), **given.args})
        name, at, revision = str(given).rpartition("@")
        if not at or not name or os.path.exists(str(given)) or str(given).startswith("asset:"):
            return cls(str(given), dict(args or {}))
        return cls(name, {**(args or {}), "revision": revision})

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit on the hub."""
        return str(self.args["revision"]) if self.args.get("revision") is not None else None

    @property
    def thinking(self) -> Thinking:
        """How it is asked to think."""
        return Thinking.of(self.args)

    @property
    def trust(self) -> bool:
        """Whether Python that comes with the model may run: the user's own word."""
        return bool(self.args.get("trust_remote_code", False))

    @property
    def placed(self) -> bool:
        """Whether loading itself puts the weights on their devices."""
        keys = ("load_in_4bit", "load_in_8bit", "quantization_config")
        return self.spread is not None or any(self.args.get(key) for key in keys)

    @property
    def spread(self) -> str | dict[str, Any] | None:
        """Which devices the parts go to, in transformers' form; None where one takes all."""
        return self.args.get("device_map") or ("auto" if self.args.get("parallelize") else None)

    def files(self) -> dict[str, Any]:
        """What transformers takes to find config, weights and tokeniser."""
        found = {key: self.args[key] for key in ("subfolder", "gguf_file") if self.args.get(key)}
        return found | ({"revision": self.revision} if self.revision else {})

    def loading(self) -> dict[str, Any]:
        """What transformers' `from_pretrained` takes beside the files, dtype and trust."""
        found = {key: self.args[key] for key in ("attn_implementation", "offload_folder") if self.args.get(key)}
        if self.spread is not None:
            most = {int(key) if str(key).isdigit() else key: size for key, size in (self.args.get("max_memory") or {}).items()}
            found |= {"device_map": self.spread, **({"max_memory": most} if most else {})}
        return found | ({"quantization_config": config} if (config := self._quantization()) is not None else {})

    def _quantization(self) -> Any:
        from transformers.quantizers import AutoQuantizationConfig

        given = dict(self.args.get("quantization_config") or {})
        flags = {key: value for key, value in self.args.items() if key.startswith(("load_in_", "bnb_"))}
        if any(flags.get(key) for key in ("load_in_4bit", "load_in_8bit")):
            given = {"quant_method": "bitsandbytes", **flags, **given}
        if not given:
            return None
        if given.get("quant_method") == "bitsandbytes" and find_spec("bitsandbytes") is None:
            raise InputError(f"model {self}: this quantisation needs the package bitsandbytes; pip install bitsandbytes")
        try:
            return AutoQuantizationConfig.from_dict(given)
        except Exception as error:
            raise InputError(
                f"model {self}: quantization_config cannot be read ({' '.join(str(error).split())[:200]})"
            ) from None


def arguments(given: Mapping[str, Any] | str | None, where: str) -> dict[str, Any]:
    """Arguments from a mapping, from "name=value,name=value", or from a JSON object.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(given, Mapping):
        return dict(given)
    text = (given or "").strip()
    if text.startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise InputError(f"{where}: is no JSON object ({error})") from None
    found = {}
    for part in re.split(r",(?=\s*\w+=)", text) if text else ():  # a value may have commas of its own
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{where}: expected name=value,name=value, got {text!r}")
        found[key.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    """true, false and none in any case, numbers, or the text."""
    plain: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in plain:
        return plain[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _check(who: str, key: str, value: Any) -> None:
    """Raise InputError for an argument that there is not, or of another kind."""
    if key not in KINDS:
        near = difflib.get_close_matches(key, KINDS, 1, 0.5)
        known = f"did you mean {near[0]}?" if near else f"there are {', '.join(KINDS)}"
        raise InputError(f"model {who}: argument {key!r} is unknown; {known}")
    kinds = KINDS[key]
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
        raise InputError(f"model {who}: {key} must be {' or '.join(kind.__name__ for kind in kinds)}, got {value!r}")
    if key == "dtype" and value is not None and value not in DTYPES:
        raise InputError(f"model {who}: dtype {value!r} is unknown; use {', '.join(DTYPES)}")
