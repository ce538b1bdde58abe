"""`cltk run`, `clean` and `reproduce`: experiments."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cltk.cli.options import TRUST, Command, apart, json_option, put_json, to_stdout
from cltk.errors import InputError


def add(command: Command) -> None:
    """Options of what runs experiments."""
    sub = command("run", run, "run an experiment: evaluate, train every cell, evaluate, record")
    sub.add_argument("file", type=Path, help="the experiment's YAML")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as if the file said so: train.learning_rate=1.0e-5")
    sub.add_argument("--out", type=Path, help="where records go (default: train.output_dir, else runs/NAME)")
    sub.add_argument(
        "--only", action="append", default=[], metavar="AXIS=VALUE,...", help="cells that have all of it; again: or all of that"
    )
    sub.add_argument("--cells", metavar="i/N", help="the i-th of N shares of the cells; slurm: by the place in its array")
    sub.add_argument("--no-wait", action="store_true", help="leave cells that other runs have taken to them")
    sub.add_argument("--dry-run", action="store_true", help="print the cells and their cost in tokens; load no weights")
    sub.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="cells in parallel, on this machine or on the Ray at ADDRESS"
    )

    sub.add_argument("--trust", action="store_true", help=TRUST)
    sub.add_argument("--strict", action="store_true", help="refuse rows that are learned from and measured on")
    json_option(sub)

    sub = command("clean", clean, "list what an output folder holds that nobody reads any more, or remove it")
    sub.add_argument(
        "runs", type=Path, metavar="DIR", help="a folder that `cltk run` wrote; its records, scores and curves stay"
    )
    sub.add_argument("--yes", action="store_true", help="remove what is listed")
    sub.add_argument("--unfinished", action="store_true", help="also checkpoints of cells without a record: they begin anew")
    sub.add_argument("--models", action="store_true", help="also the tuned weights of cells that have a record")
    json_option(sub)

    sub = command("reproduce", reproduce, "run a record's cell again and compare every number; exit code 0 or 1")
    sub.add_argument("record", type=Path, help="a record.json, or a folder of records")
    sub.add_argument("--out", type=Path, help="where the new records go (default: runs/reproduced-NAME)")
    sub.add_argument("--tolerance", type=float, default=0.0, help="difference to accept, relative (default: 0, bit for bit)")
    sub.add_argument("--trust", action="store_true", help=TRUST)
    json_option(sub)


def run(options: argparse.Namespace) -> int:
    """`cltk run`: the chosen cells that have no record, then the report of all that have one."""
    from cltk.ranks import first
    from cltk.report.api import report as show
    from cltk.run.experiment import load
    from cltk.run.leaving import heeding
    from cltk.run.records import read_json
    from cltk.run.search import check_whole
    from cltk.run.shares import chosen

    if options.ray and "=" in options.ray:
        raise InputError(f"--ray {options.ray}: is no address; give KEY=VALUE before --ray")
    experiment = load(options.file, options.out, options.trust, options.strict, options.overrides)
    mine, share = chosen(experiment.cells, options.only, options.cells)
    if share and first():
        print(share, file=sys.stderr)
    if options.dry_run and options.json:
        raise InputError("--json: a dry run has no records; drop one of the two")
    if options.dry_run:
        check_whole(experiment, options.ray, mine, not options.no_wait)
        return dry_run(experiment, mine)
    with apart(options.json):
        with heeding():
            _work(experiment, mine, options)
        done = [file for cell in experiment.cells if (file := experiment.folder(cell) / "record.json").exists()]
        if first() and len(done) < len(experiment.cells):
            print(f"{len(done)} of {len(experiment.cells)} cells have a record in {experiment.out}")
        if first() and done:
            show(done)
    if first():
        put_json(options.json, [read_json(file) for file in done])
    return 0


def _work(experiment: Any, mine: list[int], options: argparse.Namespace) -> None:
    from cltk.progress import Bar
    from cltk.run.speed import tune_allocator

    if experiment.plan.experiment.search is None and not set(experiment.missing()) & set(mine):
        print(f"{len(mine)} of {len(mine)} cells have a record in {experiment.out}: nothing to do")
        experiment.run(only=mine)
        return
    tune_allocator(experiment.plan.experiment.speed.allocator)
    with Bar() as bar:
        experiment.run(bar, ray=options.ray, only=mine, wait=not options.no_wait)


def dry_run(experiment: Any, mine: list[int]) -> int:
    """`cltk run --dry-run`: the cells and whose they are, their cost in tokens, and what the planned documents can show."""
    from cltk.measure.power import plan
    from cltk.run.claims import under_way
    from cltk.run.cost import cost_in_tokens
    from cltk.run.methods import build_mitigators
    from cltk.run.search import planned

    experiment.check()
    trials = planned(experiment)
    leaks = experiment.leaks()
    print(f"{experiment.plan.file}: {len(experiment.cells)} cells -> {experiment.out}")
    for order, cell in enumerate(experiment.cells):
        state = "to run" if order in mine else "not of this run"
        if (experiment.folder(cell) / "record.json").exists():
            state = "has a record"
        elif who := under_way(experiment, order):
            state = f"under way in {who}"
        mitigators = build_mitigators(cell.config.mitigators, experiment.plan.folder)
        for training in cell.trainings:
            cost = cost_in_tokens(training, experiment.inputs.data(training), mitigators, experiment.inputs.tokenizer(cell))
            name = f"{cell.name} ({state})" + (f", {training.stage}" if training.stage else "")
            print(f"  {name}: {cost.pop('steps')} steps, {cost.pop('rows')} rows, {cost.pop('tokens')} training tokens")
            for what, count in cost.items():  # rows of each source, and those left out
                print(f"    {count} {what}")
        for entry in cell.config.mitigators:
            print(f"    {entry}")
    for line in trials:
        print(f"  {line}")
    first = experiment.cells[0]
    suite, tokenizer = experiment.inputs.suite(first), experiment.inputs.tokenizer(first)
    sizes = ", ".join(f"{name} {n}" for name, n in suite.sizes().items())
    print(f"  measured before and after each: {sizes} documents; {suite.tokens(tokenizer)} tokens a model")
    for line in _in_part(experiment, tokenizer):
        print(line)
    for name, notes in suite.about().items():
        for note in notes:
            print(f"    {name}: {note}")
    for line in leaks:
        print(f"  {line}")
    texts = {text.name for text in suite.texts}
    sizes_of = {name: n for name, n in suite.sizes().items() if name not in texts}
    for row in plan(sizes_of, clusters=suite.cluster_sizes()) if suite.names else []:
        shown = "no loss" if row.mde is None else f"a loss of {100 * row.mde:.1f} pp or more"
        print(f"    {row.task}: {row.n} documents show {shown} (if 10 % of them flip)")
    return 0


def _in_part(experiment: Any, tokenizer: Any) -> list[str]:
    """What the cells score whose documents are predicted; nothing where all are scored."""
    from cltk.measure.subset import positions, restricted

    cells = [cell for cell in experiment.cells if experiment.inputs.references(cell)]
    if not cells:
        return []
    documents, suite = cells[0].config.evals.documents, experiment.inputs.suite(cells[0])
    if documents.scored == "auto":
        return [f"  {len(cells)} cells score as many of these as intervals of ±{documents.half_width:g} take (evals.documents)"]
    part = restricted(suite, positions(suite, documents.scored))
    sizes = ", ".join(f"{name} {n}" for name, n in part.sizes().items())
    how = "by margin" if documents.draw == "margin" else "at random"
    return [f"  {len(cells)} cells score part of these, drawn {how}: {sizes}; about {part.tokens(tokenizer)} tokens a model"]


def clean(options: argparse.Namespace) -> int:
    """`cltk clean`: what can go and its size; with --yes it goes."""
    from cltk.run.tidy import leftovers, remove

    found = leftovers(options.runs, unfinished=options.unfinished, models=options.models)
    put_json(options.json, [{"path": str(left.path), "what": left.what, "bytes": left.size} for left in found])
    for left in () if to_stdout(options.json) else found:
        print(f"{left.size / 1e6:10.1f} MB  {left.path}: {left.what}")
    total = f"{sum(left.size for left in found) / 1e6:.1f} MB"
    if options.yes:
        remove(options.runs, found)
    if not to_stdout(options.json):
        print(f"{total} removed" if options.yes else f"{total} can go; --yes removes it" if found else "nothing to remove")
    return 0


def reproduce(options: argparse.Namespace) -> int:
    """`cltk reproduce`: 0 when every record was reproduced, 1 when one was not."""
    from cltk.progress import Bar
    from cltk.run.reproduce import Reproduction
    from cltk.run.reproduce import reproduce as again
    from cltk.run.speed import tune_allocator

    tune_allocator()
    found: list[Reproduction] = []
    try:
        with Bar() as bar:
            again(options.record, options.out, options.tolerance, bar, options.trust, found.append)
    finally:  # what was compared before one failed
        if found:
            with apart(options.json):
                for one in found:
                    print("\n".join(one.lines()))
            put_json(options.json, [one.to_json() for one in found])
    return int(any(one.beyond for one in found))
