"""Leases: one owner, whoever is killed, stopped or woken, by real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cltk import files, ranks
from cltk.errors import DiskError, InputError, LeaseLostError
from cltk.files import check_held, give, holder, leased, take, write_text

SILENCE = 1.5
SETTINGS = f"""
import sys, time
from pathlib import Path
from cltk import files
from cltk.errors import LeaseLostError
files.SILENCE, files.BEAT, files.POLL = {SILENCE}, 0.2, 0.05
place = Path(sys.argv[1])
"""
HOLD = """
assert files.take(place / "a.lease")
print("held", flush=True)
for _ in range(600):
    time.sleep(0.05)
    try:
        files.write_text(place / "written.txt", str(time.time()))
    except LeaseLostError as lost:
        print("lost", lost, flush=True)
        break
"""
CONTEND = """
import os
for _ in range(25):
    while not files.take(place / "b.lease"):
        time.sleep(0.001)
    descriptor = os.open(place / "inside", os.O_CREAT | os.O_EXCL)
    os.close(descriptor)
    time.sleep(0.002)
    (place / "inside").unlink()
    files.give(place / "b.lease")
print("fine")
"""
Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SILENCE", SILENCE)
    monkeypatch.setattr(files, "BEAT", 0.2)
    monkeypatch.setattr(files, "POLL", 0.05)
    monkeypatch.setattr(files, "_leases", {})


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(code: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen([sys.executable, "-c", SETTINGS + code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_stopped_process_loses_its_lease_and_writes_no_more(tmp_path: Path, start: Start) -> None:
    """A laptop's lid, a suspended container, a hung node: filelock#526 asks for leases that end so."""
    other = start(HOLD)
    assert line(other) == "held"
    time.sleep(2 * SILENCE)
    assert not take(tmp_path / "a.lease")  # it is heard of, for as long as it runs
    assert holder(tmp_path / "a.lease").startswith(f"process {other.pid} on ")
    os.kill(other.pid, signal.SIGSTOP)
    begun = time.monotonic()
    while not take(tmp_path / "a.lease"):
        time.sleep(0.05)
    assert time.monotonic() - begun > SILENCE - 0.3  # less the age of the last heartbeat
    last = (tmp_path / "written.txt").read_text()
    check_held()
    write_text(tmp_path / "mine.txt", "mine")
    os.kill(other.pid, signal.SIGCONT)
    said = line(other)
    assert said.startswith("lost a: process ")
    assert "took it over while this process was not heard of" in said
    other.wait(10)
    assert (tmp_path / "written.txt").read_text() == last
    check_held()  # what it gave back at its end was not ours
    give(tmp_path / "a.lease")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "written.txt"]


def test_a_killed_process_is_known_to_be_dead_at_once(tmp_path: Path, start: Start) -> None:
    other = start(HOLD)
    assert line(other) == "held"
    other.kill()
    other.wait()
    ranks.first()  # torch is imported
    begun = time.monotonic()
    with leased(tmp_path / "a.lease", "not at once"):
        assert time.monotonic() - begun < SILENCE / 2


def test_there_are_never_two_owners(tmp_path: Path, start: Start) -> None:
    """Four processes contend, and a dead one's lease is there from the beginning: each steps in with nobody inside."""
    dead = start('assert files.take(place / "b.lease"); import os; os._exit(0)')
    dead.wait(30)
    assert (tmp_path / "b.lease").exists()
    for process in [start(CONTEND) for _ in range(4)]:
        assert process.communicate(timeout=60)[0] == "fine\n"
    assert not list(tmp_path.iterdir())


def test_a_lease_is_refused_or_waited_for(tmp_path: Path, start: Start) -> None:
    other = start(HOLD)
    assert line(other) == "held"
    with (
        pytest.raises(InputError, match=rf"^busy \(process {other.pid} on .*\); wait for it"),
        leased(tmp_path / "a.lease", "busy"),
    ):
        pass
    os.kill(other.pid, signal.SIGTERM)
    with leased(tmp_path / "a.lease"):
        assert other.wait(5) != 0


def test_leases_nest(tmp_path: Path) -> None:
    with leased(tmp_path / "deep" / "a.lease"):
        with leased(tmp_path / "deep" / "a.lease"):
            check_held()
        with pytest.raises(InputError, match=f"^no more than once .process {os.getpid()} on"):
            leased(tmp_path / "deep" / "a.lease", "no more than once").__enter__()
        assert (tmp_path / "deep" / "a.lease").exists()
    assert not (tmp_path / "deep" / "a.lease").exists()
    assert files._leases == {}


def test_a_lease_that_somebody_removed_is_lost(tmp_path: Path) -> None:
    with leased(tmp_path / "a.lease"):
        (tmp_path / "a.lease").unlink()
        with pytest.raises(LeaseLostError, match=r"^a: it cannot be read which process took it over"):
            write_text(tmp_path / "x.txt", "x")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cannot be written"):
        take(tmp_path / "file" / "a.lease")
