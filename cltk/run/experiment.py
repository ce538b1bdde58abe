"""load("x.yaml").run(): every cell that has no record yet. What has one is not done again."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cltk.errors import CltkError, DiskError, InputError, RunError
from cltk.files import check_folder, locked, shipped
from cltk.ranks import agreed, first, gathered, join, regroup
from cltk.run import records
from cltk.run.ahead import check_lengths, check_margins, check_roles, check_training
from cltk.run.apart import check_apart, models
from cltk.run.arguments import check_sharding
from cltk.run.cells import Tell, Work
from cltk.run.config import load_config
from cltk.run.during import check_watch
from cltk.run.inputs import Inputs
from cltk.run.kept import FAILED, clean
from cltk.run.leakage import check_leaks
from cltk.run.methods import build_mitigators
from cltk.run.parts import check_part
from cltk.run.plans import Cell, Plan
from cltk.run.tidy import CACHE, sweep
from cltk.run.trouble import explained

LONGEST = 400  # characters of an error that is not cltk's


def load(file: str | Path, out: str | Path | None = None, trust: bool = False, strict: bool = False) -> ExperimentRun:
    """Read and validate an experiment; nothing is loaded or written yet.

    Args:
        file: the YAML; or the name of an experiment that comes with cltk ("quickstart"), where there is no such file.
        out: where records go; `train.output_dir`, else runs/NAME in the current folder, when not given.
        trust: whether Python that the file names may run (`model.trust_remote_code`, `!function` in `evals.include_path`), and
            whether it may upload (`train.push_to_hub`).
        strict: whether rows that are learned from and measured on are refused, and not only said (`cltk.run.leakage`).

    Raises:
        InputError: with file, line, key and what would be right.
    """
    plan = load_config(_named(Path(file)))
    default = plan.cells[0].config.train.get("output_dir") or Path("runs") / plan.file.stem
    folder = Path(out) if out is not None else Path(default)
    return ExperimentRun(plan, folder, trust, strict)


def _named(file: Path) -> Path:
    """The file, or the one of that name among the experiments that come with cltk."""
    ours = shipped("experiments") / file.name / f"{file.name}.yaml"
    return ours if not file.exists() and file.name == str(file) and ours.is_file() else file


UPLOADS = ("push_to_hub", "trackio_space_id")


@dataclass
class ExperimentRun:
    """A validated experiment and its output folder."""

    plan: Plan
    out: Path
    trust: bool = False
    strict: bool = False
    inputs: Inputs = field(init=False)

    def __post_init__(self) -> None:
        for model in models(self.plan):
            check_apart(self.out, model)
        self.inputs = Inputs(self.plan, self.trust)
        self._check_trust()  # what a cell is known by needs its tasks

    @property
    def cells(self) -> list[Cell]:
        return self.plan.cells

    def folder(self, cell: Cell) -> Path:
        return Work(self.inputs, self.out, _silent).folder(cell)

    def work(self, tell: Tell | None = None) -> Work:
        return Work(self.inputs, self.out, tell or _silent, self.inputs.shared())

    def check(self) -> None:
        """Everything that can be found wrong before weights are loaded: data, tasks, mitigators, arguments."""
        for cell in self.cells:
            for training in cell.trainings:
                self.inputs.data(training)
        for cell in self.cells:
            self.inputs.documents(cell)  # builds every prompt
            self.inputs.digest(cell)
        try:
            for cell in map(self.cells.__getitem__, self.missing()):
                if self.inputs.references(cell):
                    suite = self.inputs.suite(cell)
                    check_part(cell, suite, self.inputs.tokenizer(cell) if cell.config.evals.chat_template else None)
                check_margins(cell.config.evals.margins, self.inputs.suite(cell))
                self.inputs.check_models(cell)
                self.inputs.streamed(cell)
                check_roles(*(self.inputs.rows(cell, listed) for listed in (cell.config.evals.retain, cell.config.evals.learn)))
                for training in cell.trainings:
                    check_training(training)
                    data, spec = self.inputs.data(training), self.inputs.path(training.config.model.spec)
                    check_lengths(self.inputs.config(training), spec, data.train, data.validation)
                    check_watch(self.inputs, training, build_mitigators(training.config.mitigators, self.plan.folder))
        except InputError as error:
            raise InputError(f"{self.plan.file}: {error}") from None

    def leaks(self) -> list[str]:
        """A line for every set that is learned from and measured on. Raises InputError where `strict` is set."""
        return check_leaks(self.inputs, self.cells, self.strict)

    def _check_trust(self) -> None:
        """A file that came from elsewhere runs no code unless the user says so outside of it."""
        where, configs = self.plan.file, [cell.config for cell in self.cells if not self.trust]
        if any(config.model.trust_remote_code for config in configs):
            raise InputError(f"{where}: model.trust_remote_code runs the Python of the model; add --trust if you trust it")
        if any(getattr(config.evals, "confirm_run_unsafe_code", False) for config in configs):
            raise InputError(f"{where}: evals.confirm_run_unsafe_code runs what the model writes; add --trust if you trust it")
        for train in [config.train for config in configs] + [stage.train for config in configs for stage in config.stages]:
            if key := next((key for key in UPLOADS if train.get(key)), None):
                raise InputError(f"{where}: train.{key} uploads to a hub in your name; add --trust if you trust the file")

    def missing(self) -> list[int]:
        """The cells that have no record, by their place in `cells`."""
        return [order for order, cell in enumerate(self.cells) if not (self.folder(cell) / records.RECORD).exists()]

    def run(self, tell: Tell | None = None, ray: str | None = None) -> list[dict[str, Any]]:
        """Run every cell that has no record; return the records of all, in order.

        A cell that fails does not stop the others: its error is kept in `failed.json` in its folder, and RunError is
        raised at the end.

        Args:
            tell: called with (what, done, total, detail) as the work goes on.
            ray: cells in parallel on a Ray cluster: its address, or "local" for one on this machine; see `cltk.run.cluster`.

        Raises:
            InputError: something is wrong with the inputs, or another run works in this folder.
            RunError: cells failed.
        """
        join()
        say = tell if tell and first() else _silent
        failed: dict[int, str] = {}
        if todo := agreed(self.missing()):
            self.check()
            check_folder(self.out, "--out")
            for training in (training for order in todo for training in self.cells[order].trainings):
                check_sharding(training.config.train, str(self.plan.file))
            for line in self.leaks():
                if first():
                    print(line, file=sys.stderr)
            with locked(self.out):
                failed = self._work(say, ray)
        else:
            self._clean(say)
            if (self.out / CACHE).is_dir():  # a run that was killed behind its last record
                with suppress(InputError), locked(self.out):
                    self._sweep()
        if failed:
            names = ", ".join(self.cells[order].name for order in failed)
            raise RunError(
                f"{len(failed)} of {len(self.cells)} cells failed ({names}); the first: {next(iter(failed.values()))}"
            )
        return [records.read_record(self.folder(cell) / records.RECORD) for cell in self.cells]

    def _work(self, say: Tell, ray: str | None) -> dict[int, str]:
        """The cells that have no record now that the folder is ours: another run may have written some meanwhile."""
        todo = agreed(self.missing())
        self._clean(say)
        failed: dict[int, str] = {}
        for part in (False, True):  # references before the cells that they predict
            some = [order for order in todo if bool(self.inputs.references(self.cells[order])) is part]
            if ray is not None and some:
                from cltk.run.cluster import run_cells

                failed |= run_cells(self, some, ray, say, load)
            else:
                failed |= {order: error for order in some if (error := self.attempt(order, say))}
        self._sweep()
        return failed

    def _sweep(self) -> None:
        """With the last record what cells shared goes; another YAML of this folder may still need its own."""
        if first() and not self.missing():
            for key in self.inputs.shared():
                shutil.rmtree(self.work().kept(key), ignore_errors=True)
            sweep(self.out)

    def _clean(self, say: Tell) -> None:
        """Say which cells are done, and remove what they need no more."""
        todo = self.missing()
        for order, cell in enumerate(self.cells):
            if order not in todo:
                clean(self.folder(cell))
                say(f"{cell.name}: has a record, nothing to do", order + 1, len(self.cells), "cell")

    def attempt(self, order: int, say: Tell) -> str:
        """Do one cell. A failure, of whatever kind, is kept in its folder; what went wrong, or "" when a record was written.

        Ranks that work together fail together, also where one of them did alone, and go on with the next cell.

        Raises:
            RunError: one rank failed and the others cannot be stopped.
        """
        cell, total = self.cells[order], len(self.cells)
        say(cell.name, order + 1, total, "cell")
        try:
            with explained(cell.config, self.folder(cell)):
                self.work(say).cell(cell, order)
                gathered(order)  # a rank that failed comes here too late, and takes the others with it
            return ""
        except BrokenPipeError:  # whoever read the progress is gone
            raise
        except Exception as error:
            failure = _failure(cell, error)
            try:
                failure = json.loads(regroup(json.dumps(failure)))
            except TimeoutError as lost:
                raise RunError(f"{cell.name}: {failure['error']}; {lost}") from error
            with suppress(DiskError):
                if first():
                    records.write_json(self.folder(cell) / FAILED, failure)
        gc.collect()  # what the failed training held
        say(f"{cell.name} failed: {failure['error']}", order + 1, total, "failed")
        return f"{cell.name}: {failure['error']}"


def _failure(cell: Cell, error: Exception) -> dict[str, Any]:
    """What `failed.json` says: of an exception that is not cltk's its kind too, in one line."""
    text = " ".join(str(error).split())
    if not isinstance(error, CltkError):
        short = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        text = f"{type(error).__name__}: {short}"
    return {
        "cell": cell.name, "method": cell.method, "error": text.rstrip(": "), "kind": type(error).__name__,
        "step": getattr(error, "step", None), "traceback": traceback.format_exception(error),
    }  # fmt: skip


def _silent(what: str, done: int, total: int, detail: str) -> None:
    pass
