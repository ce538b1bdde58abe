"""Tokens and passwords: refused in files, whose content goes into records; hidden in lines that are printed or kept."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

from cltk.errors import InputError

HIDDEN = "***"
NAMED = re.compile(
    r"(?i)^(?:\w*_)?(?:token|password|passwd|secret|credentials?|api_?key|(?:access|private|secret|account)_?key)$"
)
SPECIAL = re.compile(r"(?i)^(?:bos|eos|pad|unk|sep|cls|mask|image|audio|video|think_end|\w*special)_token$")  # of a tokeniser
IN_ADDRESS = re.compile(
    r"(?i)\b(https?://)[^/\s@'\"]+@|\b([a-z][a-z0-9+.-]*://)[^/\s@:'\"]*:[^/\s@'\"]+@"
)  # scheme://user:password@
IN_QUERY = re.compile(r"(?i)([?&;](?:[\w-]*(?:token|secret|password|signature|credential|api[_-]?key)|sig)=)[^&\s'\"]+")
KNOWN = re.compile(r"\b(hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abpr]-|AKIA)(?=[\w-]*[A-Z0-9])[A-Za-z0-9-]{10,}\b")
IN_ENVIRONMENT = re.compile(r"(?i)(token(?!iz)|password|passwd|secret|credential|api_?key|(access|private|account)_?key)")
SHORTEST = 8  # characters of a secret in the environment; shorter ones are words
HELP = "log in once (`hf auth login`) or set it in the environment (HF_TOKEN)"


def hidden(text: str) -> str:
    """`text` without tokens, passwords in addresses, and what the environment holds under a name like HF_TOKEN."""
    for name, value in os.environ.items():
        if IN_ENVIRONMENT.search(name) and len(value) >= SHORTEST and not os.path.exists(value):
            text = text.replace(value, HIDDEN)
    return _masked(text)


def without_secrets(data: Any) -> Any:
    """`data`, as JSON holds it, with `hidden` texts and keys."""
    text = json.dumps(data, default=str, ensure_ascii=False)
    return _each(data) if hidden(text) != text else data


def _each(data: Any) -> Any:
    if isinstance(data, dict):
        return {hidden(key) if isinstance(key, str) else key: _each(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_each(value) for value in data]
    return hidden(data) if isinstance(data, str) else data


def _masked(text: str) -> str:
    text = IN_ADDRESS.sub(lambda match: f"{match[1] or match[2]}{HIDDEN}@", text)
    return KNOWN.sub(rf"\1{HIDDEN}", IN_QUERY.sub(rf"\1{HIDDEN}", text))


def refuse(data: Any, where: Callable[[tuple[str | int, ...]], str], keys: tuple[str | int, ...] = ()) -> None:
    """Raises InputError at the first token or password in nested mappings and lists; the message does not hold it.

    A secret is told by its key (hub_token, password, api_key, ...) or by its own form (hf_..., https://user:password@host).
    """
    name = str(keys[-1]).rpartition(".")[2] if keys else ""
    if isinstance(data, str | list | dict) and data and NAMED.match(name) and not SPECIAL.match(name):
        raise InputError(f"{where(keys)}: {name}: a secret does not belong in a file; {HELP}")
    if isinstance(data, str) and _masked(data) != data:
        raise InputError(f"{where(keys)}: {name}: a token or password does not belong in a file; {HELP}")
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list | tuple) else ()
    for key, value in items:
        refuse(value, where, (*keys, key))
        if isinstance(key, str) and _masked(key) != key:
            raise InputError(f"{where(keys)}: a token or password does not belong in a file; {HELP}")
