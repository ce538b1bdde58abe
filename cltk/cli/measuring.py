"""`cltk measure` and `power`: what two checkpoints say, and what documents could."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cltk.cli import options as shared
from cltk.cli import showing
from cltk.cli.options import Command
from cltk.cli.texts import HOW, text_tasks
from cltk.errors import InputError


def add(command: Command) -> None:
    """Options of what measures, and of what plans a measurement."""
    _add_measure(command)
    _add_power(command)


def _add_measure(command: Command) -> None:
    sub = command("measure", measure, "compare checkpoints: what did TUNED forget that BASE knew?")
    sub.add_argument("base", help="folder, hub id or asset:NAME")
    sub.add_argument("tuned", nargs="+", help="folder, hub id or asset:NAME; of several each is compared with BASE")
    shared.names_option(sub)
    sub.add_argument(
        "--text", action="append", default=[], metavar="FILE",
        help=f"held-out text whose NLL is compared, repeatable: a file, {HOW % 'text'}",
    )  # fmt: skip
    shared.selection_options(sub)
    sub.add_argument(
        "--until",
        type=float,
        metavar="HALF",
        help="score random documents until the macro's interval has this half width (0.01)",
    )
    sub.add_argument("--every-task", action="store_true", help="with --until: the interval of every task instead")
    shared.task_options(sub)
    shared.device_option(sub)
    sub.add_argument("-b", "--batch-size", default="auto", help="rows of a generated batch; auto, auto:N or a number")
    sub.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    for name, whose in (("model", "both models"), ("base", "BASE"), ("tuned", "TUNED")):
        sub.add_argument(
            f"--{name}-args", metavar="NAME=VALUE,...",
            help=f"loading of {whose}: revision, dtype, load_in_4bit, gguf_file, tokenizer, base (of an adapter), ...",
        )  # fmt: skip
    sub.add_argument(
        "--backend", metavar="NAME",
        help="another class of lm-eval's runs the models (local-completions, vllm, ...); its arguments go into --model-args",
    )  # fmt: skip
    sub.add_argument(
        "--chat-template",
        "--apply-chat-template",
        nargs="?",
        const="own",
        default="none",
        choices=["none", "base", "tuned", "own"],
        help="whose chat template makes the prompts; own (alone: own): each model's, and documents are paired",
    )  # fmt: skip
    sub.add_argument("--gen-kwargs", nargs="+", metavar="NAME=VALUE", help="of generation, over the task's own")
    sub.add_argument("--members", action="store_true", help="rows for the tasks of a group, beside the group's")
    sub.add_argument("--scorer", choices=["prefix", "stock"], default="prefix")
    sub.add_argument(
        "--kl-rows", type=int, default=16, metavar="N",
        help="rows of each text on which KL(base || tuned) is measured; 0: none (default: 16)",
    )  # fmt: skip
    sub.add_argument("--kl-apart", action="store_true", help="never both models in memory: predictions of BASE wait on disk")
    sub.add_argument("-o", "--output-path", type=Path, metavar="DIR", help="lm-eval's own result files of every model go here")
    sub.add_argument("-s", "--log-samples", action="store_true", help="with --output-path: every document's answers too")
    shared.json_option(sub, any_name=True)
    showing.options(sub)


def _add_power(command: Command) -> None:
    sub = command("power", power, "before a run: what forgetting can these tasks show?")
    shared.names_option(sub, required=False)
    sub.add_argument(
        "--log", metavar="LOG", help="of a run that exists, as `cltk compare` reads it, instead of --tasks; no model"
    )
    sub.add_argument("--model", metavar="NAME", help="the model of the log, where it holds several")
    shared.task_options(sub)
    shared.selection_options(sub)
    sub.add_argument("--effect", type=float, default=0.03, help="the accuracy lost that you want to show; 0.03 is 3 pp")
    sub.add_argument("--discordance", type=float, default=0.10, help="documents that flip, either way; 0.10 is 10 %%")
    sub.add_argument("--base", help="score this model too: folder, hub id or asset:NAME; without it no weights are loaded")
    shared.device_option(sub)
    shared.json_option(sub)


def measure(options: argparse.Namespace) -> int:
    """`cltk measure`: the forgetting table of a checkpoint and those tuned from it; several processes share the work."""
    from cltk.ranks import as_one

    return as_one(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    from cltk.measure.compare import measure as compare
    from cltk.measure.selection import whole_limit
    from cltk.models import on
    from cltk.progress import Bar
    from cltk.ranks import first
    from cltk.report.measurement import measured, moved

    kept = keeper(options)
    texts = text_tasks(options.text, whole_limit(options.limit), options.sample_seed)
    with on(options.device), Bar() as bar:
        results = compare(
            options.base, list(options.tuned), options.tasks, options.limit, options.num_fewshot, options.include_path,
            options.batch_size, options.dtype, texts=texts, chat_template=options.chat_template,
            system_instruction=options.system_instruction, fewshot_as_multiturn=options.fewshot_as_multiturn,
            gen_kwargs=generation(options.gen_kwargs), seed=options.seed,
            confirm_run_unsafe_code=options.confirm_run_unsafe_code,
            sample=options.sample, sample_seed=options.sample_seed, until=options.until, every_task=options.every_task,
            members=options.members, scorer=options.scorer,
            kl_rows=options.kl_rows, kl_apart=options.kl_apart, lost=showing.lost_wanted(options), progress=bar, keep=kept,
            model_args=options.model_args, base_args=options.base_args, tuned_args=options.tuned_args, backend=options.backend,
        )  # fmt: skip
    found = {name: result.to_json() for name, result in zip(options.tuned, results, strict=True)}
    if not first():
        return 0
    shared.put_json(options.json, {"results": found} if len(found) > 1 else next(iter(found.values())))
    shown = shared.out(options.json)
    for name, result in zip(options.tuned, results, strict=True):
        if len(results) > 1:
            shared.say(shown, f"{name}:")
        for table in (measured(result.to_json()), moved(result.to_json())):
            if table is not None:
                shown.print(table.rich())
        for note in result.notes:
            shared.say(shown, f"note: {note}")
    showing.show(options, dict(zip(options.tuned, results, strict=True)), shown)
    return 0


def keeper(options: argparse.Namespace) -> Any:
    """Writes a model's scores as lm-eval does, below --output-path; None without one.

    Raises:
        InputError: --log-samples without it, as lm-eval; a name of a file, which several models cannot share; --until.
    """
    if options.output_path is None:
        if options.log_samples:
            raise InputError("--log-samples: name a folder with --output-path")
        return None
    if options.until is not None:
        raise InputError("--output-path: the looks of --until are no whole measurement; leave one of the two out")
    if options.output_path.suffix == ".json" or options.output_path.is_file():
        raise InputError(f"--output-path {options.output_path}: name a folder; every model has files of its own")
    from cltk.run.outcome import write_lm_eval

    def keep(model: str, scores: Any) -> None:
        write_lm_eval(scores, options.output_path, model, afresh=False, with_samples=options.log_samples)

    return keep


def power(options: argparse.Namespace) -> int:
    """`cltk power`: what so many documents can show."""
    if options.log is not None:
        return _power_of_log(options)
    if not options.tasks:
        raise InputError("power: name at least one task with --tasks, or a run that exists with --log")
    from cltk.measure.compare import common_dtype, named_model, score_model
    from cltk.measure.evaluate import Suite
    from cltk.measure.power import known, plan
    from cltk.models import on
    from cltk.progress import Bar

    if options.base:
        named_model(options.base, "base")
    chosen = {"limit": options.limit, "sample": options.sample, "sample_seed": options.sample_seed}
    prompts = {
        name: getattr(options, name)
        for name in ("num_fewshot", "system_instruction", "fewshot_as_multiturn", "confirm_run_unsafe_code", "seed")
    }
    suite = Suite(options.tasks, include_path=options.include_path, **chosen, **prompts)
    asked = {"discordance": options.discordance, "effect": options.effect, "clusters": suite.cluster_sizes()}
    rows = plan(suite.sizes(), **asked)
    if options.base:
        with on(options.device), Bar() as bar:
            dtype = common_dtype(options.base, options.base, "auto")
            scores = score_model(suite, options.base, dtype, "auto", "prefix", True, bar, "base")
        rows = plan(suite.sizes(), *known(scores), **asked)
    return _planned(options, rows, suite.about() | ({"prompts": suite.notes} if suite.notes else {}))


def _power_of_log(options: argparse.Namespace) -> int:
    """The documents, clusters and accuracies of one model's log."""
    from collections import Counter

    from cltk.logs.reading import open_log
    from cltk.measure.power import known, plan

    if options.tasks or options.base:
        raise InputError("power: --log says which tasks and which model; leave --tasks and --base out")
    log = open_log(options.log)
    side = log.read(log.start(options.model))
    tasks = {name: one for name, one in side.scores.tasks.items() if name not in side.scores.members}
    clusters = {name: list(Counter(one.cluster).values()) for name, one in tasks.items() if one.cluster}
    accuracy, choices = ({name: one for name, one in found.items() if name in tasks} for found in known(side.scores))
    rows = plan(
        {name: len(one) for name, one in tasks.items()}, accuracy, choices, discordance=options.discordance,
        effect=options.effect, clusters=clusters,
    )  # fmt: skip
    return _planned(options, rows, {side.name: side.notes} if side.notes else {})


def _planned(options: argparse.Namespace, rows: list[Any], notes: dict[str, list[str]]) -> int:
    """The table, its warnings and notes."""
    from cltk.report.measurement import planned

    shared.put_json(options.json, {"rows": [row.to_json() for row in rows], "notes": notes})
    shown = shared.out(options.json)
    shown.print(planned(rows, options.effect).rich())
    for row in rows:
        for warning in row.warnings:
            shared.say(shown, f"warning: {row.task}: {warning}")
    for name, listed in notes.items():
        for note in listed:
            shared.say(shown, f"note: {name}: {note}")
    return 0


def generation(words: list[str] | None) -> Any:
    """--gen-kwargs as a mapping: NAME=VALUE, separated by spaces or commas, or a JSON object; as lm-eval reads them."""
    if not words:
        return None
    from lm_eval._cli.utils import key_val_to_dict, try_parse_json

    try:
        whole = try_parse_json(words[0]) if words[0].lstrip().startswith("{") else None
        return whole or {name: value for word in words for name, value in key_val_to_dict(word).items()}
    except ValueError as error:
        raise InputError(f"--gen-kwargs: {error}") from None
