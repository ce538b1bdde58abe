"""What a reader yields: one model's scores, and what must be known of them to compare them with another's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cltk.measure.scores import Scores


@dataclass(frozen=True)
class Side:
    """One model of a log."""

    name: str
    scores: Scores
    source: Path  # the file or folder that was named
    targets: dict[str, list[str]] = field(default_factory=dict)  # task -> hash of each document's right answer, where logged
    files: dict[str, Path] = field(default_factory=dict)  # task -> the file with its documents, where there is one
    about: dict[str, Any] = field(default_factory=dict)  # what made the scores: harness, backend, dtype, their versions
    notes: list[str] = field(default_factory=list)  # what was passed over, a line each
