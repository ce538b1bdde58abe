"""An experiment's YAML -> validated objects. Nothing is loaded or written here.

`base:` names a file whose keys are taken where this one has none (mappings merge, everything else replaces); it is the
only inheritance. An unknown key is an error that names the file, the line, the key and the nearest valid one.
"""

from __future__ import annotations

import itertools
import typing
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from cltk.errors import InputError
from cltk.run.methods import check_mitigators, method_name, nearest, resolve_path, signature_schema
from cltk.run.yaml import Keys, read_yaml

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSpec(_Section):
    """The start model; it is never written to."""

    pretrained: str = Field(description="hub id, folder, or asset:NAME")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="what the weights are trained in")
    trust_remote_code: bool = Field(False, description="whether Python that comes with the model may run")


class Source(_Section):
    """Rows of prompts and completions."""

    path: str = Field(description="a .jsonl, .json, .csv, .parquet or .txt file, a saved data set, asset:NAME/FILE or hub id")
    name: str | None = Field(None, description="the configuration of a hub data set")
    split: str | None = Field(None, description="the split of a data set")
    prompt: str | None = Field(None, description="column, or template such as 'Question: {question}\\nAnswer:'")
    completion: str | None = Field(None, description="column or template")
    limit: Count | None = Field(None, description="the first N rows")


class DataSpec(_Section):
    """The new task."""

    train: Source
    validation: Source | Fraction = Field(0.1, description="for choices during training; a fraction is split off by prompt")
    heldout: Source | Fraction = Field(0.1, description="for the reported gain; a fraction is split off by prompt")
    max_length: Count = Field(512, description="tokens; longer sequences are cut on the right")
    chat_template: bool = Field(False, description="one user and one assistant turn")
    completion_only: bool = Field(True, description="whether prompt tokens are left out of the loss")


class TextSpec(_Section):
    """Held-out text whose token NLL is measured."""

    text: str = Field(description="file, asset:NAME/FILE or hub id")
    name: str | None = Field(None, description="the row's name in tables; the file's name when not given")
    limit: Count | None = Field(None, description="N rows, evenly spread over the file")
    cluster: str | None = Field(None, description="column that groups dependent rows")


class EvalSpec(_Section):
    """What is measured before and after."""

    retain: list[str | TextSpec] = Field(default_factory=list, description="lm-eval tasks, suite files, held-out texts")
    learn: list[str | TextSpec] = Field(default_factory=list, description="more measures of the gain, beside held-out NLL")
    limit: Count | None = Field(None, description="documents of each lm-eval task")
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    include_path: str | None = Field(None, description="folder of task YAML; its !function runs Python")
    chat_template: bool = False
    batch_size: Count | Literal["auto"] = "auto"
    kl_rows: Annotated[int, Field(ge=0)] = Field(16, description="rows of each text on which KL(start || tuned) is measured")
    margins: dict[str, float] = Field(default_factory=dict, description="{metric: loss that does not matter}")
    scorer: Literal["prefix", "stock"] = Field("prefix", description="contexts computed once, or lm-eval's own HFLM")


Switch = Literal["auto", True, False]


class SpeedSpec(_Section):
    """What makes training faster with the same result: auto (where exact), true (or an error), false."""

    packing: Switch = Field("auto", description="sequences end to end instead of padding")
    grouping: Switch = Field("auto", description="batches of like lengths; auto: where packing is not exact")
    label_head: Switch = Field("auto", description="the output head only where a label is")
    autocast: Switch = Field("auto", description="bfloat16 autocast; auto: where its products are faster")
    fused: Switch = Field("auto", description="AdamW in one kernel")
    onednn: Switch = Field("auto", description="float32 products through oneDNN; auto: where float32 and faster")
    allocator: Switch = Field("auto", description="freed memory is kept; `cltk run` on glibc only")


class Experiment(_Section):
    """One experiment: a cell for every combination of the grid."""

    base: str | None = Field(None, description="a YAML file whose keys hold where this one has none")
    model: ModelSpec
    data: DataSpec
    seed: int = Field(0, description="of training: data order, dropout, sampled labels")
    train: dict[str, Any] = Field(default_factory=dict, description="transformers.TrainingArguments, by their names")
    mitigators: list[Any] = Field(default_factory=list, description="applied in this order: name -> arguments")
    evals: EvalSpec = Field(default_factory=lambda: EvalSpec())
    speed: SpeedSpec = Field(default_factory=lambda: SpeedSpec())
    grid: dict[str, list[Any] | dict[str, Any]] = Field(default_factory=dict, description="key -> values, or name -> value")
    keep_model: bool = Field(True, description="whether the fine-tuned weights are kept")


@dataclass(frozen=True)
class Cell:
    """One training run of an experiment."""

    method: str  # the name of its mitigators in tables
    labels: dict[str, Any]  # grid key -> value or its name
    config: Experiment  # without grid

    @property
    def name(self) -> str:
        """A folder name: method, seed and other grid values."""
        parts = [self.method] + [f"{key.split('.')[-1]}={value}" for key, value in self.labels.items() if key != "mitigators"]
        text = "_".join(parts) if self.labels.get("seed") is not None else "_".join([*parts, f"seed={self.config.seed}"])
        return "".join(c if c.isalnum() or c in "-_=.+" else "-" for c in text).lstrip(".")[:120]


