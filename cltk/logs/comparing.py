"""compare(base, tuned): the forgetting table of two runs that exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cltk import __version__
from cltk.errors import InputError
from cltk.logs.alike import alike
from cltk.logs.lm_eval import Directions
from cltk.logs.lost import among_files
from cltk.logs.reading import Log, open_log, pick
from cltk.logs.side import Side
from cltk.measure import forgetting
from cltk.measure.lost import lost_documents
from cltk.measure.results import Result
from cltk.measure.scores import Scores, TaskScores


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
        name = log.start(base_model)
        start, own = log.read(name), (str(Path(base).resolve()), name)
    assert isinstance(start, Side)
    others = [one for given in tuned for one in _others(given, tuned_models, own, members, directions, start)]
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
    given: str | Path | Side, models: Sequence[str], base: tuple[str, str], members: bool, directions: Directions | None,
    start: Side,
) -> list[Side]:  # fmt: skip
    """The sides that are meant; of a folder where none is named, not those that started from other weights than the base's."""
    if isinstance(given, Side):
        return [given]
    log: Log = open_log(given, members, directions)
    if models:
        return [log.read(pick(log, name)) for name in models]
    if len(log.models) == 1:
        return [log.read(log.models[0])]
    rest = [name for name in log.models if (str(Path(given).resolve()), name) != base and name not in log.starts]
    sides = [log.read(name) for name in rest]
    kept = [side for side in sides if not _elsewhere(start, side)]
    if sides and not kept:
        raise InputError(f"{given}: no model there started from {start.name}; name those that are meant (--tuned-model)")
    if lost := [side.name for side in sides if side not in kept]:
        said = (
            f"{', '.join(lost)}: started from other weights than {start.name}, and {'is' if len(lost) == 1 else 'are'} left out"
        )
        kept[0] = replace(kept[0], notes=[*kept[0].notes, said])
    return kept


def _elsewhere(base: Side, tuned: Side) -> bool:
    """Whether the record of a run says that it started from other weights."""
    ours, theirs = base.about.get("weights"), tuned.about.get("start_model")
    return bool(ours and theirs and ours != theirs)


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
            pre[task], post[task], said = alike(base, tuned, task, prompts)
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
    said = [f"base and tuned were scored with different {', '.join(found)}"] if found else []
    if _elsewhere(base, tuned):
        said.append(f"{tuned.name} started from other weights than {base.name}: the difference is not what training changed")
    return said
