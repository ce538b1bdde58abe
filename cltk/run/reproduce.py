"""`cltk reproduce`: run a record's cell again, from the configuration in the record, and compare every number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.files import locked
from cltk.run import records
from cltk.run.config import Cell, Plan, validate
from cltk.run.experiment import ExperimentRun
from cltk.run.trouble import explained

Tell = Callable[[str, int, int, str], None]
TIMES = ("runtime", "per_second", "seconds")  # parts of keys whose numbers no rerun repeats
DIGESTS = ("start_model", "tuned_model")


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
        return abs(self.new - self.old) / max(1.0, abs(self.old))

    def __str__(self) -> str:
        by = f", off by {self.new - self.old:+.3g}" if math.isfinite(self.size) else ""
        return f"{self.name}: was {self.old}, is {self.new}{by}"


@dataclass(frozen=True)
class Reproduction:
    """What came of one record."""

    record: Path
    cell: str
    tolerance: float
    compared: int  # numbers and texts
    differences: tuple[Difference, ...]
    causes: tuple[str, ...]  # what else is not as it was: versions, device
    rerun: Path  # the new record

    @property
    def beyond(self) -> list[Difference]:
        """Differences that count, the largest first. Within a tolerance the weights' digest does not."""
        free = self.tolerance > 0
        found = [d for d in self.differences if d.size > self.tolerance and not (free and d.name == "digests.tuned_model")]
        return sorted(found, key=lambda d: -d.size)

    @property
    def verdict(self) -> str:
        if not self.differences:
            return f"reproduced bit for bit ({self.compared} values)"
        if not self.beyond:
            largest = max((d for d in self.differences if math.isfinite(d.size)), key=lambda d: d.size, default=None)
            return f"reproduced within {self.tolerance:g}" + (f" (largest: {largest})" if largest else "")
        return f"not reproduced: {len(self.beyond)} of {self.compared} values differ"

    def lines(self, most: int = 20) -> list[str]:
        """The verdict, then what differs and what may have caused it."""
        shown = [f"  {difference}" for difference in self.beyond[:most]]
        if len(self.beyond) > most:
            shown.append(f"  and {len(self.beyond) - most} more")
        causes = [f"  not as it was: {cause}" for cause in self.causes] if self.differences else []
        return [f"{self.cell}: {self.verdict}", *shown, *causes]


def reproduce(
    where: str | Path, out: str | Path | None = None, tolerance: float = 0.0, tell: Tell | None = None, trust: bool = False
) -> list[Reproduction]:
    """Run the cells of these records again, in a folder of their own, and compare. The old records are only read.

    Args:
        where: a record, or a folder of them.
        out: where the new records go; runs/reproduced-NAME (with a number, if taken) when not given.
        tolerance: differences to accept, relative, or absolute where the old value is below 1; 0 for none.
        trust: see `cltk.load`.

    Raises:
        InputError: a record is damaged, or the model, data or tasks are not what the record saw; nothing is written then.
        RunError: a cell cannot be run.
    """
    if not 0 <= tolerance < math.inf:
        raise InputError(f"--tolerance {tolerance}: give a finite number of at least 0")
    files = records.find_records(where)
    folder = Path(out) if out is not None else _free(files[0])
    prepared = [_prepare(file, folder, trust) for file in files]
    return [_rerun(file, old, run, tolerance, tell or (lambda *_: None)) for file, old, run in prepared]


def _free(file: Path) -> Path:
    name = records.read_json(file).get("experiment", file.parent.name)
    tries = [Path("runs") / f"reproduced-{name}{end}" for end in ("", *(f"-{n}" for n in range(2, 1000)))]
    return next(path for path in tries if not path.exists())


def _prepare(file: Path, out: Path, trust: bool) -> tuple[Path, dict[str, Any], ExperimentRun]:
    """Read, validate, and check inputs; nothing is written."""
    old = records.read_json(file)
    missing = [key for key in ("config", "folder", "digests", "method", "labels") if key not in old]
    if missing:
        raise InputError(f"{file}: {missing[0]} is missing; it is not a record of `cltk run`")
    run = experiment_of(old, out, trust)
    cell = run.cells[0]
    if (run.folder(cell) / records.RECORD).exists():
        raise InputError(f"--out {out}: holds a record of {cell.name} already; choose another folder")
    _check_inputs(file, old, run)
    run.check()
    _check_tasks(file, old, run)
    return file, old, run


