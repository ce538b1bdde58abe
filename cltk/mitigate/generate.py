"""Replay without old data: the start model writes it. SelfReplay.

Shapes: B samples of a batch, T tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cltk import tensors
from cltk.data.memories import text_rows
from cltk.data.readers import Row
from cltk.data.rows import IGNORED, pad_id
from cltk.errors import InputError, RunError
from cltk.files import check_held, leased
from cltk.forward.causal import check_causal
from cltk.importance.estimators import untouched
from cltk.mitigate.interface import Mitigator, Plan
from cltk.mitigate.memory import check_memory, check_number
from cltk.mitigate.replay import check_data, mix, old_count
from cltk.models import config_digest
from cltk.ranks import gathered, ranks

BATCH = 16  # samples generated at a time: part of what decides the text
SHOTS = 2  # examples in a context
Ids = list[int]


class TextJournal:
    """Generated batches in a file, one JSON line each: {"batch", "rows", "check"}; `check` is the start of a sha256.

    What was cut short by a kill, and all behind it, is dropped, and generated again. Without a path nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def read(self) -> list[list[Ids]]:
        """The batches 0, 1, ... that are whole."""
        done: list[list[Ids]] = []
        if self.path is None or not self.path.exists():
            return done
        for line in self.path.read_text().splitlines(keepends=True):
            try:
                rows = json.loads(line)["rows"]
            except (ValueError, KeyError, TypeError):
                break
            if line != _line(len(done), rows):
                break
            done.append(rows)
        return done

    def append(self, batch: int, rows: list[Ids]) -> None:
        """Write batch number `batch` and sync it, if it is next; one process at a time does (`cltk.files.leased`)."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        check_held()
        done = self.read()
        if len(done) != batch:
            return
        with self.path.open("a+b") as file:
            file.truncate(sum(len(_line(i, one).encode()) for i, one in enumerate(done)))
            file.write(_line(batch, rows).encode())
            file.flush()
            os.fsync(file.fileno())


def _line(batch: int, rows: list[Ids]) -> str:
    body = f'"batch": {batch}, "rows": {json.dumps(rows)}'
    return f'{{{body}, "check": "{hashlib.sha256(body.encode()).hexdigest()[:16]}"}}\n'


def sample(model: Any, contexts: Sequence[Ids], end: int | None, pad: int, settings: dict[str, Any], seed: int) -> list[Ids]:
    """What the model writes after each context (left-padded, [B, T]), up to and with the end token; drawn by `seed`.

    Modes, gradients and random states are as before.
    """
    longest = max(map(len, contexts))
    device = next(model.parameters()).device
    ids_BT = torch.tensor([[pad] * (longest - len(one)) + one for one in contexts], device=device)
    mask_BT = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in contexts], device=device)
    with untouched(model), torch.no_grad():
        torch.manual_seed(seed)
        found: Tensor = model.generate(
            input_ids=ids_BT, attention_mask=mask_BT, do_sample=True, top_k=0, num_beams=1, repetition_penalty=1.0,
            use_cache=True, pad_token_id=pad, eos_token_id=end,
            synced_gpus=False, **settings,  # each rank holds a whole model and writes its own share, under ZeRO-3 too
        )  # fmt: skip
    return [_until(written, end) for written in found[:, longest:].tolist()]


def _until(ids: Ids, end: int | None) -> Ids:
    return ids[: ids.index(end) + 1] if end is not None and end in ids else ids


class SelfReplay(Mitigator):
    """Replay text that the start model wrote itself: no old data is needed.

    `samples` texts are drawn from the start model at setup, token by token from softmax(logits / temperature) cut to the
    nucleus `top_p`, and mixed in as `Replay` does. A text begins

        with nothing given: at the beginning-of-text token;
        with `prompts`: with one of these, in turn; both are replayed (a conversation's question only as context);
        with `memory`: behind two examples of it, in context, which are not replayed themselves.

    With a cache folder the texts are kept there, by the digest of weights, settings and inputs; a batch that is finished is
    never generated again. With several ranks each writes its share.

    Args:
        fraction: p, the share of replayed sequences, 0 to below 1; 0 changes nothing.
        samples: texts to write.
        prompts: texts to go on from, each a row of its own, or token rows.
        memory: example texts, each a row of its own, or token rows; a few are enough.
        max_new_tokens: of a text, at most.
        temperature: above 0; 1 samples the model's own distribution.
        top_p: nucleus, above 0 to 1.
        seed: of the texts.
        extra_steps: whether steps grow so that the new task keeps its tokens.

    Raises:
        InputError: a number out of its range, empty prompts or memory, no tokenizer, or a context longer than the model's.
        RunError: the model wrote nothing but ends of text.

    Source: after Huang et al. 2024 (arXiv 2403.01244), SSR, without its refinement and its k-means choice.
    """

    def __init__(
        self, fraction: float, samples: int = 256, *, prompts: Any = None, memory: Any = None, max_new_tokens: int = 128,
        temperature: float = 1.0, top_p: float = 1.0, seed: int = 0, extra_steps: bool = True,
    ) -> None:  # fmt: skip
        if not 0 <= fraction < 1:
            raise InputError(f"self_replay.fraction: must be at least 0 and below 1, got {fraction}")
        check_number("self_replay.samples", samples, 1)
        check_number("self_replay.max_new_tokens", max_new_tokens, 1)
        check_number("self_replay.temperature", temperature)
        if temperature == 0 or not 0 < top_p <= 1:
            raise InputError(f"self_replay: temperature must be above 0 and top_p above 0 to 1; got {temperature} and {top_p}")
        for given in (prompts, memory):
            if given is not None:
                check_memory("self_replay", given)
        self.fraction, self.samples, self.prompts, self.memory = fraction, samples, prompts, memory
        self.settings = {"max_new_tokens": max_new_tokens, "temperature": float(temperature), "top_p": float(top_p)}
        self.seed, self.extra_steps, self.asked = seed, extra_steps, False

    def setup(self, plan: Plan) -> None:
        if not self.fraction:
            return
        if plan.tokenizer is None:
            raise InputError("self_replay: needs a tokenizer; give the trainer a processing_class")
        check_causal(plan.model, "self_replay")
        old_count(check_data(plan, "self_replay"), self.fraction, "self_replay")  # before anything is written
        contexts, heads = self._contexts(plan)
        texts = self._texts(plan, contexts)
        rows = [_row(head, text, self.asked) for head, text in zip(heads, texts, strict=True) if len(head + text) > 1]
        if not rows:
            raise RunError("self_replay: the start model wrote empty texts only; give prompts or memory")
        note = {"samples": self.samples, "written": len(rows), "written_tokens": sum(map(len, texts)), **self.settings}
        plan.notes["self_replay"] = note | mix(plan, rows, self.fraction, self.extra_steps, "self_replay")

    def _contexts(self, plan: Plan) -> tuple[list[Ids], list[Ids]]:
        """What stands before each text, and the part of it that is replayed with the text."""
        tokenizer, length = plan.tokenizer, int(self.settings["max_new_tokens"])
        start = _first(tokenizer)
        rows = [] if self.prompts is None else text_rows(self.prompts, tokenizer, length, "self_replay.prompts")
        self.asked = any("labels" in row for row in rows)
        prompts = [list(map(int, row["input_ids"])) for row in rows] or [start]
        heads = [prompts[i % len(prompts)] for i in range(self.samples)]
        if self.memory is None:
            contexts = heads
        else:
            examples = [row["input_ids"] for row in text_rows(self.memory, tokenizer, length, "self_replay.memory", whole=True)]
            heads = [[] if self.prompts is None else head for head in heads]
            between = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
            contexts = [start + _shots(examples, between, self.seed, i) + head for i, head in enumerate(heads)]
        room = _room(plan.model)
        if room is not None and max(map(len, contexts)) + length > room:
            raise InputError(
                f"self_replay: a context of {max(map(len, contexts))} tokens and {length} new ones exceed the model's {room};"
                " lower max_new_tokens or give shorter texts"
            )
        return contexts, heads

    def _texts(self, plan: Plan, contexts: list[Ids]) -> list[Ids]:
        """All texts, in order: from the journal as far as it goes, then from the model, a batch a rank at a time."""
        path = self._path(plan, contexts)
        with leased(path.with_suffix(".lease")) if path else nullcontext():
            return self._written(plan, contexts, TextJournal(path))

    def _written(self, plan: Plan, contexts: list[Ids], journal: TextJournal) -> list[Ids]:
        rank, world = ranks()
        done = gathered(journal.read() if rank == 0 else [])[0]
        batches = [contexts[i : i + BATCH] for i in range(0, len(contexts), BATCH)]
        end, pad = plan.tokenizer.eos_token_id, pad_id(plan.tokenizer)
        for first in range(len(done), len(batches), world):
            mine = first + rank
            rows = sample(plan.model, batches[mine], end, pad, self.settings, self._seed(mine)) if mine < len(batches) else []
            for number, found in enumerate(gathered(rows)[: len(batches) - first], first):
                done.append(found)
                if rank == 0:
                    journal.append(number, found)
        return [text for batch in done for text in batch]

    def _seed(self, batch: int) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed} {batch}".encode()).digest()[:6], "big")

    def _path(self, plan: Plan, contexts: list[Ids]) -> Path | None:
        if plan.cache is None:
            return None
        weights = tensors.digest(plan.model) + config_digest(plan.model)
        key = json.dumps([weights, contexts, self.settings, self.seed, plan.tokenizer.eos_token_id, BATCH], sort_keys=True)
        return Path(plan.cache) / f"self_replay-{hashlib.sha256(key.encode()).hexdigest()[:32]}.jsonl"


def _first(tokenizer: Any) -> Ids:
    """The beginning-of-text token; the end of text, where a tokenizer has no other."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    raise InputError("self_replay: this tokenizer has neither a beginning nor an end of text to start from")


def _room(model: Any) -> int | None:
    """The longest text the model takes, where it has such a limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _row(head: Ids, text: Ids, asked: bool) -> Row:
    """A prompt and what was written behind it; only that counts where the prompt is a question in a conversation."""
    return {"input_ids": head + text} | ({"labels": [IGNORED] * len(head) + text} if asked else {})


def _shots(examples: list[Ids], between: Ids, seed: int, index: int) -> Ids:
    """Two different examples for text `index`, each with an empty line behind it."""
    chosen = random.Random(f"{seed} {index}").sample(examples, min(SHOTS, len(examples)))
    return [token for example in chosen for token in example + between]
