"""`cltk methods`, `assets` and `schema`: what there is."""

from __future__ import annotations

import argparse
import json
import sys

from cltk.cli.options import Command
from cltk.errors import InputError
from cltk.progress import console


def add(command: Command) -> None:
    """Options of what lists and explains."""
    sub = command("methods", methods, "list the methods, or show one's card: formula, cost, settings, examples")
    sub.add_argument("name", nargs="?", help="a method's name, as in an experiment's YAML")
    sub.add_argument("--json", action="store_true", help="as JSON on standard output")

    sub = command("assets", assets, "list, fetch or locate the pinned models and data sets")
    sub.add_argument("action", choices=["list", "fetch", "path"])
    sub.add_argument("names", nargs="*", metavar="NAME")

    sub = command("schema", schema, "print the JSON schema of an experiment file, or of what measure and compare write")
    sub.add_argument("what", nargs="?", choices=["experiment", "result"], default="experiment")


def methods(options: argparse.Namespace) -> int:
    """`cltk methods`: the table of all cards, or one card."""
    from dataclasses import asdict

    from rich.markdown import Markdown

    from cltk.mitigate import catalog

    if options.json:
        chosen = [catalog.card(options.name)] if options.name else list(catalog.cards().values())
        print(json.dumps([asdict(card) for card in chosen], indent=1))
    elif options.name:
        console().print(Markdown(catalog.card(options.name).markdown()))
    else:
        wide = console()
        wide.print(catalog.table(wide.width))
    return 0


def assets(options: argparse.Namespace) -> int:
    """`cltk assets`: list, fetch or locate what is pinned."""
    from cltk.data import assets as store

    if options.action == "list":
        for asset in store.ASSETS.values():
            state = "fetched" if asset.folder.is_dir() else "not fetched"
            print(f"{asset.name:24} {asset.package} {asset.version} ({state}): {asset.description}; licence: {asset.licence}")
        return 0
    names = options.names or (list(store.ASSETS) if options.action == "fetch" else [])
    if not names:
        raise InputError(f"assets {options.action}: name at least one of {', '.join(store.ASSETS)}")
    for name in names:
        if options.action == "fetch":
            print(store.fetch(name, progress=lambda line: print(line, file=sys.stderr)))
        else:
            print(store.path(name))
    return 0


def schema(options: argparse.Namespace) -> int:
    """`cltk schema`: the JSON schema on standard output."""
    if options.what == "result":
        from cltk.logs.schema import schema as document
    else:
        from cltk.run.config import schema as document

    print(json.dumps(document(), indent=1, default=str))
    return 0
