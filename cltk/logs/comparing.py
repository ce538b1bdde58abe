"""compare(base, tuned): the forgetting table of two runs that exist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cltk import __version__
from cltk.errors import InputError
from cltk.logs.lm_eval import Directions
from cltk.logs.lost import among_files
from cltk.logs.reading import Log, open_log, pick
from cltk.logs.side import Side
from cltk.measure import forgetting
from cltk.measure.lost import lost_documents
from cltk.measure.partial import DRAWN
from cltk.measure.results import Result
from cltk.measure.scores import Scores, TaskScores

ANYWAY = "run both alike, or compare them as they are with --prompts differ"


def compare(
    base: str | Path | Side, tuned: str | Path | Side, *, base_model: str | None = None, tuned_model: str | None = None,
    prompts: str = "same", margins: Mapping[str, float] | None = None, members: bool = False,
    directions: Directions | None = None, lost: int = 0,
) -> Result:  # fmt: skip
    """What did the second run forget that the first knew? The very table of `cltk.measure`, from files alone.

    Args:
        base, tuned: logs (see `reading.read`), or sides that were read.
        base_model, tuned_model: which model of a log that has several.
        prompts: "same" refuses tasks that were asked otherwise (examples, chat template, version, limit, documents);
            "differ" pairs the documents that both have, whatever was asked, and says so in `.notes`.
        margins: as in `cltk.measure`.
        members: whether the tasks of a group have rows beside it.
        directions: metric -> whether higher is better, where the log does not say.
        lost: of how many lost documents a task `.lost` has the texts, where the log has them.

    Raises:
        InputError: a log cannot be read; no task can be compared.
    """
    found = compare_all(
        base, [tuned], base_model=base_model, tuned_models=[tuned_model] if tuned_model else (), prompts=prompts,
        margins=margins, members=members, directions=directions, lost=lost,
    )  # fmt: skip
    if len(found) > 1:
        raise InputError(f"{tuned}: holds {len(found)} models beside the base ({', '.join(found)}); name one of them")
    return next(iter(found.values()))


def compare_all(
    base: str | Path | Side, tuned: Sequence[str | Path | Side], *, base_model: str | None = None,
    tuned_models: Sequence[str] = (), prompts: str = "same", margins: Mapping[str, float] | None = None,
    members: bool = False, directions: Directions | None = None, lost: int = 0,
) -> dict[str, Result]:  # fmt: skip
    """Model -> Result, of every tuned model of the logs: of those named, else of all but the base. Raises as `compare`."""
    if prompts not in ("same", "differ"):
        raise InputError(f"prompts: {prompts!r} is unknown; use same or differ")
    start, own = base, ("", "")
    if not isinstance(base, Side):
        log = open_log(base, members, directions)
        name = pick(log, base_model or log.first or None)
        start, own = log.read(name), (str(Path(base).resolve()), name)
    assert isinstance(start, Side)
    others = [one for given in tuned for one in _others(given, tuned_models, own, members, directions)]
    if not others:
        raise InputError(f"{', '.join(str(one) for one in tuned)}: holds no model but the base, {start.name}")
    found: dict[str, Result] = {}
    for side in others:
        name = side.name if side.name not in found else f"{side.name} ({side.source})"
        result = _compared(start, side, prompts, margins)
        texts = lost_documents(result, among_files(start), among_files(side), lost) if lost else []
        found[name] = replace(result, lost=texts)
    return found


def _others(
    given: str | Path | Side, models: Sequence[str], base: tuple[str, str], members: bool, directions: Directions | None
) -> list[Side]:
    if isinstance(given, Side):
        return [given]
    log: Log = open_log(given, members, directions)
    if models:
        return [log.read(pick(log, name)) for name in models]
    rest = [name for name in log.models if (str(Path(given).resolve()), name) != base and name != log.first]
    return [log.read(name) for name in (rest or log.models if len(log.models) == 1 else rest)]


def _compared(base: Side, tuned: Side, prompts: str, margins: Mapping[str, float] | None) -> Result:
    """The result of two sides; tasks that cannot be compared are named in its notes."""
    ours, theirs = base.scores.tasks, tuned.scores.tasks
    shared = [task for task in ours if task in theirs]
    if not shared:
        raise InputError(
            f"{base.name} and {tuned.name} have no task in common ({', '.join(ours)}; {', '.join(theirs)}); run both on one"
        )
    missing = {
        task: f"task {task}: only {one.name} has it"
        for one, other in ((base, theirs), (tuned, ours)) for task in one.scores.tasks if task not in other
    }  # fmt: skip
    notes = [f"{why} (left out)" for why in missing.values()]
    pre: dict[str, TaskScores] = {}
    post: dict[str, TaskScores] = {}
    refused: dict[str, str] = {}
    for task in shared:
        try:
            for one in (ours[task], theirs[task]):
                if not len(one) and one.left_out:
                    raise InputError("; ".join(one.left_out.values()))
            pre[task], post[task], said = _alike(base, tuned, task, prompts)
            notes += [f"{task}: {line}" for line in said]
        except InputError as error:
            refused[task] = str(error)
    if not pre:
        raise InputError("; ".join(refused.values()))
    hidden = base.scores.members
    result = forgetting.compare(
        Scores(base.scores.digest, pre, members=hidden), Scores(tuned.scores.digest, post, members=hidden), margins=margins
    )
    settings = {
        "base": base.name, "tuned": tuned.name, "tasks": {name: task.settings for name, task in pre.items()},
        "prompts": prompts, "logs": {"base": base.about, "tuned": tuned.about}, "cltk_version": __version__,
    }  # fmt: skip
    said = [
        *(f"{side.name}: {note}" for side in (base, tuned) for note in side.notes), *notes,
        *(f"{why} (left out)" for why in refused.values()), *result.notes, *_otherwise(base, tuned),
    ]  # fmt: skip
    left_out = {**missing, **refused, **result.left_out}
    return replace(result, notes=list(dict.fromkeys(said)), settings=settings, left_out=left_out)


def _otherwise(base: Side, tuned: Side) -> list[str]:
    """What made the scores and differs: no reason to refuse, but a reader must know."""
    keys = ("harness", "backend", "dtype", "lm_eval_version")
    both = {key: [str(side.about.get(key) or "").removeprefix("torch.") for side in (base, tuned)] for key in keys}
    found = [f"{key} {ours} and {theirs}" for key, (ours, theirs) in both.items() if ours and theirs and ours != theirs]
    return [f"base and tuned were scored with different {', '.join(found)}"] if found else []


def _alike(base: Side, tuned: Side, task: str, prompts: str) -> tuple[TaskScores, TaskScores, list[str]]:
    """A task's scores on both sides, ready to be paired, and what is said of them.

    Raises:
        InputError: they were asked otherwise, and that is not allowed; their right answers differ; no document is shared.
    """
    pre, post = base.scores.tasks[task], tuned.scores.tasks[task]
    keys = dict.fromkeys([*pre.settings, *post.settings])
    if base.about.get("harness") != tuned.about.get("harness"):
        keys = {key: None for key in keys if key in pre.settings and key in post.settings}
    values = [(key, pre.settings.get(key), post.settings.get(key)) for key in keys]
    odd = [f"{key} {ours} and {theirs}" for key, ours, theirs in values if ours != theirs and (ours or theirs)]
    answers = [dict(zip(side.scores.tasks[task].doc_hash, side.targets.get(task, []), strict=False)) for side in (base, tuned)]
    both = answers[0].keys() & answers[1].keys()
    if wrong := sum(answers[0][doc] != answers[1][doc] for doc in both):
        raise InputError(
            f"task {task}: {wrong} of {len(both)} documents have other right answers in the two runs: two versions of it"
        )
    pre, post, said = _shared(pre, post)
    drawn = [one.settings.get(DRAWN) for one in (pre, post)]
    if any(drawn) and (drawn[0] != drawn[1] or Counter(pre.doc_hash) != Counter(post.doc_hash)):
        raise InputError(
            f"task {task}: documents were drawn with unequal probabilities (evals.documents, draw: margin), other ones in the"
            " other run, and the mean of those that both have is not the task's; read the record's own rows (cltk report)"
        )
    if prompts == "same":
        if odd:
            raise InputError(f"task {task}: base and tuned differ in {', '.join(odd)}; {ANYWAY}")
        _check_documents(pre, post)
        return pre, post, said
    changed = [*odd]
    kept = Counter(pre.doc_hash) & Counter(post.doc_hash)
    if not kept:
        raise InputError(f"task {task}: the two runs share no document; use the same data")
    if kept.total() < max(len(pre), len(post)):
        changed.append(f"documents: {kept.total()} are in both, of {len(pre)} and {len(post)}")
        pre, post = (_only(one, kept) for one in (pre, post))
    asked = [Counter(zip(one.doc_hash, one.prompt_hash, strict=True)) for one in (pre, post)]
    if other := (asked[0] - asked[1]).total():
        changed.append(f"prompts of {other} documents")
    first = dict(zip(pre.doc_hash, pre.prompt_hash, strict=True))
    post = replace(post, prompt_hash=[first[doc] for doc in post.doc_hash], settings=pre.settings)
    pre = replace(pre, prompt_hash=[first[doc] for doc in pre.doc_hash])
    return (
        pre,
        post,
        [*([f"base and tuned differ in {'; '.join(changed)}: the difference is theirs too"] if changed else []), *said],
    )


def _shared(pre: TaskScores, post: TaskScores) -> tuple[TaskScores, TaskScores, list[str]]:
    """Without the metrics that one side lacks, which are left out with a reason, and choices that one side does not know."""
    both = []
    for one, other, who in ((pre, post, "base"), (post, pre, "tuned")):
        theirs = {**other.values, **other.corpus, **other.left_out}
        own = {metric: f"only the {who} has it" for metric in [*one.values, *one.corpus] if metric not in theirs}
        both.append(replace(one, left_out={**one.left_out, **own}))
    if bool(pre.choices) == bool(post.choices):
        return both[0], both[1], []
    said = "choices are known on one side only: flips are not corrected for guessing"
    return replace(both[0], choices=[]), replace(both[1], choices=[]), [said]


def _check_documents(pre: TaskScores, post: TaskScores) -> None:
    ours, theirs = Counter(pre.doc_hash), Counter(post.doc_hash)
    if lost := max((ours - theirs).total(), (theirs - ours).total()):
        raise InputError(f"task {pre.task}: {lost} documents are not in both runs ({len(pre)} and {len(post)}); {ANYWAY}")
    asked = [Counter(zip(one.doc_hash, one.prompt_hash, strict=True)) for one in (pre, post)]
    if other := (asked[0] - asked[1]).total():
        raise InputError(f"task {pre.task}: the prompts of {other} of {len(pre)} documents differ; {ANYWAY}")


def _only(scores: TaskScores, kept: Counter[str]) -> TaskScores:
    """The documents that both sides have; scores of the whole corpus cannot be had of them."""
    left, chosen = Counter(kept), []
    for i, doc in enumerate(scores.doc_hash):
        if left[doc] > 0:
            left[doc] -= 1
            chosen.append(i)

    def part(values: list[Any]) -> list[Any]:
        return [values[i] for i in chosen] if values else []

    lost = dict.fromkeys(scores.corpus, "it is a score of all documents together, and some are in one run only")
    return replace(
        scores, values={metric: part(found) for metric, found in scores.values.items()}, corpus={},
        doc_hash=part(scores.doc_hash), prompt_hash=part(scores.prompt_hash), choices=part(scores.choices),
        cluster=part(scores.cluster), weights={metric: part(found) for metric, found in scores.weights.items()},
        left_out={**scores.left_out, **lost},
        higher_is_better={metric: better for metric, better in scores.higher_is_better.items() if metric not in lost},
    )  # fmt: skip
