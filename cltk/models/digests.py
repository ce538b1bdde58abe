"""Digests of stored and live models, of files and folders."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cltk.data import assets
from cltk.errors import InputError
from cltk.models.loading import Spec, first_line, is_adapter, locate_model
from cltk.models.origin import Origin

FIRST = (".safetensors", ".json", ".bin", ".model")  # what the digests of the first records cover
STORED = (*FIRST, ".jinja", ".txt", ".py", ".tiktoken")  # chat templates, vocabularies and the model's own code too


def stored_digest(spec: Spec, suffixes: tuple[str, ...] = STORED) -> str:
    """sha256 (hex) of the stored weights, config and tokeniser, without loading them; of the commit for a model on the hub."""
    origin = Origin.of(spec)
    where = assets.resolve(origin.name) if is_adapter(origin) else Path(locate_model(origin))
    sha = hashlib.sha256()
    if os.path.isdir(where):
        extra = where / "additional_chat_templates"
        for file in [*sorted(where.iterdir()), *(sorted(extra.iterdir()) if extra.is_dir() else [])]:
            if file.suffix in suffixes and file.is_file():
                sha.update(file.name.encode() + b"\0" + file_digest(file).encode())
        return sha.hexdigest()
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(where), trust_remote_code=False, **origin.files())
    except Exception as error:
        raise InputError(f"model {spec}: no such folder, and the hub does not give it ({first_line(error)})") from None
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
