"""The models of one comparison, loaded in turn: the base of adapters once."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cltk import tensors
from cltk.measure.sides import Side, called, live, tokenizer_of
from cltk.models import is_adapter, locate_model, stored_digest
from cltk.models.adapters import SwitchedOff, attach_adapter, base_of, base_weights
from cltk.models.origin import Origin

Pair = tuple[Any, Any]  # model, tokenizer


class Bench:
    """Loads the models of one measurement, the base first. Adapters on that base are put on it in turn and taken off again.

    Args:
        base: the base side.
        dtype: of weights whose origin does not say another.
    """

    def __init__(self, base: Side, dtype: str) -> None:
        self.base, self.dtype = base, dtype
        self._held: Pair | None = None  # the base, loaded, plain
        self._worn: Any = None  # the same with an adapter on it
        self._digest, self._names = "", set[str]()  # of its weights, when it was plain
        self._shared: dict[str, bool] = {}

    def shares(self, model: Side) -> bool:
        """Whether a side is an adapter on the base side's very model, loaded alike."""
        if isinstance(model, tuple) or isinstance(self.base, tuple) or not is_adapter(model) or is_adapter(self.base):
            return False
        key = repr(model)
        if key not in self._shared:
            self._shared[key] = _same(base_of(model), self.base)
        return self._shared[key]

    def first(self, tuned: Sequence[Side]) -> Pair:
        """The base side; kept for the adapters among `tuned` that belong on it."""
        pair = self.load(self.base)
        if any(self.shares(one) for one in tuned):
            self._held, self._digest, self._names = pair, tensors.digest(pair[0]), set(pair[0].state_dict())
        return pair

    def load(self, model: Side) -> Pair:
        """Any side. An adapter that shares the base is put on it, which `start` then gives with the adapter switched off."""
        if isinstance(model, tuple) or self._held is None or not self.shares(model):
            return live(model, self.dtype)
        self._undress()
        plain, tokenizer = self._held[0], tokenizer_of(model)
        self._worn = attach_adapter(plain, model, tokenizer)
        return self._worn, tokenizer

    def start(self, pair: Pair) -> Pair:
        """The base side beside a tuned one: `pair` as it is, or with the adapter that it wears switched off.

        Where switching off does not bring the base back (biases or embeddings that were trained, weights that the adapter was
        initialised from) it is loaded once more.
        """
        if self._held is None:
            return pair
        if self._worn is None:
            return self._held
        return (SwitchedOff(self._worn, self._digest), pair[1]) if self._as_before(self._worn) else self.load(self.base)

    def notes(self, *tuned: Side) -> list[str]:
        """What a reader must know of adapters: that they do not belong to the base they are compared with."""
        found = []
        for one in tuned:
            if isinstance(one, tuple) or not is_adapter(one) or self.shares(one):
                continue
            base = called(self.base)
            found.append(f"{one}: the adapter's own base is {base_of(one)}, so its distance to {base} counts as tuned too")
        return found

    def beside(self, kept: list[Pair], act: Callable[[], Any]) -> Any:
        """`act()`; once more, without the models that are kept for KL, where the device has not the memory beside them."""
        try:
            return act()
        except torch.OutOfMemoryError:
            if not kept:
                raise
        kept.clear()
        self.forget()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return act()

    def forget(self) -> None:
        """Hold no model any more."""
        self._held = self._worn = None

    def _as_before(self, worn: Any) -> bool:
        """Whether the weights under an adapter are those of the plain base."""
        return tensors.digest(base_weights(worn, self._names)) == self._digest

    def _undress(self) -> None:
        """Take an adapter off; load the base anew where that does not give it back."""
        if self._worn is None or self._held is None:
            return
        worn, self._worn = self._worn, None
        whole = self._as_before(worn) and not worn.active_peft_config.is_prompt_learning
        plain = worn.unload() if whole else None
        if plain is None or tensors.digest(plain) != self._digest:
            del worn, plain
            self._held = None
            gc.collect()
            self._held = self.load(self.base)
            return
        vars(plain).pop("peft_config", None)
        self._held = plain, self._held[1]


def described(model: Side, loaded: Any) -> dict[str, Any]:
    """What a result says of a side: name, revision and commit, arguments, dtype; of an adapter its base and both digests."""
    found: dict[str, Any] = {"name": called(model), "dtype": str(loaded.dtype).removeprefix("torch.")}
    if isinstance(model, tuple):
        return found
    commit = getattr(loaded.config, "_commit_hash", None)
    found |= {"revision": model.revision, "commit": commit} if model.revision or commit else {}
    found |= {"args": dict(model.args)} if model.args else {}
    if is_adapter(model):
        base = base_of(model)
        found["adapter"] = {"base": str(base), "base_digest": stored_digest(base), "digest": stored_digest(model)}
    return found


def _same(one: Origin, other: Origin) -> bool:
    """Whether two origins give the same weights in the same form."""
    keys = ("dtype", "attn_implementation", "load_in_4bit", "load_in_8bit", "quantization_config", "gguf_file")
    if one.spread != other.spread or any(one.args.get(key) != other.args.get(key) for key in keys):
        return False
    here = [os.path.realpath(where) if os.path.isdir(where) else where for where in map(locate_model, (one, other))]
    if here[0] == here[1]:
        return one.files() == other.files()
    return all(map(os.path.isdir, here)) and stored_digest(one) == stored_digest(other)
