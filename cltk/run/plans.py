"""What an experiment is once its YAML is read: its cells, and where every key came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cltk.run.spec import DataSpec, Experiment
from cltk.run.yaml import Keys

Where = Callable[[Keys], str]  # key path -> "file:line"


@dataclass(frozen=True)
class Cell:
    """One training run of an experiment."""

    method: str  # the name of its mitigators in tables
    labels: dict[str, Any]  # grid key -> value or its name
    config: Experiment  # without grid
    stage: str = ""  # of one training of a stream
    search: dict[str, Any] = field(default_factory=dict)  # what a search says of it in its record; no number follows from it

    @property
    def data(self) -> DataSpec:
        """The new task of a cell that is one training."""
        assert self.config.data is not None
        return self.config.data

    @property
    def side(self) -> str:
        """Which rows of the new task are measured."""
        split = self.config.evals.split
        return "validation" if split is not None and split.measure == "validation" else "heldout"

    @property
    def trainings(self) -> list[Cell]:
        """A cell of one training for every stage; this cell itself where there are none."""
        config = self.config
        changes = [{"data": stage.data, "train": {**config.train, **stage.train}, "stages": []} for stage in config.stages]
        cells = [replace(self, config=config.model_copy(update=change)) for change in changes]
        return [replace(cell, stage=stage.name) for cell, stage in zip(cells, config.stages, strict=True)] or [self]

    @property
    def name(self) -> str:
        """A folder name: method, seed and other grid values."""
        parts = [self.method] + [f"{key.split('.')[-1]}={value}" for key, value in self.labels.items() if key != "mitigators"]
        text = "_".join(parts) if self.labels.get("seed") is not None else "_".join([*parts, f"seed={self.config.seed}"])
        return (
            "".join(c if c.isalnum() or c in "-_=.+" else "-" for c in text).lstrip(".").encode()[:120].decode(errors="ignore")
        )


@dataclass(frozen=True)
class Plan:
    """A validated file: its experiment and cells. `folder` is what relative paths start from."""

    file: Path
    experiment: Experiment
    cells: list[Cell]
    overrides: tuple[str, ...] = ()  # `key=value`, over what the file says

    @property
    def folder(self) -> Path:
        return self.file.parent
