"""What the cells of an experiment read: rows, tasks, and the digests that a record is known by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cltk import models
from cltk.errors import InputError
from cltk.files import shipped
from cltk.measure.early import check_models
from cltk.measure.evaluate import Suite, TextTask
from cltk.measure.splitting import part_of
from cltk.measure.tasks import names_in
from cltk.measure.thinking import check_thinking
from cltk.run import identity, records
from cltk.run.judging import check_judge
from cltk.run.methods import nearest
from cltk.run.plans import Cell, Plan
from cltk.run.prepare import Prepared, prepare_data
from cltk.run.sources import YAML, contents, memories, prompting, suite_file, texts_of
from cltk.run.spec import TaskSpec, TextSpec
from cltk.run.spec_data import Source


@dataclass
class Inputs:
    """Each input is read once, however many cells share it."""

    plan: Plan
    trust: bool = False  # see `cltk.load`
    _digests: dict[str, str] = field(default_factory=dict)
    _prepared: dict[str, Prepared] = field(default_factory=dict)
    suites: dict[str, Suite] = field(default_factory=dict)
    _asked_of: set[str] = field(default_factory=set)  # measurements whose models were asked
    _tasks: dict[str, tuple[dict[str, str], dict[str, str]]] = field(default_factory=dict)
    leaks: dict[Any, Any] = field(default_factory=dict)  # (learned, measured) -> what `cltk.run.leakage` found

    def tokenizer(self, cell: Cell) -> Any:
        return models.load_tokenizer(self._origin(cell))

    def model(self, cell: Cell) -> tuple[Any, Any]:
        """The start model and its tokeniser, loaded anew."""
        return models.load_model(self._origin(cell), dtype=cell.config.model.dtype)

    def _origin(self, cell: Cell) -> models.Origin:
        return models.Origin.of(self.path(cell.config.model.spec), cell.config.model.args)

    def check_models(self, cell: Cell) -> None:
        """What the start model's config and tokeniser say of all that is measured; asked once of equal measurements."""
        if (key := self.measured(cell)) not in self._asked_of:
            check_models(self.suite(cell), {"the start model": (self.config(cell), partial(self.tokenizer, cell))})
            if cell.config.model.told:
                check_thinking(self.suite(cell), {"model": self.tokenizer(cell)}, cell.config.evals.chats)
            self._asked_of.add(key)
        check_judge(self, cell)

    def config(self, cell: Cell) -> Any:
        """The start model's config; None where it cannot be had."""
        return models.load_config(self._origin(cell))

    def data(self, cell: Cell) -> Prepared:
        """The rows of a cell that is one training; equal data sections are read and tokenised once."""
        key = records.digest_of([cell.data.model_dump(), cell.config.model.spec])
        if key not in self._prepared:
            self._prepared[key] = prepare_data(cell.data, self.tokenizer(cell), self.plan.folder)
        return self._prepared[key]

    def suite(self, cell: Cell) -> Suite:
        """All that is measured: held-out NLL of every new task, the entries to learn and those to retain."""
        if (key := self.measured(cell)) not in self.suites:
            evals = cell.config.evals
            new = [TextTask(one.stage or cell.side, getattr(self.data(one), cell.side)) for one in cell.trainings]
            texts = [*new, *texts_of(self.entries([*evals.retain, *evals.learn]), evals, self.plan.folder)]
            self.suites[key] = harness.with_texts(texts) if (harness := self.harness(cell)) else Suite([], texts=texts)
        return self.suites[key]

    def harness(self, cell: Cell) -> Suite | None:
        """The lm-eval tasks of the suite alone, for which no row is read; None where there are none."""
        evals = cell.config.evals
        settings = evals.model_dump(exclude={"retain", "learn", "split", *identity.AFTER})
        listed = self.entries([*evals.retain, *evals.learn])
        samples = {self.named(entry.task): entry.sample or evals.sample for entry in listed if isinstance(entry, TaskSpec)}
        tasks = [self.named(entry.task) for entry in listed if isinstance(entry, TaskSpec)]
        key = records.digest_of([tasks, samples, settings])
        if tasks and key not in self.suites:
            self.suites[key] = Suite(
                tasks, limit=evals.limit, sample={name: one for name, one in samples.items() if one} or None,
                sample_seed=evals.sample_seed or 0, members=evals.members, **prompting(evals, self.plan.folder, self.trust),
            )  # fmt: skip
        part = f"{key} {evals.split}" if evals.split else key
        if evals.split and key in self.suites and part not in self.suites:
            self.suites[part] = part_of(self.suites[key], *evals.split.part)
        return self.suites.get(part)

    def measured(self, cell: Cell) -> str:
        """The digest of the measurement: cells with the same one share Perf_pre."""
        return records.digest_of(identity.measurement(self, cell))

    def references(self, cell: Cell) -> list[Cell]:
        """The cells whose scores of all documents predict this one's: the first of every reference method that measures the
        same. None where all documents of this cell are scored: it is a reference, or there are none.

        Raises:
            InputError: no cell of that name measures what this one does.
        """
        documents, found = cell.config.evals.documents, []
        for name in documents.references if documents else ():
            one = next((o for o in self.plan.cells if o.method == name and self.measured(o) == self.measured(cell)), None)
            if one is None:
                known = nearest(name, {other.method for other in self.plan.cells})
                raise InputError(f"evals.documents.reference: no cell {name!r} measures what {cell.name} does{known}")
            found.append(one)
        return [] if cell.name in [one.name for one in found] else found

    def learned(self, cell: Cell) -> list[str]:
        """The measures of the gain: held-out NLL of every new task, then evals.learn."""
        names = self.rows(cell, cell.config.evals.learn)
        inside = [name for group in self.suite(cell).groups() if group.name in names for name in group.members]
        return [*(one.stage or cell.side for one in cell.trainings), *names, *inside]

    def rows(self, cell: Cell, listed: Sequence[str | TaskSpec | TextSpec]) -> list[str]:
        """The rows that entries of `evals` have in the results."""
        suite = self.suite(cell)
        return [
            row
            for e in self.entries(listed)
            for row in ([e.label] if isinstance(e, TextSpec) else suite.rows(self.named(e.task)))
        ]

    def streamed(self, cell: Cell) -> list[str]:
        """The row that stands for every stage of a stream in ACC, BWT and FWT.

        Raises:
            InputError: a stage's `score` has several rows (a tag, a pattern or a suite of several tasks).
        """
        found = []
        for i, stage in enumerate(cell.config.stages):
            entries = [e for e in cell.config.evals.learn if (e if isinstance(e, str) else e.label) == stage.score]
            rows = self.rows(cell, entries) if stage.score else [stage.name]
            if len(rows) != 1:
                raise InputError(
                    f"stages.{i}.score: {stage.score!r} stands for {len(rows)} rows ({', '.join(rows)}); name one task, one"
                    " group or one text of evals.learn"
                )
            found += rows
        return found

    def place(self, task: str) -> Path | None:
        """The suite or task file that an entry names, beside the experiment or, as "suites/general", cltk's own; or None."""
        if "/" not in task and not task.endswith(YAML):
            return None
        name = task if task.endswith(YAML) else f"{task}.yaml"
        file, ours = self.plan.folder / name, shipped("evals") / name
        return ours if "/" in task and not file.exists() and ours.is_file() else file

    def named(self, task: str) -> str:
        """The name that a suite knows a task by; a task file by its place."""
        return str(self.place(task) or task)

    def entries(self, listed: Sequence[str | TaskSpec | TextSpec]) -> list[TaskSpec | TextSpec]:
        """Tasks and texts, with suite files replaced by what they list; a task file stays."""
        done: list[TaskSpec | TextSpec] = []
        for entry in listed:
            one = TaskSpec(task=entry) if isinstance(entry, str) else entry
            file = None if isinstance(one, TextSpec) else self.place(one.task)
            suite = suite_file(file) if file is not None and not (file.is_file() and names_in(file)) else None
            own = None if isinstance(one, TextSpec) else one.sample
            done += [one] if suite is None else [TaskSpec(task=task.task, sample=own or task.sample) for task in suite]
        return done

    def training(self, cell: Cell) -> str:
        """The digest of a training up to the averages of whole weights at its end (WiSE-FT and others)."""
        return records.digest_of(identity.training(self, cell))

    def shared(self) -> frozenset[str]:
        """Trainings that several cells have in common, by digest: one with averages at its end, and any other. None with frozen
        weights: averages mix what was trained, which the kept model does not say."""
        seen: dict[str, list[bool]] = {}
        for cell in (one for one in self.plan.cells if not one.config.stages):
            if not any(map(identity.freezes, listed := cell.config.mitigators)):
                seen.setdefault(self.training(cell), []).append(any(map(identity.averages, listed)))
        return frozenset(key for key, found in seen.items() if len(found) > 1 and any(found))

    def files(self, cell: Cell) -> dict[str, str]:
        """The digest of every file the cell reads, and of its start model, by the names the YAML gives them."""
        found = {one.label: self.file_digest(one.path, *one.of, kind=one.key) for one in memories(cell.config.mitigators)}
        model = cell.config.model.spec
        return dict(sorted({**found, **self.measured_files(cell)}.items())) | {model: self.model_digest(model)}

    def measured_files(self, cell: Cell) -> dict[str, str]:
        """The digest of the new tasks' files and of every text; a set on the hub by its configuration and split too."""
        evals, data = cell.config.evals, [one.data for one in cell.trainings]
        sources = [s for d in data for s in (*dict(d.sources).values(), d.validation, d.heldout) if isinstance(s, Source)]
        texts = [entry for entry in self.entries([*evals.retain, *evals.learn]) if isinstance(entry, TextSpec)]
        streams = {(s.path, s.name, s.split, s.revision) for s in sources if s.streaming}
        places = [(s.path, s.name, s.split, s.revision) for s in sources]
        places += [(text.text, text.config, text.split, text.revision) for text in texts]
        return {
            ":".join(filter(None, place)): self.file_digest(*place, kind="streams" if place in streams else "")
            for place in places
        }

    def digest(self, cell: Cell) -> str:
        """What a record is known by."""
        return records.digest_of(identity.identity(self, cell))

    def tasks(self, cell: Cell) -> dict[str, str]:
        """The digest of every lm-eval task's documents and prompts, as they will be scored."""
        return self._asked(cell)[0]

    def documents(self, cell: Cell) -> dict[str, str]:
        """`tasks`, and the digest of every text's rows."""
        return {**self.tasks(cell), **Suite([], texts=self.suite(cell).texts).digests()}

    def rules(self, cell: Cell) -> dict[str, str]:
        """The digest of how every lm-eval task turns answers into scores."""
        return self._asked(cell)[1]

    def _asked(self, cell: Cell) -> tuple[dict[str, str], dict[str, str]]:
        suite = self.harness(cell)
        if suite is None:
            return {}, {}
        key = f"{id(suite)} {cell.config.model.spec}"
        if key not in self._tasks:
            tokenizer = self.tokenizer(cell) if cell.config.evals.chat_template else None
            self._tasks[key] = suite.digests(tokenizer), suite.rules()
        return self._tasks[key]

    def path(self, spec: str) -> str:
        local = self.plan.folder / spec
        return str(local) if not spec.startswith("asset:") and os.path.isdir(local) else spec

    def model_digest(self, spec: str) -> str:
        if spec not in self._digests:
            self._digests[spec] = models.stored_digest(self.path(spec))
        return self._digests[spec]

    def file_digest(
        self, spec: str, name: str | None = None, split: str | None = None, revision: str | None = None, *, kind: str = ""
    ) -> str:
        """sha256 of a file's or folder's bytes; on the hub of a data set's rows, or of a model's commit (by `kind`)."""
        key = f"{spec} {name} {split} {revision}"
        if key not in self._digests:
            self._digests[key] = contents(spec, self.plan.folder, name, split, revision, kind)
        return self._digests[key]
