"""Model -> per-document scores. The only file that knows how lm-eval is driven."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cltk import tensors
from cltk.data import Row, read_rows, text_of
from cltk.errors import InputError
from cltk.measure.scores import Scores, TaskScores
from cltk.measure.stderr import fill_stderr
from cltk.probe import row_nll
from cltk.ranks import shared

Progress = Callable[[str, int, int, int], None]  # what, done, total, tokens


@dataclass(frozen=True)
class TextTask:
    """Held-out text whose token NLL is measured: `rows` of texts, or of token ids made by the caller's tokeniser."""

    name: str
    rows: Sequence[Row]
    max_length: int = 1024
    cluster: str | None = None  # column that groups dependent rows

    @classmethod
    def read(cls, name: str, path: str, *, limit: int | None = None, cluster: str | None = None) -> TextTask:
        """From a file of texts; `limit` takes evenly spread rows, so that every part of the file is represented."""
        rows = read_rows(path)
        if limit is not None and limit < len(rows):
            rows = [rows[i * len(rows) // limit] for i in range(limit)]
        if cluster and cluster not in rows[0]:
            raise InputError(f"{path}: cluster column {cluster!r} is missing; the columns are {', '.join(rows[0])}")
        return cls(name, rows, cluster=cluster)


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Whatever happens inside, the model's modes and every random state are as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


class Suite:
    """A fixed set of tasks with fixed settings, built once and run on any number of models.

    Args:
        tasks: names of lm-eval tasks or groups, from lm-eval itself (needs a hub) or from `include_path`.
        texts: held-out texts whose token NLL is measured too.
        limit: the first N documents of each lm-eval task; all when None.
        num_fewshot: examples in the prompt; each task's own number when None.
        include_path: a folder of task YAML that the user named; `!function` in it runs its Python.
        chat_template: whether lm-eval applies the tokeniser's chat template.

    Raises:
        InputError: an unknown task, a task whose data cannot be had, a limit below 1.
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
    ) -> None:
        if limit is not None and limit < 1:
            raise InputError(f"limit: must be at least 1, got {limit}")
        if not tasks and not texts:
            raise InputError("tasks: name at least one task to measure")
        self.names, self.texts, self.limit = list(tasks), list(texts), limit
        self.num_fewshot, self.include_path, self.chat_template = num_fewshot, include_path, chat_template
        self._loaded: Any = None

    def load(self) -> Any:
        """The lm-eval tasks, built once."""
        if self._loaded is None and self.names:
            with _quiet():
                self._loaded = load_tasks(self.names, self.include_path)
                for name, task in self._loaded["tasks"].items():
                    if self.num_fewshot is not None and task.get_config("num_fewshot") != 0:
                        task.set_config(key="num_fewshot", value=self.num_fewshot)
                    elif task.get_config("num_fewshot") is None:
                        task.set_config(key="num_fewshot", value=0)
                    task.set_fewshot_seed(seed=1234)
                    if len(task.eval_docs) == 0:
                        raise InputError(f"task {name}: it has no documents")
        return self._loaded

    def sizes(self) -> dict[str, int]:
        """Documents that will be scored, by task."""
        loaded = self.load()
        counts = {} if loaded is None else {name: len(task.eval_docs) for name, task in loaded["tasks"].items()}
        return {name: min(n, self.limit or n) for name, n in counts.items()} | {t.name: len(t.rows) for t in self.texts}

    def _requests(self) -> dict[str, list[Any]]:
        """What lm-eval will ask of a model, by task."""
        loaded = self.load()
        with _quiet():
            for task in loaded["tasks"].values() if loaded else ():
                task.build_all_requests(limit=self.limit, rank=0, world_size=1)
        return {name: [one.args for one in task.instances] for name, task in loaded["tasks"].items()} if loaded else {}

    def digests(self) -> dict[str, str]:
        """sha256 (hex) of every task's requests and of every text's rows: equal digests, equal measurements."""
        asked: dict[str, list[Any]] = {
            name: [[str(part) for part in args] for args in found] for name, found in self._requests().items()
        }
        for text in self.texts:
            asked[text.name] = [
                [list(row["input_ids"]), list(row.get("labels", []))] if "input_ids" in row else text_of(row, text.name)
                for row in text.rows
            ]
        return {name: hashlib.sha256(json.dumps(found).encode()).hexdigest() for name, found in asked.items()}

    def tokens(self, tokenizer: Any) -> int:
        """Tokens that one evaluation computes: every distinct context once, every continuation once."""
        requests = [args for found in self._requests().values() for args in found]
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
            digest: the weights' sha256 when the caller knows it; computed otherwise. It keys the journal.
            journal: see `cltk.measure.journal`; requests found in it are not scored again.
            scorer: "prefix" (contexts computed once) or "stock" (lm-eval's own HFLM).
        """
        digest = digest or tensors.digest(model)
        with untouched(model), tensors.own_precision(model), _quiet():
            tasks, raw = self._run_lm_eval(model, tokenizer, digest, batch_size, journal, progress, scorer)
            for text in self.texts:
                tasks[text.name] = _score_text(text, model, tokenizer, digest, journal, progress)
        return Scores(digest, tasks, raw)

    def _run_lm_eval(
        self, model: Any, tokenizer: Any, digest: str, batch_size: Any, journal: Any, progress: Any, scorer: str
    ) -> tuple[dict[str, TaskScores], dict[str, Any]]:
        loaded = self.load()
        if loaded is None:
            return {}, {}
        from lm_eval.evaluator import evaluate

        documents = sum(min(len(task.eval_docs), self.limit or len(task.eval_docs)) for task in loaded["tasks"].values())
        lm = make_lm(model, tokenizer, digest, batch_size, journal, progress and _by_document(progress, documents), scorer)
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(1234)
        raw: Any = evaluate(lm, loaded, limit=self.limit, bootstrap_iters=0, apply_chat_template=self.chat_template)
        if raw is None:  # not the first rank
            return {}, {}
        fill_stderr(raw)
        return {name: self._task_scores(name, samples, raw) for name, samples in raw["samples"].items()}, raw

    def _task_scores(self, name: str, samples: list[dict[str, Any]], raw: dict[str, Any]) -> TaskScores:
        better = {metric: bool(flag) for metric, flag in raw["higher_is_better"][name].items() if flag is not None}
        kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
        config = raw["configs"][name]
        values: dict[str, list[float]] = {}
        for sample in samples:
            for metric in sample["metrics"]:
                for label, score in _scalars(metric, sample[metric]).items():
                    key = label if sample["filter"] in ("none", samples[0]["filter"]) else f"{label},{sample['filter']}"
                    values.setdefault(key, []).append(score)
                    better.setdefault(key, better.get(metric, label not in ("nll", "bits_per_byte", "perplexity")))
        choices = []
        if config.get("output_type") == "multiple_choice":
            extra = [_choice_scores(sample) for sample in kept]
            if all(extra):
                for key in ("logprob", "margin"):
                    values[key] = [float(e[key]) for e in extra]
                    better[key] = True
                choices = [int(e["choices"]) for e in extra]
        values = {metric: scores for metric, scores in values.items() if len(scores) == len(kept)}
        cluster = (config.get("metadata") or {}).get("cluster")
        return TaskScores(
            task=name, values=values, higher_is_better={metric: better[metric] for metric in values},
            doc_hash=[sample["doc_hash"] for sample in kept], prompt_hash=[sample["prompt_hash"] for sample in kept],
            choices=choices, cluster=[str(sample["doc"][cluster]) for sample in kept] if cluster else [],
            settings={"num_fewshot": raw["n-shot"][name], "chat_template": self.chat_template, "limit": self.limit,
                      "version": raw["versions"][name]},
        )  # fmt: skip


def load_tasks(names: Sequence[str], include_path: str | Path | None) -> Any:
    """lm-eval's own index is read only when a name is not in `include_path`: it takes seconds."""
    from lm_eval.tasks import TaskManager

    from cltk.measure.tasks import prepare, sandbox_templates

    sandbox_templates()
    missing = list(names)
    managers = []
    with tempfile.TemporaryDirectory(prefix="cltk-tasks-") as out:
        if include_path is not None:
            if not Path(include_path).is_dir():
                raise InputError(f"include_path: {include_path} is not a folder")
            manager = TaskManager(include_defaults=False, include_path=str(prepare(Path(include_path), Path(out), list(names))))
            managers.append((manager, [name for name in names if name in manager.all_tasks]))
            missing = [name for name in names if name not in manager.all_tasks]
        if missing:
            manager = TaskManager()
            unknown = [name for name in missing if name not in manager.all_tasks]
            if unknown:
                raise InputError(_unknown_task(unknown[0], manager.all_tasks + [t for m, _ in managers for t in m.all_tasks]))
            managers.append((manager, missing))
        loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
        for manager, wanted in managers:
            for name in wanted:
                try:
                    part = manager.load([name])
                except InputError:
                    raise
                except Exception as error:
                    raise InputError(_no_data(name, error)) from None
                for key in loaded:
                    loaded[key].update(part.get(key) or {})
    order = {name: i for i, name in enumerate(names)}
    loaded["tasks"] = dict(sorted(loaded["tasks"].items(), key=lambda item: order.get(item[0], len(order))))
    return loaded


def _unknown_task(name: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"task {name!r} is unknown to lm-eval and to include_path{hint}"


def _no_data(name: str, error: Exception) -> str:
    reason = (str(error).strip().split("\n") or [""])[0][:200] or type(error).__name__
    return (
        f"task {name!r}: its documents cannot be loaded ({type(error).__name__}: {reason}); without a network use the"
        f" offline version: include path evals/tasks and task 'local_{name}'"
    )


def make_lm(model: Any, tokenizer: Any, digest: str, batch_size: Any, journal: Any, progress: Any, scorer: str) -> Any:
    """The lm-eval model: shared prefixes by default, lm-eval's own HFLM with scorer="stock"."""
    if scorer == "stock":
        from lm_eval.models.huggingface import HFLM

        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8 if batch_size == "auto" else int(batch_size))
    from cltk.measure.scoring import PrefixLM

    return PrefixLM(model, tokenizer, batch_size=batch_size, journal=journal, digest=digest, progress=progress)


def _by_document(progress: Progress, documents: int) -> Callable[[int, int, int], None]:
    """Progress of requests, told in documents (each has its share of the requests)."""
    return lambda done, total, tokens: progress("documents", done * documents // max(total, 1), documents, tokens)


def _scalars(metric: str, value: Any) -> dict[str, float]:
    """The per-document numbers in lm-eval's metric; rolling log-likelihoods come as (sum of log-probabilities, weight)."""
    if isinstance(value, bool | int | float | np.floating | np.integer):
        return {metric: float(value)}
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(x, int | float) for x in value):
        total, weight = value
        if metric == "bits_per_byte" and weight:
            return {"bits_per_byte": -total / weight / float(np.log(2))}
    return {}


def _choice_scores(sample: dict[str, Any]) -> dict[str, float]:
    """Log-probability of the correct choice and its margin over the best wrong one, from the scored choices."""
    scores = [response[0] if isinstance(response, tuple | list) else response for response in sample["filtered_resps"]]
    target = sample["target"]
    if isinstance(target, str) and target.strip().lstrip("-").isdigit():
        target = int(target)
    if not isinstance(target, int) or not 0 <= target < len(scores) or len(scores) < 2:
        return {}
    wrong = [score for i, score in enumerate(scores) if i != target]
    return {"logprob": scores[target], "margin": scores[target] - max(wrong), "choices": len(scores)}


def token_rows(text: TextTask, tokenizer: Any) -> list[Row]:
    """The task's rows as token ids (and labels, where they come with the rows)."""
    rows: list[Row] = []
    for i, row in enumerate(text.rows):
        if "input_ids" in row:
            rows.append({key: list(map(int, row[key])) for key in ("input_ids", "labels") if key in row})
        else:
            rows.append({"input_ids": tokenizer(text_of(row, f"{text.name}, row {i}"))["input_ids"][: text.max_length]})
    return rows


def _score_text(text: TextTask, model: Any, tokenizer: Any, digest: str, journal: Any, progress: Progress | None) -> TaskScores:
    """Token NLL of each row; a text starts with the tokeniser's first special token where it has one."""
    rows = token_rows(text, tokenizer)
    hashes = [
        hashlib.sha256((json.dumps(ids["input_ids"]) if "input_ids" in row else text_of(row, text.name)).encode()).hexdigest()
        for row, ids in zip(text.rows, rows, strict=True)
    ]
    prompts = [hashlib.sha256(json.dumps([row["input_ids"], row.get("labels")]).encode()).hexdigest() for row in rows]
    keys = [hashlib.sha256(f"{digest} nll {prompt}".encode()).hexdigest() for prompt in prompts]
    known = [journal.get(key) for key in keys] if journal is not None else []
    if known and all(answer is not None for answer in known):
        nll = [answer["logprob"] for answer in known]
    else:
        tell = (lambda done, total: progress(text.name, done, total, 0)) if progress else None
        nll = shared(lambda some: row_nll(model, some, progress=tell)[0], rows)
        if journal is not None:
            journal.put_all({key: {"logprob": value, "greedy": False} for key, value in zip(keys, nll, strict=True)})
    values = {"nll": nll}
    if rows and all("input_ids" not in row for row in text.rows):
        sizes = [len(text_of(row, text.name).encode()) for row in text.rows]
        tokens = [len(row["input_ids"]) - 1 for row in rows]
        values["bits_per_byte"] = [x * n / size / float(np.log(2)) for x, n, size in zip(nll, tokens, sizes, strict=True)]
    return TaskScores(
        text.name, values, dict.fromkeys(values, False), hashes, prompts,
        cluster=[str(row[text.cluster]) for row in text.rows] if text.cluster else [],
    )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval and datasets log and draw bars on their own; ours is the only progress shown. Bad templates are in one line."""
    import logging

    import datasets
    import jinja2
    import lm_eval.api.model
    import lm_eval.api.task

    names = ("lm_eval", "lm-eval", "datasets", "transformers", "huggingface_hub")
    levels = {name: logging.getLogger(name).level for name in names}
    bars, drawers = datasets.are_progress_bars_disabled(), (lm_eval.api.model, lm_eval.api.task)
    drawn = [module.tqdm for module in drawers]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in drawers:
        module.tqdm = _no_bar  # it passes `disable` itself, so that no setting reaches it
    datasets.disable_progress_bars()
    try:
        yield
    except jinja2.TemplateError as error:
        raise InputError(f"a task's template cannot be filled: {type(error).__name__}: {error}") from None
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for module, tqdm in zip(drawers, drawn, strict=True):
            module.tqdm = tqdm
        if not bars:
            datasets.enable_progress_bars()


def _no_bar(items: Any = (), *_: Any, **__: Any) -> Any:
    return items
