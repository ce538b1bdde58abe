"""`search:`: trials one after the other, each a cell of its own in `search/` of the output folder; then the chosen setting.

The records are all that is kept: the values of a trial are written once, before it runs, and whoever comes next, in this
process or another, reads them there. Trials are measured on the validation part of every task, text and of the new task; what
is reported, on the other part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from cltk.errors import InputError
from cltk.files import check_folder, leased
from cltk.measure.budgets import Budget, held
from cltk.ranks import agreed, decided
from cltk.run import records
from cltk.run.ahead import metrics_of
from cltk.run.arguments import check_sharding
from cltk.run.claims import Queue, Tell, check_free, lease_of
from cltk.run.methods import nearest
from cltk.run.plans import Cell, Plan
from cltk.run.sampler import Past, best, check_optuna, suggest
from cltk.run.search_plan import searched, with_values
from cltk.run.spec_search import SearchSpec, SplitSpec

if TYPE_CHECKING:
    from cltk.run.experiment import ExperimentRun

FOLDER = "search"
MUCH = 1e6  # over a budget, where the loss is not known


def verdict(record: dict[str, Any], search: dict[str, Any]) -> tuple[float | None, dict[str, float]]:
    """What a record says to a search: the gain, and budget -> (lost - budget) / budget, at most 0 where it is within.

    Args:
        record: of a trial, or of the chosen setting (whose new task is held-out rows).
        search: its section `search`: the budgets, how they are held (`by`), and the name of the gain.
    """
    learned, lost = record["learn"], record["retain"]
    names = ("validation", "heldout") if search["gain"] == "validation" else (search["gain"],)
    rows = [row for row in learned["rows"] if row["task"] in names and row["metric"] == learned["headline"].get(row["task"])]
    gain = -rows[0]["forgetting"] if rows and rows[0]["forgetting"] is not None else None
    budgets = {name: Budget(name, most, "search") for name, most in search["budget"].items()}
    result: Any = SimpleNamespace(
        rows=[SimpleNamespace(**row) for row in lost["rows"]], macro=SimpleNamespace(**lost["macro"]),
        headline=lost["headline"], left_out=lost.get("left_out", {}),
    )  # fmt: skip
    over = {}
    for check in held(result, budgets):
        row: Any = check.row
        most = None if row is None else row.forgetting if search["by"] == "estimate" else (row.ci or [None, None])[1]
        over[f"{check.task}/{check.metric}"] = MUCH if most is None else (most - check.budget) / check.budget
    return gain, over


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
        self.trials = replace(self.run, plan=Plan(plan.file, experiment, [], plan.overrides), out=self.run.out / FOLDER)
        self.trials.inputs = replace(self.run.inputs, plan=self.trials.plan)  # what was read is read once

    @property
    def study(self) -> str:
        """What its trials follow from, but for how many there are: a digest."""
        some = with_values(self.template, {key: one.extremes[0] for key, one in self.spec.over.items()}, self.run.plan.folder)
        return records.digest_of([self.trials.inputs.digest(some), self.spec.model_dump(exclude={"trials", "method"})])

    def check(self) -> None:
        """What can be found wrong before weights are loaded.

        Raises:
            InputError: Optuna is missing; a budget or the gain names nothing that is measured.
        """
        at = f"{self.run.plan.file}: search"
        try:
            check_optuna()
        except InputError as error:
            raise InputError(f"{at}: {error}") from None
        evals, metrics = self.template.config.evals, metrics_of(self.trials.inputs.suite(self.template))
        rows = self.trials.inputs.rows(self.template, evals.retain)
        for name in self.spec.budget:
            task, _, metric = name.rpartition("/")
            whole = name == "macro" or name in rows or name.split(",")[0] in metrics
            if not whole and not (task in rows and metric.split(",")[0] in metrics):
                raise InputError(f"{at}.budget.{name}: nothing old has this name{nearest(name, ['macro', *rows, *metrics])}")
        gains = ["validation", *self.trials.inputs.rows(self.template, evals.learn)]
        if self.spec.gain not in gains:
            raise InputError(f"{at}.gain: {self.spec.gain!r} is not learned{nearest(self.spec.gain, gains)}")

    def trial(self, number: int, past: Sequence[Past] | None) -> Cell | None:
        """The cell of a trial, whose values are drawn here if nobody has; None where they are not and `past` is None."""
        study = self.study
        file = self.trials.out / "studies" / study[:16] / f"{number:04d}.json"
        if past is None and not agreed(file.exists()):
            return None
        values = decided(lambda: self._values(number, file, past or ()))
        rules = self.spec.model_dump(include={"budget", "by", "gain"})
        about = {"study": study[:16], "trial": number, "values": values, **rules}
        cell = with_values(self.template, values, self.run.plan.folder)
        return replace(cell, labels={**cell.labels, "trial": number}, search=about)

    def _values(self, number: int, file: Path, past: Sequence[Past]) -> dict[str, Any]:
        """Of a trial, written by whoever comes first."""
        with leased(lease_of(self.trials.out / f"{file.parent.name}-{number:04d}")):
            if not file.exists():
                values = suggest(self.spec.over, past, self.spec.seed + number)
                records.write_json(file, {"number": number, "values": values, "optuna": metadata.version("optuna")})
        return dict(records.read_json(file)["values"])

    def past(self, cells: Sequence[Cell]) -> dict[int, Past]:
        """Of those that have a record: place -> what it says."""
        found = {}
        for at, cell in enumerate(cells):
            file = self.trials.folder(cell) / records.RECORD
            if agreed(file.exists()):
                gain, over = verdict(records.read_record(file), cell.search)
                if gain is not None:
                    found[at] = Past(cell.search["values"], gain, over)
        return found

    def work(self, say: Tell) -> dict[int, str]:
        """All trials, in rounds of `parallel`; what went wrong, by trial."""
        cells = self.trials.plan.cells
        failed: dict[int, str] = {}
        for begin in range(0, self.spec.trials, self.spec.parallel):
            numbers = range(begin, min(begin + self.spec.parallel, self.spec.trials))
            past = list(self.past(cells).values())
            cells += [cell for number in numbers if (cell := self.trial(number, past)) is not None]
            if todo := agreed([at for at in self.trials.missing() if at in numbers]):
                self.trials.check()
                decided(lambda: check_free(self.trials.out))
                failed |= Queue(self.trials, todo, say).work()
        self.trials.sweep_up()
        return failed

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

    def settled(self, won: dict[str, Any]) -> Plan:
        """The experiment with the winner's values, or without the searched method where there is none."""
        plan, own = self.run.plan, searched(self.run.plan.cells, self.spec)
        cells = [
            cell if cell not in own else replace(with_values(cell, won["values"], plan.folder), search=won)
            for cell in plan.cells
            if won or cell not in own
        ]
        return replace(plan, cells=cells, experiment=plan.experiment.model_copy(update={"search": None}))


