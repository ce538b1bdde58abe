"""`cltk merge`: a whole model from an adapter and its base."""

from __future__ import annotations

import argparse
from pathlib import Path

from cltk.cli.options import Command, json_option, put_json, to_stdout


def add(command: Command) -> None:
    """Options of what writes models."""
    sub = command("merge", merge, "write the whole model that an adapter (PEFT) and its base are")
    sub.add_argument("adapter", help="the adapter's folder")
    sub.add_argument("out", type=Path, help="a folder that is new or empty")
    sub.add_argument("--base", help="the model it was trained on (default: the one that its config names)")
    sub.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="default: the base's")
    json_option(sub)


def merge(options: argparse.Namespace) -> int:
    """`cltk merge`: W + (alpha / r) B A in the place of W."""
    from cltk.models.merging import merge as write

    where = write(options.adapter, options.out, base=options.base, dtype=options.dtype)
    if not to_stdout(options.json):
        print(where)
    if options.json is not None:
        from cltk.models import stored_digest

        put_json(options.json, {"path": str(where), "adapter": options.adapter, "digest": stored_digest(where)})
    return 0
