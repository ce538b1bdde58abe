"""A whole model of an adapter and its base."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from cltk.errors import InputError
from cltk.models.adapters import load_adapter
from cltk.models.loading import ADAPTER, is_adapter, no_bars
from cltk.models.origin import Origin


def merge(adapter: str | Path | Origin, out: str | Path, *, base: str | Path | None = None, dtype: str = "auto") -> Path:
    """Write the whole model that an adapter and its base are: W + (alpha / r) B A in W's place, and the tokeniser.

    Tied embeddings of which training changed one are written apart (`tie_word_embeddings: false`): loading would tie them
    again, and throw one away (huggingface/peft#2777).

    Args:
        adapter: its folder.
        out: a folder that is new or empty.
        base: the model it was trained on; what its config names when not given.
        dtype: what is loaded, added in and written; "auto" is the base's own.

    Raises:
        InputError: not an adapter, its base is not there or quantised, it does not fit or cannot be merged, or `out` is not
            empty.
    """
    origin = Origin.of(adapter, {"base": str(base)} if base is not None else {})
    if not is_adapter(origin):
        raise InputError(f"merge: {adapter} holds no PEFT adapter (it has no {ADAPTER})")
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise InputError(f"merge: {out} is not empty; name a new folder")
    model, tokenizer = load_adapter(origin, dtype)
    if getattr(model.get_base_model(), "quantization_method", None) is not None:
        raise InputError(f"merge: the base of {adapter} is quantised; name it in full precision: base=MODEL")
    _part(model.get_base_model())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = model.merge_and_unload(safe_merge=True)
    except Exception as error:
        raise InputError(f"merge: {adapter} cannot be merged ({' '.join(str(error).split())[:240]})") from None
    _untie(whole)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        if name in vars(whole):
            delattr(whole, name)
    with no_bars():
        whole.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return Path(out)


def _part(model: Any) -> None:
    """Embedding and head apart where an adapter is on one of them: merging it would change both."""
    inner, head = model.get_input_embeddings(), model.get_output_embeddings()
    plain = (torch.nn.Embedding, torch.nn.Linear)
    weight = getattr(head, "base_layer", head).weight if head is not None else None
    if (
        weight is None
        or weight is not getattr(inner, "base_layer", inner).weight
        or (type(inner) in plain and type(head) in plain)
    ):
        return
    getattr(head, "base_layer", head).weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False


def _untie(model: Any) -> None:
    """Say in the config where embedding and head are no longer one."""
    ends = [layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    config = model.config.get_text_config()
    if len(ends) == 2 and config.tie_word_embeddings and ends[0] is not ends[1] and not torch.equal(*ends):
        config.tie_word_embeddings = model.config.tie_word_embeddings = False
