"""The command line. Heavy imports happen inside commands, so that --help is instant."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cltk import __version__
from cltk.errors import CltkError, InputError
from cltk.progress import console
from cltk.secrets import hidden


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done; 1 ran but something failed or did not reproduce; 2 the input is wrong, nothing was written."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries below draw bars of their own; one progress line is enough
    options = parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except CltkError as error:
        print(f"cltk: {hidden(' '.join(str(error).split()))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("cltk: interrupted; the same command continues from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:
        what = f"{error.filename or 'the disk'}: {error.strerror or error}"
        print(f"cltk: {hidden(what)}; what was finished is kept", file=sys.stderr)
        return 1


TRUST = "let Python run that the file names (trust_remote_code, !function in its task folder), and let it upload"
Command = Callable[[str, Any, str], argparse.ArgumentParser]  # name, function, help


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a wrong call."""

    def error(self, message: str) -> Any:
        print(f"cltk: {hidden(message)}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(2)


class Versions(argparse.Action):
    """Prints the versions that a report of a fault should name; looked up only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import platform
        from importlib import metadata

        names = ("torch", "transformers", "lm-eval", "datasets", "accelerate", "numpy", "scipy")
        print(f"cltk {__version__}")
        print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {metadata.version(name)}" for name in names))
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """All commands; each one is a function below."""
    top = Parser(prog="cltk", description="Measure what a language model forgets when it is fine-tuned, and prevent it.")
    top.add_argument(
        "--version", action=Versions, help="show cltk's version and those of the libraries that numbers follow from"
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        return sub

    _training(command)
    _measuring(command)
    _looking_up(command)
    return top


def _training(command: Command) -> None:
    """Options of what trains, or prepares a training."""
    sub = command("run", run, "run an experiment: evaluate, train every cell, evaluate, record")
    sub.add_argument("file", type=Path, help="the experiment's YAML")
    sub.add_argument("--out", type=Path, help="where records go (default: train.output_dir, else runs/NAME)")
    sub.add_argument("--dry-run", action="store_true", help="print the cells and their cost in tokens; load no weights")
    sub.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="cells in parallel, on this machine or on the Ray at ADDRESS"
    )

    sub.add_argument("--trust", action="store_true", help=TRUST)
    sub.add_argument("--strict", action="store_true", help="refuse rows that are learned from and measured on")

    sub = command("clean", clean, "list what an output folder holds that nobody reads any more, or remove it")
    sub.add_argument(
        "runs", type=Path, metavar="DIR", help="a folder that `cltk run` wrote; its records, scores and curves stay"
    )
    sub.add_argument("--yes", action="store_true", help="remove what is listed")
    sub.add_argument("--unfinished", action="store_true", help="also checkpoints of cells without a record: they begin anew")
    sub.add_argument("--models", action="store_true", help="also the tuned weights of cells that have a record")

    sub = command("fisher", fisher, "compute the diagonal Fisher information of a model on old-domain text")
    sub.add_argument("model", help="folder, hub id or asset:NAME")
    sub.add_argument("--memory", required=True, help="old-domain text: a file, asset:NAME/FILE or hub id")
    sub.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    sub.add_argument("--samples", type=int, help="sequences to use; all when not given")
    sub.add_argument("--kind", choices=["mc", "empirical", "exact", "mas"], default="mc")
    sub.add_argument("--block", type=int, default=256, help="tokens of a sequence")
    sub.add_argument("--batch-size", type=int, default=8)
    sub.add_argument("--normalize", choices=["mean"], default=None)
    sub.add_argument("--floor", type=float, default=0.0, help="add so many times the mean to every element")
    sub.add_argument("--rtol", type=float, help="stop at this relative standard error of the trace, such as 0.05")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--autocast", action="store_true", help="gradients in bfloat16, sums in float32: faster, less exact")

    sub = command("estimate", estimate, "bytes a training will hold on each GPU, from the model's config alone")
    sub.add_argument("model", nargs="?", help="folder, hub id or asset:NAME (default: the YAML's)")
    sub.add_argument("--yaml", type=Path, help="an experiment: its settings, a line for each of its methods")
    sub.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (default: float32)")
    sub.add_argument("--optim", help="as in TrainingArguments (default: adamw_torch_fused)")
    sub.add_argument("--method", nargs="+", metavar="NAME", default=[], help="mitigators, with their default arguments")
    sub.add_argument("--gpus", type=int)
    sub.add_argument("--sharding", choices=["none", "ddp", "fsdp", "zero1", "zero2", "zero3"])
    sub.add_argument("--batch", type=int, help="rows of a micro-batch on one GPU (default: 8)")
    sub.add_argument("--length", type=int, help="tokens of a row (default: 512)")
    sub.add_argument("--accumulation", type=int, help="micro-batches a step (default: 1)")
    sub.add_argument("--counted", type=float, help="share of positions whose loss counts (default: 1)")
    sub.add_argument("--checkpointing", action="store_true", default=None, help="gradient checkpointing")
    sub.add_argument("--autocast", action="store_true", default=None, help="bfloat16 products of float32 weights (train.bf16)")
    sub.add_argument("--json", action="store_true", help="as JSON on standard output, in bytes")

    sub = command("reproduce", reproduce, "run a record's cell again and compare every number; exit code 0 or 1")
    sub.add_argument("record", type=Path, help="a record.json, or a folder of records")
    sub.add_argument("--out", type=Path, help="where the new records go (default: runs/reproduced-NAME)")
    sub.add_argument("--tolerance", type=float, default=0.0, help="difference to accept, relative (default: 0, bit for bit)")
    sub.add_argument("--trust", action="store_true", help=TRUST)


def _measuring(command: Command) -> None:
    """Options of what measures, plans and reports."""
    sub = command("measure", measure, "compare two checkpoints: what did TUNED forget that BASE knew?")
    sub.add_argument("base", help="folder, hub id or asset:NAME")
    sub.add_argument("tuned", help="folder, hub id or asset:NAME")
    sub.add_argument("--tasks", default="", help="lm-eval tasks, groups, tags, patterns or files, separated by commas")
    sub.add_argument(
        "--text", action="append", default=[], metavar="FILE", help="held-out text whose NLL is compared; repeatable"
    )
    sub.add_argument("--limit", type=int, help="the first documents of each task")
    sub.add_argument(
        "--sample", type=_number, metavar="N", help="random documents of each task and text, or a fraction of them"
    )
    sub.add_argument("--sample-seed", type=int, default=0, metavar="SEED", help="of the sample (default: 0)")
    sub.add_argument(
        "--until",
        type=float,
        metavar="HALF",
        help="score random documents until the macro's interval has this half width (0.01)",
    )
    sub.add_argument("--every-task", action="store_true", help="with --until: the interval of every task instead")
    sub.add_argument("--num-fewshot", type=int)
    sub.add_argument("--include-path", type=Path, help="folder of task YAML, such as evals/tasks")
    sub.add_argument("--batch-size", default="auto")
    sub.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    sub.add_argument("--chat-template", action="store_true", help="apply the tokenizers' chat template")
    sub.add_argument("--system-instruction", metavar="TEXT", help="text before every prompt")
    sub.add_argument(
        "--fewshot-as-multiturn", action=argparse.BooleanOptionalAction, default=True,
        help="examples are turns of the conversation in a chat template (default), or part of the question",
    )  # fmt: skip
    sub.add_argument("--gen-kwargs", metavar="NAME=VALUE,...", help="of generation, over the task's own")
    sub.add_argument(
        "--confirm-run-unsafe-code", action="store_true", help="consent to tasks that run code which the model writes"
    )
    sub.add_argument("--members", action="store_true", help="rows for the tasks of a group, beside the group's")
    sub.add_argument("--scorer", choices=["prefix", "stock"], default="prefix")
    sub.add_argument(
        "--kl-rows", type=int, default=16, metavar="N",
        help="rows of each text on which KL(base || tuned) is measured, both models in memory; 0: one at a time (default: 16)",
    )  # fmt: skip
    sub.add_argument("--json", type=Path, help="write the result here, documents included")

    sub = command("power", power, "before a run: what forgetting can these tasks show?")
    sub.add_argument("--tasks", required=True, help="lm-eval tasks, groups, tags, patterns or files, separated by commas")
    sub.add_argument("--include-path", type=Path, help="folder of task YAML, such as evals/tasks")
    sub.add_argument("--limit", type=int, help="the first documents of each task")
    sub.add_argument(
        "--sample", type=_number, metavar="N", help="random documents of each task and text, or a fraction of them"
    )
    sub.add_argument("--sample-seed", type=int, default=0, metavar="SEED", help="of the sample (default: 0)")
    sub.add_argument("--effect", type=float, default=0.03, help="the accuracy lost that you want to show; 0.03 is 3 pp")
    sub.add_argument("--discordance", type=float, default=0.10, help="documents that flip, either way; 0.10 is 10 %%")
    sub.add_argument("--base", help="score this model too: folder, hub id or asset:NAME; without it no weights are loaded")

    sub = command("report", report, "print the tables of an output folder")
    sub.add_argument("runs", type=Path, help="a folder that `cltk run` wrote, or a record")
    sub.add_argument("--markdown", type=Path, metavar="FILE", help="also write Markdown here")
    sub.add_argument("--html", type=Path, metavar="FILE", help="also write one self-contained page here")
    sub.add_argument("--latex", type=Path, metavar="DIR", help="also write tables (.tex) and figures (.pdf) here")
    sub.add_argument("--lm-eval", type=Path, metavar="DIR", help="also copy the result files that lm-eval's tools read here")

    sub = command("matched", matched, "forgetting at matched new-task gain, against what plain fine-tuning reaches")
    sub.add_argument("runs", type=Path, nargs="+", help="output folders of `cltk run`, on the same documents and seeds")
    sub.add_argument("--reference", default="plain*", help="the methods to beat: a pattern of their names (default: plain*)")
    sub.add_argument("--new", default="heldout", help="the task that is learned (default: heldout)")
    sub.add_argument("--old", help="the task that is forgotten (default: the first of evals.retain)")
    sub.add_argument("--json", type=Path, help="write the numbers here")


def _looking_up(command: Command) -> None:
    """Options of what lists and explains."""
    sub = command("methods", methods, "list the methods, or show one's card: formula, cost, settings, examples")
    sub.add_argument("name", nargs="?", help="a method's name, as in an experiment's YAML")
    sub.add_argument("--json", action="store_true", help="as JSON on standard output")

    sub = command("assets", assets, "list, fetch or locate the pinned models and data sets")
    sub.add_argument("action", choices=["list", "fetch", "path"])
    sub.add_argument("names", nargs="*", metavar="NAME")

    command("schema", schema, "print the JSON schema of an experiment file")


def _number(text: str) -> int | float:
    """A whole number, or one with a point."""
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def run(options: argparse.Namespace) -> int:
    """`cltk run`: all cells that have no record, then the report."""
    from cltk.progress import Bar
    from cltk.ranks import first
    from cltk.report.api import report as show
    from cltk.run.experiment import load

    experiment = load(options.file, options.out, options.trust, options.strict)
    if options.dry_run:
        return dry_run(experiment)
    if not experiment.missing():
        print(f"{len(experiment.cells)} of {len(experiment.cells)} cells have a record in {experiment.out}: nothing to do")
        experiment.run()
    else:
        from cltk.run.speed import tune_allocator

        tune_allocator(experiment.plan.experiment.speed.allocator)
        with Bar() as bar:
            experiment.run(bar, ray=options.ray)
    if first():
        show([experiment.folder(cell) / "record.json" for cell in experiment.cells])
    return 0


def clean(options: argparse.Namespace) -> int:
    """`cltk clean`: what can go and its size; with --yes it goes."""
    from cltk.run.tidy import leftovers, remove

    found = leftovers(options.runs, unfinished=options.unfinished, models=options.models)
    for left in found:
        print(f"{left.size / 1e6:10.1f} MB  {left.path}: {left.what}")
    total = f"{sum(left.size for left in found) / 1e6:.1f} MB"
    if options.yes:
        remove(options.runs, found)
    print(f"{total} removed" if options.yes else f"{total} can go; --yes removes it" if found else "nothing to remove")
    return 0


def dry_run(experiment: Any) -> int:
    """`cltk run --dry-run`: the cells, their cost in tokens, and what the planned documents can show."""
    from cltk.measure.power import plan
    from cltk.run.cost import cost_in_tokens
    from cltk.run.methods import build_mitigators

    experiment.check()
    leaks = experiment.leaks()
    print(f"{experiment.plan.file}: {len(experiment.cells)} cells -> {experiment.out}")
    for cell in experiment.cells:
        state = "has a record" if (experiment.folder(cell) / "record.json").exists() else "to run"
        mitigators = build_mitigators(cell.config.mitigators, experiment.plan.folder)
        for training in cell.trainings:
            cost = cost_in_tokens(training, experiment.inputs.data(training), mitigators, experiment.inputs.tokenizer(cell))
            name = f"{cell.name} ({state})" + (f", {training.stage}" if training.stage else "")
            print(f"  {name}: {cost['steps']} steps, {cost['rows']} rows, {cost['tokens']} training tokens")
        for entry in cell.config.mitigators:
            print(f"    {entry}")
    first = experiment.cells[0]
    suite, tokenizer = experiment.inputs.suite(first), experiment.inputs.tokenizer(first)
    sizes = ", ".join(f"{name} {n}" for name, n in suite.sizes().items())
    print(f"  measured before and after each: {sizes} documents; {suite.tokens(tokenizer)} tokens a model")
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


def measure(options: argparse.Namespace) -> int:
    """`cltk measure`: the forgetting table of two checkpoints."""
    from cltk.measure.compare import measure as compare
    from cltk.measure.evaluate import TextTask
    from cltk.progress import Bar
    from cltk.report.tables import measured, moved

    tasks = [task.strip() for task in options.tasks.split(",") if task.strip()]
    stems = [Path(file).stem for file in options.text]
    texts = []
    for stem, file in zip(stems, options.text, strict=True):
        name = stem if stems.count(stem) == 1 else str(Path(file).with_suffix(""))
        texts.append(TextTask.read(name, file, limit=options.limit))
    with Bar() as bar:
        result = compare(
            options.base, options.tuned, tasks, options.limit, options.num_fewshot, options.include_path,
            options.batch_size, options.dtype, texts=texts, chat_template=options.chat_template,
            system_instruction=options.system_instruction, fewshot_as_multiturn=options.fewshot_as_multiturn,
            gen_kwargs=options.gen_kwargs, confirm_run_unsafe_code=options.confirm_run_unsafe_code,
            sample=options.sample, sample_seed=options.sample_seed, until=options.until, every_task=options.every_task,
            members=options.members, scorer=options.scorer,
            kl_rows=options.kl_rows, progress=bar,
        )  # fmt: skip
    for table in (measured(result.to_json()), moved(result.to_json())):
        if table is not None:
            console().print(table.rich())
    for note in result.notes:
        print(f"note: {note}")
    if options.json:
        from cltk.run.records import write_json

        write_json(options.json, result.to_json())
    return 0


def power(options: argparse.Namespace) -> int:
    """`cltk power`: what so many documents can show."""
    from cltk.measure.compare import common_dtype, score_model
    from cltk.measure.evaluate import Suite
    from cltk.measure.power import known, plan
    from cltk.models import locate_model
    from cltk.progress import Bar
    from cltk.report.tables import planned

    if options.base:
        locate_model(options.base)
    tasks = [task.strip() for task in options.tasks.split(",") if task.strip()]
    chosen = {"limit": options.limit, "sample": options.sample, "sample_seed": options.sample_seed}
    suite = Suite(tasks, include_path=options.include_path, **chosen)
    asked = {"discordance": options.discordance, "effect": options.effect, "clusters": suite.cluster_sizes()}
    rows = plan(suite.sizes(), **asked)
    if options.base:
        dtype = common_dtype(options.base, options.base, "auto")
        with Bar() as bar:
            scores = score_model(suite, options.base, dtype, "auto", "prefix", True, bar, "base")
        rows = plan(suite.sizes(), *known(scores), **asked)
    console().print(planned(rows, options.effect).rich())
    for row in rows:
        for warning in row.warnings:
            print(f"warning: {row.task}: {warning}")
    for name, notes in suite.about().items():
        for note in notes:
            print(f"note: {name}: {note}")
    return 0


def report(options: argparse.Namespace) -> int:
    """`cltk report`: the tables of an output folder, and the files asked for."""
    from cltk.report.api import report as show

    show(options.runs, markdown=options.markdown, html=options.html, latex=options.latex, lm_eval=options.lm_eval)
    return 0


def matched(options: argparse.Namespace) -> int:
    """`cltk matched`: does a method beat the frontier of another?"""
    from dataclasses import asdict

    from cltk.report.matched import matched as compare
    from cltk.report.matched import table
    from cltk.report.settings import first_retained
    from cltk.report.sources import read_entries
    from cltk.run.records import write_json

    old = options.old or first_retained(read_entries(options.runs[0])[0].record)
    found = compare(options.runs, options.reference, options.new, old)
    console().print(table(found, options.reference, old).rich())
    if options.json:
        settings = {"reference": options.reference, "new": options.new, "old": old}
        write_json(options.json, {**settings, "settings": [asdict(one) for one in found]})
    return 0


def fisher(options: argparse.Namespace) -> int:
    """`cltk fisher`: compute and save an importance; continues an interrupted one."""
    from cltk.data import memory_rows
    from cltk.mitigate import fisher as compute
    from cltk.models import load_model
    from cltk.progress import Bar

    if options.out.suffix != ".safetensors":
        raise InputError(f"--out {options.out}: the file must end in .safetensors")
    model, tokenizer = load_model(options.model)
    rows = memory_rows(options.memory, tokenizer, options.block)
    total = min(len(rows), options.samples or len(rows))
    partial = options.out.with_suffix(".partial.safetensors")
    with Bar() as bar:
        result = compute(
            model, rows, options.kind, options.samples, options.batch_size, options.normalize, options.seed, options.floor,
            options.rtol, progress=lambda done, *_: bar("fisher", done, total), partial=partial,
            autocast=options.autocast,
        )  # fmt: skip
    result.save(options.out)
    partial.unlink(missing_ok=True)
    shown = {key: result.info[key] for key in ("kind", "level", "sequences", "tokens", "relative_se") if key in result.info}
    print(f"{options.out}: {json.dumps(shown)}")
    return 0


def estimate(options: argparse.Namespace) -> int:
    """`cltk estimate`: memory before money."""
    from dataclasses import fields

    from cltk.run import estimate as memory

    given = {f.name: v for f in fields(memory.Setup) if (v := getattr(options, f.name, None)) is not None}
    if options.yaml is not None and options.method:
        raise InputError("estimate: --yaml names its methods itself; drop --method, or --yaml")
    if options.yaml is None and options.model is None:
        raise InputError("estimate: name a model, or an experiment with --yaml")
    if options.yaml is not None:
        found = memory.estimate_yaml(options.yaml, options.model, **given)
    else:
        found = [memory.estimate_model(options.model, memory.Setup(**given), options.method)]
    if options.json:
        print(json.dumps([one.to_json() for one in found], indent=1))
    else:
        console().print(memory.table(found))
    return 0


def reproduce(options: argparse.Namespace) -> int:
    """`cltk reproduce`: 0 when every record was reproduced, 1 when one was not."""
    from cltk.progress import Bar
    from cltk.run.reproduce import reproduce as again
    from cltk.run.speed import tune_allocator

    tune_allocator()
    with Bar() as bar:
        found = again(options.record, options.out, options.tolerance, bar, options.trust)
    for one in found:
        print("\n".join(one.lines()))
    return int(any(one.beyond for one in found))


def methods(options: argparse.Namespace) -> int:
    """`cltk methods`: the table of all cards, or one card."""
    from dataclasses import asdict

    from rich.markdown import Markdown

    from cltk.mitigate import catalog

    if options.json:
        chosen = [catalog.card(options.name)] if options.name else list(catalog.cards().values())
        print(json.dumps([asdict(card) for card in chosen], indent=1))
    elif options.name:
        console().print(Markdown(catalog.card(options.name).markdown()))
    else:
        wide = console()
        wide.print(catalog.table(wide.width))
    return 0


def assets(options: argparse.Namespace) -> int:
    """`cltk assets`: list, fetch or locate what is pinned."""
    from cltk import assets as store

    if options.action == "list":
        for asset in store.ASSETS.values():
            state = "fetched" if asset.folder.is_dir() else "not fetched"
            print(f"{asset.name:24} {asset.package} {asset.version} ({state}): {asset.description}; licence: {asset.licence}")
        return 0
    names = options.names or (list(store.ASSETS) if options.action == "fetch" else [])
    if not names:
        raise InputError(f"assets {options.action}: name at least one of {', '.join(store.ASSETS)}")
    for name in names:
        if options.action == "fetch":
            print(store.fetch(name, progress=lambda line: print(line, file=sys.stderr)))
        else:
            print(store.path(name))
    return 0


def schema(options: argparse.Namespace) -> int:
    """`cltk schema`: the JSON schema on standard output."""
    from cltk.run.config import schema as document

    print(json.dumps(document(), indent=1, default=str))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
