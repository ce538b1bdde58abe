"""`cltk tasks`: which tasks there are, what one asks, and what the instrument says of it before a model is loaded."""

from __future__ import annotations

import argparse
from typing import Any

from cltk.cli import options as shared
from cltk.cli.options import Command
from cltk.errors import InputError


def add(command: Command) -> None:
    """Options of what lists and shows tasks."""
    sub = command("tasks", tasks, "list tasks, or show one's prompt and what can be measured with it; no model is loaded")
    sub.add_argument("name", nargs="?", help="a task, group, tag or file to show; a pattern ('mmlu_*') lists what matches")
    shared.task_options(sub)
    sub.add_argument("-L", "--limit", type=shared.number, metavar="N", help="the first documents, or a fraction of them")
    sub.add_argument(
        "--chat-template", "--apply-chat-template", metavar="MODEL", help="show the prompt in the chat template of this model"
    )
    sub.add_argument(
        "--model-args", metavar="NAME=VALUE,...", help="with --chat-template: of that model (enable_thinking, revision, ...)"
    )
    sub.add_argument("--document", type=int, default=0, metavar="I", help="whose prompt is shown (default: 0)")
    shared.json_option(sub)


def tasks(options: argparse.Namespace) -> int:
    """`cltk tasks`: a table of names, or a task."""
    if options.name is None or ("/" not in options.name and set(options.name) & set("*?[")):
        return names(options)
    from cltk.measure.evaluate import Suite
    from cltk.measure.showing import about
    from cltk.measure.thinking import check_thinking
    from cltk.models import load_tokenizer
    from cltk.models.origin import Origin, arguments

    if options.model_args and not options.chat_template:
        raise InputError("--model-args: is of the model whose chat template is shown; name it with --chat-template")
    model = Origin.of(options.chat_template or "", arguments(options.model_args, "--model-args"))
    tokenizer = load_tokenizer(model) if options.chat_template else None
    suite = Suite(
        [options.name], limit=options.limit, num_fewshot=options.num_fewshot, include_path=options.include_path,
        chat_template=tokenizer is not None, system_instruction=options.system_instruction,
        fewshot_as_multiturn=options.fewshot_as_multiturn, confirm_run_unsafe_code=options.confirm_run_unsafe_code,
        seed=options.seed,
    )  # fmt: skip
    check_thinking(suite, {options.chat_template: tokenizer} if tokenizer is not None else {}, True)
    found = about(suite, options.document, tokenizer)
    shared.put_json(options.json, found)
    shown = shared.out(options.json)
    for line in lines(found):
        shared.say(shown, line)
    return 0


def names(options: argparse.Namespace) -> int:
    """The table of tasks; lm-eval's own list, which takes seconds to read, only for a pattern."""
    from cltk.measure.showing import listed
    from cltk.report.tables import Table

    found = listed(options.name or "*", options.include_path, everything=options.name is not None)
    if not found:
        raise InputError(f"tasks: none is named like {options.name!r}")
    shared.put_json(options.json, found)
    note = "" if options.name else "lm-eval's own are listed by a pattern: cltk tasks 'arc_*'"
    heads = ["task", "from", "available"]
    table = Table(f"{len(found)} tasks", heads, [[row["name"], row["from"], row["available"]] for row in found], note)
    shared.out(options.json).print(table.rich())
    return 0


def lines(found: dict[str, Any]) -> list[str]:
    """What is said of a task, or of a group and its tasks."""
    from cltk.measure.forgetting import ACCURACIES

    said = []
    accuracies = any(name in ACCURACIES for task in found["tasks"] for name in task["metrics"])
    for row in found["rows"]:
        shows = "no loss of accuracy" if row["mde"] is None else f"a loss of {100 * row['mde']:.1f} pp of accuracy or more"
        power = f", which show {shows} (if 10 % of them flip)" if accuracies else ""
        said.append(f"{row['name']}: {row['documents']} documents{power}")
    for task in found["tasks"]:
        metrics = ", ".join(f"{name} ({better} is better)" for name, better in task["metrics"].items())
        said.append(f"{task['name']}: {task['kind']}, version {task['version']}, {task['examples']} examples; {metrics}")
        said += [f"  cannot be compared: {task['unmeasurable']}"] if task["unmeasurable"] else []
    said += [f"note: {note}" for note in found["notes"]]
    prompt = found["prompt"]
    contexts = list(dict.fromkeys(request[0] for request in prompt["requests"]))
    said += ["", f"document {prompt['document']} of {prompt['task']}:"]
    for context in contexts:
        said += ["-" * 40, context, "-" * 40]
        for i, request in enumerate(prompt["requests"]):
            if request[0] == context and len(request) > 1:
                said.append(f"{'right' if i in prompt.get('right', []) else '     '} {request[1]!r}")
    return said + ([f"right: {prompt['target']!r}"] if "target" in prompt else [])
