"""`cltk report` and `matched`: tables of what was run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cltk.cli.options import Command, apart, json_option, out, put_json


def add(command: Command) -> None:
    """Options of what reports."""
    sub = command("report", report, "print the tables of an output folder")
    sub.add_argument("runs", type=Path, help="a folder that `cltk run` wrote, a record, or what measure --json wrote")
    sub.add_argument("--markdown", type=Path, metavar="FILE", help="also write Markdown here")
    sub.add_argument("--html", type=Path, metavar="FILE", help="also write one self-contained page here")
    sub.add_argument("--latex", type=Path, metavar="DIR", help="also write tables (.tex) and figures (.pdf) here")
    sub.add_argument("--lm-eval", type=Path, metavar="DIR", help="also copy the result files that lm-eval's tools read here")
    sub.add_argument("--model-card", type=Path, metavar="DIR", help="also write a model card for a hub here; uploads nothing")
    json_option(sub, any_name=True)

    sub = command("matched", matched, "forgetting at matched new-task gain, against what plain fine-tuning reaches")
    sub.add_argument("runs", type=Path, nargs="+", help="output folders of `cltk run`, on the same documents and seeds")
    sub.add_argument("--reference", default="plain*", help="the methods to beat: a pattern of their names (default: plain*)")
    sub.add_argument("--new", default="heldout", help="the task that is learned (default: heldout)")
    sub.add_argument("--old", help="the task that is forgotten (default: the first of evals.retain)")
    json_option(sub, any_name=True)


def report(options: argparse.Namespace) -> int:
    """`cltk report`: the tables of an output folder, and the files asked for."""
    from cltk.logs.results import is_result
    from cltk.report.api import report as show
    from cltk.report.sources import read_entries

    if options.runs.is_file() and is_result(options.runs):
        return _result(options)
    with apart(options.json):
        show(
            options.runs,
            markdown=options.markdown,
            html=options.html,
            latex=options.latex,
            lm_eval=options.lm_eval,
            model_card=options.model_card,
        )
    if options.json:
        put_json(options.json, [entry.record for entry in read_entries(options.runs)])
    return 0


def _result(options: argparse.Namespace) -> int:
    """The tables of what `cltk measure --json` and `cltk compare --json` wrote."""
    from cltk.errors import InputError
    from cltk.files import write_text
    from cltk.logs.comparing import compare_all
    from cltk.progress import console
    from cltk.report.measurement import measured

    if odd := [name for name in ("html", "latex", "lm_eval", "model_card", "json") if getattr(options, name)]:
        what = f"--{odd[0].replace('_', '-')}"
        raise InputError(
            f"{what}: of an output folder of `cltk run`; of {options.runs}: cltk compare {options.runs} --html FILE"
        )
    tables = [measured(result.to_json()) for result in compare_all(options.runs, [options.runs]).values()]
    for table in tables:
        console().print(table.rich())
    if options.markdown:
        write_text(options.markdown, "\n".join(table.markdown() for table in tables))
    return 0


def matched(options: argparse.Namespace) -> int:
    """`cltk matched`: does a method beat the frontier of another?"""
    from dataclasses import asdict

    from cltk.report.matched import matched as compare
    from cltk.report.matched import table
    from cltk.report.settings import first_retained
    from cltk.report.sources import read_entries

    old = options.old or first_retained(read_entries(options.runs[0])[0].record)
    found = compare(options.runs, options.reference, options.new, old)
    out(options.json).print(table(found, options.reference, old).rich())
    settings = {"reference": options.reference, "new": options.new, "old": old}
    put_json(options.json, {**settings, "settings": [asdict(one) for one in found]})
    return 0
