"""The tuned model that a cell keeps until its record is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cltk import models, tensors
from cltk.errors import InputError
from cltk.files import check_held, sync_tree
from cltk.hosts.deepspeed import whole
from cltk.measure.scores import Scores
from cltk.models.origin import Origin
from cltk.run import records
from cltk.run.outcome import Leg
from cltk.run.plans import Cell
from cltk.run.train import CURVES

FAILED = "failed.json"

KEPT = "trained-"  # begins the names of trainings that cells share

STATES, STAGE = "mitigators.safetensors", "stage.json"


def clean(folder: Path) -> None:
    """Remove what a cell with a record needs no more. The curves of its stages stay, by their names."""
    (folder / FAILED).unlink(missing_ok=True)
    for curves in sorted(folder.glob(f"stages/*/{CURVES}")):
        shutil.copytree(curves, folder / CURVES / curves.parent.name, dirs_exist_ok=True)
    for left in ("checkpoints", "stages"):
        shutil.rmtree(folder / left, ignore_errors=True)


def _files(place: Path) -> dict[str, str]:
    """What a finished training hands on, by digest."""
    return {"model": models.stored_digest(place / "model"), "mitigators": models.file_digest(place / STATES)}


def keep(leg: Leg, place: Path, tokenizer: Any, mitigators: list[Any]) -> None:
    """Keep a training for what goes on from it. Its own file is written last: with it, everything else is there."""
    check_held()
    leg.model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    tensors.save_tree(place / STATES, {str(i): m.state_dict() for i, m in enumerate(mitigators)})
    sync_tree(place / "model")
    records.write_json(place / STAGE, {"scores": leg.scores.to_json(), "train": leg.train, "files": _files(place)})
    shutil.rmtree(place / "checkpoints", ignore_errors=True)


def kept_model(cell: Cell, place: Path) -> tuple[Any, Any]:
    """The weights of a kept training and its tokeniser."""
    return models.load_model(Origin(str(place / "model"), cell.config.model.args), dtype=cell.config.model.dtype)


def finished(place: Path) -> Leg:
    """A kept training, without its weights. Raises InputError when its files are not as they were."""
    kept = records.read_json(place / STAGE)
    if _files(place) != kept["files"]:
        raise InputError(
            f"{place}: the weights or states of this finished training are damaged; delete the folder to train again"
        )
    return Leg(Scores.from_json(kept["scores"]), kept["train"])


def unsharded(trained: Any, another: Callable[[], Any]) -> Any:
    """The model itself; of one that is in pieces (FSDP, ZeRO-3) a whole copy on every rank, in the weights of `another`.

    What else the training (`cltk.run.train.Trained`) holds is released.
    """
    model = trained.model
    named = dict(model.named_parameters())
    if any(hasattr(p, "full_tensor") or hasattr(p, "ds_id") for p in named.values()):
        model = another()
        with whole(trained.model):
            for name, parameter in model.named_parameters():
                parameter.data.copy_(tensors.whole(named[name].detach()))
    trained.release()
    return model
