"""What decides an answer of a model, as one digest: the key of everything that is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch

from cltk import models, tensors
from cltk.forward import products
from cltk.models.thinking import thinking_of

LIBRARIES = ("torch", "transformers", "tokenizers", "lm_eval")
PLACES = (
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "transformers_version",
    "_from_model_config",
    "base_model_name_or_path",
)
FORMAT = 2  # of what is kept and how it was computed; a new number makes everything that was kept before a stranger


def identity(model: Any, tokenizer: Any = None, digest: str | None = None) -> str:
    """sha256 (hex) of all that decides what a model answers, beside the request.

    Its weights (`digest`, where the caller has it: `tensors.digest`), class, configuration and generation settings without
    paths, the plain attributes of its modules (windows, caps, scalings, experts, active and merged adapters: a live model may
    differ from its configuration), buffers that are not saved (rotary frequencies), dtypes, attention implementation; the
    tokeniser; versions of torch, transformers, tokenizers and lm-eval; the kind of device, and what computes its products.
    """
    parts = {
        "format": FORMAT,
        "weights": digest or tensors.digest(model),
        "class": [f"{type(m).__module__}.{type(m).__qualname__}" for m in (model, _inner(model))],
        "config": _plain(model.config.to_dict()),
        "generation": _plain(model.generation_config.to_dict()) if getattr(model, "generation_config", None) else None,
        "adapters": {name: _plain(c.to_dict()) for name, c in (getattr(model, "peft_config", None) or {}).items()},
        "modules": [[name, *found] for name, module in model.named_modules() if (found := list(_attributes(module)))],
        "buffers": tensors.digest(_unsaved(model)),
        "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
        "attention": getattr(model.config, "_attn_implementation", None),
        "tokenizer": _tokenizer(tokenizer) if tokenizer is not None else None,
        "versions": versions(),
        "device": sorted({_device(p.device) for p in model.parameters()}),
        "products": "oneDNN" if products.chosen(model) else "torch",
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of the libraries that scores follow from."""
    return {name: version(name) for name in LIBRARIES}


def device() -> str:
    """The kind of device that a model is loaded on."""
    return _device(torch.device(models.device()))


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _plain(tree: Any) -> Any:
    """Numbers, texts, lists and mappings without names of places; sets in order."""
    if isinstance(tree, dict):
        return {str(key): _plain(value) for key, value in tree.items() if key not in PLACES}
    if isinstance(tree, set | frozenset):
        return sorted(map(str, tree))
    return [_plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _attributes(module: torch.nn.Module) -> Iterator[list[Any]]:
    """Plain values that a module holds: numbers and texts, and what says which adapters act."""
    for name, value in sorted(vars(module).items()):
        own = not name.startswith("_") or name in ("_active_adapter", "_disable_adapters")
        if own and name not in ("training", *PLACES) and _is_plain(value):
            yield [name, _plain(value)]


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _unsaved(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved and buffer.device.type != "meta"}


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _tokenizer(tokenizer: Any) -> str:
    """sha256 (hex) of a tokeniser; what a call leaves in it (padding, truncation) does not count."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None:
        made: Any = {key: value for key, value in json.loads(core.to_str()).items() if key not in ("padding", "truncation")}
    else:
        made = dict(sorted(tokenizer.get_vocab().items()))
    settings = {
        name: getattr(tokenizer, name, None) for name in ("chat_template", "add_bos_token", "add_eos_token", "model_max_length")
    }
    end = thinking_of(tokenizer).end  # texts are kept as they are cut
    settings |= {} if end is None else {"think_end_token": end}
    parts = [type(tokenizer).__qualname__, made, settings, _plain(getattr(tokenizer, "special_tokens_map", {}))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
