"""`cltk reproduce`: run a record's cell again, from the configuration in the record, and compare every number."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cltk import models
from cltk.errors import InputError, RunError
from cltk.run import records
from cltk.run.beside import cells_of, references_of
from cltk.run.claims import alone
from cltk.run.experiment import ExperimentRun
from cltk.run.plans import Plan
from cltk.run.sameness import Difference, causes, changes, choices, differences, documents_of, values_of
from cltk.run.speed import possible
from cltk.run.tidy import sweep
from cltk.run.trouble import explained

__all__ = ["Difference", "Reproduction", "changes", "differences", "experiment_of", "reproduce", "values_of"]

Tell = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Reproduction:
    """What came of one record."""

    record: Path
    cell: str
    tolerance: float
    compared: int  # numbers and texts
    differences: tuple[Difference, ...]
    causes: tuple[str, ...]  # what else is not as it was: choices of speed, versions, device
    rerun: Path  # the new record
    missing: tuple[str, ...] = ()  # files that lie beside no more: what they held was not compared
    there: bool = False  # the new record was there already, of a call before

    @property
    def beyond(self) -> list[Difference]:
        """Differences that count, the largest first. Within a tolerance the weights' digest does not."""
        free = self.tolerance > 0
        found = [d for d in self.differences if d.size > self.tolerance and not (free and _of_weights(d.name))]
        return sorted(found, key=lambda d: -d.size)

    @property
    def verdict(self) -> str:
        if not self.differences:
            return f"reproduced bit for bit ({self.compared} values)"
        if not self.beyond:
            largest = max((d for d in self.differences if math.isfinite(d.size)), key=lambda d: d.size, default=None)
            return f"reproduced within {self.tolerance:g}" + (f" (largest: {largest})" if largest else "")
        return f"not reproduced: {len(self.beyond)} of {self.compared} values differ"

    def to_json(self) -> dict[str, Any]:
        """What came of it, every difference that counts named."""
        return {
            "record": str(self.record), "cell": self.cell, "rerun": str(self.rerun), "verdict": self.verdict,
            "reproduced": not self.beyond, "compared": self.compared, "differences": [str(one) for one in self.beyond],
            "causes": list(self.causes), "not_compared": list(self.missing), "not_run_again": self.there,
        }  # fmt: skip

    def lines(self, most: int = 20) -> list[str]:
        """The verdict, then what differs and what may have caused it."""
        shown = [f"  {difference}" for difference in self.beyond[:most]]
        if len(self.beyond) > most:
            shown.append(f"  and {len(self.beyond) - most} more")
        causes = [f"  not as it was: {cause}" for cause in self.causes] if self.differences else []
        missing = [f"  not compared: {what}" for what in self.missing]
        there = [f"  not run again: {self.rerun} was there already"] if self.there else []
        return [f"{self.cell}: {self.verdict}", *there, *shown, *causes, *missing]


def _of_weights(name: str) -> bool:
    """Digests that change with a weight's last bit."""
    return name in ("digests.tuned_model", "documents.digest") or (name.startswith("train.notes.") and name.endswith("digest"))


def reproduce(
    where: str | Path, out: str | Path | None = None, tolerance: float = 0.0, tell: Tell | None = None, trust: bool = False,
    each: Callable[[Reproduction], None] = lambda _: None,
) -> list[Reproduction]:  # fmt: skip
    """Run the cells of these records again, in a folder of their own, and compare. The old records are only read.

    Args:
        where: a record, or a folder of them.
        out: where the new records go; runs/reproduced-NAME (with a number, if taken) when not given. Those that an interrupted
            call left there are compared, and not made again.
        tolerance: differences to accept, relative, or absolute where the old value is below 1; 0 for none.
        trust: see `cltk.load`.
        each: called with every result as soon as there is one.

    Raises:
        InputError: a record is damaged, or the model, data or tasks are not what the record saw; nothing is written then.
        RunError: cells cannot be run; the others were.
    """
    if not 0 <= tolerance < math.inf:
        raise InputError(f"--tolerance {tolerance}: give a finite number of at least 0")
    files = records.find_records(where)
    folder = Path(out) if out is not None else _free(files[0])
    prepared = [_prepare(file, folder, trust) for file in files]
    found, failed = [], []
    for file, old, run in prepared:
        try:
            found.append(_rerun(file, old, run, tolerance, tell or (lambda *_: None)))
        except RunError as error:
            failed.append(f"{run.cells[-1].name}: {error}")
            continue
        each(found[-1])
    if failed:
        raise RunError(f"{len(failed)} of {len(prepared)} records: {failed[0]}; --out {folder} goes on with what was done")
    with alone(folder):
        sweep(folder)
    return found


def _free(file: Path) -> Path:
    name = re.sub(r"[^\w.=+-]", "-", str(records.read_record(file).get("experiment", file.parent.name)))[:100]
    tries = [Path("runs") / f"reproduced-{name}{end}" for end in ("", *(f"-{n}" for n in range(2, 1000)))]
    return next(path for path in tries if not path.exists())


