"""measure(base, tuned, tasks): two checkpoints in, a forgetting table out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch

from cltk import __version__
from cltk.errors import InputError
from cltk.measure.bench import Bench, described
from cltk.measure.early import check_models
from cltk.measure.evaluate import Progress, Suite, TextTask
from cltk.measure.forgetting import Result, compare
from cltk.measure.in_looks import check_looks, in_looks
from cltk.measure.lost import with_lost
from cltk.measure.sampling import Sample
from cltk.measure.scores import Scores
from cltk.measure.served import backends, measure_by
from cltk.measure.settings import options, whole_rows
from cltk.measure.sides import (
    Model,
    Side,
    asked_of,
    called,
    common_dtype,
    config_of,
    named_model,
    score_model,
    scored,
    tokenizer_of,
)
from cltk.measure.starts import Start
from cltk.measure.templates import Templates, kind_of
from cltk.models.origin import arguments

__all__ = ["common_dtype", "measure", "named_model", "score_model"]


@overload
def measure(base: Model, tuned: Model, *args: Any, **settings: Any) -> Result: ...
@overload
def measure(base: Model, tuned: list[Model], *args: Any, **settings: Any) -> list[Result]: ...
def measure(
    base: Model,
    tuned: Model | list[Model],
    tasks: Sequence[str] | str = (),
    limit: float | None = None,
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
    chat_template: bool | str = False,
    system_instruction: str | None = None,
    fewshot_as_multiturn: bool = True,
    gen_kwargs: Mapping[str, Any] | str | None = None,
    confirm_run_unsafe_code: bool = False,
    members: bool = False,
    margins: dict[str, float] | None = None,
    scorer: str = "prefix",
    journal: bool = True,
    kl_rows: int = 16,
    kl_apart: bool = False,
    lost: int = 0,
    progress: Progress | None = None,
    seed: int | str | Sequence[int] | None = None,
    model_args: Mapping[str, Any] | str | None = None,
    base_args: Mapping[str, Any] | str | None = None,
    tuned_args: Mapping[str, Any] | str | None = None,
    keep: Callable[[str, Scores], None] | None = None,
    backend: str | None = None,
) -> Result | list[Result]:
    """What did `tuned` forget that `base` knew? Forgetting = Perf_pre - Perf_ft, paired document by document.

    Both models are scored on the same documents with the same prompts, batch size and dtype. Finished requests and generated
    texts of models that are named are journaled under the cache folder, keyed by all that decides an answer
    (`cltk.measure.identity`), so that an interrupted call continues and a base is scored once.

    Args:
        base, tuned: a folder, hub id, "hub id@revision", "asset:NAME", or a live pair (model, tokenizer). A folder that holds
            a PEFT adapter is measured on its own base, loaded once where that is `base`. A list of tuned ones is compared with
            a base that is scored once, and gives a list of results.
        tasks: lm-eval's names of tasks, groups and tags, patterns and task files; see `Suite`.
        limit: the first documents of each task, or below 1 that fraction of them; all when None.
        num_fewshot: examples in the prompt; each task's own number when None. A task whose file says 0 keeps it, which
            `.notes` says.
        include_path: folder of task YAML, such as `evals/tasks`.
        batch_size: rows a forward pass of the stock path; "auto" decides by tokens.
        dtype: "auto" (bfloat16 where this machine runs it faster), or a torch dtype's name; live models keep theirs.
        texts: held-out texts whose token NLL is compared too: `TextTask`s, or files of texts.
        sample, sample_seed: random documents of each task and text instead of the first; see `Suite`.
        until: score random documents in looks until the macro's interval has this half width or less, or the interval of
            every task's headline with `every_task`; both models are in memory. See `cltk.measure.stepwise`.
        chat_template: whose chat template makes the prompts: "none" (False), "base" or "tuned" (that side's, for both) or "own"
            (True; each side's: where their prompts differ, documents are paired all the same, and `.notes` says so).
        system_instruction, fewshot_as_multiturn, gen_kwargs, confirm_run_unsafe_code: as in lm-eval, with its defaults; see
            `Suite`.
        members: whether the tasks of a group have rows beside it.
        margins: {metric: margin} below which a loss does not matter; 0.01 when not given.
        scorer: "prefix", or "stock" for lm-eval's own HFLM.
        journal: whether finished requests are kept.
        kl_rows: rows of each text on which forward KL(base || tuned) is measured; 0 for none.
        kl_apart: never both models in memory for it: the base's predictions wait on disk, below the cache folder, 2 or 4 bytes
            for each token and id (`cltk.measure.remembered`). So it is without asking with `device_map`, and where the device
            has not the memory for both.
        seed: of Python, numpy, torch and the examples, as lm-eval's `--seed`.
        lost: of how many lost documents a task `.lost` has question and answers; none with `until`.
        keep: called with every model's name and scores as soon as they are there; not with `until`.
        model_args, base_args, tuned_args: what all models, or one side, are loaded with (revision, dtype, quantisation, ...): a
            mapping or "name=value,name=value"; see `cltk.models.origin.Origin`. A side's own go before those of all.
        backend: the name of another class of lm-eval's that runs the models ("local-completions", "vllm", ...), with the
            class's arguments in the three above: see `cltk.measure.served`. What it cannot give is absent, and `.notes` say so.

    Returns:
        `Result` with `.rows`, `.macro`, `.samples`, `.divergence` when there are texts, and `.settings`: the models' names,
        every task's version and number of examples, the texts, dtype, scorer, limit, sample, prompts, seeds and versions.

    Raises:
        InputError: an unknown task or model, or scores that cannot be compared.
    """
    several = isinstance(tuned, list) and not (tuned and isinstance(tuned[0], torch.nn.Module))  # not [model, tokenizer]
    listed: list[Any] = tuned if several and isinstance(tuned, list) else [tuned]
    held_out = [_text(one) for one in ([texts] if isinstance(texts, str | Path | TextTask) else texts)]
    kind = kind_of(chat_template)
    suite = Suite(
        tasks, texts=held_out, limit=limit, sample=sample, sample_seed=sample_seed, num_fewshot=num_fewshot, seed=seed,
        include_path=include_path, chat_template=kind != "none", system_instruction=system_instruction, members=members,
        fewshot_as_multiturn=fewshot_as_multiturn, gen_kwargs=gen_kwargs, confirm_run_unsafe_code=confirm_run_unsafe_code,
    )  # fmt: skip
    options(scorer, batch_size)
    whole_rows(kl_rows)
    settings = {
        "base": str(base), "tuned": "", "tasks": {}, "texts": [text.name for text in suite.texts], "chat_template_of": kind,
        "limit": limit, "sample": dict(sample) if isinstance(sample, Mapping) else sample, "sample_seed": sample_seed,
        "include_path": None if include_path is None else str(include_path), "dtype": dtype, "until": until,
        "batch_size": batch_size, "scorer": scorer, "kl_rows": kl_rows, "cltk_version": __version__,
    }  # fmt: skip
    if backend is not None:
        run = backends(backend, base, listed, model_args, base_args, tuned_args)
        found = measure_by(suite, run, settings, margins=margins, lost=lost, progress=progress, keep=keep)
        return found if several else found[0]
    base, models = _named(base, listed, model_args, base_args, tuned_args)
    settings |= {"base": called(base), "dtype": (dtype := common_dtype(base, models, dtype))}
    bench = Bench(base, dtype)
    sides = [(base, "base"), *((one, f"tuned {i}" if i > 1 else "tuned") for i, one in enumerate(models, 1))]
    templates = Templates.of(kind, suite, asked_of(sides, kind != "none"))
    check_models(suite, {side: (config_of(model), partial(tokenizer_of, model)) for model, side in sides})
    check_looks(until, every_task, len(models), templates)
    made: dict[str, Any] = {"wear": templates.wear, "dtype": dtype, "batch_size": batch_size, "scorer": scorer}
    score: Any = partial(scored, suite, **made, journal=journal, progress=progress, keep=keep)
    start = Start(bench, models, suite.texts, kl_rows, kl_apart, progress)
    found, sources = [], dict[str, Any]()
    pre: Scores | None = None
    for model, side in sides[1:]:
        if until is not None:
            first, *held = bench.first(models), bench.load(model)
            start.kept = [bench.start(first)]
            sources = {"base": described(base, first[0])}
            both = templates.worn(start.kept[0], held[0])
            result, pre = in_looks(suite, both, until, every_task, margins, batch_size, scorer, progress)
        else:
            if pre is None:
                first, pre = score(base, "base", load=partial(bench.first, models))
                sources = {"base": described(base, first[0])}
                start.keep(first)
                del first
                gc.collect()
            *held, post = bench.beside(start.kept, partial(score, model, side, load=partial(bench.load, model)))
            result = compare(*templates.paired(pre, post), margins=margins)
            result = with_lost(result, pre, post, lost)
        moved, notes = start.divergence(held, model, templates.wear)
        sources = {"base": sources["base"], "tuned": described(model, held[0][0])}
        asked = {**suite.prompting.exported(templates.wear(held[0][1])), "tasks": _asked(pre)}
        how = {**settings, "tuned": called(model), "models": sources, **asked}
        notes = [*bench.notes(model), *templates.notes, *suite.notes, *result.notes, *notes]
        found.append(replace(result, divergence=moved, notes=notes, settings=how))
        del held
        gc.collect()
    return found if several else found[0]


def _named(base: Model, tuned: Sequence[Any], all_args: Any, base_args: Any, tuned_args: Any) -> tuple[Side, list[Side]]:
    """Where both sides come from, with what they are loaded with."""
    both = arguments(all_args, "model_args")
    first = named_model(base, "base", both | arguments(base_args, "base_args"))
    models = [named_model(one, "tuned", both | arguments(tuned_args, "tuned_args"), first) for one in tuned]
    if not models:
        raise InputError("measure: name at least one tuned model")
    return first, models


def _asked(scores: Scores) -> dict[str, dict[str, Any]]:
    """Task or group -> its own settings: version, number of examples, and what was asked of its prompts."""
    return {name: task.settings for name, task in scores.tasks.items() if task.settings}


def _text(given: Any) -> TextTask:
    """A text as it is, or the file of that name."""
    if isinstance(given, TextTask):
        return given
    if isinstance(given, str | Path):
        return TextTask.read(Path(given).stem, str(given))
    raise InputError(f"texts: expected TextTask or the name of a file, got {type(given).__name__} {str(given)[:60]!r}")
