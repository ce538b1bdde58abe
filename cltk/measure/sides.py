"""The models of a comparison: named or live, loaded, and scored on a suite."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from cltk import tensors
from cltk.data.pinned import cache_dir
from cltk.errors import InputError
from cltk.measure.evaluate import Progress, Suite
from cltk.measure.scores import Scores
from cltk.measure.settings import fast_dtype
from cltk.models import device, load_config, load_model, load_tokenizer, locate_model

Model = str | Path | tuple[Any, Any]


def called(model: Model) -> str:
    """What a model is called: the name that was given; a live one's class and where it came from."""
    if not isinstance(model, tuple):
        return str(model)
    return f"{type(model[0]).__name__} {getattr(model[0], 'name_or_path', '')}".strip()


def named_model(model: Any, side: str) -> Model:
    """A live pair, or the name of a model. Raises InputError, without the model's own text, for anything else."""
    if isinstance(model, str | Path):
        locate_model(model)
        return model
    parts = list(model) if isinstance(model, list | tuple) else []
    if len(parts) == 2 and isinstance(parts[0], torch.nn.Module) and callable(parts[1]):
        _check_live(parts[0], side)
        return parts[0], parts[1]
    kind = type(model).__name__ + (f" of {', '.join(type(part).__name__ for part in parts)}" if parts else "")
    raise InputError(f"measure: {side} is a {kind}; give (model, tokenizer), a folder, a hub id or asset:NAME")


def _check_live(model: torch.nn.Module, side: str) -> None:
    """Raises InputError for a module that is no transformers model, or one without weights."""
    name = type(model).__name__
    if not hasattr(model, "config") or not hasattr(model, "dtype"):
        inside = isinstance(getattr(model, "module", None), torch.nn.Module)
        remedy = "give the model inside it (model.module)" if inside else "give one, or save it and give its folder"
        raise InputError(f"measure: {side} is a {name}, which is no transformers model; {remedy}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(f"measure: {side}, a {name}, has parameters without values (meta device); load its weights first")


def scored(
    suite: Suite, spec: Model, side: str, *, dtype: str, batch_size: Any, scorer: str, journal: bool, progress: Progress | None
) -> tuple[tuple[Any, Any], Scores]:
    """A model, loaded or live, and its scores. What is scored on disk is journaled in the cache folder."""
    pair = live(spec, dtype)
    return pair, _score(suite, *pair, dtype, batch_size, scorer, journal and not isinstance(spec, tuple), progress, side)


def who(model: Model, side: str) -> str:
    return side if isinstance(model, tuple) else f"{side} {model}"


def config_of(model: Model) -> Any:
    return model[0].config if isinstance(model, tuple) else load_config(model)


def tokenizer_of(model: Model) -> Any:
    return model[1] if isinstance(model, tuple) else load_tokenizer(model)


def live(model: Model, dtype: str) -> tuple[Any, Any]:
    return model if isinstance(model, tuple) else load_model(model, dtype=dtype)


def score_model(
    suite: Suite, spec: Model, dtype: str, batch_size: Any, scorer: str, journal: bool, progress: Progress | None, side: str
) -> Scores:
    """Load (or take) a model, score it on `suite`, let it go. What is scored on disk is journaled in the cache folder."""
    scores = scored(
        suite, spec, side, dtype=dtype, batch_size=batch_size, scorer=scorer, journal=journal, progress=progress
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
    book = Journal(cache_dir() / "journals" / f"{digest[:16]}-{dtype}-{scorer}.jsonl") if journal else None
    return suite.evaluate(model, tokenizer, digest=digest, batch_size=batch_size, journal=book, progress=tell, scorer=scorer)


def common_dtype(base: Model, tuned: Model | list[Model], dtype: str) -> str:
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
        return str(fast_dtype(device())).removeprefix("torch.")
    if dtype not in ("float32", "bfloat16", "float16", "float64"):
        raise InputError(f"dtype: {dtype!r} is unknown; use auto, float32, bfloat16, float16 or float64")
    return dtype
