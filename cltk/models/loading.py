"""Models by name: "asset:NAME", a folder, or a hub id; their digests; what this machine runs them in."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from cltk.data import assets
from cltk.errors import InputError
from cltk.models.origin import Origin
from cltk.models.thinking import carrying

Spec = str | Path | Origin

log = logging.getLogger(__name__)
_device: ContextVar[str | None] = ContextVar("device", default=None)


def device() -> str:
    """Where models are loaded: the device of `on`, else the GPU where there is one, else the CPU."""
    import torch

    return _device.get() or ("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def on(name: str | None) -> Iterator[None]:
    """Inside, models are loaded on this device: "cpu", "cuda", "cuda:1", "mps"; None changes nothing.

    Raises:
        InputError: this machine has no such device.
    """
    if name is not None:
        _check_device(name)
    token = _device.set(name or _device.get())
    try:
        yield
    finally:
        _device.reset(token)


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
        if torch.device(name).type == "meta":
            raise ValueError
    except (RuntimeError, AssertionError, ValueError, NotImplementedError):
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(f"device: {name!r} is not on this machine; what is: {', '.join(there)}") from None


def load_model(spec: Spec, *, dtype: str = "float32", trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The causal language model and its tokeniser.

    Args:
        spec: "asset:NAME", a folder with config.json, a hub id, "hub id@revision", or an `Origin`, whose arguments go first.
        dtype: a torch dtype's name, or "auto" for the one the weights are stored in.
        trust_remote_code: whether Python that comes with the model may run; off unless the user says so.

    Raises:
        InputError: the model does not exist, is damaged, is an adapter, or cannot be had without a network.
    """
    import torch
    from transformers import AutoModelForCausalLM

    origin = Origin.of(spec, {"dtype": dtype, "trust_remote_code": trust_remote_code})
    path, loading, dtype = locate_model(origin), origin.loading(), origin.args["dtype"]
    if not origin.trust:
        _check_kernels(origin, path)
    tokenizer = load_tokenizer(origin)
    try:
        with warnings.catch_warnings(), no_bars(), unsplit():
            warnings.simplefilter("ignore")
            model: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype="auto" if dtype == "auto" else getattr(torch, dtype), trust_remote_code=origin.trust,
                **origin.files(), **loading,
            )  # fmt: skip
    except Exception as error:
        raise InputError(f"model {origin}: cannot be loaded ({first_line(error)})") from None
    if next(model.parameters()).is_meta:
        raise InputError(f"model {origin}: its embedding is on no device; leave room for it in device_map or max_memory")
    where: Any = device()
    log.info(f"{origin}: {str(model.dtype).removeprefix('torch.')} on {where}")
    return model if origin.placed else model.to(where), tokenizer


LAZY = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # of accelerate's launcher: only the first rank reads weights, the others hold none


def _check_kernels(origin: Origin, path: str) -> None:
    """Raises InputError where a config names code of a hub (org/kernel) for attention or experts: transformers would run it."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(path, **origin.files())
    except Exception:
        return  # loading says what is wrong with it
    if name := _kernel({"config": config, **origin.args}):
        raise InputError(f"model {origin}: its config names the code of a hub ({name}); trust_remote_code lets it run")


def _kernel(config: Any) -> str:
    """The first value in nested mappings that names a kernel of a hub, or ""."""
    for key, value in config.items() if isinstance(config, dict) else ():
        named = [value] if isinstance(value, str) else list(value.values()) if isinstance(value, dict) else []
        if "_implementation" in str(key) and (hubs := [name for name in named if isinstance(name, str) and "/" in name]):
            return hubs[0]
        if found := _kernel(value):
            return found
    return ""


@contextmanager
def unsplit() -> Iterator[None]:
    """Whole weights on every rank inside: the start model is scored by all ranks before anything is sharded.

    While a ZeRO-3 configuration is alive, transformers loads every model in pieces; under FSDP, with accelerate's usual
    settings, on the first rank alone (huggingface/transformers#43749).
    """
    from transformers.integrations import deepspeed

    kept, lazy = deepspeed._hf_deepspeed_config_weak_ref, os.environ.get(LAZY)
    deepspeed.unset_hf_deepspeed_config()
    os.environ[LAZY] = "false"
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept
        del os.environ[LAZY]
        if lazy is not None:
            os.environ[LAZY] = lazy


@contextmanager
def no_bars() -> Iterator[None]:
    """No progress bars of transformers' own inside."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_config(spec: Spec, *, trust_remote_code: bool = False) -> Any:
    """The model's config without its weights; None where it cannot be had (loading the model says why)."""
    from transformers import AutoConfig

    origin = Origin.of(spec, {"trust_remote_code": trust_remote_code})
    try:
        return AutoConfig.from_pretrained(locate_model(origin), trust_remote_code=origin.trust, **origin.files())
    except Exception:
        return None


def load_tokenizer(spec: Spec, *, trust_remote_code: bool = False) -> Any:
    """The tokeniser alone, with what its model was told of thinking: what `--dry-run` needs to count tokens."""
    from transformers import AutoTokenizer

    origin = Origin.of(spec, {"trust_remote_code": trust_remote_code})
    own = origin.args.get("tokenizer")
    where, files = (str(assets.resolve(str(own))), {}) if own else (locate_model(origin), origin.files())
    try:
        with warnings.catch_warnings(), no_bars():
            warnings.simplefilter("ignore")
            found = AutoTokenizer.from_pretrained(where, trust_remote_code=origin.trust, **files)
    except Exception as error:
        raise InputError(f"model {origin}: its tokeniser cannot be loaded ({first_line(error)})") from None
    return carrying(found, origin.thinking)


def is_adapter(spec: Spec) -> bool:
    """Whether this is a folder that holds a PEFT adapter and no whole model."""
    return (assets.resolve(Origin.of(spec).name) / ADAPTER).exists()


def locate_model(spec: Spec) -> str:
    """A folder on disk, or the hub id as it is. Raises InputError for a folder that is none or has no config.json."""
    origin = Origin.of(spec)
    path = assets.resolve(origin.name)
    if os.path.isdir(path):
        if is_adapter(origin):
            raise InputError(
                f"model {spec}: the folder holds a PEFT adapter, not a whole model; `cltk merge {spec} FOLDER` writes one"
            )
        inside = path / str(origin.args.get("subfolder") or "")
        needed = inside / str(origin.args.get("gguf_file") or "config.json")
        if not needed.exists():
            raise InputError(f"model {spec}: the folder has no {needed.relative_to(path)}, so it holds no transformers model")
        return str(path)
    text = origin.name
    if os.path.exists(path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise InputError(f"model {spec}: no such folder")
    return text


ADAPTER = "adapter_config.json"


def first_line(error: Exception) -> str:
    """What an exception says, in one line of at most 240 characters."""
    return next((line.strip() for line in str(error).split("\n") if line.strip()), type(error).__name__)[:240]
