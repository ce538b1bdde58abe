"""`cltk measure` and `power`: what two checkpoints say, and what documents could."""

from __future__ import annotations

import argparse
from pathlib import Path

from cltk.cli.options import Command, names, number
from cltk.progress import console


def add(command: Command) -> None:
    """Options of what measures, and of what plans a measurement."""
    sub = command("measure", measure, "compare checkpoints: what did TUNED forget that BASE knew?")
    sub.add_argument("base", help="folder, hub id or asset:NAME")
    sub.add_argument("tuned", nargs="+", help="folder, hub id or asset:NAME; of several each is compared with BASE")
    sub.add_argument("--tasks", default="", help="lm-eval tasks, groups, tags, patterns or files, separated by commas")
    sub.add_argument(
        "--text", action="append", default=[], metavar="FILE", help="held-out text whose NLL is compared; repeatable"
    )
    sub.add_argument("--limit", type=int, help="the first documents of each task")
    sub.add_argument("--sample", type=number, metavar="N", help="random documents of each task and text, or a fraction of them")
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
    sub.add_argument("--sample", type=number, metavar="N", help="random documents of each task and text, or a fraction of them")
    sub.add_argument("--sample-seed", type=int, default=0, metavar="SEED", help="of the sample (default: 0)")
    sub.add_argument("--effect", type=float, default=0.03, help="the accuracy lost that you want to show; 0.03 is 3 pp")
    sub.add_argument("--discordance", type=float, default=0.10, help="documents that flip, either way; 0.10 is 10 %%")
    sub.add_argument("--base", help="score this model too: folder, hub id or asset:NAME; without it no weights are loaded")


def measure(options: argparse.Namespace) -> int:
    """`cltk measure`: the forgetting table of a checkpoint and those tuned from it."""
    from cltk.measure.compare import measure as compare
    from cltk.measure.evaluate import TextTask
    from cltk.progress import Bar
    from cltk.report.measurement import measured, moved

    tasks = names(options.tasks)
    stems = [Path(file).stem for file in options.text]
    texts = []
    for stem, file in zip(stems, options.text, strict=True):
        name = stem if stems.count(stem) == 1 else str(Path(file).with_suffix(""))
        texts.append(TextTask.read(name, file, limit=options.limit))
    with Bar() as bar:
        results = compare(
            options.base, list(options.tuned), tasks, options.limit, options.num_fewshot, options.include_path,
            options.batch_size, options.dtype, texts=texts, chat_template=options.chat_template,
            system_instruction=options.system_instruction, fewshot_as_multiturn=options.fewshot_as_multiturn,
            gen_kwargs=options.gen_kwargs, confirm_run_unsafe_code=options.confirm_run_unsafe_code,
            sample=options.sample, sample_seed=options.sample_seed, until=options.until, every_task=options.every_task,
            members=options.members, scorer=options.scorer,
            kl_rows=options.kl_rows, progress=bar,
        )  # fmt: skip
    for name, result in zip(options.tuned, results, strict=True):
        if len(results) > 1:
            print(f"{name}:")
        for table in (measured(result.to_json()), moved(result.to_json())):
            if table is not None:
                console().print(table.rich())
        for note in result.notes:
            print(f"note: {note}")
    if options.json:
        from cltk.run.records import write_json

        found = {name: result.to_json() for name, result in zip(options.tuned, results, strict=True)}
        write_json(options.json, {"results": found} if len(found) > 1 else next(iter(found.values())))
    return 0


def power(options: argparse.Namespace) -> int:
    """`cltk power`: what so many documents can show."""
    from cltk.measure.compare import common_dtype, score_model
    from cltk.measure.evaluate import Suite
    from cltk.measure.power import known, plan
    from cltk.models import locate_model
    from cltk.progress import Bar
    from cltk.report.measurement import planned

    if options.base:
        locate_model(options.base)
    tasks = names(options.tasks)
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
