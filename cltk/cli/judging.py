"""`cltk judge`: two models' answers to questions of several turns, judged by an OpenAI-compatible endpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cltk.cli import options as shared
from cltk.cli.measuring import generation
from cltk.cli.options import Command

QUESTIONS = "asset:mt-bench/mt_bench.jsonl"


def add(command: Command) -> None:
    """Options of the judge."""
    sub = command("judge", judge, "have a judge (any OpenAI-compatible endpoint) compare the answers of BASE and TUNED")
    sub.add_argument("base", help="folder, hub id or asset:NAME of a chat model")
    sub.add_argument("tuned", nargs="+", help="folder, hub id or asset:NAME; of several each is compared with BASE")
    sub.add_argument(
        "--questions", default=QUESTIONS, metavar="FILE",
        help="rows of question_id, category, turns, reference, as MT-Bench's (default: %(default)s)",
    )  # fmt: skip
    sub.add_argument("--endpoint", required=True, metavar="URL", help="such as http://localhost:8000/v1")
    sub.add_argument("--model", required=True, action="append", metavar="NAME", help="of the judge; repeatable")
    sub.add_argument("--mode", choices=["single", "pairwise"], default="single", help="grades 1 to 10, or the better of two")
    sub.add_argument(
        "--key-env", default="CLTK_JUDGE_KEY", metavar="NAME", help="environment variable of the key (%(default)s)"
    )
    sub.add_argument("--repeats", type=int, default=1, metavar="N", help="judgements of the same by each judge: its noise")
    sub.add_argument("-L", "--limit", type=int, metavar="N", help="the first questions")
    sub.add_argument("--max-new-tokens", type=int, default=1024, metavar="N", help="of an answer (default: 1024)")
    sub.add_argument("--judge-args", nargs="+", metavar="NAME=VALUE", help="fields of every request; NAME=null leaves one out")
    sub.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests at a time (default: 4)")
    sub.add_argument("--rate", type=float, metavar="N", help="requests a minute at most")
    sub.add_argument("--retries", type=int, default=6, metavar="N", help="after 429, 5xx, timeouts (default: 6)")
    sub.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="of a request (default: 300)")
    shared.device_option(sub)
    sub.add_argument("-b", "--batch-size", default="auto", help="rows of a generated batch; auto or a number")
    sub.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    sub.add_argument("--out", type=Path, default=Path("runs/judge"), metavar="DIR", help="answers and judgements are kept here")
    sub.add_argument("--dry-run", action="store_true", help="check everything and say what would be asked; nothing is sent")
    shared.json_option(sub)


def judge(options: argparse.Namespace) -> int:
    """`cltk judge`: the tables of what the judges say; 1 where they gave no verdict at all."""
    from cltk.files import check_folder
    from cltk.measure import sides
    from cltk.measure.judge_client import Client
    from cltk.measure.judge_models import check, judge_models
    from cltk.measure.judge_questions import read_questions
    from cltk.measure.judging import Judges
    from cltk.models import on
    from cltk.progress import Bar
    from cltk.report.judging import tables

    client = Client(
        options.endpoint, options.key_env, fields(options.judge_args), options.retries, options.timeout, options.rate,
        options.concurrency,
    )  # fmt: skip
    judges = Judges(client, tuple(options.model), options.mode, options.repeats)
    questions = read_questions(options.questions, options.limit)
    check_folder(options.out, "--out")
    models = [options.base, *options.tuned]
    check([(name, sides.named_model(name, name)) for name in models], options.max_new_tokens)
    shown = shared.out(options.json)
    if options.dry_run:
        turns = sum(len(question.turns) for question in questions)
        asked = 2 * turns * len(judges.readings) * len(options.tuned)
        shared.say(shown, f"{len(questions)} questions, {turns} turns; {turns * len(models)} answers are generated")
        shared.say(shown, f"{asked} judgements at most would be asked of {', '.join(judges.models)} at {client.url}")
        shared.say(shown, "nothing was sent")
        return 0
    with on(options.device), Bar() as bar:
        results = judge_models(
            options.base, options.tuned, questions, judges, options.out, max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size, dtype=options.dtype, name=Path(options.questions).stem, progress=bar,
        )  # fmt: skip
    about = {"endpoint": client.url, "questions": str(options.questions), "settings": client.body("", [])}
    found = {name: result.to_json() | {"asked": about} for name, result in zip(options.tuned, results, strict=True)}
    shared.put_json(options.json, {"results": found} if len(found) > 1 else next(iter(found.values())))
    for table in tables(found):
        shown.print(table.rich())
    for result in results:
        for note in result.notes:
            shared.say(shown, f"note: {note}")
    return 0 if all(result.rows for result in results) else 1


def fields(words: list[str] | None) -> dict[str, Any]:
    """--judge-args as a mapping; "null" and "none" leave a field out.

    Raises:
        InputError: no NAME=VALUE; a secret, which belongs in the environment.
    """
    from cltk import secrets

    found = {name: None if value in ("null", "none", "None") else value for name, value in (generation(words) or {}).items()}
    secrets.refuse(found, lambda keys: "--judge-args")
    return found
