"""Checkpoints that count. Trainer writes its files one by one into their final folder: a kill leaves half of one there.

A checkpoint counts once `complete.json` stands in it: written last, with the sha256 of every file, after all of them are on
disk. `newest` believes no other: what was not finished is removed, what was damaged is set aside, each with a warning.

Trainer forgets things when it resumes; `Keeper` keeps them in `complete.json` and gives them back:

    loss, loss_sum, logged   of the steps since the last log line: else the next line and `train_loss` would differ
    tokens, seconds          spent before
    finished                 that training had ended: else Trainer would take a step more than max_steps
    choices                  what speed measured: another choice would train other bits
    ranks                    processes that trained: others would take other batches and find no random states
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from cltk.errors import InputError, Leave
from cltk.files import SILENCE, check_held, seen, sync
from cltk.models import file_digest
from cltk.ranks import agreed, decided, first, gathered, ranks
from cltk.run import leaving
from cltk.run.machine import MEASURED as MEASURED
from cltk.run.records import read_json, write_json

SEAL = "complete.json"
KEPT = ("step", "tokens", "seconds", "loss", "loss_sum", "logged", "finished", "choices")


def seal(folder: Path, kept: dict[str, Any]) -> None:
    """Put every file of `folder` on disk, then write `complete.json`: their sha256, and `kept`."""
    files = _files(folder)
    for path in [*files.values(), *{file.parent for file in files.values()}, folder.parent]:
        sync(path)
    write_json(folder / SEAL, {"files": {name: file_digest(file) for name, file in files.items()}, "kept": kept})


def sealed_by_all(folder: Path, kept: dict[str, Any], written: Sequence[Sequence[str]]) -> None:
    """`seal`, once this rank sees the files that every rank sees; a network file system shows them late.

    Raises:
        InputError: it never does.
    """
    for name in sorted({name for names in written for name in names}):
        if not seen(folder / name, SILENCE):
            raise InputError(f"{folder}: the first rank does not see {name}; all machines of a run must share its --out")
    seal(folder, kept)


def opened(folder: Path) -> dict[str, Any]:
    """What `seal` kept, once every file is as it was.

    Raises:
        InputError: a file is missing, was altered, or was added.
    """
    sealed = read_json(folder / SEAL)
    kept, listed = sealed.get("kept"), sealed.get("files")
    if not isinstance(kept, dict) or not isinstance(listed, dict) or any(key not in kept for key in KEPT):
        raise InputError(f"{folder / SEAL}: is not of this version of cltk")
    found = _files(folder)
    for name in sorted({*found, *listed}):
        if name not in found:
            raise InputError(f"{folder / name}: missing, though the checkpoint was whole once")
        if name not in listed:
            raise InputError(f"{folder / name}: was added to the checkpoint")
        if file_digest(found[name]) != listed[name]:
            raise InputError(f"{folder / name}: damaged (its sha256 changed)")
    return kept


def _files(folder: Path) -> dict[str, Path]:
    found = (path for path in sorted(folder.rglob("*")) if not path.is_dir() and path != folder / SEAL)
    return {path.relative_to(folder).as_posix(): path for path in found}


def newest(output: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint in `output` and what was kept with it; None where there is none."""
    say = logging.getLogger(__name__).warning
    names = os.listdir(output) if output.is_dir() else []
    steps = {int(match[1]): output / name for name in names if (match := re.fullmatch(r"checkpoint-(\d+)", name))}
    for step in sorted(steps, reverse=True):
        folder = steps[step]
        if not (folder / SEAL).exists() and not folder.is_symlink():
            say("%s: was not finished when its run ended; removed", folder)
            shutil.rmtree(folder)
            continue
        try:
            return folder, opened(folder)
        except InputError as error:
            aside = _free(output / f"damaged-{folder.name}")
            os.replace(folder, aside)
            say("%s; the checkpoint is set aside as %s, and training goes on from an older one or the start", error, aside.name)
    return None