@dataclass(frozen=True)
class Plan:
    """A validated file: its experiment and cells. `folder` is what relative paths start from."""

    file: Path
    experiment: Experiment
    cells: list[Cell]

    @property
    def folder(self) -> Path:
        return self.file.parent


def load_config(file: str | Path) -> Plan:
    """Read and validate an experiment. Raises InputError with file, line, key and what would be right."""
    file = Path(file)
    data, lines, files = read_with_base(file, ())
    return validate(data, file, lines, files)


def read_with_base(file: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], dict[Keys, int], dict[Keys, Path]]:
    if file.resolve() in above:
        raise InputError(f"{file}: `base` leads back to this file")
    data, lines = read_yaml(file)
    files = dict.fromkeys(lines, file)
    base = data.get("base")
    if base is None:
        return data, lines, files
    if not isinstance(base, str):
        raise InputError(f"{file}:{lines[('base',)]}: base: expected a file name")
    under, base_lines, base_files = read_with_base(file.parent / base, (*above, file.resolve()))
    return _merge(under, data), {**base_lines, **lines}, {**base_files, **files}


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) and key != "grid" else value
    return merged


def validate(data: dict[str, Any], file: Path, lines: dict[Keys, int], files: dict[Keys, Path]) -> Plan:
    """Check all of `data`: sections, training arguments, mitigators, every cell of the grid, files that must exist."""

    def where(keys: Keys) -> str:
        known = next((keys[:n] for n in range(len(keys), -1, -1) if keys[:n] in lines), ())
        return f"{files.get(known, file)}:{lines.get(known, 1)}"

    experiment = _model(Experiment, data, (), where)
    cells = []
    for labels, name, at_mitigators, values in _product(experiment.grid, where):
        changed = data
        for key, value in values.items():
            changed = _set(changed, key, value, where)
        config = experiment if not values else _model(Experiment, changed, ("grid",), where)
        check_mitigators(config.mitigators, file.parent, lambda keys, inside=at_mitigators: where((*inside, *keys)))
        at: Keys = ("grid",) if any(key.startswith("train") for key in values) else ("train",)
        checked = check_train(config.train, lambda keys, at=at: where((*at, *keys)))
        if "seed" in checked:
            raise InputError(f"{where(('train', 'seed'))}: train.seed: use the top-level key `seed`")
        config = config.model_copy(update={"train": checked, "grid": {}, "base": None})
        cells.append(Cell(name or method_name(config.mitigators), labels, config))
    _check_files(experiment, file.parent, where)
    duplicates = [cell.name for cell in cells if sum(cell.name == other.name for other in cells) > 1]
    if duplicates:
        raise InputError(f"{where(('grid',))}: grid: two cells have the name {duplicates[0]!r}; name them (name: value)")
    return Plan(file, experiment, cells)


def _model(cls: type[BaseModel], data: Any, above: Keys, where: Any) -> Any:
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(error.errors()[0], cls, above, where)) from None


def _explain(problem: Any, cls: type[BaseModel], above: Keys, where: Any) -> str:
    keys = tuple(key for key in problem["loc"] if not _is_branch(key))
    dotted = ".".join(map(str, (*above, *keys))) or "file"
    if problem["type"] == "extra_forbidden":
        return f"{where(keys)}: {dotted}: unknown key{nearest(str(keys[-1]), _names_at(cls, keys[:-1]))}"
    if problem["type"] == "missing":
        return f"{where(keys[:-1])}: {dotted}: this key is required"
    got = repr(problem["input"])
    return f"{where(keys)}: {dotted}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {got[:60]}"


def _is_branch(key: Any) -> bool:
    """pydantic puts the name of a union's branch into the path; those are no keys of the file."""
    return isinstance(key, str) and (key in ("Source", "TextSpec", "str", "float", "int") or "[" in key)


