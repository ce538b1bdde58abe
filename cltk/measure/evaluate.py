"""Model -> per-document scores: a fixed suite of tasks and texts, run on any number of models."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cltk import tensors
from cltk.data.messages import words
from cltk.errors import InputError
from cltk.measure.answers import score_tasks
from cltk.measure.faults import attempt, forward
from cltk.measure.groups import Group, grouped
from cltk.measure.harness import Progress, fits_vocabulary, has_nll, quiet
from cltk.measure.identity import identity
from cltk.measure.loading import Scratch, check, load_tasks, something
from cltk.measure.prompting import Prompting, own_randomness, restore, seed, seeds_of, states
from cltk.measure.rules import given, rules_digest
from cltk.measure.sampling import Sample
from cltk.measure.scores import Scores
from cltk.measure.selection import Chosen, Selection, cluster_sizes, row_notes, row_sizes, with_notes
from cltk.measure.settings import options, task_names
from cltk.measure.texts import TextTask, check_ids, score_text, scored_rows, token_rows
from cltk.measure.untouched import untouched

__all__ = ["Progress", "Suite", "TextTask", "token_rows", "untouched"]


class Suite:
    """A fixed set of tasks with fixed settings, built once and run on any number of models.

    Args:
        tasks: names of lm-eval tasks, groups or tags, patterns ("mmlu_*") or task files (.yaml), from lm-eval itself (needs a
            hub) or from `include_path`: a list, or one string with commas. A group has one row, weighted as its file says.
        texts: held-out texts whose token NLL is measured too.
        limit: the first N documents of each lm-eval task, as lm-eval's own, or below 1 that fraction of them; all when None.
        sample: N random documents of each task and text instead, the same for every model; a fraction of them; or a mapping
            of names to such numbers. Clusters stay whole and strata have their shares (`cltk.measure.sampling.choose`).
        sample_seed: of the sample.
        num_fewshot: examples in the prompt; each task's own number when None. A task whose file says 0 keeps it (`notes`).
        include_path: a folder of task YAML that the user named; `!function` in it runs its Python.
        trust: whether tasks may run Python: the folder's own, and what lm-eval's tasks call on data and answers.
        chat_template: whether lm-eval applies the tokeniser's chat template.
        system_instruction: text before every prompt; a turn of its own in a chat template.
        fewshot_as_multiturn: whether examples are turns of the conversation in a chat template, or part of the question.
        gen_kwargs: of generation, over the task's own: a mapping, or "name=value,name=value".
        confirm_run_unsafe_code: consent to tasks that run code which the model writes (HumanEval, MBPP).
        members: whether the tasks of a group have rows too; averages count the group alone.
        seed: of Python, numpy, torch and the examples, as lm-eval's `--seed`; 0,1234,1234,1234 when None.

    Raises:
        InputError: an unknown task, two measures of one name, a task whose data cannot be had, a limit below 1, a limit beside
            a sample, a setting out of range.
    """

    def __init__(
        self,
        tasks: Sequence[str] | str,
        *,
        texts: Sequence[TextTask] = (),
        limit: float | None = None,
        sample: Sample | Mapping[str, Sample] | None = None,
        sample_seed: int = 0,
        num_fewshot: int | None = None,
        include_path: str | Path | None = None,
        chat_template: bool = False,
        system_instruction: str | None = None,
        fewshot_as_multiturn: bool = True,
        gen_kwargs: Mapping[str, Any] | str | None = None,
        trust: bool = True,
        confirm_run_unsafe_code: bool = False,
        members: bool = False,
        seed: int | str | Sequence[int] | None = None,
    ) -> None:
        self.selection = Selection(limit, sample, sample_seed)
        self.names, self.limit, self.include_path = task_names(tasks), self.selection.limit, include_path
        self.texts = [self.selection.text(text) for text in texts]
        if not self.names and not self.texts:
            raise InputError("tasks: name at least one task to measure")
        self.trust, self.confirm_run_unsafe_code, self.members = trust, confirm_run_unsafe_code, members
        prompts = num_fewshot, chat_template, system_instruction, fewshot_as_multiturn, gen_kwargs
        self.prompting = Prompting(*prompts, seeds_of(seed))
        self.notes: list[str] = []  # what was asked for and is not done
        self._loaded: Any = None
        self.seeded: Any = None  # the random states in which lm-eval builds its requests
        self.chosen: dict[str, Chosen] = {}  # task -> its documents that are scored
        self._check_names(self.names)
        if not self.names:
            self.selection.check_names(text.name for text in self.texts)

    def load(self) -> Any:
        """The lm-eval tasks, built once, from lm-eval's seeds."""
        if self._loaded is None and self.names:
            self._scratch = Scratch()
            with quiet(), own_randomness():
                seed(self.prompting.seeds)
                consent = self.trust, self.confirm_run_unsafe_code
                loaded = load_tasks(self.names, self.include_path, self._scratch.path, *consent)
                self.seeded = states()
                for name, task in loaded["tasks"].items():
                    if note := self.prompting.configure(task):
                        self.notes.append(f"task {name}: {note}")
                    attempt(name, check, name, task, self.confirm_run_unsafe_code)
                if not self.texts:
                    something(loaded["tasks"])
                self.selection.check_names([*self.names, *loaded["tasks"], *(text.name for text in self.texts)])
                self.chosen = self.selection.tasks(loaded)
            self._check_names([*loaded["tasks"], *loaded["groups"]])
            self._loaded = loaded
        return self._loaded

    def _check_names(self, tasks: Iterable[str]) -> None:
        """Raises InputError for two measures of one name: tables and records know them by it."""
        if twice := next((name for name, n in Counter([*tasks, *(text.name for text in self.texts)]).items() if n > 1), None):
            raise InputError(f"{twice!r} names two measures (tasks or texts); list it once, or give the text another name")

    def with_texts(self, texts: Sequence[TextTask]) -> Suite:
        """The same tasks, loaded once for both, and these texts as they are."""
        self.load()
        other = copy.copy(self)
        other.texts = [*texts]
        other._check_names(other._loaded["tasks"] if other._loaded else [])
        return other

    def rules(self) -> dict[str, str]:
        """sha256 (hex) of every task's documents, right answers, metrics and filters: what its requests do not show."""
        found = {
            name: rules_digest(task, self.chosen[name].of(task.eval_docs), self.include_path, self.names)
            for name, task in (self.load() or {"tasks": {}})["tasks"].items()
        }
        return found | {group.name: hashlib.sha256(repr(group).encode()).hexdigest() for group in self.groups()}

    def rows(self, name: str) -> list[str]:
        """What a name that was given stands for in the results: a group itself; the tasks of a tag or a pattern."""
        return list((self.load() or {"named": {}})["named"].get(name, [name]))

    def groups(self) -> list[Group]:
        """The groups that have a row: those that were named; with `members`, those inside them too."""
        loaded = self.load()
        named = {row for name in self.names for row in self.rows(name)}
        return [Group.of(g) for name, g in (loaded["groups"].items() if loaded else ()) if name in named or self.members]

    def about(self) -> dict[str, list[str]]:
        """Row -> what a reader must know of its documents: which sample they are, or that the first are not like the rest."""
        self.load()
        return row_notes(self.groups(), self.chosen, self.selection.seed) | {t.name: [t.note] for t in self.texts if t.note}

    def sizes(self) -> dict[str, int]:
        """Documents that will be scored, by row."""
        loaded = self.load()
        counts = row_sizes(loaded["tasks"] if loaded else (), self.chosen, self.groups(), self.members)
        return counts | {text.name: len(text.rows) for text in self.texts}

    def cluster_sizes(self) -> dict[str, list[int]]:
        """Documents in each cluster that will be scored, of the tasks that name their clusters."""
        return cluster_sizes(loaded["tasks"], self.chosen, self.groups()) if (loaded := self.load()) else {}

    def _requests(self, tokenizer: Any = None) -> dict[str, list[Any]]:
        """What lm-eval will ask of a model, by task; a chat template needs the tokenizer."""
        loaded, asked = self.load(), {}
        with quiet(), own_randomness():
            restore(self.seeded or states())
            for name, task in loaded["tasks"].items() if loaded else ():
                chosen = self.chosen[name].limit, self.chosen[name].indices
                asked[name] = [one.args for one in attempt(name, self.prompting.build, task, *chosen, tokenizer)]
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
        for who, asked in found.items():
            if asked != found[first := next(iter(found))]:
                raise InputError(f"chat_template: {first} and {who} have different ones; save one with both tokenizers")

    def digests(self, tokenizer: Any = None) -> dict[str, str]:
        """sha256 (hex) of every task's requests and of every text's rows: equal digests, equal measurements.

        A chat template is part of the requests, so it needs the tokenizer.
        """
        asked = {name: [[str(part) for part in args] for args in found] for name, found in self._requests(tokenizer).items()}
        every: dict[str, list[Any]] = {**asked, **{text.name: given(text) for text in self.texts}}
        return {name: hashlib.sha256(json.dumps(found).encode()).hexdigest() for name, found in every.items()}

    def _strings(self, tokenizer: Any) -> list[str]:
        """Every distinct context and every continuation that will be scored, and the texts."""
        requests = [args for found in self._requests(tokenizer).values() for args in found]
        texts = [*{args[0] for args in requests}, *[args[1] for args in requests if len(args) > 1 and isinstance(args[1], str)]]
        return texts + [words(row, text.name) for text in self.texts for row in text.rows if "input_ids" not in row]

    def tokens(self, tokenizer: Any) -> int:
        """Tokens that one evaluation computes: every distinct context once, every continuation once."""
        ready = sum(len(row["input_ids"]) for text in self.texts for row in text.rows if "input_ids" in row)
        texts = self._strings(tokenizer)
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
        fits_vocabulary(model, tokenizer, lambda: self._strings(tokenizer))
        has_nll(model, self.texts)
        with untouched(model), tensors.own_precision(model), quiet():
            for text in self.texts:  # before anything is scored
                check_ids(text.name, scored_rows(text, tokenizer)[1], model)
            lm = {"digest": key, "batch_size": batch_size, "journal": journal, "progress": progress, "scorer": scorer}
            tasks, raw = score_tasks(self, model, tokenizer, **lm)
            named = [row for name in self.names for row in self.rows(name)]
            tasks, inside, notes = grouped(tasks, self.groups(), named, self.members)
            self.notes += [note for note in notes if note not in self.notes]
            tasks = {name: with_notes(one, self.about().get(name, [])) for name, one in tasks.items()}
            for text in self.texts:
                with forward():
                    tasks[text.name] = score_text(text, model, tokenizer, key, journal, progress)
        return Scores(digest, tasks, raw, inside, str(getattr(model, "dtype", "")).removeprefix("torch."))
