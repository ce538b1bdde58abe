"""How lm-eval is driven: its model, and quiet around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from cltk.errors import InputError
from cltk.models.thinking import thinking_of

Progress = Callable[[str, int, int, int], None]  # what, done, total, tokens


def make_lm(model: Any, tokenizer: Any, digest: str, batch_size: Any, journal: Any, progress: Any, scorer: str) -> Any:
    """The lm-eval model: shared prefixes by default, lm-eval's own forward passes with scorer="stock"."""
    from cltk.measure.scoring import PrefixLM, options

    given: dict[str, Any] = {"batch_size": options(scorer, batch_size), "trees": scorer == "prefix"}
    kept: dict[str, Any] = {"journal": journal, "digest": digest, "progress": progress}
    with as_tied(model):
        return PrefixLM(model, tokenizer, **given, **kept, **thinking_of(tokenizer).settings())


@contextmanager
def as_tied(model: Any) -> Iterator[None]:
    """lm-eval ties the weights of every model that it gets; under an adapter that keeps a head or embedding of its own there
    is no weight to tie where it looks, and one that was trained apart must stay so."""
    adapted = hasattr(model, "peft_config")
    if adapted:
        model.tie_weights = lambda *given, **named: None
    try:
        yield
    finally:
        if adapted:
            del model.tie_weights


def has_start(tokenizer: Any, who: str = "tokenizer") -> None:
    """Raises InputError for a tokenizer with neither BOS nor EOS: lm-eval begins empty contexts and ends answers with one."""
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise InputError(f"{who}: has neither a BOS nor an EOS token, and lm-eval needs one; set tokenizer.eos_token")


def has_nll(model: Any, texts: Sequence[Any]) -> None:
    """Raises InputError for a model that gives texts no NLL."""
    if texts and getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"text {texts[0].name}: {type(model).__name__} reads a text with its encoder and gives it no NLL")


NEW_TOKENS = 256  # of an answer, where neither task nor caller says: lm-eval's own


def fits_positions(tasks: Mapping[str, Any], config: Any, tokenizer: Any) -> None:
    """Raises InputError for a task that asks for no new token, or for more than the model has positions (lm-eval's count)."""
    fits_room(tasks, None if getattr(config, "is_encoder_decoder", False) else positions(config, tokenizer))


def fits_room(tasks: Mapping[str, Any], room: int | None) -> None:
    """`fits_positions` for so many positions; None: any number."""
    from lm_eval.models.utils import normalize_gen_kwargs

    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            continue
        try:
            asked = normalize_gen_kwargs(task.get_config("generation_kwargs") or {}, NEW_TOKENS)["max_gen_toks"]
        except (TypeError, ValueError) as error:
            raise InputError(f"task {name}: its generation_kwargs cannot be read ({error})") from None
        if asked < 1:
            raise InputError(f"task {name}: it asks for {asked} new tokens; set max_gen_toks to 1 or more: gen_kwargs")
        if room is not None and asked >= room:
            raise InputError(
                f"task {name}: it asks for up to {asked} new tokens, and the model has {room} positions for prompt"
                " and answer together; lower it: gen_kwargs with max_gen_toks"
            )


def positions(config: Any, tokenizer: Any) -> int:
    """What HFLM of the installed lm-eval takes for the model's positions; releases look in different places."""
    from lm_eval.models.huggingface import HFLM

    asked = HFLM.__new__(HFLM)
    asked._max_length, asked._config, asked._model, asked.tokenizer = None, config, SimpleNamespace(config=config), tokenizer
    return int(asked.max_length)


def fits_vocabulary(model: Any, tokenizer: Any, texts: Callable[[], list[str]]) -> None:
    """Raises InputError where a text has a token that the model has no embedding of; `texts` is asked only if one could."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if rows is None or len(tokenizer) <= rows:
        return
    for text in texts():
        for token in tokenizer(text)["input_ids"]:
            if token >= rows:
                name = tokenizer.convert_ids_to_tokens(token)
                raise InputError(
                    f"tokenizer: token {name!r} has number {token}, and the model's vocabulary ends at {rows - 1}: it has grown"
                    " without the embedding; resize that (model.resize_token_embeddings), or give the model's own tokenizer"
                )


def by_document(progress: Progress, documents: int) -> Callable[[int, int, int], None]:
    """Progress of requests, told in documents (each has its share of the requests)."""
    return lambda done, total, tokens: progress("documents", done * documents // max(total, 1), documents, tokens)


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval and datasets log and draw bars on their own; ours is the only progress shown. Bad templates are in one line."""
    import logging

    import datasets
    import jinja2
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.api_models
    import lm_eval.models.huggingface

    names = ("lm_eval", "lm-eval", "datasets", "transformers", "huggingface_hub")
    levels = {name: logging.getLogger(name).level for name in names}
    bars, drawers = datasets.are_progress_bars_disabled(), [
        lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface,
        *([lm_eval.models.api_models] if hasattr(lm_eval.models.api_models, "tqdm") else []),  # not without tenacity
    ]  # fmt: skip
    drawn = [module.tqdm for module in drawers]
    if not logging.getLogger("cltk").isEnabledFor(logging.DEBUG):
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
    for module in drawers:
        module.tqdm = _no_bar  # it passes `disable` itself, so that no setting reaches it
    datasets.disable_progress_bars()
    try:
        yield
    except jinja2.TemplateError as error:
        raise InputError(f"a task's template cannot be filled: {type(error).__name__}: {error}") from None
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for module, tqdm in zip(drawers, drawn, strict=True):
            module.tqdm = tqdm
        if not bars:
            datasets.enable_progress_bars()


def _no_bar(items: Any = None, *_: Any, **__: Any) -> Any:
    from tqdm import tqdm

    return tqdm(items, disable=True)
