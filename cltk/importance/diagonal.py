"""Importance: one non-negative number a parameter, with where it came from. `fisher.py` computes it, EWC uses it.

What is stored is never a bare file of numbers: kind, level, counts, seed, the digest of the data and of the weights it
was computed at, the versions. A lambda (EWC's strength) means nothing without these: between the conventions of common
code bases (token mean, sequence sum, squared batch gradients) the same model's Fisher differs by the batch's token count
up to the sequence length squared.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cltk import tensors
from cltk.errors import InputError
from cltk.files import write_atomic
from cltk.importance.tail import merged

Info = dict[str, Any]
ADDITIVE = ("kind", "level", "anchor_digest", "normalize", "floor", "autocast", "clip")  # two must share them to be merged


class Importance(Mapping[str, Tensor]):
    """{parameter name: float32 tensor of the parameter's shape, >= 0}; a tied tensor once, under its first name.

    `info` says what it is: `kind` (mc, exact, empirical, mas), `level` (token, sequence), `labels`, `reduction`,
    `tokens`, `sequences`, `batches`, `seed`, `normalize`, `floor`, `relative_se` (of the trace; None below two batches),
    `data_digest`, `anchor_digest` (tensors.digest of the trainable weights it was computed at), `model`, `config_digest`,
    `dtype` (of the weights), `autocast`, `clip`, how many sequences were `clipped`, `largest_share` of the trace (`largest_of`:
    a sequence's or a batch's; `largest_row`), `method`, `seconds`, `cltk`. Values are JSON: None, numbers, strings, lists.
    """

    def __init__(self, values: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> None:
        self._values = {name: value.detach().to(torch.float32) for name, value in values.items()}
        self.info: Info = dict(info or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        count = sum(value.numel() for value in self.values())
        return f"Importance({self.info.get('kind')}, {len(self)} tensors, {count} parameters, mean {self.mean:.3g})"

    @property
    def trace(self) -> float:
        """sum_i F_i over every parameter."""
        return trace(self._values)

    @property
    def mean(self) -> float:
        """trace / number of parameters."""
        return self.trace / max(1, sum(value.numel() for value in self.values()))

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with `info` and a sha256 in its metadata; return its path.

        Whole or not at all: a temporary file beside it, fsync, rename. An existing file is replaced.
        """
        path = Path(path)
        info = json.dumps(self.info, sort_keys=True)
        values = {name: value.cpu().contiguous() for name, value in self.items()}
        metadata = {"cltk": info, "sha256": _seal(values, info)}
        write_atomic(path, lambda temporary: save_file(values, temporary, metadata=metadata))
        return path

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Importance:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, not an importance, truncated or altered (its sha256 does not fit).
        """
        if not Path(path).is_file():
            raise InputError(f"importance {path}: no such file; `cltk fisher` or Importance.save makes one")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"importance {path}: truncated or damaged ({error}); compute it again") from error
        if "cltk" not in metadata:
            raise InputError(f"importance {path}: a safetensors file, but not one that Importance.save wrote")
        if metadata.get("sha256") != _seal(values, metadata["cltk"]):
            raise InputError(f"importance {path}: its contents do not fit its sha256: damaged or edited; compute it again")
        return cls({name: value.to(device) for name, value in values.items()}, json.loads(metadata["cltk"]))

    def check(self, model: nn.Module) -> None:
        """That this importance belongs to `model` at its present weights.

        Parameters that are frozen now may have an importance; a trainable one may not lack it.

        Raises:
            InputError: a parameter is missing or has another shape, or the weights are not those it was computed at.
        """
        here = {tensors.clean(name): parameter for name, parameter in model.named_parameters()}
        for name, value in self.items():
            if name not in here:
                raise InputError(f"importance: it has {name}, the model has not; compute it for this model")
            if here[name].shape != value.shape:
                raise InputError(f"importance: {name} is {_size(value)} there and {_size(here[name])} in the model")
        for name, _ in tensors.trainable(model):
            if name not in self:
                raise InputError(f"importance: {name} is trained but has no importance; compute it for this model")
        expected = self.info.get("anchor_digest")
        found = tensors.digest({name: here[name] for name in self}) if expected else None
        if expected != found:
            dtypes = f"{self.info.get('dtype')} there, {_dtype(here.values())} here"
            raise InputError(
                f"this importance was computed for another model: its start weights have digest {str(expected)[:12]}, "
                f"these have {str(found)[:12]} ({dtypes}); compute it for these weights"
            )

    def merge(self, other: Importance) -> Importance:
        """The importance over both data sets: (n_a F_a + n_b F_b) / (n_a + n_b), n in tokens or sequences by level.

        Of fisher(batches 1..k) and fisher(batches k+1..n, first=...) it is fisher(batches 1..n).

        Raises:
            InputError: they differ in kind, anchor or precision, or were normalised or floored (then they no longer add).
        """
        for key in ADDITIVE:
            if (self.info.get(key) or None) != (other.info.get(key) or None):  # a file of an older cltk lacks autocast
                raise InputError(f"importance: cannot merge, {key} is {self.info.get(key)} and {other.info.get(key)}")
        if self.info.get("normalize") or self.info.get("floor"):
            raise InputError("importance: cannot merge after normalize or floor; compute both with normalize=None, floor=0")
        unit = "tokens" if self.info.get("level") == "token" else "sequences"
        here, there = self.info[unit], other.info[unit]
        info = dict(self.info)
        for key in ("tokens", "sequences", "batches", "seconds"):
            info[key] = self.info[key] + other.info[key]
        info["moments"] = [a + b for a, b in zip(self.info["moments"], other.info["moments"], strict=True)]
        info["relative_se"] = relative_se(info["moments"])
        info |= merged(self.info, other.info)
        info["data_digest"] = _sha(self.info["data_digest"] + other.info["data_digest"])
        return self._with(lambda name, F: (here * F + there * other[name].to(F.device)) / (here + there), info)

    def finished(self, normalize: str | None = None, floor: float = 0.0) -> Importance:
        """F + floor mean(F), so that no parameter is free; then with normalize="mean" over its mean, which becomes 1.

        With mean 1 a strength is an L2-SP coefficient and carries over between models, data sizes and levels.

        Raises:
            InputError: `normalize` is unknown, `floor` negative, or F is zero everywhere and is to be normalised.
        """
        check_scaling(normalize, floor)
        mean = self.mean
        if normalize and mean == 0:
            raise InputError("importance: it is zero everywhere and cannot be normalised; are the rows the right ones?")
        scale = 1 / (mean * (1 + floor)) if normalize else 1.0
        for value in self.values():  # in place: this object was just made and is returned
            value.add_(floor * mean).mul_(scale) if (floor or normalize) else None
        self.info.update(normalize=normalize, floor=floor)
        return self

    def shuffled(self, seed: int = 0) -> Importance:
        """A control: the same numbers, permuted within each tensor. If it protects as well, the Fisher did nothing."""
        generator = torch.Generator().manual_seed(seed)

        def permute(name: str, F: Tensor) -> Tensor:
            order = torch.randperm(F.numel(), generator=generator).to(F.device)
            return F.reshape(-1)[order].reshape(F.shape)

        return self._with(permute, {**self.info, "control": f"shuffled within each tensor, seed {seed}"})

    def uniform(self) -> Importance:
        """A control: every parameter has the mean importance (1 after normalize="mean"): EWC becomes L2-SP."""
        mean = self.mean
        return self._with(lambda name, F: torch.full_like(F, mean), {**self.info, "control": "uniform, the same mean"})

    def _with(self, function: Callable[[str, Tensor], Tensor], info: Info) -> Importance:
        return Importance({name: function(name, value) for name, value in self.items()}, info)


def check_scaling(normalize: str | None, floor: float) -> None:
    """Raises InputError if these are not arguments of Importance.finished."""
    if normalize not in (None, "mean"):
        raise InputError(f"importance: normalize={normalize!r}; give None or 'mean'")
    if not 0 <= floor < math.inf:
        raise InputError(f"importance: floor={floor!r}; give a number >= 0")


def update(old: Importance, new: Importance, decay: float) -> Importance:
    """Online EWC: F <- decay F_old + F_new, anchored at the new weights (Schwarz et al. 2018, arXiv 1805.06370).

    Raises:
        InputError: `decay` outside 0..1, or other parameters.
    """
    if not 0 <= decay <= 1:
        raise InputError(f"importance: decay={decay!r}; give a number from 0 (forget) to 1 (keep all)")
    if list(old) != list(new):
        raise InputError(f"importance: other parameters in the two: {sorted(set(old) ^ set(new))[:3]}")
    info = {**new.info, "decay": decay, "earlier": old.info}
    return Importance({name: decay * old[name].to(F.device) + F for name, F in new.items()}, info)


def trace(values: Mapping[str, Tensor]) -> float:
    """The sum of every element: pairwise in float32 within a tensor (1e-7; 20 times faster), float64 over tensors."""
    parts = [value.sum() for value in values.values()]
    return float(torch.stack([part.to(parts[0].device) for part in parts]).cpu().double().sum()) if parts else 0.0


def relative_se(moments: list[float]) -> float | None:
    """Relative standard error of the trace from batch totals t_b over n_b tokens (or sequences): that of a ratio.

    R = sum t / sum n;  se(R) = sqrt(k/(k-1) sum (t_b - R n_b)²) / sum n  (Cochran 1977, 6.4)

    Args:
        moments: [k, sum n, sum t, sum t², sum t n, sum n²] over k batches.

    Returns:
        se(R) / R, or None below two batches or at R = 0.
    """
    k, n, t, tt, tn, nn_ = moments
    if k < 2 or t <= 0:
        return None
    ratio = t / n
    spread = max(0.0, tt - 2 * ratio * tn + ratio**2 * nn_)
    return (k / (k - 1) * spread) ** 0.5 / t


def _seal(values: Mapping[str, Tensor], info: str) -> str:
    return _sha(info + tensors.digest(values))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _dtype(parameters: Any) -> str:
    return ",".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters}))
