"""What names stand for: suites, and the files, folders and data sets that methods read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cltk import models
from cltk.data.readers import locate, read_rows
from cltk.errors import InputError
from cltk.measure.evaluate import Suite, TextTask
from cltk.measure.splitting import part_of
from cltk.run import records
from cltk.run.methods import PATH_KEYS, PATH_LISTS, resolve_path
from cltk.run.spec import EvalSpec, TaskSpec, TextSpec
from cltk.run.yaml import read_yaml

YAML = (".yaml", ".yml")


def suite_file(file: Path) -> list[TaskSpec]:
    """The tasks of a suite: a mapping with `tasks`, and with `sample` where not all of their documents are meant."""
    data = read_yaml(file)[0]
    tasks, sample = data.get("tasks"), data.get("sample")
    try:
        if not isinstance(tasks, list) or set(data) - {"tasks", "sample"}:
            raise ValueError
        found = [TaskSpec(**({"task": task} if isinstance(task, str) else task)) for task in tasks]
        return [TaskSpec(task=one.task, sample=one.sample or sample) for one in found]
    except (ValueError, TypeError):
        raise InputError(
            f"{file}: a suite is a mapping with `tasks`, a list of task names (or of {{task: NAME, sample: N}}), and `sample`"
            " where not all documents are meant"
        ) from None


class Read(NamedTuple):
    """A file, folder or hub id that a mitigator reads, the argument that names it, and what else is said of it there."""

    key: str
    path: str
    how: tuple[tuple[str, Any], ...] = ()

    @property
    def of(self) -> tuple[str | None, ...]:
        """Name, split and revision of a data set."""
        return tuple(dict(self.how).get(name) for name in ("name", "split", "revision"))

    @property
    def label(self) -> str:
        """What digests and messages call it."""
        return ":".join(filter(None, [self.path, *self.of]))


def memories(entries: list[Any]) -> list[Read]:
    """Every file and folder that mitigators read, behind the argument that names it."""
    found: list[Read] = []
    for entry in entries:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            listed = (value.values() if isinstance(value, dict) else value) if key in PATH_LISTS else [value]
            for one in listed:
                if isinstance(one, str) and key in (*PATH_KEYS, *PATH_LISTS):
                    found.append(Read(key, one))
                elif isinstance(one, dict) and isinstance(one.get("path"), str):
                    found.append(Read(key, one["path"], tuple((name, how) for name, how in one.items() if name != "path")))
                elif isinstance(one, dict):
                    found += memories([one])
    return found


def text_task(entry: TextSpec, evals: EvalSpec, folder: Path) -> TextTask:
    """The rows of a text that are measured: by its own limit or sample, else by the sample of all measures."""
    text = read_text(entry, resolve_path(entry.text, folder, "evals.text"), entry.label)
    sample = entry.sample or (evals.sample if entry.limit is None else None)
    return text if sample is None else text.sampled(sample, evals.sample_seed or 0)


HOW = ("cluster", "stratum", "config", "split", "revision", "prompt", "completion", "messages", "mask")


def read_text(entry: TextSpec, path: str, name: str, limit: float | None = None) -> TextTask:
    """The rows of a text, all or by its limit (`limit` where it has none); not its sample."""
    how: dict[str, Any] = {key: getattr(entry, key) for key in HOW}
    return TextTask.read(name, path, limit=entry.limit if entry.limit is not None else limit, **how)


def texts_of(entries: Sequence[TaskSpec | TextSpec], evals: EvalSpec, folder: Path) -> list[TextTask]:
    """The texts among the entries, of the part of them that `evals.split` asks for."""
    texts = [text_task(entry, evals, folder) for entry in entries if isinstance(entry, TextSpec)]
    if evals.split is None or not texts:
        return texts
    return part_of(Suite([], texts=texts, sample_seed=evals.sample_seed or 0), *evals.split.part).texts


def prompting(evals: EvalSpec, folder: Path, trust: bool) -> dict[str, Any]:
    """How tasks are found and asked, by the names of `Suite`."""
    return {
        "include_path": folder / evals.include_path if evals.include_path else None,
        "num_fewshot": evals.num_fewshot, "chat_template": evals.chat_template,
        "system_instruction": evals.system_instruction, "fewshot_as_multiturn": evals.fewshot_as_multiturn,
        "gen_kwargs": evals.gen_kwargs, "trust": trust, "confirm_run_unsafe_code": evals.confirm_run_unsafe_code,
    }  # fmt: skip


def hub_commit(name: str, revision: str | None) -> str:
    """The commit of a data set on the hub, which stands for rows that are never read whole."""
    import huggingface_hub

    try:
        return str(huggingface_hub.HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{name}: its commit on the hub cannot be asked for ({reason})") from None


def contents(spec: str, folder: Path, name: str | None, split: str | None, revision: str | None, kind: str) -> str:
    """sha256 of a file's or folder's bytes; on the hub of a data set's rows, or of a model's commit (by `kind`)."""
    found = locate(resolve_path(spec, folder, "path"))
    if found is not None:
        return models.tree_digest(found)
    if kind in ("models", "others"):
        return models.stored_digest(spec)
    if kind == "streams":
        return hub_commit(spec, revision)
    return records.digest_of(read_rows(spec, name=name, split=split, revision=revision))
