"""Rows that hold messages: which columns, whose turn, what is said.

Rows as TRL's dataset formats have them, and ShareGPT's names for the same:

    {"messages": [{"role", "content"}, ...]}            a conversation: every assistant turn counts
    {"conversations": [{"from", "value"}, ...]}         the same; human and gpt are user and assistant
    {"prompt": [message, ...], "completion": [...]}     what is asked and what is answered: the completion counts

Beside them: "tools" (a list of schemas, or its JSON), "system" (a text), "chat_template_kwargs" (a mapping for the template).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cltk.data.readers import Row
from cltk.data.rows import NoText, as_text, fill, text_of
from cltk.errors import InputError

ROLES = ("system", "developer", "user", "assistant", "tool")
NAMES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "observation": "tool"}
COLUMNS = ("messages", "conversations")
LITERAL = ("default", "const", "enum", "examples")  # of a schema: null is a value there


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them; the first `asked` of them are the prompt of a prompt-and-completion row."""

    messages: list[dict[str, Any]]
    asked: int = 0
    tools: list[Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What is said, without roles."""
        return "\n".join(str(one["content"]) for one in self.messages if one.get("content"))

    @property
    def question(self) -> str:
        """What is said before the first answer, without the system's part: rows with equal questions belong together."""
        said = self.messages[: self.asked or self.turns()[0]] if self.asked or self.turns() else self.messages
        return "\n".join(str(one.get("content")) for one in said if one["role"] not in ("system", "developer"))

    @property
    def key(self) -> str:
        """All of it, as JSON."""
        return json.dumps([self.messages, self.asked, self.tools, dict(self.settings)], sort_keys=True, default=str)

    def turns(self) -> list[int]:
        """Which messages the assistant answers with, behind the prompt."""
        return [i for i, one in enumerate(self.messages) if one["role"] == "assistant" and i >= self.asked]


def is_messages(value: Any) -> bool:
    """Whether a cell holds messages: a list of mappings with a role, or with ShareGPT's `from`."""
    whole = isinstance(value, list | tuple) and bool(value)
    return whole and all(isinstance(one, Mapping) and ("role" in one or "from" in one) for one in value)


def spoken(
    row: Any, prompt: str | None = None, completion: str | None = None, messages: str | None = None
) -> tuple[str, ...]:  # fmt: skip
    """The columns that hold the row's conversation: one, or a prompt and a completion; none where it is no conversation.

    Columns that are named go before those that are there.
    """
    if not isinstance(row, Mapping) or "input_ids" in row:
        return ()
    if messages is not None:
        return (messages,)
    whole = [name for name in COLUMNS if is_messages(row.get(name))]
    if whole and prompt is None and completion is None:
        return (whole[0],)
    pair = (prompt or "prompt", completion or "completion")
    return pair if any(is_messages(row.get(name)) for name in pair) else ()


def renamed(
    row: Row, where: str, prompt: str | None = None, completion: str | None = None, messages: str | None = None
) -> Row:  # fmt: skip
    """The row with what is said under the names that are found without being told: `messages`, or `prompt` and `completion`.

    Args:
        prompt, completion: columns of text or of messages, or templates. messages: a column.

    Raises:
        InputError: a column that is missing; both ways are named.
    """
    if messages and (prompt or completion):
        raise InputError(f"{where}: a conversation (messages) has no prompt and completion; give the one or the other")
    if messages:
        if messages not in row:
            raise InputError(f"{where}: column {messages!r} is missing; the columns are {', '.join(map(str, row))}")
        return {**row, "messages": row[messages]}
    rest = {key: value for key, value in row.items() if key not in (*COLUMNS, "text")}
    named = {"prompt": prompt or "prompt", "completion": completion or "completion"}
    return rest | {key: row[name] if is_messages(row.get(name)) else fill(name, row, where) for key, name in named.items()}


def conversation(row: Row, columns: Sequence[str], where: str) -> Conversation:
    """The conversation in `columns` (see `spoken`) of a row.

    Raises:
        NoText: a column that is missing, null or empty, a message without content.
        InputError: a cell that holds no messages, an unknown role, content that is no text.
    """
    parts = []
    for name in columns:
        if name not in row:
            raise NoText(f"{where}: column {name!r} is missing; the columns are {', '.join(map(str, row))}")
        parts.append(_messages(row[name], f"{where}: column {name!r}"))
    asked = len(parts[0]) if len(parts) > 1 else 0
    said = [one for part in parts for one in part]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and said[0]["role"] not in ("system", "developer"):
        said, asked = [{"role": "system", "content": system}, *said], asked and asked + 1
    tools, settings = row.get("tools"), row.get("chat_template_kwargs")
    if isinstance(tools, str) and tools.strip():
        tools = _json(tools, f"{where}: column 'tools'")
    if isinstance(settings, str):
        settings = _json(settings, f"{where}: column 'chat_template_kwargs'") if settings.strip() else {}
    if settings and not isinstance(settings, Mapping):
        raise InputError(f"{where}: column 'chat_template_kwargs' holds a {type(settings).__name__}; give a mapping")
    return Conversation(said, asked, _without_null(tools) or None, dict(settings or {}))


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    if value is None or (isinstance(value, list | tuple) and not value):
        raise NoText(f"{where} is {'null' if value is None else 'empty'}; fill the cell or drop the row")
    if not is_messages(value):
        raise InputError(f"{where} must be a list of messages ({{role, content}} or {{from, value}}), got {str(value)[:60]!r}")
    return [_message(one, f"{where}, message {i}") for i, one in enumerate(value)]


def _message(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Role and content under their names, without what Arrow fills with null."""
    found = {{"from": "role", "value": "content"}.get(key, key): value for key, value in given.items() if value is not None}
    role = found.get("role")
    found["role"] = role = NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise InputError(f"{where}: role {role!r} is none of {', '.join((*ROLES, *NAMES))}")
    calls = found.get("tool_calls")
    if isinstance(calls, str):
        calls = found["tool_calls"] = _json(calls, f"{where}: its tool_calls") if calls.strip() else []
    if calls and not isinstance(calls, list | tuple):
        raise InputError(f"{where}: its tool_calls are a {type(calls).__name__}; give a list of calls")
    if calls:
        found["tool_calls"] = [_call(_without_null(one)) for one in calls]
    content = found.get("content")
    if isinstance(content, list | tuple):  # parts, of which a text model reads text
        if any(not isinstance(part, Mapping) or not isinstance(part.get("text"), str) for part in content):
            raise InputError(f"{where}: its content has parts that are no text")
        content = "".join(part["text"] for part in content)
    if content is not None or not calls:
        found["content"] = as_text(content, f"{where}: its content")
    return found


def _call(call: Any) -> Any:
    """A tool call with its arguments as a mapping: templates write them as JSON, and JSON in JSON otherwise."""
    inner = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("arguments"), str):
        return call
    try:
        arguments = json.loads(inner["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**inner, "arguments": arguments}} if isinstance(arguments, dict) else call


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is text, and not JSON ({error})") from None


def _without_null(value: Any) -> Any:
    """Without the keys that are null: Arrow gives every mapping of a column the keys of all (ms-swift#10125)."""
    if isinstance(value, Mapping):
        return {
            key: one if key in LITERAL else _without_null(one)
            for key, one in value.items()
            if one is not None or key in LITERAL
        }
    return [_without_null(one) for one in value] if isinstance(value, list | tuple) else value


def row_key(row: Any, where: str) -> str:
    """All that a row says, as one text to compare or to digest: conversations with their roles."""
    if columns := spoken(row):
        return conversation(row, columns, where).key
    return "\n".join(_pair(row, where)) or text_of(row, where)


def words(row: Any, where: str) -> str:
    """What a row says, without roles."""
    if columns := spoken(row):
        return conversation(row, columns, where).text
    return " ".join(_pair(row, where)) or text_of(row, where)


def is_pair(row: Any) -> bool:
    """Whether a row is a prompt and its completion, and no text."""
    return isinstance(row, Mapping) and {"prompt", "completion"} <= set(row) and "text" not in row


def _pair(row: Any, where: str) -> list[str]:
    names = ("prompt", "completion") if is_pair(row) else ()
    return [as_text(row[name], f"{where}: column {name!r}") for name in names]
