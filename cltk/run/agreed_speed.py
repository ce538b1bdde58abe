"""What `speed: auto` measured of a machine, once for an output folder, so that all its cells are trained alike.

Two processes on one folder, or a run and the one that goes on with it, need not measure the same: one of them shares its
cores, or runs on another processor. The first training of a folder measures and leaves `speed.json` there; all others take
what it says, and say so where it was made on another processor. A cell's own checkpoint or record goes before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cltk.files import LEASES, leased
from cltk.run import machine, records

FILE = "speed.json"


@dataclass(frozen=True)
class Measured:
    """What one process measured, and on what."""

    bfloat16: bool  # whether its products are faster
    onednn: bool  # whether float32 products through oneDNN are float32, and faster
    processor: str
    here: str  # the processor of this process

    @property
    def where(self) -> str:
        """For the reasons of a choice."""
        if self.processor == self.here:
            return f"as {FILE} of this folder says"
        return f"on {self.processor}, as {FILE} of this folder says; this is {self.here}"


def of_folder(out: Path | None, speed: Any, device: str) -> Measured | None:
    """What trainings of this folder take for `auto`; None for the one that is the first, and where nothing is to be measured.

    Args:
        out: the folder; None where a training has none.
        speed: cltk.run.spec.SpeedSpec.
        device: the model's, "cpu" or "cuda".

    Raises:
        InputError: the file is damaged.
    """
    if out is None or "auto" not in (speed.autocast, speed.onednn):
        return None
    file, here = out / FILE, records.processor(device)
    if device not in (kept := _kept(file)):
        with leased(out / LEASES / f"{FILE}.lease"):
            if device not in (kept := _kept(file)):  # nor did another process measure meanwhile
                found = {"bfloat16": machine.faster_in_bfloat16(device), "onednn": device == "cpu" and machine.faster_onednn()}
                records.write_json(file, {**kept, device: {**found, "processor": here}})
                return None
    return Measured(**kept[device], here=here)


def _kept(file: Path) -> dict[str, Any]:
    return records.read_json(file) if file.exists() else {}
