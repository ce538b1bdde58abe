"""measure(base, tuned, tasks): two checkpoints in, a forgetting table out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from cltk import __version__, tensors
from cltk.data.assets import cache_dir
from cltk.errors import InputError
from cltk.measure.divergence import text_divergence
from cltk.measure.early import check_models
from cltk.measure.evaluate import Progress, Suite, TextTask
from cltk.measure.forgetting import Result, compare
from cltk.measure.sampling import Sample
from cltk.measure.scores import Scores
from cltk.measure.settings import fast_dtype, options
from cltk.models import load_config, load_model, load_tokenizer, locate_model

Model = str | Path | tuple[Any, Any]


def measure(
    base: Model,
    tuned: Model,
    tasks: Sequence[str] | str = (),
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    batch_size: int | str = "auto",
    dtype: str = "auto",
    *,
    texts: Sequence[TextTask | str | Path] | str | Path = (),
    sample: Sample | Mapping[str, Sample] | None = None,
    sample_seed: int = 0,
    until: float | None = None,
    every_task: bool = False,
    chat_template: bool = False,
    system_instruction: str | None = None,
    fewshot_as_multiturn: bool = True,
    gen_kwargs: Mapping[str, Any] | str | None = None,
    confirm_run_unsafe_code: bool = False,
    members: bool = False,
    margins: dict[str, float] | None = None,
    scorer: str = "prefix",
    journal: bool = True,
    kl_rows: int = 16,
    progress: Progress | None = None,
) -> Result:
    """What did `tuned` forget that `base` knew? Forgetting = Perf_pre - Perf_ft, paired document by document.

    Both models are scored on the same documents with the same prompts, batch size and dtype. Finished requests and generated
    texts of models that are named are journaled under the cache folder, keyed by all that decides an answer
    (`cltk.measure.identity`), so that an interrupted call continues and a base is scored once.

    Args:
        base, tuned: a folder, hub id, "asset:NAME", or a live pair (model, tokenizer).
        tasks: lm-eval's names of tasks, groups and tags, patterns and task files; see `Suite`.
        limit: the first documents of each task; all when None.
        num_fewshot: examples in the prompt; each task's own number when None. A task whose file says 0 keeps it, which
            `.notes` says.
        include_path: folder of task YAML, such as `evals/tasks`.
        batch_size: rows a forward pass of the stock path; "auto" decides by tokens.
        dtype: "auto" (bfloat16 where this machine runs it faster), or a torch dtype's name; live models keep theirs.
        texts: held-out texts whose token NLL is compared too: `TextTask`s, or files of texts.
        sample, sample_seed: random documents of each task and text instead of the first; see `Suite`.
        until: score random documents in looks until the macro's interval has this half width or less, or the interval of
            every task's headline with `every_task`; both models are in memory. See `cltk.measure.stepwise`.
        chat_template: whether the tokenizers' chat template is applied; the two must give the same prompts.
        system_instruction, fewshot_as_multiturn, gen_kwargs, confirm_run_unsafe_code: as in lm-eval, with its defaults; see
            `Suite`.
        members: whether the tasks of a group have rows beside it.
        margins: {metric: margin} below which a loss does not matter; 0.01 when not given.
        scorer: "prefix", or "stock" for lm-eval's own HFLM.
        journal: whether finished requests are kept.
        kl_rows: rows of each text on which forward KL(base || tuned) is measured, with both models in memory; 0 for none.

    Returns:
        `Result` with `.rows`, `.macro`, `.samples`, `.divergence` when there are texts, and `.settings`: the models' names,
        every task's version and number of examples, the texts, dtype, scorer, limit, sample, prompts, seeds and versions.

    Raises:
        InputError: an unknown task or model, or scores that cannot be compared.
    """
    held_out = [_text(one) for one in ([texts] if isinstance(texts, str | Path | TextTask) else texts)]
    suite = Suite(
        tasks, texts=held_out, limit=limit, sample=sample, sample_seed=sample_seed, num_fewshot=num_fewshot,
        include_path=include_path, chat_template=chat_template,
        system_instruction=system_instruction, fewshot_as_multiturn=fewshot_as_multiturn, gen_kwargs=gen_kwargs,
        confirm_run_unsafe_code=confirm_run_unsafe_code, members=members,
    )  # fmt: skip
    held_out = suite.texts
    options(scorer, batch_size)
    if not isinstance(kl_rows, int) or isinstance(kl_rows, bool) or kl_rows < 0:
        raise InputError(f"kl_rows: expected a whole number of rows from 0, got {kl_rows!r}")
    base, tuned = named_model(base, "base"), named_model(tuned, "tuned")
    sides = ((base, "base"), (tuned, "tuned"))
    dtype = common_dtype(base, tuned, dtype)
    suite.check({_who(model, side): _tokenizer(model) for model, side in sides} if chat_template else {})
    check_models(suite, {side: (_config(model), partial(_tokenizer, model)) for model, side in sides})
    if every_task and until is None:
        raise InputError("every_task: says whose interval `until` is about; give until too")
    scores: list[Scores] = []
    kept: list[tuple[Any, Any]] = []  # both models, where their predictions are compared: each is loaded once
    how: dict[str, Any] = {}
    result: Result | None = None
    if until is not None:
        kept += [_live(spec, dtype) for spec, _ in sides]
        how = suite.prompting.exported(kept[1][1])
        result, pre = _in_looks(suite, kept, until, every_task, margins, batch_size, scorer, progress)
        scores.append(pre)
    for spec, side in sides if until is None else ():
        keep = journal and not isinstance(spec, tuple)
        pair, found = _beside(kept, partial(_scored, suite, spec, dtype, batch_size, scorer, keep, progress, side))
        scores.append(found)
        kept += [pair] if held_out and kl_rows and len(kept) == len(scores) - 1 else []
        how = suite.prompting.exported(pair[1])
        del pair
        gc.collect()
    result = result or compare(scores[0], scores[1], margins=margins)
    both = len(kept) == 2 and bool(held_out and kl_rows)
    moved, notes = text_divergence(kept[0], kept[1], held_out, kl_rows, progress) if both else ({}, [])
    if held_out and kl_rows and len(kept) < 2:
        notes = ["KL is left out: the two models do not fit in memory together"]
    settings = {
        "base": _name(base), "tuned": _name(tuned), "tasks": _asked(scores[0]), "texts": [text.name for text in held_out],
        "limit": limit, "sample": dict(sample) if isinstance(sample, Mapping) else sample, "sample_seed": sample_seed,
        "include_path": None if include_path is None else str(include_path), "dtype": dtype,
        "batch_size": batch_size, "scorer": scorer, "kl_rows": kl_rows, "until": until, "cltk_version": __version__, **how,
    }  # fmt: skip
    return replace(result, divergence=moved, notes=[*suite.notes, *result.notes, *notes], settings=settings)


def _in_looks(
    suite: Suite, pairs: list[tuple[Any, Any]], until: float, every_task: bool, margins: Mapping[str, float] | None,
    batch_size: Any, scorer: str, progress: Progress | None,
) -> tuple[Result, Scores]:  # fmt: skip
    """`stepwise` with a journal of its own: what a look has scored no later one scores again."""
    from cltk.measure.journal import Journal
    from cltk.measure.stepwise import stepwise

    digests = [tensors.digest(model) for model, _ in pairs]
    with TemporaryDirectory() as folder:
        books = [Journal(Path(folder) / f"{number}.jsonl") for number in range(2)]

        def score(part: Suite) -> tuple[Scores, Scores]:
            pre, post = (
                part.evaluate(*pair, digest=digest, batch_size=batch_size, journal=book, progress=progress, scorer=scorer)
                for pair, digest, book in zip(pairs, digests, books, strict=True)
            )
            return pre, post

        return stepwise(suite, score, until, every_task=every_task, margins=margins)


def _name(model: Model) -> str:
    """What a model is called: the name that was given; a live one's class and where it came from."""
    if not isinstance(model, tuple):
        return str(model)
    return f"{type(model[0]).__name__} {getattr(model[0], 'name_or_path', '')}".strip()


