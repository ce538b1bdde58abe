"""Models that another class of lm-eval's runs, often another program: named, checked and made."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from cltk import secrets
from cltk.data import assets
from cltk.errors import CltkError, InputError, reason
from cltk.models import device

RANDOM = "dummy"  # lm-eval's model of random numbers, for trying a pipeline
ROLLING = ("loglikelihood_rolling",)
NEEDS = {"loglikelihood": ("multiple_choice", "loglikelihood", *ROLLING), "loglikelihood_rolling": ROLLING}  # by output type
KEYS = re.compile(r"(?i)auth|key|token|cookie|secret")


@dataclass(frozen=True)
class Backend:
    """A side of a comparison: one of lm-eval's model classes, what the model is called, and the class's own arguments.

    Args:
        name: of the class, as `lm_eval --model` takes it: hf, vllm, sglang, local-completions, ...
        model: the model's name; the argument `model` or `pretrained` of the class, where `args` do not say another.
        args: as lm-eval's `--model_args`.

    Raises:
        InputError: no such class, a package that it needs is not there, an argument that it would ignore, or a key among
            the arguments.
    """

    name: str
    model: str
    args: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.model, str | os.PathLike):
            raise InputError(f"backend {self.name}: a model is named, and this is a {type(self.model).__name__}")
        cls = model_class(self.name)
        self._check_secrets()
        if not _is_api(cls):
            return  # what a class does not know goes on to its library, which refuses it
        known = _parameters(cls)
        for key in self.args:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1, 0.6)
                other = f"did you mean {near[0]}?" if near else "what the server is to be told belongs into gen_kwargs"
                raise InputError(f"backend {self.name}: argument {key!r} would be ignored; {other}")
        url = str(self.args.get("base_url") or "")
        if self.name.startswith("local-") and not url.startswith(("http://", "https://")):
            kind = "chat/completions" if self.chats else "completions"
            raise InputError(f"backend {self.name}: say where the server is: base_url=http://HOST:PORT/v1/{kind}")
        if self.name == "local-completions" and url.rstrip("/").endswith("/chat/completions"):
            raise InputError(f"backend {self.name}: {url} takes conversations; give .../v1/completions")

    @property
    def chats(self) -> bool:
        """Whether the class takes conversations alone, and no text."""
        from lm_eval.models.openai_completions import LocalChatCompletion

        cls = model_class(self.name)
        return issubclass(cls, LocalChatCompletion) or cls.__name__ == "AnthropicChat"

    def make(self, batch_size: Any = "auto", dtype: str = "auto") -> Any:
        """The lm-eval model. Raises InputError, in one line, for whatever its class raises."""
        from lm_eval.models.huggingface import HFLM

        cls = model_class(self.name)
        names = _parameters(cls)
        given = {key: _folder(value) for key, value in self.args.items()}
        called = next((key for key in ("model", "pretrained") if key in names), "")
        if called and not given.keys() & {"model", "pretrained"}:
            given[called] = _folder(str(self.model))
        if dtype != "auto" and "dtype" not in names:
            raise InputError(f"backend {self.name}: takes no dtype; the server decides")
        more = {"batch_size": None if batch_size == "auto" else batch_size, "dtype": None if dtype == "auto" else dtype}
        more["device"] = device() if issubclass(cls, HFLM) else None
        try:
            lm = cls.create_from_arg_obj(given, {key: value for key, value in more.items() if key not in given})
        except Exception as error:
            raise self.failed(error) from None
        if hasattr(lm, "parse_logprobs"):
            lm.parse_logprobs = partial(_of_prompt, lm.parse_logprobs)
        return lm

    def failed(self, error: Exception) -> CltkError:
        """The line about what a class, its library or its server raised."""
        if isinstance(error, CltkError):
            return error
        answer = getattr(error, "response", None)
        said = " ".join(str(getattr(answer, "text", "") or "").split())[:160]
        url = self.args.get("base_url")
        where = f"{url} does not answer as {self.name} needs it: " if url else ""
        missing = "; pip install 'lm-eval[api]'" if isinstance(error, NameError) or "lm-eval[api]" in str(error) else ""
        what = f"{where}{reason(error)}{missing}" + (f"; it says {said!r}" if said else "")
        return InputError(secrets.hidden(f"backend {self.name}, model {self.model}: {what}"))

    def _check_secrets(self) -> None:
        header = self.args.get("header")
        secret = [f"header {key}" for key in (header if isinstance(header, Mapping) else {}) if KEYS.search(str(key))]
        secret += [key for key in self.args if secrets.NAMED.match(key) and not secrets.SPECIAL.match(key)]
        if secret:
            raise InputError(
                f"backend {self.name}: {secret[0]}: results hold the arguments, so a key is given in the environment"
                " (OPENAI_API_KEY; lm-eval's classes read it there)"
            )
        secrets.refuse(dict(self.args), lambda keys: f"backend {self.name}")


def model_class(name: str) -> Any:
    """lm-eval's class of that name. Raises InputError where there is none, or what it imports is not installed."""
    import lm_eval.models  # noqa: F401  lists lm-eval's own
    from lm_eval.api.registry import model_registry

    if name == "cltk":
        from cltk.measure.scoring import PrefixLM

        return PrefixLM
    if name not in model_registry:
        names = sorted([*model_registry.keys(), "cltk"])
        near = difflib.get_close_matches(str(name), names, 1, 0.6)
        raise InputError(
            f"backend: lm-eval has no model {name!r}; " + (f"did you mean {near[0]}?" if near else ", ".join(names))
        )
    try:
        return model_registry.get(name)
    except Exception as error:
        raise InputError(f"backend {name}: cannot be used here ({reason(error)})") from None


