"""What two runs of one cell have in common, number by number, and what may have kept them apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cltk.run.records import digest_of

SECTIONS = ("retain", "learn", "divergence", "distance", "stream")
OWN = ("cell", "seed", "method", "experiment", "labels")  # of the record, repeated as they are
SAME = ("start_model", "tuned_model", "tasks", "rules", "files", "model_files")  # digests that a rerun repeats


@dataclass(frozen=True)
class Difference:
    """One thing that is not what the record says."""

    name: str  # retain.rows.toy.acc.post
    old: Any
    new: Any

    @property
    def size(self) -> float:
        """Relative to the old value, or absolute where that is below 1; infinite for what is no number."""
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (self.old, self.new)):
            return math.inf
        size = abs(self.new - self.old) / max(1.0, abs(self.old))
        return math.inf if math.isnan(size) else size

    def __str__(self) -> str:
        by = f", off by {self.new - self.old:+.3g}" if math.isfinite(self.size) else ""
        return f"{self.name}: was {self.old}, is {self.new}{by}"


def values_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a rerun must repeat, by dotted name: all of a record but times, memory, the machine and where files lay."""
    train = record.get("train", {})
    found = {key: record.get(key) for key in OWN if key in record}
    parts: dict[str, Any] = {
        "digests": {key: record["digests"].get(key) for key in SAME if key in record["digests"]},
        "train": {key: train[key] for key in ("steps", "tokens", "parameters") if key in train},
        "train.history": [_untimed(line) for line in train.get("history", [])],
        "train.notes": _without_times(train.get("notes", {})),
        **{role: record[role] for role in SECTIONS if role in record},
    }
    if "config" in record["digests"]:  # a later version has more keys, and a rerun keeps no model: each is held against itself
        whole = digest_of(record["config"]) == record["digests"]["config"]
        found["config"] = "as it was run" if whole else "edited since it was run"
    return found | {name: value for part, whole in parts.items() for name, value in flat(part, whole)}


def documents_of(scores: dict[str, Any], side: str) -> dict[str, Any]:
    """Everything in a file of per-document scores, by dotted name: weights, values, hashes, settings.

    Not the dtype, which files of an older cltk lack: it is the configuration's, and numbers show another one.
    """
    return dict(flat(side, {key: value for key, value in scores.items() if key not in ("sha256", "dtype")}))


def _untimed(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the history without what Trainer measures of the machine."""
    return {key: value for key, value in line.items() if not key.endswith(("_runtime", "_per_second"))}


def _without_times(notes: Any) -> Any:
    """Notes without the seconds that an importance took, and without `speed`, whose words hold times; see `choices`."""
    if not isinstance(notes, dict):
        return notes
    kept = {key: value for key, value in notes.items() if not (key == "seconds" and isinstance(value, int | float))}
    return {key: _without_times(value) for key, value in kept.items() if not (key == "speed" and isinstance(value, list))}


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(dotted name, leaf) of everything in nested mappings and lists; rows of a table by their task and metric."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            row = isinstance(item, dict) and "task" in item and "metric" in item
            yield from flat(f"{name}.{item['task']}.{item['metric']}" if row else f"{name}[{i}]", item)
    else:
        yield name, value


def differences(old: dict[str, Any], new: dict[str, Any], added: bool = True) -> Iterator[Difference]:
    """Every name whose value is not the same, or that only one side has. NaN equals NaN.

    Args:
        added: whether what only `new` has counts: not for records of a format that had less.
    """
    for name in [*old, *(name for name in new if added and name not in old)]:
        was, now = old.get(name), new.get(name)
        nan = all(isinstance(value, float) and math.isnan(value) for value in (was, now))
        if was != now and not nan:
            yield Difference(name, was, now)


def choices(record: dict[str, Any]) -> dict[str, dict[str, bool]]:
    """What `speed` came to in the training, by stage ("" where there are none): {stage: {what: on}}."""
    notes = record.get("train", {}).get("notes", {})
    found = {stage: part["speed"] for stage, part in {"": notes, **notes}.items() if isinstance(part, dict) and "speed" in part}
    return {stage: {one["what"]: one["on"] for one in listed} for stage, listed in found.items() if isinstance(listed, list)}


def causes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """What else is not as it was, the likeliest causes first: choices of `speed`, versions, commit, device, processes."""
    before, after = choices(old), choices(new)
    for stage, was in before.items():
        now = after.get(stage, {})
        of = f" of {stage}" if stage else ""
        yield from (
            f"speed.{what}{of} {_switch(was.get(what))}, now {_switch(now.get(what))}"
            for what in sorted({*was, *now} - {"allocator"})  # which changes no number
            if was.get(what) != now.get(what)
        )
    yield from changes(old.get("environment", {}), new.get("environment", {}))


def _switch(on: bool | None) -> str:
    return {True: "on", False: "off"}.get(on, "not known")  # type: ignore[arg-type]


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Versions, commit and device that are not the record's."""
    was, now = old.get("packages", {}), new.get("packages", {})
    yield from (
        f"{name} {was.get(name)}, now {now.get(name)}" for name in sorted({*was, *now}) if was.get(name) != now.get(name)
    )
    for key in ("cltk", "git_commit", "device", "products", "processes", "python", "platform"):
        if old.get(key) != new.get(key) and not (key == "processes" and key not in old):
            yield f"{key} {old.get(key)}, now {new.get(key)}"
