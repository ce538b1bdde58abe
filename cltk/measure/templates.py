"""Whose chat template makes the prompts of a comparison: nobody's, one side's for all, or each side's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cltk.errors import InputError
from cltk.measure.evaluate import Suite
from cltk.measure.scores import Scores

KINDS = ("none", "base", "tuned", "own")


def kind_of(given: bool | str) -> str:
    """One of `KINDS`; True is own, False none. Raises InputError for anything else."""
    kind = {True: "own", False: "none"}.get(given, given) if isinstance(given, bool) else given
    if kind not in KINDS:
        raise InputError(f"chat_template: expected {', '.join(KINDS)}, true (own) or false (none), got {given!r}")
    return str(kind)


@dataclass(frozen=True)
class Templates:
    """The template of every side's prompts, where it is not the side's own, and whether prompts differ between sides."""

    template: str | None = None
    apart: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, kind: str, suite: Suite, tokenizers: Mapping[str, Any]) -> Templates:
        """Checked before weights are loaded.

        Args:
            kind: "base" and "tuned": that side's template for all; "own": each side's, and where they make other prompts
                the documents are paired by what they hold.
            tokenizers: who -> tokenizer, the base's first; read only where there is a template.

        Raises:
            InputError: a template that is not there, several tuned models of which each would be asked otherwise, or prompts
                that cannot be made.
        """
        if kind == "none":
            suite.check({})
            return cls()
        names = list(tokenizers)
        owners = dict(tokenizers) if kind == "own" else {n: tokenizers[n] for n in (names[:1] if kind == "base" else names[1:])}
        for who, tokenizer in owners.items():
            if not getattr(tokenizer, "chat_template", None):
                other = "" if kind != "own" else ", or take one side's for all (chat_template: tuned)"
                raise InputError(f"{who}: its tokenizer has no chat template; leave chat_template out, save one with it{other}")
        if kind != "own":
            texts = [owner.chat_template for owner in owners.values()]
            if any(text != texts[0] for text in texts):
                raise InputError("chat_template: the tuned models have different ones; measure one at a time")
            suite.check({who: with_template(one, texts[0]) for who, one in tokenizers.items()})
            return cls(texts[0])
        asked = []
        for who, tokenizer in tokenizers.items():
            suite.check({who: tokenizer})
            asked.append(suite.digests(tokenizer))
        if all(one == asked[0] for one in asked):
            return cls()
        differ = [who for who, one in zip(names, asked, strict=True) if one != asked[0]]
        note = f"chat template: {names[0]} and {', '.join(differ)} have different ones: documents are paired, prompts not"
        return cls(None, True, (note,))

    def worn(self, *pairs: tuple[Any, Any]) -> list[tuple[Any, Any]]:
        """Models with the tokenisers that make their prompts."""
        return [(model, with_template(tokenizer, self.template)) for model, tokenizer in pairs]

    def paired(self, pre: Scores, post: Scores) -> tuple[Scores, Scores]:
        """Both as they are, or without the prompts where each side has its own."""
        return (by_documents(pre), by_documents(post)) if self.apart else (pre, post)


def with_template(tokenizer: Any, template: str | None) -> Any:
    """The tokenizer, or a copy with another chat template."""
    if template is None or getattr(tokenizer, "chat_template", None) == template:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def by_documents(scores: Scores) -> Scores:
    """With the documents in the prompts' place; a text (it has no settings) has no prompt."""
    tasks = {name: replace(one, prompt_hash=list(one.doc_hash)) if one.settings else one for name, one in scores.tasks.items()}
    return replace(scores, tasks=tasks)
