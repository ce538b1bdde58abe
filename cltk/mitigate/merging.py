"""Task vectors as pure functions: scaled, trimmed, thinned, signs elected."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cltk import tensors

Vectors = Sequence[Mapping[str, Tensor]]

INFINITY = 0x7F800000  # the bits of float32 infinity: non-negative floats are ordered as their bits are


def task_vector(start: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> tensors.Named:
    """tau = tuned - start, in float32, over the names of `start`."""
    return {name: tuned[name].float() - value.float() for name, value in start.items()}


def added(vectors: Vectors) -> tensors.Named:
    """sum_k tau_k: task arithmetic (Ilharco et al. 2022, arXiv 2212.04089)."""
    return {name: torch.stack([vector[name] for vector in vectors]).sum(0) for name in vectors[0]}


def trimmed(vector: Mapping[str, Tensor], density: float) -> tensors.Named:
    """The share `density` of all elements that is largest in magnitude, the rest 0; elements that tie with the last stay."""
    if density >= 1:
        return dict(vector)
    least = _threshold(vector, density)
    return {name: torch.where(value.abs() >= least, value, 0.0) for name, value in vector.items()}


def elected(vectors: Vectors) -> tensors.Named:
    """The mean, element by element, of those that have the sign of the sum; 0 where the sum is 0."""
    merged = {}
    for name in vectors[0]:
        stack_K = torch.stack([vector[name] for vector in vectors])
        agrees_K = torch.sign(stack_K) == torch.sign(stack_K.sum(0))
        merged[name] = (stack_K * agrees_K).sum(0) / agrees_K.sum(0).clamp(min=1)
    return merged


def ties(vectors: Vectors, density: float = 0.2) -> tensors.Named:
    """Trim each vector, elect a sign for each element, average those that have it (Yadav et al. 2023, arXiv 2306.01708)."""
    return elected([trimmed(vector, density) for vector in vectors])


def dropped(vector: Mapping[str, Tensor], drop: float, seed: int = 0) -> tensors.Named:
    """Each element is 0 with probability `drop`, else divided by 1 - drop: the same in expectation.

    Drawn from (seed, name), so that every rank and every shard sees the same (Yu et al. 2023, arXiv 2311.03099, DARE).
    """
    if drop == 0:
        return dict(vector)
    thinned = {}
    for name, value in vector.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))  # it takes 32 bits of a seed
        keep = torch.rand(value.shape, generator=generator) >= drop
        thinned[name] = value * tensors.like(value, keep.float() / (1 - drop))
    return thinned


def dare(vectors: Vectors, drop: float = 0.5, seed: int = 0) -> tensors.Named:
    """sum_k dropped(tau_k): thinned vectors collide less."""
    return added([dropped(vector, drop, seed + k) for k, vector in enumerate(vectors)])


def magmax(vectors: Vectors) -> tensors.Named:
    """Element by element the tau_k of the largest magnitude (Marczak et al. 2024, arXiv 2407.06322); the first of equals."""
    merged = {}
    for name in vectors[0]:
        best = vectors[0][name]
        for vector in vectors[1:]:
            best = torch.where(vector[name].abs() > best.abs(), vector[name], best)
        merged[name] = best
    return merged


def _threshold(vector: Mapping[str, Tensor], density: float) -> float:
    """The magnitude of the element of rank round(density * all), by halving over the bits of a float: no copy, any shards."""
    keep = max(1, round(density * sum(value.numel() for value in vector.values())))
    low, high = 0, INFINITY
    while high - low > 1:
        middle = (low + high) // 2
        counts = [(value.abs() >= _float(middle)).sum() for value in vector.values()]
        enough = sum(int(tensors.whole(count)) for count in counts) >= keep
        low, high = (middle, high) if enough else (low, middle)
    return _float(low)


def _float(bits: int) -> float:
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).item()
