"""load("x.yaml").run(): evaluate, train each cell, evaluate, record. What has a record is not done again."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cltk import __version__, assets, models
from cltk.data import Row, locate
from cltk.errors import CltkError, InputError, RunError
from cltk.measure.divergence import divergence
from cltk.measure.evaluate import Suite, TextTask, token_rows
from cltk.measure.forgetting import Result, compare
from cltk.measure.journal import Journal
from cltk.measure.scores import Scores
from cltk.run import records
from cltk.run.config import Cell, Plan, Source, TextSpec, load_config
from cltk.run.methods import PATH_KEYS, build_mitigators, resolve_path
from cltk.run.train import Prepared, Trained, prepare_data, train_cell
from cltk.run.yaml import read_yaml

Tell = Callable[[str, int, int, str], None]  # what, done, total, detail


def load(file: str | Path, out: str | Path | None = None) -> ExperimentRun:
    """Read and validate an experiment; nothing is loaded or written yet.

    Args:
        file: the YAML.
        out: where records go; `train.output_dir`, else runs/NAME in the current folder, when not given.

    Raises:
        InputError: with file, line, key and what would be right.
    """
    plan = load_config(file)
    default = plan.cells[0].config.train.get("output_dir") or Path("runs") / plan.file.stem
    folder = Path(out) if out is not None else Path(default)
    model = assets.resolve(plan.experiment.model.pretrained) if _is_local(plan) else None
    if model is not None and model.is_dir() and folder.resolve() in (model.resolve(), *model.resolve().parents):
        raise InputError(f"--out {folder}: this is the start model's folder (or holds it); choose another output folder")
    if model is not None and model.is_dir() and model.resolve() in folder.resolve().parents:
        raise InputError(f"--out {folder}: lies inside the start model's folder; choose another output folder")
    return ExperimentRun(plan, folder)


def _is_local(plan: Plan) -> bool:
    spec = plan.experiment.model.pretrained
    return not spec.startswith("asset:") and Path(spec).exists()


@dataclass
class ExperimentRun:
    """A validated experiment and its output folder. Inputs are read once and shared by all cells."""

    plan: Plan
    out: Path
    _digests: dict[str, str] = field(default_factory=dict)
    _prepared: dict[str, Prepared] = field(default_factory=dict)
    _suites: dict[str, Suite] = field(default_factory=dict)
    _tokenizer: Any = None

    @property
    def cells(self) -> list[Cell]:
        return self.plan.cells

    # ---- inputs

    def tokenizer(self, cell: Cell) -> Any:
        spec = cell.config.model
        return models.load_tokenizer(self._path(spec.pretrained), trust_remote_code=spec.trust_remote_code)

    def data(self, cell: Cell) -> Prepared:
        """The cell's rows; equal data sections are read and tokenised once."""
        key = records.digest_of([cell.config.data.model_dump(), cell.config.model.pretrained])
        if key not in self._prepared:
            self._prepared[key] = prepare_data(cell.config.data, self.tokenizer(cell), self.plan.folder)
        return self._prepared[key]

    def suite(self, cell: Cell) -> Suite:
        """Everything that is measured: the tasks to retain, those to learn, and held-out new-task NLL."""
        config = cell.config
        key = records.digest_of([config.evals.model_dump(), config.data.model_dump(), config.model.pretrained])
        if key not in self._suites:
            tasks, texts = [], [heldout_task(self.data(cell).heldout)]
            for entry in [*self.entries(config.evals.retain), *self.entries(config.evals.learn)]:
                if isinstance(entry, TextSpec):
                    path = resolve_path(entry.text, self.plan.folder, "evals.text")
                    texts.append(TextTask.read(_text_name(entry), path, limit=entry.limit, cluster=entry.cluster))
                else:
                    tasks.append(entry)
            include = config.evals.include_path
            self._suites[key] = Suite(
                tasks, texts=texts, limit=config.evals.limit, num_fewshot=config.evals.num_fewshot,
                include_path=self.plan.folder / include if include else None, chat_template=config.evals.chat_template,
            )  # fmt: skip
        return self._suites[key]

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

    def digest(self, cell: Cell) -> str:
        """What a record is known by: the resolved configuration, the bytes of its inputs, and the version of cltk."""
        config = cell.config
        sources = [config.data.train, config.data.validation, config.data.heldout]
        paths = [source.path for source in sources if isinstance(source, Source)]
        paths += [entry.text for entry in [*config.evals.retain, *config.evals.learn] if isinstance(entry, TextSpec)]
        paths += _memories(config.mitigators)
        inputs = {path: self._file_digest(path) for path in sorted(set(paths))}
        inputs["model"] = self._model_digest(config.model.pretrained)
        body = {key: value for key, value in config.model_dump().items() if key not in ("keep_model", "base", "grid")}
        body["train"] = {key: value for key, value in body["train"].items() if key != "output_dir"}
        return records.digest_of({"config": body, "inputs": inputs, "cltk": __version__})

    def _path(self, spec: str) -> str:
        local = self.plan.folder / spec
        return str(local) if not spec.startswith("asset:") and local.is_dir() else spec

    def _model_digest(self, spec: str) -> str:
        if spec not in self._digests:
            self._digests[spec] = models.stored_digest(self._path(spec))
        return self._digests[spec]

    def _file_digest(self, spec: str) -> str:
        if spec not in self._digests:
            found = locate(resolve_path(spec, self.plan.folder, "path"))
            self._digests[spec] = models.file_digest(found) if found is not None and found.is_file() else spec
        return self._digests[spec]

    # ---- work

    def folder(self, cell: Cell) -> Path:
        return self.out / f"{cell.name}-{self.digest(cell)[:10]}"

    def check(self) -> None:
        """Everything that can be found wrong before weights are loaded: data, tasks, mitigators, arguments."""
        for cell in self.cells:
            self.data(cell)
        for cell in self.cells:
            self.suite(cell).load()
            self.digest(cell)

    def run(self, tell: Tell | None = None) -> list[dict[str, Any]]:
        """Run every cell that has no record; return the records of all, in order.

        A cell that fails does not stop the others: its error is kept in `failed.json` in its folder, and RunError is
        raised at the end.
        """
        say = tell or (lambda what, done, total, detail: None)
        self.check()
        done: dict[int, dict[str, Any]] = {}
        failed = []
        for order, cell in enumerate(self.cells):
            file = self.folder(cell) / records.RECORD
            if file.exists():
                done[order] = records.read_json(file)
                say(f"{cell.name}: has a record, nothing to do", order + 1, len(self.cells), "cell")
                continue
            say(cell.name, order + 1, len(self.cells), "cell")
            try:
                done[order] = self.run_cell(cell, order, say)
            except CltkError as error:
                failed.append(f"{cell.name}: {error}")
                failure = {"cell": cell.name, "method": cell.method, "error": str(error), "kind": type(error).__name__}
                records.write_json(self.folder(cell) / "failed.json", failure)
                say(f"{cell.name} failed: {error}", order + 1, len(self.cells), "failed")
        if failed:
            raise RunError(f"{len(failed)} of {len(self.cells)} cells failed; the first: {failed[0]}")
        return [done[order] for order in sorted(done)]

    def run_cell(self, cell: Cell, order: int, say: Tell) -> dict[str, Any]:
        """Evaluate the start model (once for all cells), train, evaluate, write the record."""
        begin = time.time()
        folder = self.folder(cell)
        pre = self.base_scores(cell, say)
        prepared = self.data(cell)
        model, tokenizer = self._start_model(cell)
        mitigators = build_mitigators(cell.config.mitigators, self.plan.folder)

        def training(step: int, steps: int, last: dict[str, float]) -> None:
            loss = f"loss {last['loss']:.3f}" if "loss" in last else ""
            say(f"{cell.name}: train", step, steps, loss)

        checkpoints = folder / "checkpoints"
        trained = train_cell(cell, model, tokenizer, prepared, mitigators, checkpoints, cache=self.out / "cache", tell=training)
        del model
        post = self._evaluate(cell, trained.model, tokenizer, say, cell.name)
        moved = self._divergence(cell, trained.model, tokenizer, say)
        record = self._record(cell, order, pre, post, trained, begin) | {"divergence": moved}
        _write_scores(folder / "scores.json", post)
        write_lm_eval(post, folder / "lm_eval", str(self.plan.experiment.model.pretrained))
        if cell.config.keep_model:
            trained.model.save_pretrained(folder / "model")
            tokenizer.save_pretrained(folder / "model")
        records.write_json(folder / records.RECORD, record)
        with suppress(FileNotFoundError):
            (folder / "failed.json").unlink()
        shutil.rmtree(checkpoints, ignore_errors=True)
        del trained
        gc.collect()
        return record

    def base_scores(self, cell: Cell, say: Tell) -> Scores:
        """Perf_pre: scored once for every (model, measures), then read back."""
        evals = {"evals": cell.config.evals.model_dump(), "data": cell.config.data.model_dump()}
        key = records.digest_of([self._model_digest(cell.config.model.pretrained), cell.config.model.dtype, evals, __version__])
        folder = self.out / f"base-{key[:10]}"
        file = folder / "scores.json"
        if file.exists():
            return Scores.from_json(records.read_json(file))
        model, tokenizer = self._start_model(cell)
        scores = self._evaluate(cell, model, tokenizer, say, "start model")
        write_lm_eval(scores, folder / "lm_eval", cell.config.model.pretrained)
        _write_scores(file, scores)
        return scores

    def _evaluate(self, cell: Cell, model: Any, tokenizer: Any, say: Tell, who: str) -> Scores:
        from cltk import tensors

        digest = tensors.digest(model)
        journal = Journal(self.out / "cache" / f"journal-{digest[:16]}-{cell.config.evals.scorer}.jsonl")
        return self.suite(cell).evaluate(
            model, tokenizer, digest=digest, batch_size=cell.config.evals.batch_size, journal=journal,
            scorer=cell.config.evals.scorer,
            progress=lambda what, done, total, tokens: say(f"{who}: {what}", done, total, f"{tokens} tokens" if tokens else ""),
        )  # fmt: skip

    def _divergence(self, cell: Cell, tuned: Any, tokenizer: Any, say: Tell) -> dict[str, Any]:
        """Forward KL(start || tuned) on every text: the old ones, and new-task prompts."""
        limit = cell.config.evals.kl_rows
        if not limit:
            return {}
        start = self._start_model(cell)[0]
        sets = {text.name: token_rows(text, tokenizer) for text in self.suite(cell).texts}
        return divergence(start, tuned, sets, limit, lambda what, done, total, _: say(f"{cell.name}: {what}", done, total, ""))

    def _start_model(self, cell: Cell) -> tuple[Any, Any]:
        spec = cell.config.model
        return models.load_model(self._path(spec.pretrained), dtype=spec.dtype, trust_remote_code=spec.trust_remote_code)

    def _record(self, cell: Cell, order: int, pre: Scores, post: Scores, trained: Trained, begin: float) -> dict[str, Any]:
        learn = ["heldout", *(_text_name(e) if isinstance(e, TextSpec) else e for e in self.entries(cell.config.evals.learn))]
        retain = [name for name in pre.tasks if name not in learn]
        results = {
            role: compare(_only(pre, names), _only(post, names), margins=cell.config.evals.margins or None)
            for role, names in (("retain", retain), ("learn", learn))
            if names
        }
        return {
            "format": records.FORMAT, "experiment": self.plan.file.stem, "order": order, "cell": cell.name,
            "method": cell.method, "labels": cell.labels, "seed": cell.config.seed,
            "config": cell.config.model_dump(), "folder": str(self.plan.file),
            "digests": {
                "cell": self.digest(cell), "start_model": pre.digest, "tuned_model": post.digest,
                "model_files": self._model_digest(cell.config.model.pretrained), **self._digests,
            },
            "environment": records.environment(),
            "train": {
                "steps": trained.steps, "seconds": round(trained.seconds, 2), "tokens": trained.tokens,
                "history": trained.history, "notes": trained.notes,
            },
            "seconds": round(time.time() - begin, 2),
            **{role: without_samples(result) for role, result in results.items()},
        }  # fmt: skip