def _asked(scores: Scores) -> dict[str, dict[str, Any]]:
    """Task or group -> its own settings: version, number of examples, and what was asked of its prompts."""
    return {name: task.settings for name, task in scores.tasks.items() if task.settings}


def named_model(model: Any, side: str) -> Model:
    """A live pair, or the name of a model. Raises InputError, without the model's own text, for anything else."""
    if isinstance(model, str | Path):
        locate_model(model)
        return model
    parts = list(model) if isinstance(model, list | tuple) else []
    if len(parts) == 2 and isinstance(parts[0], torch.nn.Module) and callable(parts[1]):
        return parts[0], parts[1]
    kind = type(model).__name__ + (f" of {', '.join(type(part).__name__ for part in parts)}" if parts else "")
    raise InputError(f"measure: {side} is a {kind}; give (model, tokenizer), a folder, a hub id or asset:NAME")


def _text(given: Any) -> TextTask:
    """A text as it is, or the file of that name."""
    if isinstance(given, TextTask):
        return given
    if isinstance(given, str | Path):
        return TextTask.read(Path(given).stem, str(given))
    raise InputError(f"texts: expected TextTask or the name of a file, got {type(given).__name__} {str(given)[:60]!r}")


def _beside(kept: list[Any], act: Callable[[], Any]) -> Any:
    """`act()`; once more, without the models that are kept for KL, where the device has not the memory beside them."""
    try:
        return act()
    except torch.OutOfMemoryError:
        if not kept:
            raise
    kept.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return act()


