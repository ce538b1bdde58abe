"""`cltk methods`, `assets` and `schema`: what there is."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from cltk.cli.options import Command, json_option, out, put_json, to_stdout
from cltk.errors import InputError


def add(command: Command) -> None:
    """Options of what lists and explains."""
    sub = command("methods", methods, "list the methods, or show one's card: formula, cost, settings, examples")
    sub.add_argument("name", nargs="?", help="a method's name, as in an experiment's YAML")
    json_option(sub)

    sub = command("assets", assets, "list, fetch or locate the pinned models and data sets")
    sub.add_argument("action", choices=["list", "fetch", "path"])
    sub.add_argument("names", nargs="*", metavar="NAME")
    json_option(sub)

    sub = command("schema", schema, "print the JSON schema of an experiment file, or of what measure and compare write")
    sub.add_argument("what", nargs="?", choices=["experiment", "result"], default="experiment")


def methods(options: argparse.Namespace) -> int:
    """`cltk methods`: the table of all cards, or one card."""
    from dataclasses import asdict

    from rich.markdown import Markdown

    from cltk.mitigate import catalog

    if options.json:
        chosen = [catalog.card(options.name)] if options.name else list(catalog.cards().values())
        put_json(options.json, [asdict(card) for card in chosen])
    if to_stdout(options.json):
        return 0
    wide = out(options.json)
    wide.print(Markdown(catalog.card(options.name).markdown()) if options.name else catalog.table(wide.width))
    return 0


def assets(options: argparse.Namespace) -> int:
    """`cltk assets`: list, fetch or locate what is pinned."""
    from cltk.data import assets as store

    if options.action == "list":
        found = [asset_line(asset) for asset in store.ASSETS.values()]
        put_json(options.json, found)
        for one in () if to_stdout(options.json) else found:
            state = "fetched" if one["fetched"] else "not fetched"
            print(
                f"{one['name']:24} {one['package']} {one['version']} ({state}): {one['description']}; licence: {one['licence']}"
            )
        return 0
    names = options.names or (list(store.ASSETS) if options.action == "fetch" else [])
    if not names:
        raise InputError(f"assets {options.action}: name at least one of {', '.join(store.ASSETS)}")
    places = {}
    for name in names:
        fetched = options.action == "fetch"
        places[name] = store.fetch(name, progress=lambda line: print(line, file=sys.stderr)) if fetched else store.path(name)
        if not to_stdout(options.json):
            print(places[name])
    put_json(options.json, [{"name": name, "path": str(place)} for name, place in places.items()])
    return 0


def asset_line(asset: Any) -> dict[str, Any]:
    """What `cltk assets list` says of an asset."""
    told = {name: getattr(asset, name) for name in ("name", "package", "version", "description", "licence")}
    return {**told, "fetched": asset.folder.is_dir()}


def schema(options: argparse.Namespace) -> int:
    """`cltk schema`: the JSON schema on standard output."""
    if options.what == "result":
        from cltk.logs.schema import schema as document
    else:
        from cltk.run.config import schema as document

    print(json.dumps(document(), indent=1, default=str))
    return 0
