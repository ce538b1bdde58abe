"""Which checkpoint is taken up: the newest whole one, and no other."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cltk import files
from cltk.cli import main
from cltk.errors import DiskError, InputError
from cltk.files import write_atomic
from cltk.run import checkpoints
from cltk.run.checkpoints import SEAL, newest, opened, seal
from cltk.run.outcome import check_json
from cltk.run.records import read_json
from cltk.run.train import Counter
from tests.conftest import TINY
from tests.survive.trials import TRAINED, results

KEPT = {
    "step": 4, "tokens": 7, "seconds": 1.5, "loss": 0.25, "loss_sum": 3.0, "logged": 2, "finished": False, "choices": {},
}  # fmt: skip


def checkpoint(output: Path, step: int, sealed: bool = True) -> Path:
    folder = output / f"checkpoint-{step}"
    (folder / "shards").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(100)) * step)
    (folder / "shards" / "optimizer.pt").write_bytes(b"moments")
    if sealed:
        seal(folder, {**KEPT, "step": step})
    return folder


def test_the_newest_sealed_one_is_taken(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") is None
    for step in (2, 10, 4):
        checkpoint(tmp_path, step)
    (tmp_path / "last_good").mkdir()
    assert newest(tmp_path) == (tmp_path / "checkpoint-10", {**KEPT, "step": 10})


def test_an_unfinished_one_is_removed_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4, sealed=False)
    found = newest(tmp_path)
    assert found is not None
    assert found[0].name == "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()
    assert "checkpoint-4: was not finished" in caplog.text


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, tuple[Any, str]] = {
    "flipped": (lambda f: flip(f / "model.safetensors"), r"model\.safetensors: damaged"),
    "cut": (lambda f: cut(f / "shards" / "optimizer.pt"), r"optimizer\.pt: damaged"),
    "gone": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors: missing"),
    "added": (lambda f: (f / "more.bin").write_bytes(b""), r"more\.bin: was added"),
    "seal flipped": (lambda f: flip(f / SEAL), r"complete\.json: damaged"),
    "seal cut": (lambda f: cut(f / SEAL), r"complete\.json: damaged"),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damaged_one_is_named_and_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    damage, message = DAMAGES[name]
    checkpoint(tmp_path, 2)
    damaged = checkpoint(tmp_path, 4)
    (tmp_path / "damaged-checkpoint-4").mkdir()  # of another time
    damage(damaged)
    with pytest.raises(InputError, match=message):
        opened(damaged)
    before = sorted(path.name for path in damaged.rglob("*"))
    found = newest(tmp_path)
    assert found is not None
    assert found[0].name == "checkpoint-2"
    assert "set aside as damaged-checkpoint-4-2" in caplog.text
    assert sorted(path.name for path in (tmp_path / "damaged-checkpoint-4-2").rglob("*")) == before


def test_a_seal_cannot_name_files_outside(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 2)
    (tmp_path / "secret").write_text("secret")
    sealed = read_json(folder / SEAL)
    sealed["files"]["../secret"] = checkpoints.file_digest(tmp_path / "secret")
    checkpoints.write_json(folder / SEAL, sealed)
    with pytest.raises(InputError, match="secret: missing"):
        opened(folder)


def test_a_seal_of_another_version_is_no_seal(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 2)
    seal(folder, {"step": 2})
    with pytest.raises(InputError, match="not of this version"):
        opened(folder)


def test_leftovers_of_dead_processes_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = files.HOST
    names = (f".a.json.{host}-{2**22 + 1}.tmp", f".a.json.{host}-{os.getppid()}.tmp", ".a.json.far-1.tmp", ".b.json.tmp")
    dead, alive, elsewhere, other = (tmp_path / name for name in names)
    for path in (dead, alive, elsewhere, other):
        path.write_text("half")
    write_atomic(tmp_path / "a.json", lambda path: path.write_text("whole") and None)
    assert (tmp_path / "a.json").read_text() == "whole"
    assert [path.exists() for path in (dead, alive, elsewhere, other)] == [False, True, True, True]


@pytest.mark.parametrize(
    ("error", "reason", "advice"),
    [
        (OSError(28, "No space left on device"), "No space left on device", "free some space"),
        (OSError(30, "Read-only file system"), "Read-only", "make it writable"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "unexpected pos", "run the same"),
        (ValueError("I/O error: No space left on device (os error 28)"), "os error 28", "free some space"),
    ],
)
def test_a_failed_write_is_one_line_and_leaves_the_old_file(tmp_path: Path, error: Exception, reason: str, advice: str) -> None:
    (tmp_path / "a.json").write_text("old")

    def write(path: Path) -> None:
        path.write_text("ha")
        raise error

    with pytest.raises(DiskError, match="cannot be written") as raised:
        write_atomic(tmp_path / "a.json", write)
    assert reason in str(raised.value)
    assert advice in str(raised.value)
    assert "\n" not in str(raised.value)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


def test_other_errors_pass(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        raise ValueError("not this")

    with pytest.raises(ValueError, match="not this"):
        write_atomic(tmp_path / "a.json", write)


def test_where_nothing_can_be_written_is_found_early(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files.check_folder(tmp_path / "new" / "deep", "--out")
    with pytest.raises(InputError, match="file is a file"):
        files.check_folder(tmp_path / "file" / "deep", "--out")
    with pytest.raises(DiskError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "a.json", lambda path: None)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder_is_found_early(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="may not be written to"):
        files.check_folder(tmp_path / "out", "--out")
    with pytest.raises(DiskError, match="make it writable"):
        write_atomic(tmp_path / "a.json", lambda path: None)
    tmp_path.chmod(0o700)


def test_half_written_json_is_found(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="nothing was written"):
        check_json(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jsonl").write_text('{"a": 1}\n{"a": "\u2028"}\n', encoding="utf-8")
    check_json(tmp_path)
    (tmp_path / "deep" / "b.json").write_text('{"a": ')
    with pytest.raises(DiskError, match=r"b\.json: not whole"):
        check_json(tmp_path)


EXPERIMENT = (
    f"{TINY}{TRAINED}"
    + """\
