"""`search:`: trials one after the other, each a cell of its own in `search/` of the output folder; then the chosen setting.

The records are all that is kept: the values of a trial are written once, before it runs, and whoever comes next, in this
process or another, reads them there. Trials are measured on the validation part of every task, text and of the new task; what
is reported, on the other part.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cltk.errors import InputError
from cltk.files import check_folder, leased
from cltk.ranks import agreed, decided, first
from cltk.run import records
from cltk.run.ahead import check_training, metrics_of
from cltk.run.arguments import check_sharding
from cltk.run.claims import Queue, Tell, check_free, lease_of
from cltk.run.kept import FAILED
from cltk.run.methods import nearest
from cltk.run.plans import Cell, Plan
from cltk.run.sampler import Past, best, check_optuna, suggest
from cltk.run.search_plan import restate, searched, with_values
from cltk.run.search_verdict import MUCH, check_budgets, none_within, verdict
from cltk.run.spec_search import SearchSpec, SplitSpec

if TYPE_CHECKING:
    from cltk.run.experiment import ExperimentRun


@dataclass
class Search:
    """The trials of one experiment.

    Args:
        run: the experiment.
    """

    run: ExperimentRun
    spec: SearchSpec = field(init=False)
    trials: ExperimentRun = field(init=False)  # grows by a cell a trial
    template: Cell = field(init=False)

    def __post_init__(self) -> None:
        plan, spec = self.run.plan, self.run.plan.experiment.search
        assert spec is not None
        self.spec, own = spec, searched(plan.cells, spec)[0]
        split = SplitSpec(validation=spec.validation, measure="validation")
        evals = own.config.evals.model_copy(update={"split": split, "judge": None})
        config = own.config.model_copy(update={"evals": evals, "keep_model": False})
        self.template = replace(own, config=config)
        experiment = plan.experiment.model_copy(update={"search": None})
        self.trials = replace(self.run, plan=Plan(plan.file, experiment, [], plan.overrides), out=self.run.out / records.TRIALS)
        self.trials.inputs = replace(self.run.inputs, plan=self.trials.plan)  # what was read is read once

    @cached_property
    def study(self) -> str:
        """What its trials follow from, but for how many there are and what is asked of them: a digest."""
        some = with_values(self.template, {key: one.extremes[0] for key, one in self.spec.over.items()}, self.run.plan.folder)
        return records.digest_of(
            [self.trials.inputs.digest(some), self.spec.model_dump(include={"over", "seed", "validation"})]
        )

    def check(self) -> None:
        """What can be found wrong before weights are loaded.

        Raises:
            InputError: Optuna is missing; a budget or the gain names nothing that is measured; a value that may be tried cannot
                be trained with.
        """
        at = f"{self.run.plan.file}: search"
        check_optuna(f"{at}: ")
        evals, metrics = self.template.config.evals, metrics_of(self.trials.inputs.suite(self.template))
        rows = self.trials.inputs.rows(self.template, evals.retain)
        check_budgets(self.spec.budget, {row: metrics[row] for row in rows}, at)
        gains = ["validation", *self.trials.inputs.rows(self.template, evals.learn)]
        if self.spec.gain not in gains:
            raise InputError(f"{at}.gain: {self.spec.gain!r} is not learned{nearest(self.spec.gain, gains)}")
        for key, space in self.spec.over.items():
            for value in space.extremes:
                try:
                    check_training(with_values(self.template, {key: value}, self.run.plan.folder))
                except InputError as error:
                    raise InputError(f"{at}.over.{key}: {value}: {error}") from None

    def trial(self, number: int, past: Sequence[Past] | None, tried: Sequence[Cell] = ()) -> Cell | None:
        """The cell of a trial, whose values are drawn here if nobody has; None where they are not and `past` is None.

        Args:
            past: the trials whose end is known.
            tried: all trials before it.
        """
        study = self.study
        file = self.trials.out / records.STUDIES / study[:16] / f"{number:04d}.json"
        if past is None and not agreed(file.exists()):
            return None
        values = decided(lambda: self._values(number, file, past or (), [cell.search["values"] for cell in tried]))
        rules = self.spec.model_dump(include={"budget", "by", "gain"})
        about = {"study": study[:16], "trial": number, "values": values, **rules}
        cell = with_values(self.template, values, self.run.plan.folder)
        return replace(cell, labels={**cell.labels, "trial": number}, search=about)

    def _values(self, number: int, file: Path, past: Sequence[Past], tried: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Of a trial, written by whoever comes first."""
        if not file.exists():
            with leased(lease_of(self.trials.out / f"{file.parent.name}-{number:04d}")):
                if not file.exists():
                    values = suggest(self.spec.over, past, self.spec.seed + number, tried)
                    records.write_json(file, {"number": number, "values": values, "optuna": metadata.version("optuna")})
        return dict(records.read_json(file)["values"])

    def past(self, cells: Sequence[Cell]) -> dict[int, Past]:
        """Of those that have a record, or whose training diverged: place -> what is known of them.

        What diverged, or has no finite gain, is over everything: it would be again, and the sampler is to keep away from it.
        """
        found = {}
        for at, cell in enumerate(cells):
            file = self.trials.folder(cell) / records.RECORD
            done, lost = agreed(file.exists()), dict.fromkeys(self.spec.budget, MUCH)
            gain, over = verdict(records.read_record(file), cell.search) if done else (None, lost)
            if done or self.diverged(cell):
                found[at] = Past(cell.search["values"], gain or 0.0, over if gain is not None else lost)
        return found

    def diverged(self, cell: Cell) -> bool:
        """Whether a training's loss or gradients were not finite."""
        file = self.trials.folder(cell) / FAILED
        return decided(lambda: file.exists() and records.read_json(file)["kind"] == "DivergedError")

    def work(self, say: Tell) -> dict[int, str]:
        """All trials, in rounds of `parallel`; what went wrong, by trial, but for trainings that diverged."""
        cells = self.trials.plan.cells
        failed: dict[int, str] = {}
        for begin in range(0, self.spec.count, self.spec.parallel):
            numbers = range(begin, min(begin + self.spec.parallel, self.spec.count))
            past = list(self.past(cells).values())
            for number in numbers:
                cells += filter(None, [self.trial(number, past, cells)])
            missing = agreed([at for at in self.trials.missing() if at in numbers])
            if todo := [at for at in missing if not self.diverged(cells[at])]:
                self.trials.check()
                decided(lambda: check_free(self.trials.out))
                failed |= Queue(self.trials, todo, say).work()
        restate(self.trials, cells)
        self.trials.sweep_up()
        lost = [cell for cell in cells if self.diverged(cell)]
        for cell in lost if first() else ():  # nobody goes on from there
            shutil.rmtree(self.trials.folder(cell) / "checkpoints", ignore_errors=True)
        return {at: why for at, why in failed.items() if cells[at] not in lost}

    def chosen(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """The winner for the records of its final runs: its values, and what it had on the validation documents; or nothing."""
        past = self.past(cells)
        numbers = list(past)
        at = best(list(past.values()))
        if at is None:
            return {}
        won = past[numbers[at]]
        about = cells[numbers[at]].search
        return {**about, "trials": len(past), "validation": {"gain": won.gain, "over": won.over}}

    def settle(self, won: dict[str, Any]) -> None:
        """Give the experiment the winner's values, or leave it without the searched method where there is none."""
        plan, own = self.run.plan, searched(self.run.plan.cells, self.spec)
        cells = [
            cell if cell not in own else replace(with_values(cell, won["values"], plan.folder), search=won)
            for cell in plan.cells
            if won or cell not in own
        ]
        self.run.plan = replace(plan, cells=cells, experiment=plan.experiment.model_copy(update={"search": None}))
        self.run.inputs = replace(self.run.inputs, plan=self.run.plan)
        restate(self.run, cells)


def check_whole(run: ExperimentRun, ray: str | None, only: Sequence[int] | None, wait: bool) -> None:
    """Raises InputError where an experiment that has a search is to be done in part."""
    if run.plan.experiment.search is not None and (ray or not wait or (only is not None and len(only) < len(run.cells))):
        option = "--ray" if ray else "--no-wait" if not wait else "--only, --cells"
        raise InputError(
            f"{run.plan.file}: {option}: the trials of `search` follow from one another; leave it away, and start the same"
            " command several times to share them (search.parallel says how many are drawn together)"
        )


def settle(run: ExperimentRun, say: Tell, ray: str | None, only: Sequence[int] | None, wait: bool) -> str:
    """Do the search of an experiment that has one, and leave its plan with the values that were chosen.

    Returns:
        What went wrong, or "": trials that failed, or none within the budgets (then the plan is without the searched method).

    Raises:
        InputError: something is wrong with the inputs, or a search cannot be shared out so.
    """
    if run.plan.experiment.search is None:
        return ""
    check_whole(run, ray, only, wait)
    run.check()
    search = Search(run)
    search.check()
    check_folder(run.out, "--out")
    if run.strict:  # refused before the trials; said behind them
        run.leaks()
    check_sharding(search.template.config.train, str(run.plan.file))
    failed = search.work(say)
    cells = search.trials.plan.cells
    won = search.chosen(cells)
    search.settle(won)
    if not won:
        return none_within(search.past(cells), failed, len(cells), [at for at, one in enumerate(cells) if search.diverged(one)])
    return f"{len(failed)} of {len(cells)} trials failed; the first: {next(iter(failed.values()))}" if failed else ""


def planned(run: ExperimentRun) -> list[str]:
    """For a dry run: the space, the budgets, which documents are whose, and the trials so far.

    Behind the last trial the experiment has the winner's values.
    """
    if run.plan.experiment.search is None:
        return []
    search = Search(run)
    search.check()
    spec = search.spec
    done: list[Cell] = []
    for number in range(spec.count):
        if (cell := search.trial(number, None)) is None:
            break
        done.append(cell)
    past = search.past(done)
    if len(past) == spec.count and (won := search.chosen(done)):
        search.settle(won)
    few = f" ({spec.count} settings are all there are)" if spec.count < spec.trials else ""
    lines = [f"search of {search.template.method}: {spec.count} trials{few}, {len(past)} of them done -> {search.trials.out}"]
    lines += [f"  {key}: {space}" for key, space in spec.over.items()]
    within = "the upper end of its interval" if spec.by == "interval" else "the estimate"
    lines.append(f"  budget: {', '.join(f'{name} {most:g}' for name, most in spec.budget.items())} ({within} within it)")
    documents = ", ".join(f"{name} {n}" for name, n in search.trials.inputs.suite(search.template).sizes().items())
    lines.append(f"  the most gain in {spec.gain}; a trial is measured on validation documents: {documents}")
    for at, cell in enumerate(done):
        side = "within" if at in past and past[at].within else "over"
        state = f"gain {past[at].gain:.4g}, {side} the budget" if at in past else "to run"
        state = "diverged" if search.diverged(cell) else state
        lines.append(f"  trial {at}: {', '.join(f'{key}={value}' for key, value in cell.search['values'].items())} ({state})")
    return lines
