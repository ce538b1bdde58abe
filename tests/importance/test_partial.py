"""An interrupted Fisher goes on from its partial file, to the same bits; anything else starts afresh."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from cltk.cli import main
from cltk.errors import InputError
from cltk.importance import partial as importance
from cltk.importance.estimators import PerSequence
from cltk.importance.fisher import Importance, fisher
from tests import forks
from tests.conftest import sentences
from tests.importance.test_importance import llama, rows_of

ROWS = [*rows_of(5, 9, 4), {"input_ids": [3]}, *rows_of(7, 6, 5, 8, 3, 6, 9, seed=1)]


@pytest.fixture(autouse=True)
def _after_every_batch(monkeypatch):
    monkeypatch.setattr(importance, "PARTIAL_SECONDS", 0.0)
    monkeypatch.setattr(importance.Partial, "cost", property(lambda self: 0.0, lambda self, seconds: None), raising=False)


class Killed(Exception):
    pass


def stop_at(sequences):
    def progress(done):
        if done >= sequences:
            raise Killed

    return progress


def interrupted(path, model, sequences=6, rows=ROWS, **arguments):
    with pytest.raises(Killed):
        fisher(model, rows, **{"batch_size": 2, **arguments}, partial=path, progress=stop_at(sequences))
    assert path.exists()


def seen_by(model, path, rows=ROWS, **arguments):
    """The result, and the counts that the progress saw."""
    seen = []
    return fisher(model, rows, **{"batch_size": 2, **arguments}, partial=path, progress=seen.append), seen


def same(a, b):
    assert {**a.info, "seconds": 0} == {**b.info, "seconds": 0}
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["mc", "exact", "empirical", "mas"])
def test_it_goes_on_to_the_same_bits(kind, tmp_path):
    whole, path = fisher(llama(), ROWS, kind, batch_size=2), tmp_path / "f.partial.safetensors"
    interrupted(path, llama(), 4, kind=kind)
    interrupted(path, llama(), 8, kind=kind)
    found, seen = seen_by(llama(), path, kind=kind)
    assert seen == [10]
    same(found, whole)


def test_the_loop_goes_on_as_a_loop(tmp_path):
    path = tmp_path / "f.partial.safetensors"
    original = PerSequence._try
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PerSequence, "_try", lambda self, row: (original(self, row), "loop")[1])
        whole = fisher(llama(), ROWS, "empirical", batch_size=2)
        interrupted(path, llama(), kind="empirical")
    found, _ = seen_by(llama(), path, kind="empirical")
    assert found.info["method"] == "loop"
    same(found, whole)


def test_a_stop_at_rtol_is_not_passed_over(tmp_path):
    path, rows = tmp_path / "f.partial.safetensors", rows_of(*[6] * 40)
    whole = fisher(llama(), rows, batch_size=2, rtol=0.5)
    assert 10 <= whole.info["sequences"] < 40
    interrupted(path, llama(), whole.info["sequences"], rows, rtol=0.5)
    found, seen = seen_by(llama(), path, rows, rtol=0.5)
    assert seen == []
    same(found, whole)


@pytest.mark.parametrize(
    "change",
    [
        {"model": llama(seed=1)},
        {"rows": ROWS[:-1]},
        {"seed": 1},
        {"batch_size": 3},
        {"samples": 9},
        {"first": 4},
        {"kind": "exact"},
    ],
    ids=["model", "rows", "seed", "batch_size", "samples", "first", "kind"],
)
def test_other_inputs_start_afresh_and_say_so(change, tmp_path, caplog):
    path = tmp_path / "f.partial.safetensors"
    interrupted(path, llama())
    arguments = {"model": llama(), "rows": ROWS, **change}
    model, rows = arguments.pop("model"), arguments.pop("rows")
    found, seen = seen_by(model, path, rows, **arguments)
    assert seen[0] <= 3
    assert "starts afresh" in caplog.text
    same(found, fisher(model, rows, **{"batch_size": 2, **arguments}))


def test_a_damaged_file_starts_afresh(tmp_path, caplog):
    path = tmp_path / "f.partial.safetensors"
    interrupted(path, llama())
    path.write_bytes(path.read_bytes()[:-9])
    found, seen = seen_by(llama(), path)
    assert seen[0] == 2
    assert "starts afresh" in caplog.text
    same(found, fisher(llama(), ROWS, batch_size=2))


def test_an_iterator_cannot_be_read_twice(tmp_path):
    with pytest.raises(InputError, match="partial needs rows that can be read twice"):
        fisher(llama(), iter(ROWS), partial=tmp_path / "f.partial.safetensors")


# --- the command


@pytest.fixture
def command(tiny_folder, tmp_path):
    (tmp_path / "old.txt").write_text("\n\n".join(sentences(200, seed=1)))
    return ["fisher", str(tiny_folder), "--memory", str(tmp_path / "old.txt"), "--block", "16", "--batch-size", "4"]


def test_the_command_goes_on_and_cleans_up(command, tmp_path, monkeypatch):
    assert main([*command, "--out", str(tmp_path / "whole.safetensors")]) == 0
    calls, keep = [], importance.Partial.keep

    def killing(self, *state):
        keep(self, *state)
        calls.append(state)
        if len(calls) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(importance.Partial, "keep", killing)
    out = tmp_path / "f.safetensors"
    assert main([*command, "--out", str(out)]) == 130
    assert not out.exists()
    assert (tmp_path / "f.partial.safetensors").exists()
    assert main([*command, "--out", str(out)]) == 0
    assert not list(tmp_path.glob("*.partial.safetensors"))
    whole = Importance.load(tmp_path / "whole.safetensors")
    same(Importance.load(out), whole)
    assert len(calls) == whole.info["batches"]  # none was done twice


def test_autocast_of_the_command(command, tmp_path):
    found = {}
    for name, switch in (("wide", []), ("narrow", ["--autocast"])):
        assert main([*command, "--out", str(tmp_path / f"{name}.safetensors"), "--samples", "8", *switch]) == 0
        found[name] = Importance.load(tmp_path / f"{name}.safetensors")
    assert (found["wide"].info["autocast"], found["narrow"].info["autocast"]) == (False, True)
    assert 0 < abs(found["narrow"].trace / found["wide"].trace - 1) < 0.1


def test_rtol_and_floor_of_the_command(command, tmp_path):
    out = tmp_path / "f.safetensors"
    assert main([*command, "--out", str(out), "--rtol", "0.9", "--floor", "0.5", "--normalize", "mean"]) == 0
    found = Importance.load(out)
    assert found.info["batches"] == 5
    assert found.info["floor"] == 0.5
    assert found.mean == pytest.approx(1)
    assert min(float(value.min()) for value in found.values()) >= 0.5 / 1.5 * 0.999
    assert main([*command, "--out", str(out), "--rtol", "0"]) == 2
    assert main([*command, "--out", str(out), "--floor", "-1"]) == 2


@pytest.mark.slow
def test_kill_9_in_the_middle(command, tmp_path):
    out, partial = tmp_path / "f.safetensors", tmp_path / "f.partial.safetensors"
    code = "import sys, cltk.importance.partial as i, cltk.cli; i.PARTIAL_SECONDS = 0.0; sys.exit(cltk.cli.main(sys.argv[1:]))"
    slow = [*command, "--kind", "exact", "--samples", "4", "--block", "8", "--batch-size", "1"]
    process = forks.Popen([sys.executable, "-c", code, *slow, "--out", str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert partial.exists()
    assert not out.exists()
    assert main([*slow, "--out", str(out)]) == 0
    assert main([*slow, "--out", str(tmp_path / "whole.safetensors")]) == 0
    same(Importance.load(out), Importance.load(tmp_path / "whole.safetensors"))
