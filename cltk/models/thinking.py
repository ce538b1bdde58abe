"""What a model's chat template is told, and where its answer begins behind its thinking; by lm-eval's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cltk.errors import InputError

KINDS: dict[str, type | tuple[type, ...]] = {
    "enable_thinking": bool,
    "think_end_token": (str, int),
    "chat_template_args": dict,
}  # argument -> what it is
CARRIED = "cltk_thinking"  # the tokeniser's attribute


@dataclass(frozen=True)
class Thinking:
    """lm-eval's arguments of a model that thinks before it answers. They go where the model's tokeniser goes (`carrying`).

    Args:
        enable_thinking: given to the chat template under this name, as Qwen3's reads it.
        think_end_token: a text, or the id of a token: a generated answer begins behind its last one. Whole where it has none.
        chat_template_args: whatever else the chat template is given by name.
    """

    enable_thinking: bool | None = None
    think_end_token: str | int | None = None
    chat_template_args: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Thinking:
        """Those among a model's arguments."""
        return cls(**{name: args.get(name) for name in KINDS})

    def check(self, who: str) -> None:
        """Raises InputError for thinking without an end: lm-eval would take the thoughts for the answer, and refuses it too."""
        if self.enable_thinking and self.end is None:
            raise InputError(f"{who}: enable_thinking needs think_end_token, behind which the answer begins (</think>)")

    @property
    def told(self) -> dict[str, Any]:
        """What the chat template is given by name."""
        plain = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        return {**(self.chat_template_args or {}), **plain}

    @property
    def end(self) -> str | int | None:
        """`think_end_token`; digits are a token's id, an empty text is none, as for lm-eval."""
        given = self.think_end_token
        return int(given) if isinstance(given, str) and given.isdigit() else given if given != "" else None

    def settings(self) -> dict[str, Any]:
        """As arguments of lm-eval's `HFLM`; only those that were given."""
        return ({"chat_template_args": self.told} if self.told else {}) | (
            {"think_end_token": self.end} if self.end is not None else {}
        )


def carrying(tokenizer: Any, thinking: Thinking) -> Any:
    """The tokeniser, which carries them from now on."""
    if thinking != thinking_of(tokenizer):
        setattr(tokenizer, CARRIED, thinking)
    return tokenizer


def thinking_of(tokenizer: Any) -> Thinking:
    """What a tokeniser carries."""
    found = getattr(tokenizer, CARRIED, None)
    return found if isinstance(found, Thinking) else Thinking()
