"""What a task is, without a model: where its documents come from, what is asked of the first one, what can be measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cltk.data import assets
from cltk.errors import CltkError, InputError
from cltk.files import shipped
from cltk.measure.choices import choices_of
from cltk.measure.documents import direction, unmeasurable
from cltk.measure.evaluate import Suite
from cltk.measure.faults import attempt
from cltk.measure.harness import quiet
from cltk.measure.power import plan
from cltk.measure.prompting import own_randomness, restore
from cltk.measure.tasks import names_in

BUILDERS = ("json", "csv", "parquet", "arrow", "text", "pandas", "webdataset")  # of datasets: their rows are files


def listed(pattern: str = "*", include_path: Path | None = None, everything: bool = False) -> list[dict[str, str]]:
    """The tasks and groups whose name matches: those of `include_path`, of cltk, and, with `everything`, of lm-eval.

    Returns:
        {"name", "from": "include_path", "cltk" or "lm-eval", "available": "here", or what is missing}, in the order of names.
    """
    found: dict[str, dict[str, str]] = {}
    if everything:
        found |= {row["name"]: row for row in _lm_evals(pattern)}
    for origin, folder in (("cltk", shipped("evals") / "tasks"), ("include_path", include_path)):
        for row in _folder(origin, folder) if folder else ():
            if fnmatchcase(row["name"], pattern):
                found[row["name"]] = row
    return [found[name] for name in sorted(found)]


def _folder(origin: str, folder: Path) -> Iterator[dict[str, str]]:
    if not folder.is_dir():
        raise InputError(f"include_path: {folder} is not a folder")
    for file in sorted(folder.rglob("*.yaml")):
        try:
            names = names_in(file)[:1]
        except CltkError:  # said by whoever asks for it
            continue
        for name in names:
            yield {"name": name, "from": origin, "available": _missing(file.read_text(encoding="utf-8", errors="replace"))}


def _missing(text: str) -> str:
    """Of a task file: "here", or the asset that is to be fetched, or the hub."""
    own = [
        name
        for name in re.findall(r"asset:([\w.-]+)", text)
        if name in assets.ASSETS and not assets.ASSETS[name].folder.is_dir()
    ]
    if own:
        return f"cltk assets fetch {own[0]}"
    return "here" if "asset:" in text or "data_files" in text else "from a hub"


def _lm_evals(pattern: str) -> Iterator[dict[str, str]]:
    from lm_eval.tasks import TaskManager

    with quiet():
        index: Mapping[str, Any] = TaskManager().task_index
    for name, entry in index.items():
        if isinstance(name, str) and fnmatchcase(name, pattern):
            path, kind = (entry.cfg or {}).get("dataset_path"), entry.kind.name.lower()
            where = f"{kind} of tasks" if kind in ("group", "tag") else _cached(path)
            yield {"name": name, "from": "lm-eval", "available": where}


def _cached(path: Any) -> str:
    """Whether a data set's files are on this machine: local, or in the caches of datasets and the hub."""
    import datasets
    from huggingface_hub import constants

    if not isinstance(path, str):
        return "from a hub"
    kept = [Path(datasets.config.HF_DATASETS_CACHE) / path.replace("/", "___")]
    kept += [Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}"]
    return "here" if path in BUILDERS or Path(path).is_dir() or any(one.is_dir() for one in kept) else "from a hub"


def about(suite: Suite, document: int = 0, tokenizer: Any = None) -> dict[str, Any]:
    """What the instrument says of the suite's tasks before a model is loaded, and one prompt of the first task.

    Args:
        document: which one's prompt.
        tokenizer: of the chat template, where the suite applies one.

    Returns:
        {"rows": of every task or group {"name", "documents", "mde": smallest loss of accuracy that is shown, or None},
        "tasks": of every task {"name", "kind", "version", "examples", "metrics": {metric: "higher", "lower" or "undeclared"},
        "unmeasurable": why nothing of it can be compared, or ""}, "notes": [...], "prompt": see `prompt`}

    Raises:
        InputError: a task that cannot be loaded or measured; no such document.
    """
    loaded = suite.load()
    plans = {row.task: row for row in plan(suite.sizes(), clusters=suite.cluster_sizes())}
    notes = [f"{name}: {note}" for name, said in suite.about().items() for note in said]
    first = next(iter(loaded["tasks"]))
    return {
        "rows": [{"name": name, "documents": n, "mde": plans[name].mde} for name, n in suite.sizes().items()],
        "tasks": [_task(name, task) for name, task in loaded["tasks"].items()],
        "notes": [*suite.notes, *notes],
        "prompt": {"task": first, **prompt(suite, first, document, tokenizer)},
    }


def _task(name: str, task: Any) -> dict[str, Any]:
    words = {True: "higher", False: "lower", None: "undeclared"}
    return {
        "name": name,
        "kind": task.OUTPUT_TYPE,
        "version": str(task.VERSION),
        "examples": int(task.get_config("num_fewshot") or 0),
        "metrics": {metric: words[direction(task, metric)] for metric in task.aggregation()},
        "unmeasurable": unmeasurable(task),
    }


def prompt(suite: Suite, name: str, document: int = 0, tokenizer: Any = None) -> dict[str, Any]:
    """What is asked of a model about one document: the very requests of a measurement, examples and template included.

    Returns:
        {"document", "requests": [(context, continuation or generation settings), ...], "right": numbers of the requests that
        are right answers, of multiple choice, "target": the right answer otherwise}

    Raises:
        InputError: no such document; a template without a tokenizer.
    """
    task = suite.load()["tasks"][name]
    total = len(task.eval_docs)
    if not 0 <= document < total:
        raise InputError(f"task {name}: document {document} is none of its {total}, which begin at 0")
    with quiet(), own_randomness():
        restore(suite.seeded)  # examples are drawn document by document: those before it are drawn too
        made = attempt(name, suite.prompting.build, task, document + 1, None, tokenizer)
    asked = [
        [part if isinstance(part, str | dict) else str(part) for part in one.args] for one in made if one.doc_id == document
    ]
    doc = task.eval_docs[document]
    target = task.doc_to_target(doc)
    (choice,) = choices_of(task, [{"doc": doc, "filtered_resps": [0.0] * len(asked), "target": target}]) or (None,)
    found = {"right": sorted(choice.right)} if choice else {"target": str(target)}
    return {"document": document, "requests": asked, **found}