def _prepare(file: Path, out: Path, trust: bool) -> tuple[Path, dict[str, Any], ExperimentRun]:
    """Read, validate, and check inputs; nothing is written."""
    old = records.read_record(file)
    missing = [key for key in ("config", "folder", "digests", "method", "labels") if key not in old]
    if missing:
        raise InputError(f"{file}: {missing[0]} is missing; it is not a record of `cltk run`")
    if file.name == records.RECORD and out.resolve() == file.resolve().parent.parent:
        raise InputError(f"--out {out}: holds this record already; choose another folder")
    run = experiment_of(old, out, trust, file)
    _check_inputs(file, old, run)
    run.check()
    _check_tasks(file, old, run)
    return file, old, run


def experiment_of(record: dict[str, Any], out: Path, trust: bool = False, file: Path | None = None) -> ExperimentRun:
    """The record's cell, the last one, as an experiment with the references that predict its documents, if any do. Relative
    paths start where those of its YAML did.

    The record names its YAML as it was typed: below one of the folders that `file` lies in, or below the current one.
    """
    named = Path(record["folder"])
    tries = [*(folder / named for folder in (file.resolve().parents if file else ())), named]
    found = next((path for path in tries if path.is_file()), None)
    source = found or next((path for path in tries if path.parent.is_dir() and path.parent != Path()), named)
    try:
        if not source.parent.is_dir():
            raise InputError(f"{source.parent}: no such folder")
        cells = cells_of(record, source, references_of(record, file))
        return ExperimentRun(Plan(source, cells[-1].config, cells), out, trust)
    except InputError as error:
        if found:
            raise
        raise InputError(
            f"{error}; the record's relative paths start at the folder of {named}, which is not here: run this from the folder"
            " in which `cltk run` was typed"
        ) from None


def _check_inputs(file: Path, old: dict[str, Any], run: ExperimentRun) -> None:
    cell = run.cells[-1]
    model, listed = cell.config.model.spec, old["digests"]["files"]
    for name, now in run.inputs.files(cell).items():
        first = old.get("format", 1) == 1 and name == model  # weights and config, without the tokeniser's templates
        now = models.stored_digest(run.inputs.path(model), models.FIRST) if first else now
        if name in listed and listed[name] != now:
            what = "model" if name == model else "file"
            raise InputError(
                f"{name}: this {what} is not the one that {file} was made with ({listed[name][:12]}, now {now[:12]})"
            )


def _check_tasks(file: Path, old: dict[str, Any], run: ExperimentRun) -> None:
    """The documents and prompts of every task, and how it is scored, are the record's, before anything is scored."""
    cell = run.cells[-1]
    parts = (("tasks", run.inputs.documents(cell)), ("rules", run.inputs.rules(cell)))
    for key, now in parts:
        for name, was in old["digests"].get(key, {}).items():
            if now.get(name) != was:
                what = "documents or prompts" if key == "tasks" else "right answers, metrics or filters"
                raise InputError(f"task {name}: its {what} are not those that {file} was made with")


def _rerun(file: Path, old: dict[str, Any], run: ExperimentRun, tolerance: float, tell: Tell) -> Reproduction:
    cell = run.cells[-1]
    chosen = {stage: possible(found) for stage, found in choices(old).items()}
    work, new_file = replace(run.work(tell), choices=chosen, shared=frozenset()), run.folder(cell) / records.RECORD
    with alone(run.out), explained(cell.config, run.folder(cell)):
        for one, (_, beside) in zip(run.cells, references_of(old, file), strict=False):
            if not (place := run.folder(one) / records.SCORES).exists():  # one that was run again is the better one
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(beside, place)
        if not (there := new_file.exists()):
            work.cell(cell, int(old.get("order", 0)))
    new = records.read_record(new_file)
    sides, missing = [values_of(old), values_of(new)], []
    theirs = records.read_json(work.base_folder(cell) / records.SCORES)
    pairs = [("documents", _scores(file), records.read_json(new_file.with_name(records.SCORES)))]
    pairs.append(("start_model", _base(file, old, theirs), theirs))
    for name, was, now in pairs:
        if was is None:
            missing.append(f"{name.replace('_', ' ')}, document by document: {NOT_THERE[name]}")
            continue
        for side, scores in zip(sides, (was, now), strict=True):
            side.update(documents_of(scores, name))
    found = tuple(differences(sides[0], sides[1], added=old.get("format", 1) == records.FORMAT))
    return Reproduction(
        file, cell.name, tolerance, len(sides[0]), found, tuple(causes(old, new)), new_file, tuple(missing), there
    )


NOT_THERE = {"documents": "no scores.json beside the record", "start_model": "no base-*/scores.json of its output folder"}


def _scores(file: Path) -> dict[str, Any] | None:
    scores = records.scores_file(file)
    return records.read_json(scores) if scores.exists() else None


def _base(file: Path, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any] | None:
    """The start model's scores that the record was made with: by its measurement, else those that are most like `new`."""
    own = old["digests"].get("measurement", "")[:10]
    files = records.base_files(file)
    named = [path for path in files if own and f"base-{own}" in (path.parent.name[:15], path.name[:15])]
    found = [scores for scores in map(records.read_json, named or files) if named or scores["digest"] == new["digest"]]
    now = documents_of(new, "")
    return min(found, key=lambda scores: sum(1 for _ in differences(documents_of(scores, ""), now)), default=None)
