"""One JSON record a cell, written atomically; read back as it was or not at all."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import cltk
from cltk.errors import InputError
from cltk.files import write_text

FORMAT = 1
RECORD = "record.json"
PACKAGES = ("torch", "transformers", "lm-eval", "datasets", "accelerate", "numpy", "scipy", "tokenizers", "trl", "peft")


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def digest_of(data: Any) -> str:
    """sha256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` with its checksum, whole or not at all. Raises DiskError when that is not possible."""
    body = {key: value for key, value in data.items() if key != "sha256"}
    text = json.dumps({"sha256": digest_of(body), **body}, indent=1, ensure_ascii=False, default=str)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote. Raises InputError when it is missing, cut, or changed."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); move it away and run again") from None
    if not isinstance(data, dict) or data.get("sha256") != digest_of({k: v for k, v in data.items() if k != "sha256"}):
        raise InputError(f"{path}: damaged or edited by hand (its checksum does not match); move it away and run again")
    return data


def find_records(where: str | Path) -> list[Path]:
    """The records in a file, a cell's folder, or an output folder. Raises InputError when there are none."""
    path = Path(where)
    if path.is_file():
        return [path]
    flat = [file for file in sorted(path.glob("*.json")) if not file.name.endswith("scores.json")]
    found = sorted(path.glob(RECORD)) or sorted(path.glob(f"*/{RECORD}")) or flat
    if not found:
        raise InputError(f"{where}: no records here; `cltk run` writes one for every cell")
    return found


def read_records(where: str | Path) -> list[dict[str, Any]]:
    """All readable records, in the order their cells were planned."""
    return sorted((read_json(path) for path in find_records(where)), key=lambda record: record.get("order", 0))


def environment() -> dict[str, Any]:
    """What the numbers depend on beside the configuration: packages, commit, device."""
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    return {
        "cltk": cltk.__version__,
        "python": platform.python_version(),
        "packages": versions,
        "git_commit": _commit(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU {_processor()}, {torch.get_num_threads()} threads",
        "platform": platform.platform(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """The commit of the source tree cltk runs from; "-dirty" when it has uncommitted changes; None outside a checkout."""
    here = Path(cltk.__file__).parent
    try:
        run = [
            subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0] + ("-dirty" if run[1] else "")