def settle(run: ExperimentRun, say: Tell, ray: str | None, only: Sequence[int] | None, wait: bool) -> str:
    """Do the search of an experiment that has one, and leave its plan with the values that were chosen.

    Returns:
        What went wrong, or "": trials that failed, or none within the budgets (then the plan is without the searched method).

    Raises:
        InputError: something is wrong with the inputs, or a search cannot be shared out so.
    """
    if run.plan.experiment.search is None:
        return ""
    if ray or not wait or (only is not None and len(only) < len(run.cells)):
        option = "--ray" if ray else "--no-wait" if not wait else "--only, --cells"
        raise InputError(
            f"{run.plan.file}: {option}: the trials of `search` follow from one another; leave it away, and start the same"
            " command several times to share them (search.parallel says how many are drawn together)"
        )
    run.check()
    search = Search(run)
    search.check()
    check_folder(run.out, "--out")
    check_sharding(search.template.config.train, str(run.plan.file))
    failed = search.work(say)
    cells = search.trials.plan.cells
    won = search.chosen(cells)
    run.plan = search.settled(won)
    run.inputs = replace(run.inputs, plan=run.plan)
    if not won:
        near = min(search.past(cells).items(), key=lambda one: max(one[1].over.values()), default=None)
        nearest_one = ""
        if near is not None:
            name, over = max(near[1].over.items(), key=lambda one: one[1])
            nearest_one = f"; the nearest is trial {near[0]}, with {1 + over:.2f} times the budget of {name}"
        why = f"; the first failure: {next(iter(failed.values()))}" if failed else ""
        return f"search: none of {len(cells)} trials is within the budget{nearest_one}{why}; widen search.over, or the budget"
    return f"{len(failed)} of {len(cells)} trials failed; the first: {next(iter(failed.values()))}" if failed else ""


def planned(run: ExperimentRun) -> list[str]:
    """For a dry run: the space, the budgets, which documents are whose, and the trials so far."""
    if run.plan.experiment.search is None:
        return []
    search = Search(run)
    search.check()
    spec = search.spec
    done: list[Cell] = []
    for number in range(spec.trials):
        if (cell := search.trial(number, None)) is None:
            break
        done.append(cell)
    past = search.past(done)
    lines = [f"search of {search.template.method}: {spec.trials} trials ({len(past)} have a record) -> {search.trials.out}"]
    lines += [f"  {key}: {space}" for key, space in spec.over.items()]
    within = "the upper end of its interval" if spec.by == "interval" else "the estimate"
    lines.append(f"  budget: {', '.join(f'{name} {most:g}' for name, most in spec.budget.items())} ({within} within it)")
    sizes = search.trials.inputs.suite(search.template).sizes()
    documents = ", ".join(f"{name} {n}" for name, n in sizes.items())
    lines.append(f"  the most gain in {spec.gain}; a trial is measured on validation documents: {documents}")
    for at, cell in enumerate(done):
        side = "within" if at in past and past[at].within else "over"
        state = f"gain {past[at].gain:.4g}, {side} the budget" if at in past else "to run"
        lines.append(f"  trial {at}: {', '.join(f'{key}={value}' for key, value in cell.search['values'].items())} ({state})")
    return lines
