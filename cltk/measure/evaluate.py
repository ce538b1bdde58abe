"""Model -> per-document scores: a fixed suite of tasks and texts, run on any number of models."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cltk import tensors
from cltk.data import text_of
from cltk.errors import InputError
from cltk.measure.documents import clusters, task_scores, unmeasurable
from cltk.measure.harness import Progress, attempt, by_document, load_tasks, make_lm, quiet
from cltk.measure.identity import identity
from cltk.measure.prompting import FEWSHOT_SEED, Prompting, own_randomness, restore, seed, states
from cltk.measure.rules import rules_digest
from cltk.measure.scores import Scores, TaskScores
from cltk.measure.settings import options
from cltk.measure.stderr import fill_stderr
from cltk.measure.texts import TextTask, score_text, token_rows

__all__ = ["Progress", "Suite", "TextTask", "token_rows", "untouched"]


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Whatever happens inside, the model's modes and every random state are as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        with own_randomness():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


class Suite:
    """A fixed set of tasks with fixed settings, built once and run on any number of models.

    Args:
        tasks: names of lm-eval tasks or groups, from lm-eval itself (needs a hub) or from `include_path`.
        texts: held-out texts whose token NLL is measured too.
        limit: the first N documents of each lm-eval task; all when None.
        num_fewshot: examples in the prompt; each task's own number when None. A task whose file says 0 keeps it (`notes`).
        include_path: a folder of task YAML that the user named; `!function` in it runs its Python.
        trust: whether tasks may run Python: the folder's own, and what lm-eval's tasks call on data and answers.
        chat_template: whether lm-eval applies the tokeniser's chat template.
        system_instruction: text before every prompt; a turn of its own in a chat template.
        fewshot_as_multiturn: whether examples are turns of the conversation in a chat template, or part of the question.
        gen_kwargs: of generation, over the task's own: a mapping, or "name=value,name=value".

    Raises:
        InputError: an unknown task, two measures of one name, a task whose data cannot be had, a limit below 1, a setting out
            of range.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        texts: Sequence[TextTask] = (),
        limit: int | None = None,
        num_fewshot: int | None = None,
        include_path: str | Path | None = None,
        chat_template: bool = False,
        system_instruction: str | None = None,
        fewshot_as_multiturn: bool = True,
        gen_kwargs: Mapping[str, Any] | str | None = None,
        trust: bool = True,
    ) -> None:
        if limit is not None and limit < 1:
            raise InputError(f"limit: must be at least 1, got {limit}")
        if not tasks and not texts:
            raise InputError("tasks: name at least one task to measure")
        self.names, self.texts, self.limit = list(tasks), list(texts), limit
        self.include_path, self.trust = include_path, trust
        self.prompting = Prompting(num_fewshot, chat_template, system_instruction, fewshot_as_multiturn, gen_kwargs)
        self.notes: list[str] = []  # what was asked for and is not done
        self._loaded: Any = None
        self._seeded: Any = None  # the random states in which lm-eval builds its requests
        self._check_names(self.names)

    def load(self) -> Any:
        """The lm-eval tasks, built once, from lm-eval's seeds."""
        if self._loaded is None and self.names:
            with quiet(), own_randomness():
                seed()
                loaded = load_tasks(self.names, self.include_path, self.trust)
                self._seeded = states()
                for name, task in loaded["tasks"].items():
                    if note := self.prompting.configure(task):
                        self.notes.append(f"task {name}: {note}")
                    if len(task.eval_docs) == 0:
                        raise InputError(f"task {name}: it has no documents")
                    clusters(name, task.dump_config(), [task.eval_docs[0]])
                reasons = {name: unmeasurable(task) for name, task in loaded["tasks"].items()}
                if all(reasons.values()) and not self.texts:
                    raise InputError("; ".join(f"task {name}: {reason}" for name, reason in reasons.items()))
            self._check_names(loaded["tasks"])
            self._loaded = loaded
        return self._loaded

    def _check_names(self, tasks: Iterable[str]) -> None:
        """Raises InputError for two measures of one name: tables and records know them by it."""
        names = [*tasks, *(text.name for text in self.texts)]
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise InputError(f"{twice!r} names two measures (tasks or texts); list it once, or give the text another name")

    def with_texts(self, texts: Sequence[TextTask]) -> Suite:
        """The same tasks, loaded once for both, and these texts."""
        self.load()
        other = copy.copy(self)
        other.texts = list(texts)
        other._check_names(other._loaded["tasks"] if other._loaded else [])
        return other

    def rules(self) -> dict[str, str]:
        """sha256 (hex) of every task's documents, right answers, metrics and filters: what its requests do not show."""
        loaded = self.load()
        tasks = loaded["tasks"] if loaded else {}
        return {name: rules_digest(task, self.limit, self.include_path) for name, task in tasks.items()}

    def sizes(self) -> dict[str, int]:
        """Documents that will be scored, by task."""
        loaded = self.load()
        counts = {} if loaded is None else {name: len(task.eval_docs) for name, task in loaded["tasks"].items()}
        return {name: min(n, self.limit or n) for name, n in counts.items()} | {t.name: len(t.rows) for t in self.texts}

    def _requests(self, tokenizer: Any = None) -> dict[str, list[Any]]:
        """What lm-eval will ask of a model, by task; a chat template needs the tokenizer."""
        loaded, asked = self.load(), {}
        with quiet(), own_randomness():
            restore(self._seeded or states())
            for name, task in loaded["tasks"].items() if loaded else ():
                asked[name] = [one.args for one in attempt(name, self.prompting.build, task, self.limit, tokenizer)]
        return asked

    def check(self, tokenizers: Mapping[str, Any]) -> None:
        """All that can be found wrong before weights are loaded: of every task, of its prompts, of the chat templates.

        Args:
            tokenizers: who -> tokenizer of every model to come; read only where there is a chat template.

        Raises:
            InputError: a task cannot be loaded or its prompts not be made; a tokenizer has no chat template, or another one
                than the first.
        """
        if not self.prompting.chat_template:
            self._requests()
            return
        for who, tokenizer in tokenizers.items():
            self.prompting.check_template(tokenizer, who)
        found = {who: self._requests(tokenizer) for who, tokenizer in tokenizers.items()}
        first = next(iter(found), None)
        for who, asked in found.items():
            if first is not None and asked != found[first]:
                raise InputError(f"chat_template: {first} and {who} have different ones; save one with both tokenizers")

    def digests(self, tokenizer: Any = None) -> dict[str, str]:
        """sha256 (hex) of every task's requests and of every text's rows: equal digests, equal measurements.

        A chat template is part of the requests, so it needs the tokenizer.
        """
        asked: dict[str, list[Any]] = {
            name: [[str(part) for part in args] for args in found] for name, found in self._requests(tokenizer).items()
        }
        for text in self.texts:
            asked[text.name] = [
                [list(row["input_ids"]), list(row.get("labels", []))] if "input_ids" in row else text_of(row, text.name)
                for row in text.rows
            ]
        return {name: hashlib.sha256(json.dumps(found).encode()).hexdigest() for name, found in asked.items()}

    def tokens(self, tokenizer: Any) -> int:
        """Tokens that one evaluation computes: every distinct context once, every continuation once."""
        requests = [args for found in self._requests(tokenizer).values() for args in found]
        texts = [*{args[0] for args in requests}, *[str(args[1]) for args in requests if len(args) > 1]]
        texts += [text_of(row, text.name) for text in self.texts for row in text.rows if "input_ids" not in row]
        ready = sum(len(row["input_ids"]) for text in self.texts for row in text.rows if "input_ids" in row)
        return ready + sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) if texts else ready

    def evaluate(
        self,
        model: Any,
        tokenizer: Any,
        *,
        digest: str | None = None,
        batch_size: int | str = "auto",
        journal: Any = None,
        progress: Progress | None = None,
        scorer: str = "prefix",
    ) -> Scores:
        """Score `model` on every document. The model's mode and all random states are left as they were.

        Args:
            digest: the weights' sha256 when the caller knows it; computed otherwise. With all else that decides an answer
                (`cltk.measure.identity`) it keys the journal.
            journal: see `cltk.measure.journal`; requests found in it are not scored again.
            scorer: "prefix" (contexts computed once) or "stock" (lm-eval's own HFLM).
        """
        options(scorer, batch_size)
        digest = digest or tensors.digest(model)
        key = identity(model, tokenizer, digest) if journal is not None else digest
        with untouched(model), tensors.own_precision(model), quiet():
            tasks, raw = self._run_lm_eval(model, tokenizer, key, batch_size, journal, progress, scorer)
            for text in self.texts:
                tasks[text.name] = score_text(text, model, tokenizer, key, journal, progress)
        return Scores(digest, tasks, raw)

    def _run_lm_eval(
        self, model: Any, tokenizer: Any, digest: str, batch_size: Any, journal: Any, progress: Any, scorer: str
    ) -> tuple[dict[str, TaskScores], dict[str, Any]]:
        loaded = self.load()
        if loaded is None:
            return {}, {}
        from lm_eval.evaluator import evaluate

        documents = sum(min(len(task.eval_docs), self.limit or len(task.eval_docs)) for task in loaded["tasks"].values())
        lm = make_lm(model, tokenizer, digest, batch_size, journal, progress and by_document(progress, documents), scorer)
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        restore(self._seeded)
        raw: Any = evaluate(lm, loaded, limit=self.limit, bootstrap_iters=0, **self.prompting.arguments())
        if raw is None:  # not the first rank
            return {}, {}
        fill_stderr(raw)
        settings = {**self.prompting.settings(), "limit": self.limit}
        found = raw["samples"].items()
        return {name: task_scores(loaded["tasks"][name], name, samples, raw, settings) for name, samples in found}, raw
