"""The documents of a log that were lost: found in its files of samples, which are read once more for them alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from cltk.errors import InputError
from cltk.logs import samples
from cltk.logs.side import Side
from cltk.measure.lost import Find


def among_files(side: Side) -> Find:
    """Looks in the files of a side, the first filter of each document; of a group in the files of its tasks."""

    def find(task: str, wanted: Collection[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for file in [side.files[task]] if task in side.files else dict.fromkeys(side.files.values()):
            try:
                for _, sample in samples.lines(file):
                    key = samples.hashes(sample)[0]
                    if key in wanted:
                        found.setdefault(key, sample)
            except (InputError, KeyError, TypeError, ValueError):
                continue
            if len(found) == len(wanted):
                break
        return found

    return find