def _scored(suite: Suite, spec: Model, dtype: str, *settings: Any) -> tuple[tuple[Any, Any], Scores]:
    """A model, loaded or live, and its scores."""
    pair = _live(spec, dtype)
    return pair, _score(suite, *pair, dtype, *settings)


def _config(model: Model) -> Any:
    return model[0].config if isinstance(model, tuple) else load_config(model)


def _who(model: Model, side: str) -> str:
    return side if isinstance(model, tuple) else f"{side} {model}"


def _tokenizer(model: Model) -> Any:
    return model[1] if isinstance(model, tuple) else load_tokenizer(model)


def _live(model: Model, dtype: str) -> tuple[Any, Any]:
    return model if isinstance(model, tuple) else load_model(model, dtype=dtype)


def score_model(
    suite: Suite, spec: Model, dtype: str, batch_size: Any, scorer: str, journal: bool, progress: Progress | None, side: str
) -> Scores:
    """Load (or take) a model, score it on `suite`, let it go. What is scored on disk is journaled in the cache folder."""
    journal = journal and not isinstance(spec, tuple)
    scores = _score(suite, *_live(spec, dtype), dtype, batch_size, scorer, journal, progress, side)
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


def common_dtype(base: Model, tuned: Model, dtype: str) -> str:
    """One dtype for both sides: a live model's own, the fastest of this machine for "auto", or the one named."""
    live = {str(model[0].dtype).removeprefix("torch.") for model in (base, tuned) if isinstance(model, tuple)}
    if len(live) > 1:
        raise InputError(f"measure: the two models have different dtypes ({', '.join(sorted(live))}); convert one of them")
    if live:
        if dtype not in ("auto", *live):
            raise InputError(f"measure: a live model is in {live.pop()}, not {dtype}; convert it or leave dtype out")
        return live.pop()
    if dtype == "auto":
        return str(fast_dtype("cuda" if torch.cuda.is_available() else "cpu")).removeprefix("torch.")
    if dtype not in ("float32", "bfloat16", "float16", "float64"):
        raise InputError(f"dtype: {dtype!r} is unknown; use auto, float32, bfloat16, float16 or float64")
    return dtype
