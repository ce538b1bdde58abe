"""Where the numbers of a study come from: models, data, versions, settings, and the commands to make them again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cltk.report.sources import Record
from cltk.run.records import DIGESTS


@dataclass(frozen=True)
class Run:
    """A line of the table of runs."""

    method: str
    seed: int
    steps: int | None
    tokens: int | None
    seconds: float | None
    weights: str | None
    cell: str | None
    settings: str  # those that not all runs share


def provenance(records: Sequence[Record]) -> dict[str, Any]:
    """`facts` (each distinct value once), `settings` that all runs share, `commands`, and `runs`."""
    facts: dict[str, dict[str, None]] = {}
    commands: dict[str, None] = {}
    for record in records:
        for name, value in _facts(record):
            facts.setdefault(name, {})[value] = None
        if command := _command(record.get("environment", {})):
            commands[command] = None
    settings = [dict(leaves(record.get("config", {}))) for record in records]
    common = {name: value for name, value in settings[0].items() if all(one.get(name) == value for one in settings)}
    return {
        "facts": {name: list(values) for name, values in facts.items()}, "settings": common, "commands": list(commands),
        "runs": [_run(record, own, common) for record, own in zip(records, settings, strict=True)],
    }  # fmt: skip


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    environment = record.get("environment", {})
    yield "model", str(record.get("config", {}).get("model", {}).get("pretrained"))
    for name, value in leaves(record.get("digests", {})):
        if name not in ("cell", "tuned_model"):
            yield f"sha256 of {name.replace('_', ' ') if name in DIGESTS else name.removeprefix('files.')}", value
    for name in ("cltk", "git_commit", "python", "device", "platform"):
        if environment.get(name) is not None:
            yield name.replace("_", " "), str(environment[name])
    yield from leaves(environment.get("packages", {}))


def _command(environment: Record) -> str:
    """The command, in the commit that it ran in where that is known."""
    command, commit = environment.get("command") or "", environment.get("git_commit") or ""
    return f"git checkout {commit} && {command}" if command and commit and not commit.endswith("-dirty") else command


def _run(record: Record, settings: dict[str, str], common: dict[str, str]) -> Run:
    train, digests = record["train"], record.get("digests", {})
    own = [f"{name}={value}" for name, value in settings.items() if name not in common and name != "seed"]
    return Run(
        record["method"], record.get("seed", 0), train.get("steps"), train.get("tokens"), record.get("seconds"),
        digests.get("tuned_model"), digests.get("cell"), ", ".join(own),
    )  # fmt: skip


def _text(value: object) -> str:
    """As JSON."""
    return str(value) if type(value) is int else json.dumps(value, ensure_ascii=False, default=str)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of everything that was set in nested mappings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, value if isinstance(value, str) else _text(value)
