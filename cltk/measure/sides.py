"""The models of a comparison: named or live, loaded, and scored on a suite."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cltk import tensors
from cltk.data.pinned import cache_dir
from cltk.errors import InputError
from cltk.measure.evaluate import Progress, Suite
from cltk.measure.scores import Scores
from cltk.measure.settings import fast_dtype
from cltk.models import device, is_adapter, load_config, load_model, load_tokenizer, locate_model, thinking
from cltk.models.adapters import base_of, check_adapter, load_adapter
from cltk.models.adapters import config_of as config_of_adapter
from cltk.models.adapters import tokenizer_of as adapter_tokenizer
from cltk.models.origin import DTYPES, Origin
from cltk.ranks import agreed, decided, first

Model = str | Path | Origin | tuple[Any, Any]
Side = Origin | tuple[Any, Any]


def called(model: Model) -> str:
    """What a model is called: the name that was given; a live one's class and where it came from."""
    if not isinstance(model, tuple):
        return str(model)
    return f"{type(model[0]).__name__} {getattr(model[0], 'name_or_path', '')}".strip()


def named_model(model: Any, side: str, args: Mapping[str, Any] | None = None, base: Any = None) -> Side:
    """A live pair, or where a model comes from, checked as far as that goes without weights.

    Args:
        side: what messages call it.
        args: what it is loaded with; see `Origin`.
        base: the model that an adapter is put on whose config names none.

    Raises:
        InputError: anything else (without the model's own text), no such model, an adapter whose base is not there or that does
            not fit it, or arguments for a model that is loaded already.
    """
    if isinstance(model, str | Path | Origin):
        origin = Origin.of(model, args)
        if is_adapter(origin):
            return _adapter(origin, base)
        locate_model(origin)
        if "base" in origin.args:
            raise InputError(f"{side} {origin}: base is the model under an adapter, and this is a whole model")
        return origin
    parts = list(model) if isinstance(model, list | tuple) else []
    if len(parts) == 2 and isinstance(parts[0], torch.nn.Module) and callable(parts[1]):
        if late := [key for key in args or () if key not in thinking.KINDS]:
            raise InputError(f"measure: {side} is loaded already; {', '.join(late)} would change nothing")
        _check_live(parts[0], side)
        return parts[0], _told(parts[1], args or {}, side)
    kind = type(model).__name__ + (f" of {', '.join(type(part).__name__ for part in parts)}" if parts else "")
    raise InputError(f"measure: {side} is a {kind}; give (model, tokenizer), a folder, a hub id or asset:NAME")


def _told(tokenizer: Any, args: Mapping[str, Any], side: str) -> Any:
    """A live model's tokeniser, or a copy of it that carries what the model is told of thinking."""
    if not args:
        return tokenizer
    told = Origin(side, args).thinking
    return thinking.carrying(copy.deepcopy(tokenizer), told)


