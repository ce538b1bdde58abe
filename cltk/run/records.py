"""One JSON record a cell, written atomically; read back as it was or not at all.

format 2   digests: {cell, measurement, config, start_model, tuned_model, model_files,
                    tasks: {name: sha256}, rules: {name: sha256}, files: {name in the YAML: sha256}}
format 1   the digests of files stood among the others; `read_record` moves them
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import cltk
from cltk.errors import InputError
from cltk.files import write_text
from cltk.secrets import without_secrets

FORMAT = 2
RECORD, SCORES = "record.json", "scores.json"
TRIALS, STUDIES = "search", "studies"  # the output folder of a search's trials, in an output folder; what they were to try
DIGESTS = (
    "cell", "measurement", "config", "start_model", "tuned_model", "model_files", "tasks", "rules", "files",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "lm-eval", "datasets", "accelerate", "numpy", "scipy", "tokenizers", "trl", "peft")

FIRST = ("cell", "start_model", "tuned_model", "model_files", "tasks")  # of format 1


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's; anything else as text."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else str(value)


def digest_of(data: Any) -> str:
    """sha256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` with its checksum, whole or not at all; tokens and passwords are hidden.

    Raises:
        DiskError: it cannot be written.
    """
    write_text(path, json_text(data))


def json_text(data: dict[str, Any]) -> str:
    """What `write_json` writes."""
    body = without_secrets({key: value for key, value in data.items() if key != "sha256"})
    return json.dumps({"sha256": digest_of(body), **body}, indent=1, ensure_ascii=False, default=_plain) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote. Raises InputError when it is missing, cut, or changed."""
    try:
        data = json.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); move it away and run again") from None
    if not isinstance(data, dict) or data.get("sha256") != digest_of({k: v for k, v in data.items() if k != "sha256"}):
        raise InputError(f"{path}: damaged or edited by hand (its checksum does not match); move it away and run again")
    return data


def read_record(path: Path) -> dict[str, Any]:
    """A record in the layout of this version, whichever wrote it.

    Raises:
        InputError: it is missing, damaged, no record of `cltk run`, or of a later version's format.
    """
    record = read_json(path)
    form = record.get("format", 1)
    if not is_record(record) or not isinstance(form, int):
        raise InputError(f"{path}: not a record of `cltk run`; name its output folder")
    if form > FORMAT:
        raise InputError(f"{path}: has format {form}, and cltk {cltk.__version__} reads up to {FORMAT}; update cltk to read it")
    digests = record["digests"]
    if form == 1:
        own = {name: digest for name, digest in digests.items() if name in FIRST}
        record["digests"] = {**own, "files": {name: digest for name, digest in digests.items() if name not in FIRST}}
    return record


def is_record(data: Any) -> bool:
    """Whether this is what `cltk run` writes for a cell, of any version, and no other JSON."""
    return isinstance(data, dict) and "method" in data and "train" in data and isinstance(data.get("digests"), dict)


def find_records(where: str | Path) -> list[Path]:
    """The records in a file, a cell's folder, or an output folder; of a folder of flat files those that are records.

    Raises InputError when there are none.
    """
    path = Path(where)
    if path.is_file():
        return [path]
    found = sorted(path.glob(RECORD)) or sorted(path.glob(f"*/{RECORD}"))
    found = found or [file for file in sorted(path.glob("*.json")) if not file.name.endswith(SCORES) and _may_be_record(file)]
    if not found:
        trials = f"; the trials of its search are in {path / TRIALS}" if (path / TRIALS / STUDIES).is_dir() else ""
        raise InputError(f"{where}: no records here; `cltk run` writes one for every cell{trials}")
    return found


def _may_be_record(file: Path) -> bool:
    """Other JSON is no record; what cannot be read may have been one, and whoever reads it says so."""
    try:
        return is_record(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return True


def scores_file(record: Path) -> Path:
    """The per-document scores that go with a record: beside it, in a folder of flat files under its own name."""
    return record.with_name(SCORES if record.name == RECORD else f"{record.stem}.{SCORES}")


def base_files(record: Path) -> list[Path]:
    """The scores of the start models that may go with a record: of its output folder, or of its folder of flat files."""
    if record.name == RECORD:
        return sorted(record.absolute().parent.parent.glob(f"base-*/{SCORES}"))
    return sorted(record.parent.glob(f"base*.{SCORES}"))


def environment() -> dict[str, Any]:
    """What the numbers depend on beside the configuration: packages, commit, device."""
    import torch

    from cltk.forward import products
    from cltk.ranks import ranks

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
        "device": processor("cuda") if cuda else f"CPU {processor('cpu')}, {torch.get_num_threads()} threads",
        "platform": platform.platform(),
        "products": products.named("cuda" if cuda else "cpu"),
        "processes": ranks()[1],
        "command": command(),
    }


def command() -> str:
    """What was typed, as a shell takes it: with the launcher, as far as the environment tells."""
    program, *arguments = sys.argv
    if Path(program).parent.resolve() == Path(cltk.__file__).parent:  # python -m cltk
        typed = ["-m", "cltk", *arguments]
    elif program.endswith(".py"):
        typed = [program, *arguments]
    else:
        return shlex.join([Path(program).name, *arguments])
    return shlex.join([*_launcher(), *typed])


def _launcher() -> list[str]:
    """What starts Python; the configuration of `accelerate launch` stands in its own file, which is not known here."""
    found, here = os.environ, os.environ.get("LOCAL_WORLD_SIZE", "1")
    if "ACCELERATE_DYNAMO_USE_FULLGRAPH" in found:  # which transformers does not set
        return ["accelerate", "launch", "--num_processes", found.get("WORLD_SIZE", "1")]
    if "TORCHELASTIC_RUN_ID" not in found:
        return ["python"]
    nodes = max(1, int(found.get("WORLD_SIZE", "1")) // int(here))
    return ["torchrun", *(["--nnodes", str(nodes)] if nodes > 1 else []), "--nproc-per-node", here]


def processor(device: str) -> str:
    """The model of the GPU ("cuda"), or of the CPU, as its maker calls it."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """The commit of the source tree cltk runs from; "-dirty" when it has uncommitted changes.

    None outside of a checkout, also where cltk is installed below somebody else's (in an ignored .venv): that repository
    does not have this file.
    """

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        return found.stdout.strip()

    here = Path(cltk.__file__).parent
    try:
        git("ls-files", "--error-unmatch", "--", "__init__.py")
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
