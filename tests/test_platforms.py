"""Platforms that lack what Linux has: modules, units, locks."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import cltk
from cltk.errors import InputError
from cltk.files import locked
from cltk.measure.journal import Journal
from cltk.run import train

EVERY = """
import builtins, importlib, pkgutil
load = builtins.__import__

def without(name, globals=None, *rest, **more):
    if name in ("fcntl", "resource") and str((globals or {}).get("__name__")).startswith("cltk"):
        raise ImportError(name)
    return load(name, globals, *rest, **more)

builtins.__import__ = without
import cltk
names = [module.name for module in pkgutil.walk_packages(cltk.__path__, "cltk.") if module.name != "cltk.__main__"]
for name in names:
    importlib.import_module(name)
from cltk.run.train import peak_bytes, resource
assert resource is None
print(len(names), peak_bytes())
"""


def test_every_module_is_imported_without_fcntl_and_resource() -> None:
    root = Path(cltk.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", EVERY], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    modules, peak = map(int, done.stdout.split())
    assert modules > 80
    assert 50e6 < peak < psutil.virtual_memory().total


@pytest.mark.parametrize(("platform", "held", "expected"), [
    ("linux", 2_000, 2_048_000), ("darwin", 2_000, 2_000), ("freebsd14", 2_000, 2_048_000),
])  # fmt: skip
def test_peak_memory_is_in_bytes(platform: str, held: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """getrusage(2): bytes on macOS, KiB elsewhere (psf/pyperf#173)."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(train.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=held))
    assert train.peak_bytes() == expected


def test_windows_own_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(train, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=7, peak_wset=11))
    assert train.peak_bytes() == 11


def test_a_file_system_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS without its lock daemon, Lustre without its mount option (BOINC/boinc#1563): folders and journals do without."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(tmp_path / "out"):
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lease"]
    assert not list((tmp_path / "out").iterdir())
    journal = Journal(tmp_path / "journal.jsonl")
    journal.put("a", {"logprob": -1.5, "greedy": True})
    journal.put("b", {"logprob": -2.5, "greedy": False})
    assert Journal(tmp_path / "journal.jsonl").get("b") == {"logprob": -2.5, "greedy": False}
    assert [path.name for path in tmp_path.glob("journal*")] == ["journal.jsonl"]


HOLD = """
import sys, time
from pathlib import Path
from cltk.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_gives_its_lock_back(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"process {other.pid} on"), locked(tmp_path):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    with locked(tmp_path):
        pass
