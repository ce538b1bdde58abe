"""How prompts are made: the settings that lm-eval's `simple_evaluate` has under the same names, and its seeds."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cltk.errors import InputError
from cltk.measure.trust import check_generation
from cltk.models.thinking import thinking_of

Seeds = tuple[int, int, int, int]
SEEDS: Seeds = (0, 1234, 1234, 1234)  # lm-eval's own: of Python, numpy, torch, and the draw of examples
States = tuple[Any, Any, Any, Any]


@dataclass(frozen=True)
class Prompting:
    """Settings of lm-eval's `simple_evaluate`, with its defaults.

    Raises:
        InputError: a setting of another type, or a number of examples below 0.
    """

    num_fewshot: int | None = None
    chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    gen_kwargs: Mapping[str, Any] | str | None = None
    seeds: Seeds = SEEDS

    def __post_init__(self) -> None:
        shots = self.num_fewshot
        if shots is not None and (not isinstance(shots, int) or isinstance(shots, bool) or shots < 0):
            raise InputError(f"num_fewshot: expected a whole number from 0, got {shots!r}")
        for name in ("chat_template", "fewshot_as_multiturn"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}: expected true or false, got {getattr(self, name)!r}")
        if self.system_instruction is not None and not isinstance(self.system_instruction, str):
            raise InputError(f"system_instruction: expected text, got {self.system_instruction!r}")
        self.generation()

    def generation(self) -> dict[str, Any]:
        """`gen_kwargs` as a mapping; a string is "name=value,name=value", as on lm-eval's command line."""
        given = self.gen_kwargs or {}
        if isinstance(given, str):
            from lm_eval.utils import simple_parse_args_string

            if not all("=" in part for part in given.split(",") if part.strip()):
                raise InputError(f"gen_kwargs: expected name=value,name=value, got {given!r}")
            given = simple_parse_args_string(given)
        if not isinstance(given, Mapping):
            raise InputError(f"gen_kwargs: expected a mapping or name=value,name=value, got {given!r}")
        check_generation(given, "gen_kwargs")
        return dict(given)

    def configure(self, task: Any) -> str | None:
        """Set the task up as `simple_evaluate` does; what it ignores is the note that comes back."""
        own, note = task.get_config("num_fewshot"), None
        if self.num_fewshot and own == 0:
            note = f"num_fewshot={self.num_fewshot} is ignored, as by lm-eval: the task's own file says 0"
        elif self.num_fewshot is not None or own is None:
            task.set_config(key="num_fewshot", value=self.num_fewshot or 0)
        if self.gen_kwargs and task.get_config("output_type") == "generate_until":
            given, its = self.generation(), task.get_config("generation_kwargs") or {}
            for alias in ("max_new_tokens", "max_tokens"):
                if alias in given and "max_gen_toks" in its and "max_gen_toks" not in given:
                    raise InputError(
                        f"gen_kwargs: {alias}: the task's own max_gen_toks goes before it, as in lm-eval; give max_gen_toks"
                    )
            task.set_config(key="generation_kwargs", value=self.generation(), update=True)
        return note

    def build(self, task: Any, limit: int | None, samples: list[int] | None = None, tokenizer: Any = None) -> list[Any]:
        """The requests that lm-eval will make of the task's first `limit` documents, or of those at `samples`.

        Few-shot examples are drawn anew.
        """
        task.set_fewshot_seed(seed=self.seeds[3])
        task.build_all_requests(limit=limit, samples=samples, rank=0, world_size=1, **self._arguments(tokenizer))
        return task.instances

    def arguments(self) -> dict[str, Any]:
        """What lm-eval's `evaluate` takes."""
        return {
            "apply_chat_template": self.chat_template,
            "system_instruction": self.system_instruction,
            "fewshot_as_multiturn": self.fewshot_as_multiturn,
        }

    def settings(self) -> dict[str, Any]:
        """What must be equal before and after, by name; what was left alone is left out."""
        given: dict[str, Any] = {"system_instruction": self.system_instruction, "gen_kwargs": self.generation() or None}
        if self.seeds != SEEDS:
            given["seeds"] = list(self.seeds)
        if self.chat_template:
            given["fewshot_as_multiturn"] = self.fewshot_as_multiturn
        return {"chat_template": self.chat_template, **{key: value for key, value in given.items() if value is not None}}

    def exported(self, tokenizer: Any) -> dict[str, Any]:
        """What lm-eval's result files say of prompts, seeds and versions."""
        versions = {
            f"{name.replace('-', '_')}_version": metadata.version(name) for name in ("lm-eval", "transformers", "torch")
        }
        template = getattr(tokenizer, "chat_template", None) if self.chat_template else None
        told = thinking_of(tokenizer).told if self.chat_template else {}
        return {
            "num_fewshot": self.num_fewshot, "system_instruction": self.system_instruction, "chat_template": template,
            "fewshot_as_multiturn": self.chat_template and self.fewshot_as_multiturn, "gen_kwargs": self.generation() or None,
            **dict(zip(("random_seed", "numpy_seed", "torch_seed", "fewshot_seed"), self.seeds, strict=True)), **versions,
            **({"chat_template_args": told} if told else {}),
        }  # fmt: skip

    def check_template(self, tokenizer: Any, who: str) -> None:
        """Raises InputError naming `who` when a chat template is asked for and there is none."""
        if self.chat_template and getattr(tokenizer, "chat_template", "unknown") is None:
            raise InputError(f"{who}: its tokenizer has no chat template; leave chat_template out, or save one with it")

    def _arguments(self, tokenizer: Any) -> dict[str, Any]:
        if not self.chat_template:
            return self.arguments()
        if tokenizer is None:
            raise InputError("chat_template: the prompts depend on the tokenizer; give it")
        from lm_eval.models.huggingface import HFLM

        self.check_template(tokenizer, "chat_template")
        stub: Any = SimpleNamespace(tokenizer=tokenizer, chat_template_args=thinking_of(tokenizer).told)
        name = str(getattr(tokenizer, "name_or_path", "")).replace("/", "__")
        return {**self.arguments(), "chat_template": partial(HFLM.apply_chat_template, stub), "tokenizer_name": name}


