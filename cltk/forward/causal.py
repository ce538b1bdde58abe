"""What losses over tokens need of a model: that it is a causal language model, and how its logits come from its hidden states.

Both are proven on a few tokens when a method is set up, not believed of a class. Shapes: T tokens, N positions, H hidden, V
vocabulary.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cltk.errors import InputError
from cltk.forward.probe import evaluating

TOKENS = 8
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-4}  # of the largest logit; other types round at 2^-8 or 2^-11 a product
ROUGH = 3e-2


@dataclass(frozen=True)
class Head:
    """logits = cap tanh(scale z / cap) of z, what the output layer gives; without cap: scale z."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, z: Tensor) -> Tensor:
        z = z if self.scale == 1 else z * self.scale
        return z if self.cap is None else torch.tanh(z / self.cap) * self.cap


_HEADS: weakref.WeakKeyDictionary[nn.Module, Head | None] = weakref.WeakKeyDictionary()  # None: the model's own forward alone


def base(model: Any) -> Any:
    """The transformers model inside wrappers of DDP and peft."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def logits_at(model: Any, inputs: dict[str, Tensor], where_BT: Tensor) -> Tensor:
    """Logits [N, V] at the positions `where_BT`: the output head runs on these alone, where it is proven."""
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
    prefixed = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)  # not part of the decoder
    if prefixed or _HEADS.get(base(model), Head()) is None:
        logits: Tensor = model(**given, use_cache=False).logits
        return logits[where_BT]
    hidden_BTH = model.get_decoder()(**given, use_cache=False).last_hidden_state
    return head_logits(model, hidden_BTH[where_BT])


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """The model's logits from its last hidden states: the output layer, and the scale and soft cap behind it.

    Gemma caps, Cohere, Falcon-H1 and HyperCLOVA X multiply, Granite divides: `check_causal` finds which.
    """
    head = _HEADS.get(base(model), Head())
    if head is None:
        raise InputError(f"{type(base(model)).__name__}: its logits are no scaled or capped output of its head")
    logits: Tensor = head(model.get_output_embeddings()(hidden))
    return logits


def inherit(model: nn.Module, copied: nn.Module) -> None:
    """A copy has the head of the model it was copied from."""
    if base(model) in _HEADS:
        _HEADS[base(copied)] = _HEADS[base(model)]


def check_causal(model: Any, name: str, *, head: bool = False) -> None:
    """Proves once a model that the method `name` can take its next-token losses and, with `head`, make its logits itself.

    Two rows of 8 tokens that differ in the last: what stands before it may not change. The logits are held against scale and
    cap of the output layer's, in the model's own precision.

    Args:
        head: whether the method needs logits from hidden states (a loss in the trainer's own pass).

    Raises:
        InputError: an encoder-decoder, a classifier, a masked language model, virtual tokens before the text, or (with `head`)
            logits that no scale and cap explain; names the method.
    """
    inner = base(model)
    if inner not in _HEADS:
        _HEADS[inner] = _prove(model, inner, name)
    if head and _HEADS[inner] is None:
        raise InputError(
            f"{name}: the logits of {type(inner).__name__} are no scaled or capped output of its head, so that a loss beside"
            " the trainer's cannot be taken; give the method old data instead (memory: ...)"
        )


def _prove(model: Any, inner: Any, name: str) -> Head | None:
    kind, config = type(inner).__name__, getattr(inner, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{name}: {kind} is an encoder-decoder; the method is for causal language models")
    output = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if output is None or "MaskedLM" in kind:
        raise InputError(f"{name}: {kind} has no output head that predicts the next token; it is for causal language models")
    if any(hasattr(p, "ds_id") for p in inner.parameters()):  # ZeRO-3 holds no whole weights before training
        return _of_config(config)
    ids = torch.arange(TOKENS)[None].repeat(2, 1) % _vocabulary(inner)
    ids[1, -1] = (ids[1, -1] + 1) % _vocabulary(inner)
    ids = ids.to(next(inner.parameters()).device)
    try:
        raw, logits = _both(model, inner, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(f"{name}: {kind} fails on {TOKENS} tokens ({type(error).__name__}: {reason})") from None
    if logits.shape[1] != TOKENS:
        raise InputError(
            f"{name}: the model puts {logits.shape[1] - TOKENS} tokens of its own before the text (prompt tuning); the method"
            " needs a logit for each token of the text"
        )
    wide = logits.double() if logits.dtype == torch.float64 else logits.float()
    size = float(wide.abs().max())
    if float((wide[0, :-1] - wide[1, :-1]).abs().max()) > (CLOSE.get(logits.dtype, ROUGH) if size else 0.0) * size:
        raise InputError(f"{name}: {kind} looks at later tokens, so it is no causal language model")
    if raw is None or raw.shape != logits.shape or not size:
        return None
    return _fit(raw.to(wide.dtype), wide, config, CLOSE.get(logits.dtype, ROUGH))


def _both(model: Any, inner: Any, inputs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor]:
    """What the output layer gives of the decoder's last hidden states (None without a decoder), and the model's logits."""
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    hidden: list[Tensor] = []
    handle = None
    if isinstance(decoder, nn.Module) and decoder is not inner:
        handle = decoder.register_forward_hook(lambda module, args, output: hidden.append(output[0]))
    try:
        with evaluating(model):
            logits = model(**inputs, use_cache=False).logits
            return (inner.get_output_embeddings()(hidden[0]) if len(hidden) == 1 else None), logits
    finally:
        if handle is not None:
            handle.remove()


def _vocabulary(inner: Any) -> int:
    return int(inner.get_input_embeddings().weight.shape[0])


def _fit(raw: Tensor, own: Tensor, config: Any, close: float) -> Head | None:
    """The scale and cap that turn `raw` into `own`, to `close` of the largest; None if there are none.

    Numbers of the config are taken where they fit, since a fitted scale is only as exact as the logits.
    """
    text = config.get_text_config()
    numbers = {name: float(v) for name, v in vars(text).items() if isinstance(v, int | float) and not isinstance(v, bool) and v}
    caps = [None, *sorted({abs(v) for name, v in numbers.items() if "cap" in name})]
    scales = {1.0, *(s for n, v in numbers.items() if any(w in n for w in ("scal", "multipl")) for s in (v, 1 / v))}
    for cap in caps:
        if cap is not None and float(own.abs().max()) > cap:
            continue
        open_own = own if cap is None else torch.atanh((own / cap).clamp(-1 + 1e-6, 1 - 1e-6)) * cap
        fitted = float((open_own * raw).sum() / (raw * raw).sum())
        fitting = [*sorted(scales), *([fitted] if close < ROUGH else [])]
        for head in (Head(scale, cap) for scale in fitting):
            if float((head(raw) - own).abs().max()) <= close * float(own.abs().max()):
                return head
    return None


def _of_config(config: Any) -> Head:
    """What the commonest names of a config say, where nothing can be run."""
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    return Head(scale, getattr(text, "final_logit_softcapping", None))
