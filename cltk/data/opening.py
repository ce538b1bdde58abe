"""What users name as old data: a path, a mapping that says how it is read, rows at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from cltk.data.conversations import MASKS, Mask
from cltk.data.messages import is_pair, spoken
from cltk.data.readers import Rows, open_rows
from cltk.errors import InputError


@dataclass(frozen=True)
class Reading:
    """How a memory is read, where its path does not say it all: `memory: {path: old.jsonl, prompt: question, ...}`.

    Args:
        path: a file, a saved data set, "asset:NAME/FILE" or a hub id.
        name, split, revision: of a data set.
        rows: in the place of a path, rows that are at hand (a list, a `datasets.Dataset`).
        prompt, completion: columns or templates of pairs. text: of plain text. messages: the column of a conversation.
        mask: which tokens of a conversation count: the assistant's, those of the last turn, or all.
        chat_template: whether pairs of text become a user's and an assistant's turn.
        limit: the first N rows.
    """

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    messages: str | None = None
    mask: Mask | None = None
    chat_template: bool = False
    limit: int | None = None
    rows: Any = None


def reading(memory: Any, where: str = "memory") -> Reading | None:
    """The `Reading` that a mapping stands for; None for rows and texts that are at hand.

    Raises:
        InputError: a mapping without a path (a set of splits), or with keys or values that there are not.
    """
    if isinstance(memory, str | Path):
        return Reading(str(memory))
    if not isinstance(memory, Mapping):
        return None
    if "path" not in memory and "rows" not in memory:
        raise InputError(f"{where}: is a set of splits ({', '.join(map(str, memory))}); give one of them")
    known = {one.name: one.type for one in fields(Reading)}
    for key, value in memory.items():
        if key == "rows":
            continue
        if key not in known:
            raise InputError(f"{where}.{key}: unknown key; there are {', '.join(known)}")
        right = {"mask": value in (None, *MASKS), "chat_template": isinstance(value, bool)}.get(key)
        if right is None:
            kind = (str, Path) if key == "path" else str
            right = value is None or (type(value) is int and value > 0 if key == "limit" else isinstance(value, kind))
        if not right or (key == "path" and not value):
            wanted = {"mask": f"one of {', '.join(MASKS)}", "chat_template": "true or false", "limit": "a whole number above 0"}
            raise InputError(f"{where}.{key}: must be {wanted.get(key, 'text')}, got {value!r}")
    found = Reading(**{"path": "", **memory} | ({"path": str(memory["path"])} if "path" in memory else {}))
    if found.rows is not None and (found.path or found.name or found.split or found.revision):
        raise InputError(f"{where}: rows that are at hand have no path, name, split and revision; give the one or the other")
    if found.text and (found.prompt or found.completion or found.messages):
        raise InputError(f"{where}: plain text (text) has no prompt, completion and messages; give the one or the other")
    return found


def opened(memory: Any, where: str, empty: str = "the memory is empty") -> tuple[Reading, Any, str, Any]:
    """How it is read, its rows (those of a file as they are asked for), how errors name it, and its first row.

    Raises:
        InputError: it is empty.
    """
    how = reading(memory, where)
    if how is not None and how.rows is not None:
        memory = how.rows
    if how is not None and how.rows is None:
        where = how.path
        rows: Any = open_rows(how.path, name=how.name, split=how.split, revision=how.revision, limit=how.limit)
    else:
        rows = memory.with_format(None) if hasattr(memory, "with_format") else memory  # a `datasets` format may give no rows
        rows = rows if hasattr(rows, "__len__") and hasattr(rows, "__getitem__") else list(rows)
        if how is not None and how.limit:
            rows = rows.select(range(min(how.limit, len(rows)))) if hasattr(rows, "select") else rows[: how.limit]
    first = next(iter(rows), None)
    if first is None:
        raise InputError(f"{where}: {empty}")
    return how or Reading(""), rows, where, first


def listed(rows: Any) -> Any:
    """Rows with a length and places: of a file all of them, those of a data set where they are."""
    if not isinstance(rows, Rows):
        return rows
    return list(rows) if rows.data is None else rows.data.select(range(min(len(rows.data), rows.limit or len(rows.data))))


def kind_of(row: Any, how: Reading) -> Literal["tokens", "messages", "pairs", "text"]:
    """What the rows of a memory are, by their first."""
    if how.text or not isinstance(row, Mapping):
        return "text"
    if "input_ids" in row:
        return "tokens"
    if spoken(row, how.prompt, how.completion, how.messages):
        return "messages"
    return "pairs" if how.prompt or how.completion or is_pair(row) else "text"


def check_fits(kind: str, how: Reading, where: str, *, prompts: bool = False) -> None:
    """Raises InputError where something is asked that rows of this kind do not have.

    Args:
        prompts: whether they are what a model is asked, which a chat template can make a turn of.
    """
    if kind == "tokens":
        asked = {name: getattr(how, name) for name in ("mask", "prompt", "completion", "messages", "chat_template")}
        if given := [name for name, value in asked.items() if value]:
            raise InputError(f"{where}: {', '.join(given)}: its rows are token ids already, of which labels say what counts")
    if kind == "text" and how.mask not in (None, "all"):
        raise InputError(f"{where}: mask: {how.mask}: its rows are plain text, which has no turns")
    if kind == "text" and how.chat_template and not prompts:
        raise InputError(f"{where}: chat_template: its rows are plain text, which has no turns; name prompt and completion")