def seeds_of(given: int | str | Sequence[int] | None) -> Seeds:
    """lm-eval's `--seed`: one number for all four, or "python,numpy,torch,examples", of which the last may be left out.

    Raises:
        InputError: anything else; also `None` for one of them, which lm-eval draws by chance: both models need the same.
    """
    if given is None:
        return SEEDS
    listed = given.split(",") if isinstance(given, str) else list(given) if isinstance(given, Sequence) else [given]
    try:
        found = [int(one) for one in listed if isinstance(one, int | str) and not isinstance(one, bool)]
    except (TypeError, ValueError):
        found = []
    found = found * 4 if len(found) == 1 else [*found, SEEDS[3]] if len(found) == 3 else found
    if len(found) != 4 or len(listed) not in (1, 3, 4) or min(found) < 0:
        raise InputError(
            f"seed: expected a whole number from 0, or four of them (Python, numpy, torch, examples), got {given!r}"
        )
    return found[0], found[1], found[2], found[3]


def seed(seeds: Seeds = SEEDS) -> None:
    """The seeds that `simple_evaluate` sets before it loads tasks: some shuffle their documents or choices while loading."""
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.manual_seed(seeds[2])


def states() -> States:
    """Every random state."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def restore(kept: States) -> None:
    """Put every random state back."""
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    torch.set_rng_state(kept[2])
    if kept[3]:
        torch.cuda.set_rng_state_all(kept[3])


@contextmanager
def own_randomness() -> Iterator[None]:
    """Whatever is drawn inside, every random state is as before afterwards."""
    kept = states()
    try:
        yield
    finally:
        restore(kept)
