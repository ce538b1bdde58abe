"""Adapters as PEFT saves them: put on their base, checked against it, and switched off."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import safe_open

from cltk import tensors
from cltk.data import assets
from cltk.errors import InputError
from cltk.models.loading import ADAPTER, load_model, load_tokenizer, locate_model, no_bars
from cltk.models.origin import Origin

WEIGHTS = "adapter_model.safetensors"
INSIDE = (".base_layer", ".original_module", ".token_adapter")  # what peft puts into the names of a base's weights


def base_of(adapter: Origin) -> Origin:
    """The model under an adapter: its argument `base`, else what its config names.

    Raises:
        InputError: the config cannot be read, the base is not there, or nothing names one.
    """
    said, own = adapter.args.get("base"), config_of(adapter)
    name, revision = said or own.get("base_model_name_or_path"), None if said else own.get("revision")
    if not name:
        raise InputError(f"adapter {adapter}: its {ADAPTER} names no base; say which model it was trained on: base=MODEL")
    kept = {key: value for key, value in adapter.args.items() if key not in ("base", "revision", "subfolder", "tokenizer")}
    local = os.path.exists(str(name)) or str(name).startswith("asset:")
    base = Origin.of(name, {**kept, **({"revision": revision} if revision and not local else {})})
    try:
        where = locate_model(base)
        if not os.path.isdir(where):
            _reach(base)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"adapter {adapter}: its base {name} cannot be had ({reason}); say where it is: base=MODEL") from None
    return base


def _reach(base: Origin) -> None:
    """Raises where the hub does not give the config."""
    from transformers import PretrainedConfig

    with no_bars():
        PretrainedConfig.get_config_dict(base.name, **base.files())


def config_of(adapter: Origin) -> dict[str, Any]:
    """What PEFT saved beside the weights. Raises InputError where it cannot be read, or would import a module that it names."""
    file = assets.resolve(adapter.name) / ADAPTER
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not a mapping")
        if not found.get("peft_type"):
            raise ValueError("it names no peft_type")
    except (OSError, ValueError) as error:
        raise InputError(f"adapter {adapter}: its {ADAPTER} cannot be read ({error})") from None
    if found.get("megatron_config") and not adapter.trust:
        raise InputError(f"adapter {adapter}: its config names a module to import (megatron_core); trust_remote_code lets it")
    return found


def tokenizer_of(adapter: Origin, base: Origin) -> Any:
    """The tokeniser that was saved with the adapter, else the base's."""
    own = (assets.resolve(adapter.name) / "tokenizer_config.json").exists() and "tokenizer" not in adapter.args
    name = adapter.name if own else adapter.args.get("tokenizer")
    return load_tokenizer(Origin(base.name, {**base.args, **({"tokenizer": name} if name else {})}))


def load_adapter(adapter: Origin, dtype: str) -> tuple[Any, Any]:
    """The adapter on its base, and its tokeniser. `dtype` is the base's; 16-bit adapters compute in float32, as PEFT's do."""
    base = base_of(adapter)
    tokenizer = tokenizer_of(adapter, base)
    return attach_adapter(load_model(base, dtype=dtype)[0], adapter, tokenizer), tokenizer


def attach_adapter(model: Any, adapter: Origin, tokenizer: Any) -> Any:
    """`model` with the adapter on it; it is changed in place. The vocabulary grows to the rows that were saved.

    Raises:
        InputError: PEFT is not installed, or the adapter's weights do not fit the model: names or shapes differ.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError(f"adapter {adapter}: needs the package peft; pip install peft") from None
    path = str(assets.resolve(adapter.name))
    _grow(model, adapter, tokenizer)
    try:
        with warnings.catch_warnings(record=True) as seen, no_bars(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("always")
            found: Any = PeftModel.from_pretrained(model, path)
    except Exception as error:
        raise InputError(f"adapter {adapter}: does not fit its base ({' '.join(str(error).split())[:240]})") from None
    if lost := [str(one.message) for one in seen if "missing adapter keys" in str(one.message)]:
        raise InputError(f"adapter {adapter}: does not fit its base: it has nothing for {lost[0].partition('[')[2][:80]}")
    return found.eval()


def check_adapter(adapter: Origin, base: Origin) -> None:
    """Raise InputError where low-rank weights do not fit the base: names or shapes differ. No weights are read for it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = assets.resolve(adapter.name) / WEIGHTS
    if config_of(adapter).get("peft_type") != "LORA" or not path.exists() or base.args.get("gguf_file"):
        return
    try:
        from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            config = AutoConfig.from_pretrained(locate_model(base), trust_remote_code=base.trust, **base.files())
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=base.trust)
            own: Any = LoraConfig.from_pretrained(str(path.parent))
            own.init_lora_weights = False
            state: Any = get_peft_model_state_dict(get_peft_model(model, own), save_embedding_layers=False)
    except Exception:
        return  # what is wrong is said when it is loaded
    expected = {key: tuple(tensor.shape) for key, tensor in state.items() if ".lora_" in key}
    with safe_open(path, framework="pt") as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys() if ".lora_" in key}  # noqa: SIM118
    odd = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key) and "embed" not in key)
    if odd:
        shapes = [str(list(side[odd[0]])) if odd[0] in side else "nothing" for side in (found, expected)]
        raise InputError(
            f"adapter {adapter}: does not fit its base {base}: for {odd[0]} it has {shapes[0]}, and that takes {shapes[1]}"
            f" ({len(odd)} such weights); name the model it was trained on: base=MODEL"
        )


def _grow(model: Any, adapter: Origin, tokenizer: Any) -> None:
    """As many embedding rows as the adapter brings: tokens were added in training, and padded to a multiple of something."""
    rows = model.get_input_embeddings().weight.shape[0]
    needed = max([rows, *_saved_rows(adapter, len(tokenizer))])
    if needed > rows:
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(needed, mean_resizing=False)  # what is new is overwritten by the adapter's own


def _saved_rows(adapter: Origin, tokens: int) -> list[int]:
    path, found = assets.resolve(adapter.name) / WEIGHTS, []
    if path.exists():
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  safe_open is not a dict
                if key.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight")):
                    found.append(file.get_slice(key).get_shape()[0])
    single = config_of(adapter).get("trainable_token_indices") or []
    listed = [index for part in (single.values() if isinstance(single, dict) else [single]) for index in part]
    return found + ([max(tokens, max(listed) + 1)] if listed and not found else [])


class SwitchedOff:
    """A model with an adapter that acts as if it had none: its base. Everything but calling it is the model's own."""

    def __init__(self, model: Any, digest: str = "") -> None:
        self.model, self.digest = model, digest  # sha256 of the base's weights

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with acting(self) as model:
            return model(*args, **kwargs)


@contextmanager
def acting(model: Any) -> Iterator[Any]:
    """The model itself; inside, an adapter that is switched off does nothing."""
    if not isinstance(model, SwitchedOff):
        yield model
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with model.model.disable_adapter():
            yield model.model


def base_weights(model: Any, names: set[str]) -> tensors.Named:
    """The weights under an adapter, by the base's own names."""
    found = {}
    for name, tensor in model.get_base_model().state_dict().items():
        for inside in INSIDE:
            name = name.replace(inside, "")
        if name in names and name not in found:
            found[name] = tensor
    return found