evals: {retain: [toy, {text: old.jsonl, name: old_text, limit: 8}], include_path: tasks, limit: 6, kl_rows: 4}
speed: {onednn: false, autocast: false}
mitigators:
  - ewc: {strength: 1.0, importance: {memory: old.jsonl, samples: 8, block: 32}}
  - ema: {decay: 0.5}
keep_model: false
"""
)


@pytest.fixture
def stopped(study: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run in peace in `peace`, one stopped behind its fifth step in `out`; the results of the first."""
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    Path("x.yaml").write_text(EXPERIMENT)
    assert main(["run", "x.yaml", "--out", "peace"]) == 0
    watch, steps = Counter.watch, []

    def interrupted(self: Counter, trainer: Any) -> None:
        watch(self, trainer)
        step = trainer.training_step

        def counted(*args: Any, **kwargs: Any) -> Any:
            steps.append(1)
            if len(steps) > 5:
                raise KeyboardInterrupt
            return step(*args, **kwargs)

        trainer.training_step = counted

    with monkeypatch.context() as patch:
        patch.setattr(Counter, "watch", interrupted)
        assert main(["run", "x.yaml", "--out", "out"]) == 130
    assert sorted(path.name for path in Path("out").glob("*/checkpoints/*")) == ["checkpoint-2", "checkpoint-4"]
    return results(Path("peace"))


def last(out: str) -> Path:
    return next(Path(out).glob("*/checkpoints/checkpoint-4"))


WITH_WARNING: dict[str, Any] = {
    "weights cut": lambda out: cut(last(out) / "model.safetensors"),
    "optimizer flipped": lambda out: flip(last(out) / "optimizer.pt"),
    "random states gone": lambda out: (last(out) / "rng_state.pth").unlink(),
    "averages flipped": lambda out: flip(last(out) / "cltk.safetensors"),
    "seal cut": lambda out: cut(last(out) / SEAL),
    "seal gone": lambda out: (last(out) / SEAL).unlink(),
    "both": lambda out: [cut(file) for file in Path(out).glob("*/checkpoints/checkpoint-*/trainer_state.json")],
    "no checkpoint and a Fisher cut": lambda out: [
        shutil.rmtree(next(Path(out).glob("*/checkpoints"))), *map(cut, Path(out).glob("cache/ewc-*.safetensors")),
    ],
    "no checkpoint and a Fisher flipped": lambda out: [
        shutil.rmtree(next(Path(out).glob("*/checkpoints"))), *map(flip, Path(out).glob("cache/ewc-*.safetensors")),
    ],
    "a journal's end lost": lambda out: [
        next(Path(out).glob("base-*/scores.json")).unlink(),
        *(file.write_bytes(file.read_bytes()[:-7] + bytes(9000)) for file in Path(out).glob("cache/journal-*.jsonl")),
    ],
}  # fmt: skip


def said(caplog: pytest.LogCaptureFixture) -> str:
    """What cltk itself warned of."""
    return "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("cltk"))


@pytest.mark.slow
def test_whatever_is_damaged_the_result_is_the_same(
    stopped: dict[str, Any], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("out", "whole")
    assert main(["run", "x.yaml", "--out", "whole"]) == 0
    assert results(Path("whole")) == stopped
    assert not said(caplog)
    for name, damage in WITH_WARNING.items():
        shutil.copytree("out", name)
        damage(name)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert main(["run", "x.yaml", "--out", name]) == 0, (name, capsys.readouterr().err)
        if name != "a journal's end lost":  # a line without an end is what every kill leaves
            assert any(word in said(caplog) for word in ("set aside", "removed", "damaged", "sha256")), name
        assert results(Path(name)) == stopped, name


@pytest.mark.slow
def test_scores_that_are_damaged_are_named_and_kept(stopped: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    base = next(Path("out").glob("base-*/scores.json"))
    whole = base.read_bytes()
    for damage in (flip, cut):
        base.write_bytes(whole)
        damage(base)
        damaged = base.read_bytes()
        capsys.readouterr()
        assert main(["run", "x.yaml", "--out", "out"]) in (1, 2)
        said = capsys.readouterr().err
        assert f"{base}: damaged" in said
        assert "Traceback" not in said
        assert base.read_bytes() == damaged
    base.write_bytes(whole)
    journal = next(path for path in sorted(Path("out/cache").glob("journal-*.jsonl")))
    base.unlink()
    first, *rest = journal.read_bytes().split(b"\n", 1)
    journal.write_bytes(first[:-3] + b"\n" + rest[0])
    assert main(["run", "x.yaml", "--out", "out"]) in (1, 2)
    assert "line 1: the line is damaged; delete the file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_training_is_not_trained_on(
    stopped: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the evaluation behind it: the last checkpoint is taken, and no step is made."""
    from cltk.measure.evaluate import Suite

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Suite, "evaluate", interrupted)
        assert main(["run", "x.yaml", "--out", "out"]) == 130
    kept = json.loads(next(Path("out").glob("*/checkpoints/checkpoint-6/complete.json")).read_text())["kept"]
    assert kept["finished"] is True
    with monkeypatch.context() as patch:
        patch.setattr("transformers.Trainer.training_step", interrupted)
        assert main(["run", "x.yaml", "--out", "out"]) == 0, capsys.readouterr().err
    assert results(Path("out")) == stopped