def check_gives(lm: Any, backend: Backend, tasks: Mapping[str, Any]) -> str:
    """Why a backend gives no log-probabilities, "" where it does; nothing is asked of a server for it.

    Raises:
        InputError: a task needs them.
    """
    why = ""
    for asked, kinds in NEEDS.items():
        needing = [name for name, task in tasks.items() if task.OUTPUT_TYPE in kinds]
        try:
            getattr(lm, asked)([])
        except (NotImplementedError, AssertionError, ValueError) as error:
            why = why or (reason(error) if asked == "loglikelihood" else "")
            if needing:
                raise InputError(
                    f"backend {backend.name}: gives no log-probabilities, which {', '.join(needing[:5])} need"
                    f" ({reason(error)}); measure tasks that generate, or take another backend (local-completions)"
                ) from None
        except Exception:  # it does not like an empty list, and is asked in earnest later
            continue
    return why


def _of_prompt(parse: Any, outputs: Any, tokens: Any = None, ctxlens: Any = None, **more: Any) -> Any:
    """lm-eval's reading of an echoed prompt, of the prompt's own tokens alone.

    It takes the last entry for the one token that was generated; a server may have generated none (it would have been an end)
    or two (a character of several bytes), which it says, and a token of the prompt would be lost or one counted too many.
    """
    for out in outputs if isinstance(outputs, list) else [outputs]:
        choices = sorted(out["choices"], key=itemgetter("index"))
        made = (out.get("usage") or {}).get("completion_tokens", len(choices))
        if made != len(choices) > 1:
            raise ValueError(
                f"{made} tokens were generated for {len(choices)} prompts of a batch; ask one by one: batch_size=1"
            )
        for choice, prompt in zip(choices, tokens or (), strict=False):
            marks = choice["logprobs"]
            for name in ("token_logprobs", "top_logprobs"):
                own = marks[name] if len(choices) > 1 or made == 1 else [*marks[name][: len(marks[name]) - made], None]
                if len(own) < len(prompt):
                    raise ValueError(f"{len(own)} log-probabilities for {len(prompt)} tokens: it does not echo the prompt")
                marks[name] = own
    return parse(outputs=outputs, tokens=tokens, ctxlens=ctxlens, **more)


def _is_api(cls: Any) -> bool:
    from lm_eval.models.api_models import TemplateAPI

    return issubclass(cls, TemplateAPI)


def _parameters(cls: Any) -> set[str]:
    """Every argument that the constructors of a class and its bases name."""
    inits = [vars(one)["__init__"] for one in cls.__mro__ if "__init__" in vars(one) and one is not object]
    return {name for init in inits for name in inspect.signature(init).parameters} - {"self", "args", "kwargs"}


def _folder(value: Any) -> Any:
    """asset:NAME as the folder it is."""
    return str(assets.resolve(value)) if isinstance(value, str) and value.startswith(assets.PREFIX) else value
