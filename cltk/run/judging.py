"""A judge's part of a cell: the start model's answers beside the tuned one's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cltk.errors import InputError
from cltk.measure import judging
from cltk.measure.journal import Journal
from cltk.measure.judge_client import Client
from cltk.measure.judge_models import ANSWERS, judge_answers
from cltk.measure.judge_questions import Question, answers, check_room, check_template, read_questions
from cltk.measure.judging import Judges
from cltk.measure.tasks import SHIPPED
from cltk.ranks import agreed, decided, first, ranks
from cltk.run.methods import resolve_path

if TYPE_CHECKING:
    from cltk.run.inputs import Inputs
    from cltk.run.plans import Cell
    from cltk.run.spec_judge import JudgeSpec

TOLD = 60.0  # seconds between two words of the first rank to the others
FOLDER = "judge"  # of an output folder: answers and judgements of all cells, which cost money


def questions(inputs: Inputs, spec: JudgeSpec) -> list[Question]:
    """What is asked. Raises InputError naming the file and its row."""
    shipped = spec.questions.startswith(SHIPPED)
    place = spec.questions if shipped else resolve_path(spec.questions, inputs.plan.folder, "evals.judge.questions")
    return read_questions(place, spec.limit)


def judges(spec: JudgeSpec) -> Judges:
    """Who judges. Raises InputError for an address that is none, a key that is not there."""
    client = Client(spec.endpoint, spec.key_env, spec.settings, spec.retries, spec.timeout, spec.rate, spec.concurrency)
    return Judges(client, spec.models, spec.mode, spec.repeats)


def identity_of(inputs: Inputs, cell: Cell) -> dict[str, Any]:
    """What a record's judgements follow from, beside the configuration: the questions themselves."""
    spec = cell.config.evals.judge
    return {} if spec is None else {"judge": [question.digest for question in questions(inputs, spec)]}


def check_judge(inputs: Inputs, cell: Cell) -> None:
    """Everything that can be found wrong before weights are loaded; nothing is sent.

    Raises:
        InputError: the questions, the endpoint, the key, the start model's chat template or positions; an endpoint elsewhere
            in a file that is not trusted, which would be sent the key and the answers.
    """
    spec = cell.config.evals.judge
    if spec is None:
        return
    try:
        found = judges(spec)
    except InputError as error:
        raise InputError(f"evals.{error}" if str(error).startswith("judge") else f"evals.judge: {error}") from None
    if not inputs.trust and (not found.client.local or spec.key_env != type(spec).model_fields["key_env"].default):
        raise InputError("evals.judge: sends answers and your key to the endpoint; add --trust if you trust the file")
    questions(inputs, spec)
    tokenizer = inputs.tokenizer(cell)
    check_template(tokenizer, "evals.judge: the start model")
    check_room(inputs.config(cell), tokenizer, spec.max_new_tokens, "evals.judge.max_new_tokens")


def ready(cell: Cell) -> None:
    """Asks the judges for a word before anything is trained. Raises RunError where none comes."""
    if cell.config.evals.judge is not None and first():
        judging.probe(judges(cell.config.evals.judge))


def judge_part(inputs: Inputs, cell: Cell, tuned: tuple[Any, Any], folder: Path, say: Any) -> dict[str, Any]:
    """What the judges say of the cell's model, for its record; nothing where none is asked.

    The prompts, replies and verdicts stand in `folder`; answers and judgements are kept beside all cells, and asked once.
    """
    spec = cell.config.evals.judge
    if spec is None:
        return {}
    who, asked, out = judges(spec), questions(inputs, spec), folder.parent / FOLDER
    book, texts, notes = Journal(out / ANSWERS, write=first()), [], list[str]()
    for name in ("start model", cell.name):
        model, tokenizer = inputs.model(cell) if name != cell.name else tuned
        tell: Any = lambda done, total, name=name: say(f"{name}: answers", done, total, "")  # noqa: E731
        said: list[str] = []
        how: Any = {"journal": book, "max_new_tokens": spec.max_new_tokens, "progress": tell}
        texts.append(answers(model, tokenizer, asked, **how, notes=said))
        notes += [f"{name}: {line}" for line in said]
        del model

    def judge() -> dict[str, Any]:
        name = Path(spec.questions).stem
        found = judge_answers(texts[0], texts[1:], asked, who, out, name, say, folder, called=[cell.name])[0].to_json()
        found["notes"] = [*found["notes"], *notes]
        return {**found, "asked": {"endpoint": who.client.url, "settings": who.client.body("", [])}}

    return {"judge": _by_one(judge)}


def _by_one(work: Callable[[], Any]) -> Any:
    """`work()` of the first rank; the others hear of it once a minute, since a collective waits for some minutes at most."""
    if ranks()[1] == 1:
        return work()
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(work) if first() else None
        while not agreed(task is None or bool(wait([task], timeout=TOLD).done)):
            pass
        return decided(task.result if task else work)