def taken_up(output: Path) -> tuple[Path | None, dict[str, Any]]:
    """`newest` for all ranks alike: the first looks, and every one must see what it found. (None, {}) where there is none.

    Raises:
        InputError: on all ranks; one does not see it, or so many ranks as there are did not write it.
    """
    folder, kept = decided(lambda: newest(output) or (None, {}))
    if folder is None:
        return None, {}
    blind = [rank for rank, there in enumerate(gathered(seen(folder / SEAL))) if not there]
    if blind:
        raise InputError(f"{folder}: rank {blind[0]} does not see it; all machines of a run must share its --out")
    world, wrote = ranks()[1], kept.get("ranks", ranks()[1])
    if wrote != world and not kept["finished"]:
        raise InputError(
            f"{folder}: was written by {wrote} processes and {world} would go on, with other batches; start {wrote}, or begin"
            " the training anew (cltk clean --unfinished --yes)"
        )
    return folder, kept


def _free(path: Path) -> Path:
    tries = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in range(1, 10_000))
    return next(one for one in tries if not os.path.lexists(one))


def settled(config: Any, kept: dict[str, Any]) -> Any:
    """`config` (an Experiment) with what speed had measured before the checkpoint."""
    choices = {key: on for key, on in kept.get("choices", {}).items() if getattr(config.speed, key, None) == "auto"}
    return config.model_copy(update={"speed": config.speed.model_copy(update=choices)}) if choices else config


class Keeper(TrainerCallback):
    """Seals every checkpoint of `trainer`, and gives back to a resumed training what Trainer forgets.

    It stands behind all callbacks that write into a checkpoint. Older checkpoints are removed (save_total_limit) once the
    new one is sealed, not before.

    Args:
        trainer: whose checkpoints go to `output`.
        counter: has `trained`, the tokens trained on.
        choices: what speed chose, kept as it is.
        kept: what `newest` found; empty for a training from the start.
    """

    def __init__(self, trainer: Any, output: Path, counter: Any, choices: dict[str, bool], kept: dict[str, Any]) -> None:
        self.trainer, self.output, self.counter, self.choices, self.kept = trainer, output, counter, choices, kept
        self.limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None
        self.begun, self.owed, self.leaving = time.monotonic(), False, False
        if kept.get("finished"):
            trainer._run_epoch = self._no_epoch

    @property
    def seconds(self) -> float:
        """Spent on this training, in all sessions."""
        return self.kept.get("seconds", 0.0) + time.monotonic() - self.begun

    def _no_epoch(self, **_: Any) -> None:
        self.trainer.control.should_training_stop = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.counter.trained = self.kept.get("tokens", 0) if first() else 0  # of all ranks; auto_find_batch_size begins again
        if self.kept:
            self.trainer._tr_loss += self.kept["loss"]
            self.trainer._total_loss_scalar = self.kept["loss_sum"]
            self.trainer._globalstep_last_logged = self.kept["logged"]
            self.trainer._initial_global_step = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The last save of an epoch waits for the epoch's own log line and evaluation. Asked to leave, the process saves."""
        check_held()
        self.leaving = leaving.asked()
        if self.leaving:  # with the optimiser's state, or the next run would begin anew
            control.should_save, args.save_only_model = True, False
        stop = control.should_training_stop and (self.leaving or args.save_strategy in ("steps", "epoch"))
        if stop or (control.should_save and float(state.epoch).is_integer()):
            control.should_save, self.owed = False, True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = control.should_save or self.owed

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.owed = False
        trainer = self.trainer
        kept = {
            "step": state.global_step, "tokens": sum(gathered(int(self.counter.trained))), "seconds": self.seconds,
            "loss": trainer.accelerator.gather(trainer._tr_loss).mean().item(), "loss_sum": trainer._total_loss_scalar,
            "logged": trainer._globalstep_last_logged, "finished": bool(control.should_training_stop), "choices": self.choices,
            "ranks": ranks()[1],
        }  # fmt: skip
        folder = self.output / f"checkpoint-{state.global_step}"
        agreed(None)  # every rank has written its part, and no temporary file is left
        written = gathered(list(_files(folder)))
        if state.is_world_process_zero and folder.is_dir():
            sealed_by_all(folder, kept, written)
            rotate_checkpoints(str(self.output), self.limit, state.best_model_checkpoint)
        if self.leaving:
            agreed(None)  # nobody ends the others before it is sealed
            leaving.heed()
            raise Leave("another rank was asked to leave")

    def history(self) -> list[dict[str, float]]:
        """The log lines; of a resumed training without speeds, which Trainer takes from its last session alone."""
        lines = self.trainer.state.log_history
        if not self.kept:
            return lines
        return [{key: value for key, value in line.items() if key not in _SPEEDS} for line in lines]


_SPEEDS = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