def _names_at(cls: Any, keys: Keys) -> list[str]:
    for key in keys:
        if isinstance(key, str) and key in getattr(cls, "model_fields", {}):
            inner = [a for a in _flatten(cls.model_fields[key].annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
            cls = inner[0] if inner else None
    return list(getattr(cls, "model_fields", {}))


def _flatten(annotation: Any) -> list[Any]:
    arguments = typing.get_args(annotation)
    return [annotation] if not arguments else [x for a in arguments for x in _flatten(a)]


def _product(grid: dict[str, Any], where: Any) -> list[tuple[dict[str, Any], str, Keys, dict[str, Any]]]:
    """Every combination: labels, the method's given name, where its mitigators stand in the file, key -> value."""
    axes = []
    for key, values in grid.items():
        if not values:
            raise InputError(f"{where(('grid', key))}: grid.{key}: give at least one value")
        named = list(values.items()) if isinstance(values, dict) else list(enumerate(values))
        axes.append([(key, name, value) for name, value in named])
    done: list[tuple[dict[str, Any], str, Keys, dict[str, Any]]] = []
    for combination in itertools.product(*axes):
        labels = {key: name if isinstance(name, str) else _label(key, value) for key, name, value in combination}
        at: Keys = next((("grid", key, name) for key, name, _ in combination if key == "mitigators"), ("mitigators",))
        method = str(at[2]) if len(at) == 3 and isinstance(at[2], str) else ""
        done.append((labels, method, at, {key: value for key, _, value in combination}))
    return done


def _label(key: str, value: Any) -> Any:
    return method_name(value) if key == "mitigators" and isinstance(value, list) else value


def _set(data: dict[str, Any], dotted: str, value: Any, where: Any) -> dict[str, Any]:
    head, _, rest = dotted.partition(".")
    if head not in Experiment.model_fields or head in ("grid", "base"):
        raise InputError(f"{where(('grid', dotted))}: grid.{dotted}: unknown key{nearest(head, Experiment.model_fields)}")
    if not rest:
        return {**data, head: value}
    inner = data.get(head) or {}
    if not isinstance(inner, dict):
        raise InputError(f"{where(('grid', dotted))}: grid.{dotted}: {head} has no keys")
    if "." in rest:
        part, _, deeper = rest.partition(".")
        child = inner.get(part) or {}
        return {**data, head: {**inner, part: {**child, deeper: value}}}
    return {**data, head: {**inner, rest: value}}


@cache
def train_model() -> type[BaseModel]:
    """A pydantic model with every field of transformers.TrainingArguments, under its own name and type."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    definitions: dict[str, Any] = {
        field.name: (_plain_type(hints[field.name]), Field(None, description=field.metadata.get("help")))
        for field in fields(TrainingArguments)
        if field.init
    }
    return create_model("TrainingArguments", __config__=ConfigDict(extra="forbid", protected_namespaces=()), **definitions)


def _plain_type(hint: Any) -> Any:
    """The part of a type that YAML can hold."""
    plain = [t for t in _flatten(hint) if t in (str, int, float, bool)]
    if any(
        origin in (dict, list) for origin in [typing.get_origin(hint), *map(typing.get_origin, typing.get_args(hint))]
    ) or any(t in (dict, list) for t in _flatten(hint)):
        return Any
    if not plain:
        return str | bool | int | float | None  # an enum, given by its value
    union: Any = None
    for t in (bool, int, float, str):
        if t in plain:
            union = t if union is None else union | t
    return union | None


def check_train(train: dict[str, Any], where: Any) -> dict[str, Any]:
    """Names and types of the training arguments, then what TrainingArguments itself has to say."""
    cls = train_model()
    unknown = [key for key in train if key not in cls.model_fields]
    if unknown:
        key = unknown[0]
        raise InputError(f"{where((key,))}: train.{key}: unknown training argument{nearest(str(key), cls.model_fields)}")
    try:
        checked = cls.model_validate(train).model_dump(exclude_unset=True)
    except ValidationError as error:
        problem = error.errors()[0]
        field = problem["loc"][0]
        got = repr(problem["input"])[:60]
        raise InputError(
            f"{where((field,))}: train.{field}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {got}"
        ) from None
    from cltk.run.train import training_arguments

    training_arguments(checked, 0, Path("unused"), where)
    return checked


def _check_files(experiment: Experiment, folder: Path, where: Any) -> None:
    data, evals = experiment.data, experiment.evals
    places: list[tuple[Keys, str]] = [(("data", "train", "path"), data.train.path)]
    places += [
        (("data", key, "path"), source.path)
        for key, source in (("validation", data.validation), ("heldout", data.heldout))
        if isinstance(source, Source)
    ]
    for role, entries in (("retain", evals.retain), ("learn", evals.learn)):
        places += [(("evals", role, i, "text"), e.text) for i, e in enumerate(entries) if isinstance(e, TextSpec)]
    if evals.include_path:
        places.append((("evals", "include_path"), evals.include_path))
        if not (folder / evals.include_path).is_dir():
            raise InputError(f"{where(places[-1][0])}: evals.include_path: {folder / evals.include_path} is not a folder")
    for keys, value in places:
        try:
            resolve_path(value, folder, ".".join(map(str, keys)))
        except InputError as error:
            raise InputError(f"{where(keys)}: {error}") from None


def schema() -> dict[str, Any]:
    """The JSON schema of an experiment file, with every training argument and mitigator."""
    from cltk.mitigate import MITIGATORS

    document = Experiment.model_json_schema()
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    arguments = train_model().model_json_schema()
    document.setdefault("$defs", {}).update(arguments.pop("$defs", {}))
    document["properties"]["train"] = arguments
    methods = [
        {"type": "object", "properties": {name: signature_schema(cls)}, "required": [name], "additionalProperties": False}
        for name, cls in sorted(MITIGATORS.items())
    ]
    document["properties"]["mitigators"]["items"] = {"anyOf": [*methods, {"enum": sorted(MITIGATORS)}]}
    return document
