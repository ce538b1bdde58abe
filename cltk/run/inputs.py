"""What the cells of an experiment read: rows, tasks, and the digests that a record is known by."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

from cltk import __version__, models
from cltk.data import locate
from cltk.errors import InputError
from cltk.measure.evaluate import Suite, TextTask
from cltk.run import records
from cltk.run.config import Cell, Plan
from cltk.run.methods import PATH_KEYS, PATH_LISTS, resolve_path
from cltk.run.spec import Source, TextSpec
from cltk.run.train import Prepared, prepare_data
from cltk.run.yaml import read_yaml


@dataclass
class Inputs:
    """Each input is read once, however many cells share it."""

    plan: Plan
    _digests: dict[str, str] = field(default_factory=dict)
    _prepared: dict[str, Prepared] = field(default_factory=dict)
    _suites: dict[str, Suite] = field(default_factory=dict)
    _tasks: dict[str, dict[str, str]] = field(default_factory=dict)

    def tokenizer(self, cell: Cell) -> Any:
        spec = cell.config.model
        return models.load_tokenizer(self.path(spec.pretrained), trust_remote_code=spec.trust_remote_code)

    def model(self, cell: Cell) -> tuple[Any, Any]:
        """The start model and its tokeniser, loaded anew."""
        spec = cell.config.model
        return models.load_model(self.path(spec.pretrained), dtype=spec.dtype, trust_remote_code=spec.trust_remote_code)

    def data(self, cell: Cell) -> Prepared:
        """The rows of a cell that is one training; equal data sections are read and tokenised once."""
        key = records.digest_of([cell.data.model_dump(), cell.config.model.pretrained])
        if key not in self._prepared:
            self._prepared[key] = prepare_data(cell.data, self.tokenizer(cell), self.plan.folder)
        return self._prepared[key]

    def suite(self, cell: Cell) -> Suite:
        """All that is measured: held-out NLL of every new task, the entries to learn and those to retain."""
        evals = cell.config.evals
        key = self.measures(cell)
        if key not in self._suites:
            tasks: list[str] = []
            texts = [TextTask(one.stage or "heldout", self.data(one).heldout) for one in cell.trainings]
            for entry in [*self.entries(evals.retain), *self.entries(evals.learn)]:
                if isinstance(entry, TextSpec):
                    path = resolve_path(entry.text, self.plan.folder, "evals.text")
                    texts.append(TextTask.read(entry.label, path, limit=entry.limit, cluster=entry.cluster))
                else:
                    tasks.append(entry)
            self._suites[key] = Suite(
                tasks, texts=texts, limit=evals.limit, num_fewshot=evals.num_fewshot,
                include_path=self.plan.folder / evals.include_path if evals.include_path else None,
                chat_template=evals.chat_template, system_instruction=evals.system_instruction,
                fewshot_as_multiturn=evals.fewshot_as_multiturn, gen_kwargs=evals.gen_kwargs,
            )  # fmt: skip
        return self._suites[key]

    def measures(self, cell: Cell) -> str:
        """The digest of what is measured and on which model: cells with the same one share Perf_pre."""
        config = cell.config
        data = [one.data.model_dump() for one in cell.trainings]
        return records.digest_of([config.evals.model_dump(), data, config.model.model_dump(), __version__])

    def learned(self, cell: Cell) -> list[str]:
        """The measures of the gain: held-out NLL of every new task, then evals.learn."""
        listed = self.entries(cell.config.evals.learn)
        names = [entry.label if isinstance(entry, TextSpec) else entry for entry in listed]
        return [*(one.stage or "heldout" for one in cell.trainings), *names]

    def entries(self, listed: list[str | TextSpec]) -> list[str | TextSpec]:
        """Task names and texts, with suite files replaced by what they list."""
        done: list[str | TextSpec] = []
        for entry in listed:
            file = self.plan.folder / f"{entry}" if isinstance(entry, str) else None
            if file is not None and file.suffix != ".yaml" and "/" in str(entry):
                file = file.with_name(file.name + ".yaml")
            if file is not None and file.suffix == ".yaml":
                tasks = read_yaml(file)[0].get("tasks")
                if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
                    raise InputError(f"{file}: a suite is a mapping with `tasks`, a list of task names")
                done += tasks
            else:
                done.append(entry)
        return done

    def training(self, cell: Cell) -> str:
        """The digest of a training up to the averages of whole weights at its end (WiSE-FT and others)."""
        listed = [entry for entry in cell.config.mitigators if not _averages(entry)]
        return self.digest(replace(cell, config=cell.config.model_copy(update={"mitigators": listed})))

    def shared(self) -> frozenset[str]:
        """Trainings that several cells have in common, by digest: one with averages at its end, and any other."""
        seen: dict[str, list[bool]] = {}
        for cell in self.plan.cells:
            if not cell.config.stages:
                seen.setdefault(self.training(cell), []).append(any(map(_averages, cell.config.mitigators)))
        return frozenset(key for key, found in seen.items() if len(found) > 1 and any(found))

    def files(self, cell: Cell) -> dict[str, str]:
        """The digest of every file the cell reads, and of its start model, by the names the YAML gives them."""
        config, data = cell.config, [one.data for one in cell.trainings]
        paths = [s.path for d in data for s in (d.train, d.validation, d.heldout) if isinstance(s, Source)]
        paths += [entry.text for entry in [*config.evals.retain, *config.evals.learn] if isinstance(entry, TextSpec)]
        found = {path: self.file_digest(path) for path in sorted({*paths, *memories(config.mitigators)})}
        return {**found, config.model.pretrained: self.model_digest(config.model.pretrained)}

    def digest(self, cell: Cell) -> str:
        """What a record is known by: the resolved configuration, the bytes of its inputs, and the version of cltk."""
        body = {key: value for key, value in cell.config.model_dump().items() if key not in ("keep_model", "base", "grid")}
        body["train"] = {key: value for key, value in body["train"].items() if key != "output_dir"}
        return records.digest_of({"config": body, "inputs": self.files(cell), "cltk": __version__})

    def tasks(self, cell: Cell) -> dict[str, str]:
        """The digest of every measure's documents and prompts, as they will be scored."""
        key = self.measures(cell)
        if key not in self._tasks:
            self._tasks[key] = self.suite(cell).digests(self.tokenizer(cell))
        return self._tasks[key]

    def path(self, spec: str) -> str:
        local = self.plan.folder / spec
        return str(local) if not spec.startswith("asset:") and os.path.isdir(local) else spec

    def model_digest(self, spec: str) -> str:
        if spec not in self._digests:
            self._digests[spec] = models.stored_digest(self.path(spec))
        return self._digests[spec]

    def file_digest(self, spec: str) -> str:
        if spec not in self._digests:
            found = locate(resolve_path(spec, self.plan.folder, "path"))
            self._digests[spec] = spec if found is None else models.tree_digest(found)
        return self._digests[spec]


def _averages(entry: Any) -> bool:
    """Whether an entry of `mitigators` only mixes whole weights when training has ended."""
    from cltk.mitigate import MITIGATORS

    return MITIGATORS[next(iter(entry)) if isinstance(entry, dict) else entry].averages


def memories(entries: list[Any]) -> list[str]:
    """Every file and folder that mitigators read."""
    found = []
    for entry in entries:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if key in PATH_LISTS:
                found += [path for path in (value.values() if isinstance(value, dict) else value) if isinstance(path, str)]
            elif isinstance(value, dict):
                found += memories([value])
            elif key in PATH_KEYS and isinstance(value, str):
                found.append(value)
    return found
