"""What a generation request asks, where it asks for the most likely token alone: everything that lm-eval and transformers make
of its settings and of the model's generation_config.json; and why others are left to lm-eval's own path."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from transformers import GenerationConfig, GenerationMixin

from cltk.measure.tree_forward import UnsupportedModelError

OURS = {"until", "max_gen_toks", "temperature"}  # read here; all other settings are transformers'
IDLE = {  # settings that change no greedy text
    "do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "use_cache",
    "max_length", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "early_stopping",
    "length_penalty", "transformers_version", "max_cache_len", "compile_config", "disable_compile",
    "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "max_matching_ngram_size",
}  # fmt: skip
PROCESSED = {  # settings that transformers makes logits processors of
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "remove_invalid_values",
    "exponential_decay_length_penalty", "renormalize_logits", "sequence_bias",
}  # fmt: skip
APART = ("moshi",)  # found by comparing every causal model of transformers: generate() gives other tokens than its own forward
OWN_INPUTS = ("phi3", "phimoe")  # prepare their inputs themselves for rotary factors that switch, which no such model gets here

Processor = Callable[[Any, Any], Any]  # (token ids [1, n], logits [1, V]) -> logits


@dataclass(frozen=True)
class Asked:
    """Greedy decoding until a text, an end token or a number of new tokens.

    Attributes:
        until: the texts that end an answer, the end token's own among them.
        limit: new tokens at most.
        ends: the token ids that end an answer.
        config: transformers' settings, where logits are processed before the choice; None where they are taken as they are.
    """

    until: tuple[str, ...]
    limit: int
    ends: frozenset[int]
    config: GenerationConfig | None

    def processors(self, model: Any, prompt: Any) -> Processor | None:
        """transformers' own logits processors for one prompt [1, n]; they keep no state between calls that would mix rows."""
        if self.config is None:
            return None
        config, base = GenerationConfig.from_dict(self.config.to_dict()), inner(model)
        config.max_length = prompt.shape[1] + self.limit
        base._prepare_special_tokens(config, True, device=prompt.device)
        mask = {"attention_mask": prompt.new_ones(prompt.shape)}
        found = base._get_logits_processor(config, prompt.shape[1], prompt, device=prompt.device, model_kwargs=mask)
        return found if len(found) else None


class Reader:
    """Settings -> what they ask, read once each.

    Args:
        lm: an lm-eval `HFLM`.
    """

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self._known: dict[str, Asked | str] = {}

    def __call__(self, settings: dict[str, Any]) -> Asked | str:
        """What is asked, or why lm-eval's own path must answer."""
        key = json.dumps(settings, sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = _read(self.lm, settings)
        return self._known[key]


def _read(lm: Any, settings: dict[str, Any]) -> Asked | str:
    model = inner(lm.model)
    eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    asked: dict[str, Any] = dict(normalize_gen_kwargs(settings, lm.max_gen_toks))
    until = handle_stop_sequences(asked.pop("until", None), eos=eos)
    limit = asked.pop("max_gen_toks")
    if asked.get("do_sample") is not False:
        return "tokens are drawn at random (do_sample)"
    if not all(isinstance(text, str) for text in until) or "max_length" in asked:
        return "its settings have max_length, or an `until` that is no text"
    given = {name: value for name, value in asked.items() if name not in OURS}
    try:
        config, rest = model._prepare_generation_config(None, **given)
        usual = config._get_default_generation_params()
    except (AttributeError, TypeError, ValueError) as error:
        return str(error) or type(error).__name__
    if rest:
        return f"{next(iter(rest))} is no setting that transformers' greedy decoding has"
    set_here = {name for name, value in config.to_dict().items() if _changes(name, value, usual.get(name))}
    if other := set_here - PROCESSED:
        name = sorted(other)[0]
        return f"{name} is {getattr(config, name)!r:.40}"
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return Asked(tuple(until), limit, frozenset(e for e in ends if e is not None), config if set_here else None)


def _changes(name: str, value: Any, usual: Any) -> bool:
    return not (name.startswith("_") or name in IDLE or value is None or value is False or value == usual)


def check_plain(model: Any) -> None:
    """Raise UnsupportedModelError for a model whose generation is not transformers' plain loop around its forward."""
    base: Any = inner(model)
    adapters = getattr(model, "peft_config", None) or {}
    if any(getattr(config, "is_prompt_learning", False) for config in adapters.values()):
        raise UnsupportedModelError("its adapter is a learned prompt")
    if base.config.model_type in APART:
        raise UnsupportedModelError("its texts are not those of its plain forward")
    if not issubclass(type(base), GenerationMixin) or type(base).generate is not GenerationMixin.generate:
        raise UnsupportedModelError("it generates by code of its own")
    own = type(base).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
    if own and base.config.model_type not in OWN_INPUTS:
        raise UnsupportedModelError("it prepares its inputs itself")


def inner(model: Any) -> Any:
    """The transformers model under an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass(eq=False)
class Row:
    """One prompt and the tokens that were made for it.

    Attributes:
        number: the caller's.
        prompt: its tokens.
        logprob: of the new tokens together, in nats, where `watched`.
    """

    number: int
    prompt: list[int]
    asked: Asked
    new: list[int] = field(default_factory=list)
    processor: Processor | None = None
    watched: bool = False
    logprob: float = 0.0

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.new


class Stops:
    """Whether the texts end, as lm-eval's `MultiTokenEOSCriteria` sees it: a stop text within the last tokens, as many as it is
    encoded in and 2 more."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._windows: dict[str, int] = {}

    def __call__(self, rows: Sequence[tuple[Sequence[int], Asked]]) -> list[bool]:
        """For each row (its new tokens, what is asked): whether it ends with its last token."""
        ended = [new[-1] in asked.ends or len(new) >= asked.limit for new, asked in rows]
        open_rows = [(i, new, asked) for i, (new, asked) in enumerate(rows) if not ended[i]]
        tails = [(i, text, tuple(new[-self._window(text) :])) for i, new, asked in open_rows for text in asked.until]
        distinct = list(dict.fromkeys(tail for _, _, tail in tails))
        said = dict(zip(distinct, self.tokenizer.batch_decode(list(map(list, distinct))), strict=True)) if distinct else {}
        for i, text, tail in tails:
            ended[i] = ended[i] or text in said[tail]
        return ended

    def _window(self, text: str) -> int:
        if text not in self._windows:
            self._windows[text] = len(self.tokenizer.encode(text, add_special_tokens=False)) + 2
        return self._windows[text]


def thinks_on(lm: Any, new: Sequence[int]) -> bool:
    """Whether these tokens have no end of thinking, where there is one: lm-eval takes the thoughts for the answer."""
    end = lm.think_end_token
    return bool(end not in new if isinstance(end, int) else end and end not in lm.tok_decode(list(new)))


def text_of(lm: Any, new: Sequence[int], asked: Asked) -> str:
    """The answer in these tokens, as HFLM cuts it: behind the end of thinking, before the first stop text."""
    tokens, think = list(new), lm.think_end_token
    if by_token := isinstance(think, int):
        last = next((i for i in range(len(tokens) - 1, -1, -1) if tokens[i] == think), -1)
        tokens = tokens[last + 1 :]
    text = lm.tok_decode(tokens)
    text = text.lstrip() if by_token else text
    return str(postprocess_generated_text(text, list(asked.until), None if by_token else think))
