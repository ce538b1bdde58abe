"""What a path holds, and the model in it that is meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cltk.errors import InputError
from cltk.logs import inspect_ai, lighteval, lm_eval, records, results
from cltk.logs.lm_eval import Directions
from cltk.logs.side import Side


@dataclass(frozen=True)
class Log:
    """A path whose format is known: its models by name, and how one of them is read."""

    path: Path
    models: list[str]
    read: Callable[[str], Side]
    starts: tuple[str, ...] = ()  # the models that come before training, where the log says so

    def start(self, named: str | None = None) -> str:
        """The model that others are held against: the one that is named, else the only one that there is.

        Raises:
            InputError: there are several, or none is called so.
        """
        if named is None and len(self.starts) > 1:
            raise InputError(
                f"{self.path}: holds {len(self.starts)} start models ({', '.join(self.starts)}), of other weights or"
                " machines; name the one that is meant (--base-model; of `cltk power`: --model)"
            )
        return pick(self, named or next(iter(self.starts), "") or None)


def open_log(path: str | Path, members: bool = False, directions: Directions | None = None) -> Log:
    """The log at a path: lm-eval's, lighteval's or inspect-ai's folder or file, `cltk measure --json`, what `cltk run` wrote.

    Raises:
        InputError: nothing there, or nothing that is known.
    """
    where = Path(path)
    if not where.exists():
        raise InputError(f"{where}: no such file or folder")
    if where.is_file() and results.is_result(where):
        sides, first = results.sides(where)
        found = {side.name: side for side in sides}
        return Log(where, list(found), found.__getitem__, (first,))
    if cells := records.cells(where):
        return Log(where, list(cells), lambda name: records.side(cells[name], name), records.starts(cells))
    given = directions or {}
    if names := inspect_ai.names(where):
        return Log(where, names, lambda name: inspect_ai.side(where, name, given))
    if names := lighteval.names(where):
        return Log(where, names, lambda name: lighteval.side(where, name, given))
    if names := lm_eval.names(where):
        return Log(where, names, lambda name: lm_eval.side(where, name, members, directions))
    raise InputError(
        f"{where}: holds no results of lm-eval, lighteval, inspect-ai, `cltk measure --json` or `cltk run`;"
        " name the folder that lm_eval --output_path wrote"
    )


def read(path: str | Path, model: str | None = None, *, members: bool = False, directions: Directions | None = None) -> Side:
    """The scores of one model of a log.

    Args:
        path: a folder or file of lm-eval, lighteval or inspect-ai, a JSON of `cltk measure`, a folder of `cltk run`.
        model: its name where the log has several: whole, or the end of it ("pythia-160m" of "EleutherAI/pythia-160m").
        members: whether the tasks of a group have rows beside it.
        directions: metric -> whether higher is better, where the log does not say.

    Raises:
        InputError: nothing readable there, several models of which none is named, a name that none or several have.
    """
    log = open_log(path, members, directions)
    return log.read(pick(log, model))


def pick(log: Log, model: str | None) -> str:
    """The one model of a log that is meant."""
    if model is None:
        if len(log.models) == 1:
            return log.models[0]
        raise InputError(
            f"{log.path}: holds {len(log.models)} models ({', '.join(log.models)}); name one of them, or its own folder"
        )
    found = [name for name in log.models if name == model] or [name for name in log.models if _ends(name, model)]
    if len(found) != 1:
        what = f"{len(found)} of them end so" if found else "none of them is called so"
        raise InputError(f"{log.path}: model {model!r}: {what}; they are {', '.join(log.models)}")
    return found[0]


def _ends(name: str, model: str) -> bool:
    return name.endswith(f"/{model}") or name.replace("/", "__") == model
