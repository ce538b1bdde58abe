"""What the instrument needs of lm-eval. Methods, statistics and `compare` run without it."""

from __future__ import annotations

from importlib import metadata

from packaging.version import Version

from cltk.errors import InputError

LM_EVAL = "0.4.12"  # before it, tasks were indexed and loaded by other code, and what they may run cannot be watched


def needs_lm_eval() -> None:
    """Raises InputError where lm-eval is missing or older than `LM_EVAL`; nothing of it is imported."""
    try:
        found = metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        found = ""
    if not found or Version(found) < Version(LM_EVAL):
        have = f"{found} is installed" if found else "none is installed"
        raise InputError(f"tasks need lm-eval {LM_EVAL} or newer, and {have}; pip install 'lm-eval>={LM_EVAL}'")
