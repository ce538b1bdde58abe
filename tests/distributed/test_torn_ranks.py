"""Whose checkpoint a run of several ranks takes up; that a torn one is passed over is in test_resume_ranks.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cltk.errors import InputError
from cltk.run import checkpoints, claims
from cltk.run.checkpoints import SEAL, seal, taken_up

KEPT = {
    "step": 4, "tokens": 7, "seconds": 1.5, "loss": 0.25, "loss_sum": 3.0, "logged": 2, "finished": False, "choices": {},
}  # fmt: skip


def sealed(output: Path, **more: Any) -> Path:
    folder = output / "checkpoint-4"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    seal(folder, KEPT | more)
    return folder


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    """A job that is requeued with fewer cards would take other batches, and go on without random states, without a word."""
    folder = sealed(tmp_path / "two", ranks=2)
    with pytest.raises(InputError, match=r"checkpoint-4: was written by 2 processes and 1 would go on.*start 2, or begin"):
        taken_up(tmp_path / "two")
    assert folder.exists()
    assert taken_up(sealed(tmp_path / "one", ranks=1).parent)[1]["step"] == 4
    assert taken_up(sealed(tmp_path / "over", ranks=2, finished=True).parent)[1]["finished"]
    assert taken_up(sealed(tmp_path / "old").parent)[1]["step"] == 4  # of before this was kept
    assert taken_up(tmp_path / "none") == (None, {})


def test_a_rank_that_does_not_see_the_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sealed(tmp_path)
    monkeypatch.setattr(checkpoints, "gathered", lambda mine: [mine, False])
    with pytest.raises(InputError, match=r"checkpoint-4: rank 1 does not see it; all machines of a run must share its --out"):
        taken_up(tmp_path)
    assert (folder / SEAL).exists()


def test_ranks_that_do_not_share_the_output_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each machine would keep its own part of a checkpoint, and nobody sees all of them (huggingface/accelerate#3010)."""
    claims.check_shared(tmp_path)  # alone: nothing to ask
    monkeypatch.setattr(claims, "ranks", lambda: (0, 2))
    for there in (True, False):
        monkeypatch.setattr(claims, "gathered", lambda mine, there=there: [mine, there])
        if there:
            claims.check_shared(tmp_path)
        else:
            with pytest.raises(InputError, match=r"--out .*: rank 1 does not see what the first writes there"):
                claims.check_shared(tmp_path)
        assert not list((tmp_path / claims.PLACE).iterdir())


def test_a_part_that_the_first_rank_never_sees_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SILENCE", 0.2)
    folder = sealed(tmp_path)
    (folder / SEAL).unlink()
    with pytest.raises(InputError, match=r"the first rank does not see rng_state_1\.pth; all machines of a run must share"):
        checkpoints.sealed_by_all(folder, KEPT, [["model.safetensors"], ["rng_state_1.pth"]])
    assert not (folder / SEAL).exists()
    checkpoints.sealed_by_all(folder, KEPT, [["model.safetensors"], []])
    assert (folder / SEAL).exists()
