"""Models by name: "asset:NAME", a folder, or a hub id; their digests; what this machine runs them in."""

from __future__ import annotations

import hashlib
import json
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


def load_model(spec: str | Path, *, dtype: str = "float32", trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The causal language model and its tokeniser.

    Args:
        spec: "asset:NAME", a folder with config.json, or a hub id.
        dtype: a torch dtype's name, or "auto" for the one the weights are stored in.
        trust_remote_code: whether Python that comes with the model may run; off unless the user says so.

    Raises:
        InputError: the model does not exist, is damaged, or cannot be had without a network.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = locate_model(spec)
    if not trust_remote_code:
        _check_kernels(spec, path)
    try:
        with warnings.catch_warnings(), no_bars(), unsplit():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
            model: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype="auto" if dtype == "auto" else getattr(torch, dtype), trust_remote_code=trust_remote_code
            )
    except Exception as error:
        raise InputError(f"model {spec}: cannot be loaded ({_first_line(error)})") from None
    where: Any = device()
    log.info(f"{spec}: {str(model.dtype).removeprefix('torch.')} on {where}")
    return model.to(where), tokenizer


LAZY = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # of accelerate's launcher: only the first rank reads weights, the others hold none


def _check_kernels(spec: str | Path, path: str) -> None:
    """Raises InputError where a config names code of a hub (org/kernel) for attention or experts: transformers would run it."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(path)
    except Exception:
        return  # loading says what is wrong with it
    if name := _kernel(config):
        raise InputError(f"model {spec}: its config names the code of a hub ({name}); trust_remote_code lets it run")


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


def load_config(spec: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The model's config without its weights; None where it cannot be had (loading the model says why)."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(locate_model(spec), trust_remote_code=trust_remote_code)
    except Exception:
        return None


def load_tokenizer(spec: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokeniser alone: what `--dry-run` needs to count tokens."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(locate_model(spec), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise InputError(f"model {spec}: its tokeniser cannot be loaded ({_first_line(error)})") from None


def locate_model(spec: str | Path) -> str:
    """A folder on disk, or the hub id as it is. Raises InputError for a folder that is none or has no config.json."""
    path = assets.resolve(str(spec))
    if os.path.isdir(path):
        if (path / "adapter_config.json").exists():
            raise InputError(
                f"model {spec}: the folder holds a PEFT adapter, not a whole model; merge it into its base first: peft's"
                f" AutoPeftModelForCausalLM.from_pretrained({str(spec)!r}).merge_and_unload().save_pretrained(FOLDER), and save"
                " the tokenizer there too"
            )
        if not (path / "config.json").exists():
            raise InputError(f"model {spec}: the folder has no config.json, so it holds no transformers model")
        return str(path)
    text = str(spec)
    if os.path.exists(path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise InputError(f"model {spec}: no such folder")
    return text


FIRST = (".safetensors", ".json", ".bin", ".model")  # what the digests of the first records cover
STORED = (*FIRST, ".jinja", ".txt", ".py", ".tiktoken")  # chat templates, vocabularies and the model's own code too


def stored_digest(spec: str | Path, suffixes: tuple[str, ...] = STORED) -> str:
    """sha256 (hex) of the stored weights, config and tokeniser, without loading them; of the commit for a model on the hub."""
    where = Path(locate_model(spec))
    sha = hashlib.sha256()
    if os.path.isdir(where):
        extra = where / "additional_chat_templates"
        for file in [*sorted(where.iterdir()), *(sorted(extra.iterdir()) if extra.is_dir() else [])]:
            if file.suffix in suffixes and file.is_file():
                sha.update(file.name.encode() + b"\0" + file_digest(file).encode())
        return sha.hexdigest()
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(where), trust_remote_code=False)
    except Exception as error:
        raise InputError(f"model {spec}: no such folder, and the hub does not give it ({_first_line(error)})") from None
    return hashlib.sha256(f"{where}@{getattr(config, '_commit_hash', None)}".encode()).hexdigest()


def config_digest(model: Any) -> str:
    """sha256 (hex) of a live model's configuration: the same weights give other answers with another rotary base or epsilon.

    Left out is what no number depends on: names, versions, and whether generation keeps its cache.
    """
    config: Any = getattr(model, "config", None)
    said = config.to_dict() if hasattr(config, "to_dict") else repr(config)
    if isinstance(said, dict):
        said = {key: said[key] for key in said if not key.startswith("_") and key not in ("transformers_version", "use_cache")}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(path: Path) -> str:
    """`file_digest` of a file; of a folder that of all its files and their names."""
    if path.is_file():
        return file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = "".join(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).split("\n") if line.strip()), type(error).__name__)[:240]
