"""load("x.yaml").run(): every cell that has no record yet. What has one is not done again."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cltk.errors import DiskError, InputError, LeaseLostError, RunError
from cltk.files import check_folder, shipped
from cltk.ranks import agreed, decided, first, gathered, join, regroup
from cltk.run import machine, records
from cltk.run.ahead import check_lengths, check_margins, check_roles, check_training
from cltk.run.apart import check_apart, models
from cltk.run.arguments import check_sharding
from cltk.run.cells import Tell, Work
from cltk.run.checked import check_trust
from cltk.run.claims import Queue, alone, check_free, check_shared
from cltk.run.config import load_config
from cltk.run.during import check_watch
from cltk.run.inputs import Inputs
from cltk.run.kept import FAILED, clean
from cltk.run.leakage import check_leaks
from cltk.run.methods import build_mitigators
from cltk.run.parts import check_part
from cltk.run.plans import Cell, Plan
from cltk.run.search import settle
from cltk.run.tidy import CACHE, sweep
from cltk.run.trouble import explained, failure_of, let_go


def load(
    file: str | Path, out: str | Path | None = None, trust: bool = False, strict: bool = False, overrides: Sequence[str] = ()
) -> ExperimentRun:
    """Read and validate an experiment; nothing is loaded or written yet.

    Args:
        file: the YAML; or the name of an experiment that comes with cltk ("quickstart"), where there is no such file.
        out: where records go; `train.output_dir`, else runs/NAME in the current folder, when not given.
        trust: whether Python that the file names may run (`model.trust_remote_code`, `!function` in `evals.include_path`), and
            whether it may upload (`train.push_to_hub`).
        strict: whether rows that are learned from and measured on are refused, and not only said (`cltk.run.leakage`).
        overrides: "train.learning_rate=1.0e-5": as if the file said so.

    Raises:
        InputError: with file, line, key and what would be right.
    """
    plan = load_config(_named(Path(file)), overrides)
    default = plan.cells[0].config.train.get("output_dir") or Path("runs") / plan.file.stem
    folder = Path(out) if out is not None else Path(default)
    return ExperimentRun(plan, folder, trust, strict)


def _named(file: Path) -> Path:
    """The file, or the one of that name among the experiments that come with cltk."""
    ours = shipped("experiments") / file.name / f"{file.name}.yaml"
    return ours if not file.exists() and file.name == str(file) and ours.is_file() else file


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
        if not self.trust:
            check_trust(self.plan)  # what a cell is known by needs its tasks

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
                if first():
                    machine.warn_of_slow_scores(cell.config.evals.dtype)
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

    def missing(self) -> list[int]:
        """The cells that have no record, by their place in `cells`."""
        return [order for order, cell in enumerate(self.cells) if not (self.folder(cell) / records.RECORD).exists()]

    def run(
        self, tell: Tell | None = None, ray: str | None = None, only: Sequence[int] | None = None, wait: bool = True
    ) -> list[dict[str, Any]]:
        """Run every cell that has no record; return the records of all, in order.

        Any number of processes, on any machines that share the folder, may do so at once: each takes cells that nobody has
        (`cltk.run.claims`). A cell that fails does not stop the others: its error is kept in `failed.json` in its folder, and
        RunError is raised at the end.

        Args:
            tell: called with (what, done, total, detail) as the work goes on.
            ray: cells in parallel on a Ray cluster: its address, or "local" for one on this machine; see `cltk.run.cluster`.
            only: places in `cells`; the others are left alone, but for references that these need.
            wait: whether to wait for cells that other processes have taken, and to take over those of dead ones.

        Raises:
            InputError: something is wrong with the inputs, or the folder is being tidied or reproduced into.
            RunError: cells failed.
        """
        join()
        say = tell if tell and first() else _silent
        failed: dict[int, str] = {}
        searched = settle(self, say, ray, only, wait)
        mine = [at for at in range(len(self.cells)) if only is None or at in only]
        if todo := agreed([order for order in self.missing() if order in mine]):
            self.check()
            check_folder(self.out, "--out")
            for training in (training for order in todo for training in self.cells[order].trainings):
                check_sharding(training.config.train, str(self.plan.file))
            for line in self.leaks():
                if first():
                    print(line, file=sys.stderr)
            decided(lambda: check_free(self.out))
            check_shared(self.out)
            self._clean(say, mine)
            failed = self._work(self._with_references(todo), say, ray, wait)
            self.sweep_up()
        else:
            self._clean(say, mine)
            if (self.out / CACHE).is_dir():  # a run that was killed behind its last record
                self.sweep_up()
        if failed:
            names = ", ".join(self.cells[order].name for order in failed)
            raise RunError(
                f"{len(failed)} of {len(self.cells)} cells failed ({names}); the first: {next(iter(failed.values()))}"
            )
        if searched:
            raise RunError(searched)
        files = [self.folder(self.cells[order]) / records.RECORD for order in mine]
        return [records.read_record(file) for file in files if wait or file.exists()]

    def _work(self, todo: list[int], say: Tell, ray: str | None, wait: bool) -> dict[int, str]:
        """What went wrong, by the cell's place."""
        if ray is None:
            return Queue(self, todo, say, wait).work()
        from cltk.run.cluster import run_cells

        failed: dict[int, str] = {}
        for part in (False, True):  # references before the cells that they predict
            if some := [order for order in todo if bool(self.inputs.references(self.cells[order])) is part]:
                failed |= run_cells(self, some, ray, say, load)
        return failed

    def _with_references(self, todo: list[int]) -> list[int]:
        """And the references of these cells that have no record."""
        needed = [self.folder(one) for order in todo for one in self.inputs.references(self.cells[order])]
        return [order for order in self.missing() if order in todo or self.folder(self.cells[order]) in needed]

    def sweep_up(self) -> None:
        """With the last record what cells shared goes; another YAML of this folder may still need its own."""
        if not agreed(self.missing()):
            with suppress(InputError), alone(self.out):  # whoever is last does it
                for key in self.inputs.shared() if first() else ():
                    shutil.rmtree(self.work().kept(key), ignore_errors=True)
                if first():
                    sweep(self.out)

    def _clean(self, say: Tell, mine: Sequence[int]) -> None:
        """Say which cells are done, and remove what they need no more."""
        todo = self.missing()
        for order, cell in enumerate(self.cells):
            if order in mine and order not in todo:
                clean(self.folder(cell))
                say(f"{cell.name}: has a record, nothing to do", order + 1, len(self.cells), "cell")

    def attempt(self, order: int, say: Tell) -> str:
        """Do one cell. A failure, of whatever kind, is kept in its folder; what went wrong, or "" when a record was written.

        Ranks that work together fail together, also where one of them did alone, and go on with the next cell.

        Raises:
            LeaseLostError: another process took the cell over.
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
            failure = failure_of(cell, error)
            let_go(error)
            try:
                failure = json.loads(regroup(json.dumps(failure)))
            except TimeoutError as lost:
                raise RunError(f"{cell.name}: {failure['error']}; {lost}") from error
            if failure["kind"] == LeaseLostError.__name__:
                raise LeaseLostError(failure["error"]) from error
            with suppress(DiskError):
                if first():
                    records.write_json(self.folder(cell) / FAILED, failure)
        say(f"{cell.name} failed: {failure['error']}", order + 1, total, "failed")
        return f"{cell.name}: {failure['error']}"


def _silent(what: str, done: int, total: int, detail: str) -> None:
    pass
