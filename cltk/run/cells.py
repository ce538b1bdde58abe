"""One cell: measure the start model, train once or stage by stage, measure, write the record."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cltk import models, tensors
from cltk.errors import InputError
from cltk.files import give, leased, locked, sync_tree
from cltk.forward import products
from cltk.measure.divergence import distance, divergence
from cltk.measure.evaluate import Suite, token_rows
from cltk.measure.identity import device, versions
from cltk.measure.journal import Journal
from cltk.measure.scores import Scores
from cltk.mitigate.interface import Plan, Run
from cltk.ranks import agreed, first
from cltk.run import records
from cltk.run.claims import Tell, lease_of
from cltk.run.during import watch_of
from cltk.run.inputs import Inputs
from cltk.run.judging import judge_part, ready
from cltk.run.kept import KEPT, STAGE, STATES, clean, finished, keep, kept_model, unsharded
from cltk.run.loggers import Loggers, last_line, progress
from cltk.run.methods import build_mitigators
from cltk.run.outcome import Leg, record, training_of, write_lm_eval
from cltk.run.parts import Part, check_rows, score_part
from cltk.run.plans import Cell
from cltk.run.records import SCORES
from cltk.run.train import CURVES, train_cell


@dataclass
class Work:
    """Does the cells of one output folder. Several processes (torchrun, accelerate) do one cell together; the first writes."""

    inputs: Inputs
    out: Path
    say: Tell
    shared: frozenset[str] = frozenset()  # trainings that several cells end in different averages
    choices: Mapping[str, dict[str, bool]] = field(default_factory=dict)  # of `speed`, by stage, instead of measuring
    loggers: Loggers | None = None  # of the training that was the last

    def folder(self, cell: Cell) -> Path:
        return self.out / f"{cell.name}-{self.inputs.digest(cell)[:10]}"

    def cell(self, cell: Cell, order: int) -> dict[str, Any]:
        """All of it; the record. What an interrupted run left is taken up: scores, checkpoints, finished stages."""
        try:
            with products.allowed(cell.config.speed.onednn is not False):
                return self._cell(cell, order)
        finally:
            self._close()

    def _close(self) -> None:
        if self.loggers is not None:
            self.loggers.close()
        self.loggers = None

    def _cell(self, cell: Cell, order: int) -> dict[str, Any]:
        begin, folder = time.time(), self.folder(cell)
        ready(cell)
        pre = self.base(cell)
        if self._references(cell):  # before anything is trained
            check_rows(self.inputs.suite(cell), pre)
        last = (legs := self._legs(cell, folder))[-1]
        model, tokenizer = last.model, self.inputs.tokenizer(cell)
        moved = self._moved(cell, model, tokenizer) | judge_part(self.inputs, cell, (model, tokenizer), folder, self.say)
        found = record(self.inputs, cell, order, pre, legs) | moved | {"seconds": round(time.time() - begin, 2)}
        if first():
            if self.loggers is not None:
                self.loggers.log(last_line(found))
            records.write_json(folder / SCORES, last.scores.to_json())
            if last.part is None or not last.part.chances:  # lm-eval's means would be of the hard documents
                write_lm_eval(last.scores, folder / "lm_eval", f"{cell.config.model.pretrained}+{folder.name}")
            if cell.config.keep_model:
                model.save_pretrained(folder / "model")
                tokenizer.save_pretrained(folder / "model")
                sync_tree(folder / "model")
            records.write_json(folder / records.RECORD, found)
            clean(folder)
        agreed(None)  # no rank goes on before the record is there
        del legs, last, model
        gc.collect()
        return found

    def base(self, cell: Cell) -> Scores:
        """Perf_pre: scored once for every (model, measures), then read back."""
        folder = self.base_folder(cell)
        file = folder / SCORES
        if agreed(file.exists()):
            return Scores.from_json(records.read_json(file))
        with leased(lease_of(folder)):
            if agreed(file.exists()):  # by another process, meanwhile
                return Scores.from_json(records.read_json(file))
            scores = self._evaluate(cell, *self.inputs.model(cell), "start model")
            if first():
                write_lm_eval(scores, folder / "lm_eval", cell.config.model.pretrained)
                records.write_json(file, scores.to_json())
                give(lease_of(folder), wholly=True)  # others need not wait for the cell
        return scores

    def _references(self, cell: Cell) -> dict[str, Scores]:
        """Method -> scores of all documents; empty for a cell that scores them all itself."""
        found = {}
        for one in self.inputs.references(cell):
            file = self.folder(one) / SCORES
            if not agreed(file.exists()):
                raise InputError(f"evals.documents: the reference {one.name} has no scores; run it before {cell.name}")
            found[one.method] = Scores.from_json(records.read_json(file))
        return found

    def base_folder(self, cell: Cell) -> Path:
        """By the measurement, and by the libraries, device and products that make it: scores of two of them are not mixed."""
        with products.allowed(cell.config.speed.onednn is not False):
            made = records.digest_of([versions(), device(), products.named(device())])
        return self.out / f"base-{self.inputs.measured(cell)[:10]}-{made[:6]}"

    def kept(self, training: str) -> Path:
        """Where a training that several cells share stays until all of them are done, by its digest."""
        return self.out / "cache" / f"{KEPT}{training[:16]}"

    def _legs(self, cell: Cell, folder: Path) -> list[Leg]:
        """Every training of the cell in its order; the last one's weights are in memory."""
        stages, done = cell.trainings, []
        for number, stage in enumerate(stages):
            place = folder / "stages" / f"{number + 1}-{stage.stage}" if stage.stage else folder
            before = folder / "stages" / f"{number}-{stages[number - 1].stage}" if number else None
            there = bool(stage.stage) and agreed((place / STAGE).exists())
            done.append(finished(place) if there else self._train(cell, stage, place, before))
            if number + 1 < len(stages):
                done[-1].model = None
                gc.collect()
        if done[-1].model is None:  # scored again, from the journal, for lm-eval's own files
            model, tokenizer = kept_model(cell, place)
            done[-1] = Leg(self._evaluate(cell, model, tokenizer, cell.name), done[-1].train, model)
        return done

    def _train(self, cell: Cell, stage: Cell, place: Path, before: Path | None) -> Leg:
        """One training, measured; of a stream also kept, with all that the next one goes on from."""
        mitigators = build_mitigators(stage.config.mitigators, self.inputs.plan.folder)
        name = ": ".join(filter(None, [stage.name, stage.stage]))
        key = self.inputs.training(stage)
        if key in self.shared:
            kept = self.kept(key)
            train, tuned = self._average(stage, mitigators, kept, name)
            if first() and (kept / CURVES).is_dir():
                shutil.copytree(kept / CURVES, place / CURVES, dirs_exist_ok=True)
        else:
            train, tuned = self._fit(stage, mitigators, place / "checkpoints", name, before)
        tokenizer = self.inputs.tokenizer(stage)
        scores, part = self._scored(cell, tuned, tokenizer, name)
        leg = Leg(scores, train, tuned, part)
        if stage.stage and first():
            keep(leg, place, tokenizer, mitigators)
        return leg

    def _fit(
        self, stage: Cell, mitigators: list[Any], checkpoints: Path, name: str, before: Path | None = None
    ) -> tuple[dict[str, Any], Any]:
        """Train from the start model, or from what the stage before left. The record's section, and the whole model."""
        if before is None:
            model, tokenizer = self.inputs.model(stage)
        else:
            model, tokenizer = kept_model(stage, before)
            carried = tensors.load_tree(before / STATES)
            for i, mitigator in enumerate(mitigators):
                if state := carried.get(str(i)):
                    mitigator.load_state_dict(state)

        self._close()  # the stage before has its own run
        watch = watch_of(self.inputs, stage)
        if watch is not None and before is not None:
            watch.paired = self._evaluate(stage, *self.inputs.model(stage), f"{name}: start model", watch.suite, True)
        trained = train_cell(
            stage, model, tokenizer, self.inputs.data(stage), [*mitigators, *([watch] if watch else [])], checkpoints,
            cache=self.out / "cache", tell=progress(self.say, name), choices=self.choices.get(stage.stage), folder=self.out,
        )  # fmt: skip
        self.loggers = trained.loggers
        gc.collect()  # the trainer holds the optimizer's state, and itself
        return training_of(trained), unsharded(trained, lambda: self.inputs.model(stage)[0])

    def _average(self, stage: Cell, mitigators: list[Any], kept: Path, name: str) -> tuple[dict[str, Any], Any]:
        """A training that other cells share, up to the averages of whole weights at its end: done once, and kept.

        The averages mix the same weights with the start model's as they would behind a training of their own.
        """
        with locked(kept, wait=True):
            if agreed((kept / STAGE).exists()):
                train, tuned = finished(kept).train, kept_model(stage, kept)[0]
            else:
                rest = [mitigator for mitigator in mitigators if not mitigator.averages]
                train, tuned = self._fit(stage, rest, kept / "checkpoints", name)
                if first():
                    keep(Leg(Scores("", {}), train, tuned), kept, self.inputs.tokenizer(stage), rest)
        model, tokenizer = self.inputs.model(stage)
        data = self.inputs.data(stage)
        plan = Plan(model, data.train, None, tokenizer, data.validation)
        ends = [mitigator for mitigator in mitigators if mitigator.averages]
        for mitigator in ends:
            mitigator.setup(plan)
        with torch.no_grad():
            for mitigator in ends:
                mitigator.finish(Run(tuned, tuned))
        return {**train, "notes": {**train["notes"], **plan.notes}}, tuned

    def _scored(self, cell: Cell, model: Any, tokenizer: Any, who: str) -> tuple[Scores, Part | None]:
        """The scores of all documents, or of a part where references predict the others."""
        references = self._references(cell)
        if not references:
            return self._evaluate(cell, model, tokenizer, who), None
        suite, pre = self.inputs.suite(cell), self.base(cell)
        return score_part(cell, suite, pre, references, lambda part: self._evaluate(cell, model, tokenizer, who, part))

    def _evaluate(
        self, cell: Cell, model: Any, tokenizer: Any, who: str, suite: Suite | None = None, own: bool = False
    ) -> Scores:
        """In evals.dtype, or in the weights' own."""
        digest, evals = tensors.digest(model), cell.config.evals
        dtype = None if own or evals.dtype is None else getattr(torch, evals.dtype)
        how = [evals.scorer, evals.batch_size, *([] if dtype is None else [evals.dtype])]
        answers = records.digest_of([digest, models.config_digest(model), *how])
        place, name = self.out / "cache", f"journal-{answers[:16]}"
        file = place / f"{name}-{self.inputs.digest(cell)[:10]}.jsonl"  # equal weights may be scored for two cells at once
        journal = Journal(file, write=first(), others=sorted(place.glob(f"{name}-*.jsonl")))
        tell: Any = lambda what, done, n, tokens: self.say(f"{who}: {what}", done, n, f"{tokens} tokens" if tokens else "")  # noqa: E731
        settings: Any = {"batch_size": evals.batch_size, "scorer": evals.scorer, "journal": journal, "progress": tell}
        with products.allowed(cell.config.speed.onednn is not False), tensors.in_dtype(model, dtype):
            return (suite or self.inputs.suite(cell)).evaluate(model, tokenizer, digest=digest, **settings)

    def _moved(self, cell: Cell, tuned: Any, tokenizer: Any) -> dict[str, Any]:
        """How far the model went: forward KL(start || tuned) on every text, the old ones and the new task's, and in weights."""
        limit = cell.config.evals.kl_rows
        if not limit:
            return {"divergence": {}}
        start = self.inputs.model(cell)[0]
        texts = self.inputs.suite(cell).texts
        sets, labels = {text.name: token_rows(text, tokenizer) for text in texts}, {text.name: text.labels() for text in texts}
        tell: Any = lambda what, done, total, _: self.say(f"{cell.name}: {what}", done, total, "")  # noqa: E731
        found, notes = divergence(start, tuned, sets, limit, tell, labels)
        return {"divergence": found, "distance": distance(start, tuned), **({"divergence_notes": notes} if notes else {})}