def _check_live(model: torch.nn.Module, side: str) -> None:
    """Raises InputError for a module that is no transformers model, or one without weights."""
    name = type(model).__name__
    if not hasattr(model, "config") or not hasattr(model, "dtype"):
        inside = isinstance(getattr(model, "module", None), torch.nn.Module)
        remedy = "give the model inside it (model.module)" if inside else "give one, or save it and give its folder"
        raise InputError(f"measure: {side} is a {name}, which is no transformers model; {remedy}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(f"measure: {side}, a {name}, has parameters without values (meta device); load its weights first")


def _adapter(origin: Origin, base: Any) -> Origin:
    """An adapter with its base: the one it names, else the one given."""
    if not (origin.args.get("base") or config_of_adapter(origin).get("base_model_name_or_path")) and isinstance(base, Origin):
        origin = Origin(origin.name, {**origin.args, "base": str(base)})
    check_adapter(origin, base_of(origin))
    return origin


def scored(
    suite: Suite, spec: Side, side: str, *, dtype: str, batch_size: Any, scorer: str, journal: bool, progress: Progress | None,
    load: Callable[[], tuple[Any, Any]] | None = None, wear: Callable[[Any], Any] = lambda tokenizer: tokenizer,
    keep: Callable[[str, Scores], None] | None = None,
) -> tuple[tuple[Any, Any], Scores]:  # fmt: skip
    """A model, loaded (by `load`, where that is given) or live, and its scores. What is on disk is journaled in the cache.

    `wear` gives the tokeniser that makes its prompts, from its own.
    """
    model, tokenizer = load() if load else live(spec, dtype)
    pair = model, wear(tokenizer)
    scores = _score(suite, *pair, dtype, batch_size, scorer, journal and not isinstance(spec, tuple), progress, side)
    if keep and first():
        keep(called(spec), scores)
    return pair, scores


def who(model: Model, side: str) -> str:
    """How messages call a model: its side, and its name where it has one."""
    return side if isinstance(model, tuple) else f"{side} {model}"


def asked_of(sides: Sequence[tuple[Side, str]], templates: bool) -> dict[str, Any]:
    """Who -> tokeniser of the (model, side), where a chat template makes the prompts or a side was told of thinking."""
    told = [thinking.thinking_of(one[1]) if isinstance(one, tuple) else one.thinking for one, _ in sides]
    asking = templates or any(one != thinking.Thinking() for one in told)
    return {who(model, side): tokenizer_of(model) for model, side in sides} if asking else {}


def config_of(model: Side) -> Any:
    """Of an adapter that of its base."""
    return model[0].config if isinstance(model, tuple) else load_config(base_of(model) if is_adapter(model) else model)


def tokenizer_of(model: Side) -> Any:
    """Without weights; of an adapter its own, where it was saved with one."""
    if isinstance(model, tuple):
        return model[1]
    return adapter_tokenizer(model, base_of(model)) if is_adapter(model) else load_tokenizer(model)


def live(model: Side, dtype: str) -> tuple[Any, Any]:
    """A model and its tokeniser; an adapter on its base."""
    if isinstance(model, tuple):
        return model
    return load_adapter(model, dtype) if is_adapter(model) else load_model(model, dtype=dtype)


def score_model(
    suite: Suite, spec: Model, dtype: str, batch_size: Any, scorer: str, journal: bool, progress: Progress | None, side: str
) -> Scores:
    """Load (or take) a model, score it on `suite`, let it go. What is scored on disk is journaled in the cache folder."""
    scores = scored(
        suite, named_model(spec, side), side,
        dtype=dtype, batch_size=batch_size, scorer=scorer, journal=journal, progress=progress,
    )[1]  # fmt: skip
    gc.collect()
    return scores


def _score(
    suite: Suite, model: Any, tokenizer: Any, dtype: str, batch_size: Any, scorer: str, journal: bool,
    progress: Progress | None, side: str,
) -> Scores:  # fmt: skip
    from cltk.measure.journal import Journal

    digest = tensors.digest(model)
    tell = (lambda what, done, total, tokens: progress(f"{side}: {what}", done, total, tokens)) if progress else None
    book = Journal(cache_dir() / "journals" / f"{digest[:16]}-{dtype}-{scorer}.jsonl", first()) if journal else None
    given: dict[str, Any] = {"digest": digest, "batch_size": batch_size, "journal": book, "progress": tell, "scorer": scorer}
    return agreed(suite.evaluate(model, tokenizer, **given))


def common_dtype(base: Model, tuned: Model | Sequence[Side], dtype: str) -> str:
    """One dtype for all sides: a live model's own, the fastest of this machine for "auto", or the one named."""
    models = [base, *(tuned if isinstance(tuned, list) else [tuned])]
    live = {str(model[0].dtype).removeprefix("torch.") for model in models if isinstance(model, tuple)}
    if len(live) > 1:
        raise InputError(f"measure: the models have different dtypes ({', '.join(sorted(live))}); convert one of them")
    if live:
        if dtype not in ("auto", *live):
            raise InputError(f"measure: a live model is in {live.pop()}, not {dtype}; convert it or leave dtype out")
        return live.pop()
    if dtype == "auto":
        return str(decided(lambda: fast_dtype(device()))).removeprefix("torch.")
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is unknown; use {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    return dtype
