"""Whose chat template makes the prompts of a comparison: nobody's, one side's for all, or each side's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cltk.errors import InputError
from cltk.measure.evaluate import Suite
from cltk.measure.scores import Scores
from cltk.measure.thinking import check_thinking
from cltk.models.thinking import Thinking, carrying, thinking_of

KINDS = ("none", "base", "tuned", "own")


def kind_of(given: bool | str) -> str:
    """One of `KINDS`; True is own, False none. Raises InputError for anything else."""
    kind = {True: "own", False: "none"}.get(given, given) if isinstance(given, bool) else given
    if kind not in KINDS:
        raise InputError(f"chat_template: expected {', '.join(KINDS)}, true (own) or false (none), got {given!r}")
    return str(kind)


@dataclass(frozen=True)
class Templates:
    """The template of every side's prompts, where it is not the side's own, and whether prompts differ between sides.

    `told` is what that template is given by name (`Thinking.told`): it goes with it.
    """

    template: str | None = None
    apart: bool = False
    notes: tuple[str, ...] = ()
    told: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, kind: str, suite: Suite, tokenizers: Mapping[str, Any]) -> Templates:
        """Checked before weights are loaded.

        Args:
            kind: "base" and "tuned": that side's template for all, with what that side tells it; "own": each side's, and where
                they make other prompts the documents are paired by what they hold.
            tokenizers: who -> tokenizer, the base's first; read only where there is a template.

        Raises:
            InputError: a template that is not there, several tuned models of which each would be asked otherwise, prompts that
                cannot be made, or what a side was told of thinking cannot be done (`check_thinking`).
        """
        if kind == "none":
            check_thinking(suite, tokenizers, False)
            suite.check({})
            return cls()
        names = list(tokenizers)
        owners = dict(tokenizers) if kind == "own" else {n: tokenizers[n] for n in (names[:1] if kind == "base" else names[1:])}
        for who, tokenizer in owners.items():
            if not getattr(tokenizer, "chat_template", None):
                other = "" if kind != "own" else ", or take one side's for all (chat_template: tuned)"
                raise InputError(f"{who}: its tokenizer has no chat template; leave chat_template out, save one with it{other}")
        if kind != "own":
            found = _one(kind, owners, tokenizers)
            worn = {who: found.wear(one) for who, one in tokenizers.items()}
            check_thinking(suite, worn, True)
            suite.check(worn)
            return found
        check_thinking(suite, tokenizers, True)
        asked = []
        for who, tokenizer in tokenizers.items():
            suite.check({who: tokenizer})
            asked.append(suite.digests(tokenizer))
        if all(one == asked[0] for one in asked):
            return cls()
        differ = [who for who, one in zip(names, asked, strict=True) if one != asked[0]]
        same = len({str(one.chat_template) for one in tokenizers.values()}) == 1
        what = "are told different things of thinking" if same else "have different ones"
        note = f"chat template: {names[0]} and {', '.join(differ)} {what}: documents are paired, prompts not"
        return cls(None, True, (note,))

    def wear(self, tokenizer: Any) -> Any:
        """The tokeniser that makes a side's prompts, from the side's own."""
        return with_template(tokenizer, self.template, self.told)

    def worn(self, *pairs: tuple[Any, Any]) -> list[tuple[Any, Any]]:
        """Models with the tokenisers that make their prompts."""
        return [(model, self.wear(tokenizer)) for model, tokenizer in pairs]

    def paired(self, pre: Scores, post: Scores) -> tuple[Scores, Scores]:
        """Both as they are, or without the prompts where each side has its own."""
        return (by_documents(pre), by_documents(post)) if self.apart else (pre, post)


def _one(kind: str, owners: Mapping[str, Any], tokenizers: Mapping[str, Any]) -> Templates:
    """One side's template for all, with what that side tells it. Raises InputError where that is not one thing."""
    owned = [(owner.chat_template, thinking_of(owner).told) for owner in owners.values()]
    if any(one != owned[0] for one in owned):
        raise InputError("chat_template: the tuned models have different ones; measure one at a time")
    template, told = owned[0]
    for who, tokenizer in tokenizers.items():
        other = thinking_of(tokenizer).told
        if who not in owners and other and other != told:
            raise InputError(f"{who}: {next(iter(other))} would change nothing: {kind} makes all prompts; say it of that side")
    return Templates(template, told=told)


def with_template(tokenizer: Any, template: str | None, told: Mapping[str, Any] | None = None) -> Any:
    """The tokenizer, or a copy with another chat template that is told these things; its end of thinking stays its own."""
    own = thinking_of(tokenizer)
    if template is None or (getattr(tokenizer, "chat_template", None) == template and own.told == (told or {})):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return carrying(tokenizer, Thinking(None, own.think_end_token, dict(told or {})))


def by_documents(scores: Scores) -> Scores:
    """With the documents in the prompts' place; a text (it has no settings) has no prompt."""
    tasks = {name: replace(one, prompt_hash=list(one.doc_hash)) if one.settings else one for name, one in scores.tasks.items()}
    return replace(scores, tasks=tasks)