def experiment_of(record: dict[str, Any], out: Path, trust: bool = False) -> ExperimentRun:
    """The record's single cell as an experiment. Relative paths start where those of its YAML did."""
    source = Path(record["folder"])
    if not source.parent.is_dir():
        raise InputError(
            f"{source.parent}: no such folder; the record's relative paths start there, run this from where it was"
        )
    plan = validate({**record["config"], "base": None, "grid": {}}, source, {}, {})
    config = plan.cells[0].config.model_copy(update={"keep_model": False})
    return ExperimentRun(Plan(source, plan.experiment, [Cell(record["method"], record["labels"], config)]), out, trust)


def _check_inputs(file: Path, old: dict[str, Any], run: ExperimentRun) -> None:
    cell = run.cells[0]
    for name, now in run.inputs.files(cell).items():
        was = old["digests"].get(name)
        if was is not None and was != now:
            what = "model" if name == cell.config.model.pretrained else "file"
            raise InputError(f"{name}: this {what} is not the one that {file} was made with ({was[:12]}, now {now[:12]})")


def _check_tasks(file: Path, old: dict[str, Any], run: ExperimentRun) -> None:
    """The documents and prompts of every task are the record's, before anything is scored."""
    now = run.inputs.tasks(run.cells[0])
    for name, was in old["digests"].get("tasks", {}).items():
        if now.get(name) != was:
            raise InputError(f"task {name}: its documents or prompts are not those that {file} was made with")


def _rerun(file: Path, old: dict[str, Any], run: ExperimentRun, tolerance: float, tell: Tell) -> Reproduction:
    cell, work = run.cells[0], run.work(tell)
    scores = file.with_name("scores.json")
    documents = records.read_json(scores) if scores.exists() else None
    with locked(run.out), explained(cell.config, run.folder(cell)):
        new = work.cell(cell, int(old.get("order", 0)))
    sides = [dict(values_of(record)) for record in (old, new)]
    if documents is not None:
        again = records.read_json(run.folder(cell) / "scores.json")
        for side, scored in zip(sides, (documents, again), strict=True):
            side.update(_flat("documents", {name: task["values"] for name, task in scored["tasks"].items()}))
    found = tuple(differences(*sides))
    causes = tuple(changes(old.get("environment", {}), new["environment"]))
    return Reproduction(file, cell.name, tolerance, len(sides[0]), found, causes, run.folder(cell) / records.RECORD)


def values_of(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a rerun must repeat: scores, rows, divergences, the loss curve and the weights' digests, by dotted name."""
    yield from _flat("digests", {key: record["digests"].get(key) for key in DIGESTS})
    train = record.get("train", {})
    yield from _flat("train", {key: train.get(key) for key in ("steps", "tokens", "history")})
    for role in ("retain", "learn", "divergence", "stream"):
        if role in record:
            yield from _flat(role, record[role])


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if not any(part in str(key) for part in TIMES):
                yield from _flat(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            row = isinstance(item, dict) and "task" in item and "metric" in item
            yield from _flat(f"{name}.{item['task']}.{item['metric']}" if row else f"{name}[{i}]", item)
    else:
        yield name, value


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Difference]:
    """Every name whose value is not the same, or that only one side has. NaN equals NaN."""
    for name in [*old, *(name for name in new if name not in old)]:
        was, now = old.get(name), new.get(name)
        nan = all(isinstance(value, float) and math.isnan(value) for value in (was, now))
        if was != now and not nan:
            yield Difference(name, was, now)


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Versions, commit and device that are not the record's, the likeliest causes first."""
    was, now = old.get("packages", {}), new.get("packages", {})
    yield from (
        f"{name} {was.get(name)}, now {now.get(name)}" for name in sorted({*was, *now}) if was.get(name) != now.get(name)
    )
    for key in ("cltk", "git_commit", "device", "python", "platform"):
        if old.get(key) != new.get(key):
            yield f"{key} {old.get(key)}, now {new.get(key)}"