def heldout_task(rows: list[Row]) -> TextTask:
    """Held-out new-task NLL: completion tokens only, in the training format."""
    return TextTask("heldout", rows)


def without_samples(result: Result) -> dict[str, Any]:
    """A result for a record; the documents stand in scores.json beside it."""
    return {key: value for key, value in result.to_json().items() if key != "samples"}


def _text_name(entry: TextSpec) -> str:
    return entry.name or Path(entry.text).stem


def _only(scores: Scores, names: list[str]) -> Scores:
    return Scores(scores.digest, {name: scores.tasks[name] for name in names if name in scores.tasks})


def _memories(entries: list[Any]) -> list[str]:
    """Every file that mitigators read."""
    found = []
    for entry in entries:
        if isinstance(entry, dict):
            for key, value in entry.items():
                if isinstance(value, dict):
                    found += _memories([value])
                elif key in PATH_KEYS and isinstance(value, str):
                    found.append(value)
    return found


def _write_scores(file: Path, scores: Scores) -> None:
    records.write_json(file, scores.to_json())


def write_lm_eval(scores: Scores, folder: Path, model: str) -> None:
    """lm-eval's own result and sample files, by lm-eval's own writer."""
    if not scores.lm_eval:
        return
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args(
        model_source="hf", model_args=f"pretrained={model}", system_instruction=None, chat_template=None,
        fewshot_as_multiturn=False,
    )  # fmt: skip
    results = {key: value for key, value in scores.lm_eval.items() if key != "samples"}
    results["config"] = {"model": "hf", "model_args": f"pretrained={model}", "weights_sha256": scores.digest}
    samples = scores.lm_eval["samples"]
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)
