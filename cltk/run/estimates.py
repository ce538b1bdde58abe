"""Estimates of a model by name and of an experiment's methods, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cltk.run.estimate import Estimate, Setup, estimate
from cltk.run.plans import Cell, Plan
from cltk.run.search_plan import searched, with_values
from cltk.run.shape import meta_model, shape_of


def estimate_yaml(file: str | Path, model: str | None = None, **given: Any) -> list[Estimate]:
    """One estimate for every distinct method of an experiment; `given` goes before what the file says.

    The machine is not asked: tf32, bf16 and fp16 may be set where there is no GPU.
    """
    from cltk.run.config import read_with_base, validate

    data, lines, files = read_with_base(Path(file), ())
    train = data.get("train")
    bf16 = bool(isinstance(train, dict) and (train.get("bf16") or train.get("fp16")))
    if isinstance(train, dict):
        data = {**data, "train": {key: value for key, value in train.items() if key not in ("tf32", "bf16", "fp16")}}
    plan = validate(data, Path(file), lines, files)
    done: dict[str, Estimate] = {}
    cells, notes = largest(plan)
    for cell in cells:
        spec = model or cell.config.model.spec
        local = plan.folder / spec
        found = setup_of(cell.config, bf16)
        done.setdefault(cell.method, replace(
            estimate_model(str(local) if local.is_dir() else spec, replace(found, **given), cell.config.mitigators),
            method=cell.method,
        ))  # fmt: skip
    return [replace(one, notes=(*one.notes, *notes.get(one.method, []))) for one in done.values()]


def largest(plan: Plan) -> tuple[list[Cell], dict[str, list[str]]]:
    """The cells, those of a search with the largest values that it may try; method -> what to know of its trials."""
    search = plan.experiment.search
    if search is None:
        return plan.cells, {}
    most = {
        key: max(one.extremes) if all(isinstance(value, int | float) for value in one.extremes) else one.extremes[0]
        for key, one in search.over.items()
    }
    own = searched(plan.cells, search)
    note = (
        f"{own[0].method}: with the largest values of search.over; {search.count} trials, and the chosen setting with"
        f" {len(own)} seeds, take the time of {search.count + len(own)} trainings and the memory of one"
    )
    return [with_values(cell, most, plan.folder) if cell in own else cell for cell in plan.cells], {own[0].method: [note]}


def setup_of(config: Any, bf16: bool) -> Setup:
    """How this experiment trains; `bf16`: whether its products are narrow."""
    train, tasks = config.train, [config.data] if config.data else [stage.data for stage in config.stages]
    return Setup(
        dtype=config.model.dtype, optim=str(train.get("optim", "adamw_torch_fused")),
        batch=int(train.get("per_device_train_batch_size", 8)), length=max(data.max_length for data in tasks),
        accumulation=int(train.get("gradient_accumulation_steps", 1)), compared=bool(config.evals.kl_rows),
        scored=config.evals.dtype,
        checkpointing=any(train.get(f"{what}_checkpointing") for what in ("activation", "gradient")), autocast=bf16,
    )  # fmt: skip


def estimate_model(spec: str | Path, setup: Setup, mitigators: Sequence[Any] = ()) -> Estimate:
    """From a folder, hub id or asset:NAME, whose config alone is read."""
    return estimate(shape_of(meta_model(spec), mitigators), setup, mitigators)


def table(estimates: Sequence[Estimate]) -> Any:
    """A rich table: a row a method, GB (10^9 bytes) per GPU."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def gb(count: float) -> str:
        return f"{count / 1e9:.2f}"

    rows = [
        [e.method, f"{e.trained / 1e6:.1f}"]
        + [gb(part) for part in (e.weights, e.gradients, e.optimizer, e.mitigators, e.activations, e.training, e.peak)]
        + [e.moment]
        for e in estimates
    ]
    first = estimates[0]
    notes = [
        "GB on each GPU, with rows of full length; optim: the optimiser's state, mitig: the methods', activ: with temporaries;"
        " train: the training alone, peak: all of cltk run"
    ]
    notes += [f"{e.method}: {gb(e.host)} GB more in CPU memory" for e in estimates if e.host]
    notes += dict.fromkeys(note for e in estimates for note in e.notes)
    title = f"{first.parameters / 1e6:.1f} M parameters; rule of thumb, 4 x parameters x bytes: {gb(first.rule)} GB in all"
    heads = ["method", "M trained", "weights", "grads", "optim", "mitig", "activ", "train", "peak", "at"]
    below = Text("\n".join(notes))
    shown = Table(title=title, caption=below, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    for head in heads:
        shown.add_column(head, justify="left" if head in ("method", "at") else "right", no_wrap=head == "method")
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown
