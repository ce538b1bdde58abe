"""Task vectors, tau = theta_tuned - theta_start: scaled, trimmed, thinned and added. Pure functions on {name: tensor}."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cltk import tensors
from cltk.errors import InputError
from cltk.mitigate.averaging import FromStart, fitting
from cltk.mitigate.interface import Plan, Run
from cltk.mitigate.merging import Vectors, added, dare, magmax, task_vector, ties
from cltk.models import load_model


class TaskArithmetic(FromStart):
    """theta = theta_start + scale * sum_k tau_k over this training and `others`.

    Alone it is WiSE-FT with alpha = scale.

    Args:
        scale: 1 without others changes nothing; 0.3 to 0.5 when several are added.
        others: further fine-tunes of the same start model: folders, hub ids, asset:NAME.

    Raises:
        InputError: scale is negative, or another model has other names or shapes.

    Source: Ilharco et al. 2022 (arXiv 2212.04089).
    """

    name = "task_arithmetic"

    def __init__(self, scale: float = 0.5, others: Sequence[str | Path] = ()) -> None:
        super().__init__()
        _check(self.name, scale)
        self.scale, self.others = scale, list(others)
        self.vectors: list[tensors.Named] = []

    def idle(self) -> bool:
        return self.scale == 1 and not self.others

    def combine(self, vectors: Vectors) -> tensors.Named:
        """Several task vectors -> one."""
        return added(vectors)

    def setup(self, plan: Plan) -> None:
        super().setup(plan)
        self.vectors = []
        for spec in self.others:
            tuned = fitting(spec, self.anchor, f"{self.name}.others")[1]
            here = {name: weight.to(self.anchor[name].device) for name, weight in tuned.items()}
            self.vectors.append({name: tau.cpu() for name, tau in task_vector(self.anchor, here).items()})

    def finish(self, run: Run) -> None:
        if not self.anchor:
            return
        places, starts = {}, {}
        for name, parameter, start in self.pairs(run):
            places[name], starts[name] = parameter, start
        own = task_vector(starts, {name: parameter.data for name, parameter in places.items()})
        others = [{name: tensors.like(places[name], vector[name]) for name in places} for vector in self.vectors]
        for name, tau in self.combine([own, *others]).items():
            places[name].data.copy_(starts[name].float() + self.scale * tau)


class TIES(TaskArithmetic):
    """theta = theta_start + scale * ties(tau_1 ... tau_K): trim to the largest, elect signs, average what agrees.

    Alone, this training's vector is trimmed: the small changes, most of them, go back to the start.

    Args:
        scale: of the merged vector.
        density: the share of elements that each vector keeps, above 0 to 1; 1 with scale 1 and no others changes nothing.
        others: further fine-tunes of the same start model: folders, hub ids, asset:NAME.

    Raises:
        InputError: scale is negative, density outside (0, 1], or another model has other names or shapes.

    Source: Yadav et al. 2023 (arXiv 2306.01708).
    """

    name = "ties"

    def __init__(self, scale: float = 1.0, density: float = 0.2, others: Sequence[str | Path] = ()) -> None:
        super().__init__(scale, others)
        _check(self.name, scale, density=density)
        self.density = density

    def idle(self) -> bool:
        return super().idle() and self.density == 1

    def combine(self, vectors: Vectors) -> tensors.Named:
        return ties(vectors, self.density)


class DARE(TaskArithmetic):
    """theta = theta_start + scale * sum_k dropped(tau_k): each change is undone with probability `drop`, else it grows.

    Args:
        drop: 0 to below 1; 0 with scale 1 and no others changes nothing.
        scale: of the sum.
        others: further fine-tunes of the same start model: folders, hub ids, asset:NAME.
        seed: of what is dropped.

    Raises:
        InputError: drop outside [0, 1), scale is negative, or another model has other names or shapes.

    Source: Yu et al. 2023 (arXiv 2311.03099).
    """

    name = "dare"

    def __init__(self, drop: float = 0.5, scale: float = 1.0, others: Sequence[str | Path] = (), seed: int = 0) -> None:
        super().__init__(scale, others)
        _check(self.name, scale, drop=drop, seed=seed)
        self.drop, self.seed = drop, seed

    def idle(self) -> bool:
        return super().idle() and self.drop == 0

    def combine(self, vectors: Vectors) -> tensors.Named:
        return dare(vectors, self.drop, self.seed)


def _check(where: str, scale: float, density: float = 1.0, drop: float = 0.0, seed: int = 0) -> None:
    if not 0 <= scale < float("inf"):
        raise InputError(f"{where}.scale: must be a finite number of at least 0, got {scale}")
    if not 0 < density <= 1:
        raise InputError(f"{where}.density: must be above 0 and at most 1, got {density}")
    if not 0 <= drop < 1:
        raise InputError(f"{where}.drop: must be at least 0 and below 1, got {drop}")
    if not 0 <= seed < 2**31:
        raise InputError(f"{where}.seed: must be from 0 to 2^31 - 1, got {seed}")


MERGES: dict[str, tuple[Callable[..., tensors.Named], dict[str, float]]] = {  # the function, its settings
    "dare": (dare, {"scale": 1.0, "drop": 0.5, "seed": 0}),
    "magmax": (magmax, {"scale": 1.0}),
    "task_arithmetic": (added, {"scale": 0.5}),
    "ties": (ties, {"scale": 1.0, "density": 0.2}),
}


def merge(
    base: str | Path, tuned: Sequence[str | Path], method: str = "ties", out: Path | str | None = None, **settings: Any
) -> Any:
    """Merge finished fine-tunes of one start model: theta = theta_base + scale * combined(theta_k - theta_base).

    Args:
        base: the start model: a folder, hub id or asset:NAME. Weights keep its dtype; sums are float32.
        tuned: the fine-tunes, all in memory as float32.
        method: "ties", "task_arithmetic", "dare" or "magmax".
        out: a new folder for the model and the tokeniser; nothing is written without.
        settings: scale; density (ties); drop, seed (dare): as in the classes of these names.

    Returns:
        The merged model.

    Raises:
        InputError: an unknown method or setting, no fine-tune, one of other names or shapes, or a folder that is not empty.
    """
    if method not in MERGES:
        raise InputError(f"merge: method is {method!r}; give one of {', '.join(MERGES)}")
    function, defaults = MERGES[method]
    if unknown := sorted(set(settings) - set(defaults)):
        raise InputError(f"merge: {method} has no setting {unknown[0]!r}; it has {', '.join(defaults)}")
    if isinstance(tuned, str | Path) or not tuned:
        raise InputError("merge: give a list of one or more fine-tuned models")
    if out is not None and Path(out).is_dir() and any(Path(out).iterdir()):
        raise InputError(f"merge: {out} is not empty; name a new folder")
    chosen = {**defaults, **settings}
    _check(f"merge.{method}", **chosen)
    scale = chosen.pop("scale")
    model, tokenizer = load_model(base, dtype="auto")
    start = {name: parameter.detach() for name, parameter in model.named_parameters()}
    vectors = [task_vector(start, fitting(spec, start, "merge")[1]) for spec in tuned]
    with torch.no_grad():
        for name, tau in function(vectors, **chosen).items():
            start[name].copy_(start[name].float() + scale * tau)
    if out is not None:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return model
