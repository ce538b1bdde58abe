"""Diagonal importance of every trainable parameter: fisher(). Data is streamed; memory does not grow with it.

Sources: Kirkpatrick et al. 2017 (EWC, arXiv 1612.00796); van de Ven 2025 (the variants, arXiv 2502.11756); Liu et al.
2023 (Gauss-Newton-Bartlett, arXiv 2305.14342); Aljundi et al. 2018 (MAS, arXiv 1711.09601).
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from cltk import tensors
from cltk.errors import InputError, RunError
from cltk.forward.causal import base, check_causal
from cltk.importance.arguments import KINDS, check_arguments
from cltk.importance.diagonal import Importance, Info, relative_se, trace, update
from cltk.importance.estimators import Exact, PerSequence, Sampled, Work, untouched
from cltk.importance.partial import Partial
from cltk.importance.sequences import Batch, Rows, vocabulary
from cltk.importance.tail import shares, warn
from cltk.ranks import agreed, on_group, ranks

__all__ = ["Importance", "fisher", "update"]
Named = tensors.Named
Parameters = dict[str, nn.Parameter]
MIN_BATCHES = 5  # below that a standard error is too uncertain to stop at


def fisher(
    model: nn.Module,
    data: Iterable[Any],
    kind: str = "mc",
    samples: int | None = None,
    batch_size: int = 8,
    normalize: str | None = None,
    seed: int = 0,
    floor: float = 0.0,
    rtol: float | None = None,
    progress: Callable[[int], None] | None = None,
    first: int = 0,
    partial: Path | None = None,
    autocast: bool = False,
    clip: float | None = None,
) -> Importance:
    """The importance of every trainable parameter of a causal language model on `data`.

        mc, exact  F_i = 1/N sum_t E_{y ~ p(.|x_<=t)} (d log p(y|x_<=t) / d theta_i)²     token level, model's own labels
        empirical  F_i = mean over sequences of (d sum_t log p(x_t+1|x_<=t) / d theta_i)²  sequence level, data's labels
        mas        F_i = mean over sequences of |d sum_t ||logits_t||² / d theta_i|        sequence level, no labels

    mc squares one batch gradient of the summed loss: labels drawn independently at every position give scores of mean 0,
    the cross terms vanish, and it is unbiased; a batch of N_b tokens adds N_b (N_b g²), g the mean loss's gradient. A
    row's labels come from (seed, its index) alone, but which tokens share a batch changes the noise: batch sizes agree in
    expectation only. exact costs N V backward passes: for small models. empirical does not estimate the others: off the
    optimum or over-confident it is several times off. Under torch.distributed rank r takes rows r, r + world, ...; the
    sums are reduced and every rank returns the whole.

    Args:
        data: rows {"input_ids": 1-D ids, optional "labels": -100 where not counted}, a list or any iterator.
        samples: at most so many rows; None takes all.
        batch_size: rows a forward pass. It bounds memory.
        normalize: "mean" divides F by its mean over all trained parameters (see Importance.finished).
        seed: of the drawn labels.
        floor: adds floor * mean(F) to every element: rows of the vocabulary that `data` lacks have F = 0 otherwise.
        rtol: stop once the relative standard error of the trace, over all ranks, is below it (5 batches at least).
        progress: called with the number of sequences done, after every batch.
        first: the index of the first row, to continue another call's rows (Importance.merge).
        partial: a file that keeps the sums so far, every 30 seconds. A call with the same model, data and arguments goes
            on from it, to the same bits (on a CPU); any other starts afresh. Delete it when the result is saved.
        autocast: forward, backward and the products that make gradients in bfloat16; sums stay float32. Faster where the
            processor has units for it, and not near float32 element by element (experiments/LOG.md, 2026-11-26).
        clip: the largest norm of a sequence's gradient: g becomes g min(1, clip / ||g||_2) before it is measured, the norm over
            all trained parameters (Abadi et al. 2016, arXiv 1607.00133), so that a sequence adds at most clip² to the trace
            before means are taken. None bounds nothing; a warning says where one sequence makes more than a quarter of the
            trace, and the others' norm. Norms come first: twice the time. mc is then squared by sequence. Not with exact.

    Returns:
        float32, on the model's device, with all of the above in `info`, and in `largest_share` the part of the trace that one
        sequence makes (of mc: one batch; `largest_of`), from row `largest_row`. The model and all random states are as before.

    Raises:
        InputError: wrong arguments or rows, nothing to train, no counted token, a model sharded already; `partial` with
            an iterator or with several processes.
        RunError: the result is not finite.
    """
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    parameters, started = dict(tensors.trainable(model)), time.perf_counter()
    _check(model, parameters)
    check_arguments(kind, samples, batch_size, normalize, seed, floor, rtol, autocast, clip)
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    rows = Rows(data, samples, first, *ranks(), vocabulary(model))
    provenance = _provenance(model, parameters)
    inputs = [provenance, kind, batch_size, seed, rtol, first, autocast, clip]
    kept = Partial(partial, data, samples, inputs) if partial else None
    with untouched(model), tensors.own_precision(model), torch.enable_grad():
        add = _estimator(kind, Work(model, parameters, sums, seed, autocast, clip))
        batches = rows.batches(batch_size, _device(model))
        counts = _accumulate(add, batches, sums, KINDS[kind]["level"], rtol, progress, kept)
    counts = _reduce(sums, counts, _device(model))
    add.tail.reduce()
    read = agreed(rows.digest)  # where rtol stopped, ranks have read on differently
    info = {"kind": kind, **KINDS[kind], "method": add.method, "seed": seed, "autocast": autocast, "data_digest": read}
    info |= _counts(counts)
    _divide(sums, info)
    info |= shares(add.tail, info["moments"][2], add.unit, clip)
    warn(info, info["moments"][2])
    info |= provenance | {"seconds": time.perf_counter() - started + (kept.earlier if kept else 0.0)}
    return Importance(sums, info).finished(normalize, floor)


def _check(model: nn.Module, parameters: Parameters) -> None:
    if not parameters:
        raise InputError("fisher: the model has no trainable parameter; set requires_grad on those to protect")
    if any(tensors.local(parameter) is not parameter for parameter in parameters.values()):
        raise InputError("fisher: the model is sharded, and gradients are means over ranks; compute it before FSDP wraps it")
    if hasattr(base(model), "get_output_embeddings"):  # of transformers
        check_causal(model, "fisher")


def _divide(sums: Named, info: Info) -> None:
    """Sums -> means, over tokens or sequences."""
    if not info["tokens"]:
        raise InputError("fisher: no row has a counted token; a row needs two tokens, and a label that is not -100")
    if not math.isfinite(info["moments"][2]):
        raise RunError(f"fisher: the trace is {info['moments'][2]}; are the weights finite, and the dtype wide enough?")
    count = info["tokens"] if info["level"] == "token" else info["sequences"]
    for value in sums.values():
        value.div_(count).clamp_(min=0)  # a tied tensor's (A + B)² - B² may round below


def _provenance(model: nn.Module, parameters: Parameters) -> Info:
    config: Any = getattr(model, "config", None)
    text = config.to_json_string() if hasattr(config, "to_json_string") else repr(config)
    return {
        "anchor_digest": tensors.digest(parameters),
        "model": getattr(config, "_name_or_path", "") or type(model).__name__,
        "config_digest": hashlib.sha256(text.encode()).hexdigest(),
        "dtype": ",".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()})),
        "cltk": getattr(sys.modules["cltk"], "__version__", "unknown"),
    }


def _accumulate(
    add: Any,
    batches: Iterator[Batch],
    sums: Named,
    level: str,
    rtol: float | None,
    progress: Callable[[int], None] | None,
    partial: Partial | None,
) -> list[float]:
    """Adds every batch to `sums`. Returns [tokens, sequences, *moments] (see relative_se)."""
    counts = partial.resume(add, batches, sums) if partial else [0.0] * 8
    before = trace(sums)
    while not _enough(counts, rtol, _device_of(sums)):
        batch = next(batches, None)
        if batch is not None:
            add(batch)
            after = trace(sums)
            n, t = batch.tokens if level == "token" else len(batch.indices), after - before
            for i, value in enumerate((batch.tokens, len(batch.indices), 1, n, t, t * t, t * n, n * n)):
                counts[i] += value
            before = after
            if add.unit == "batch":
                add.tail.see([(batch.indices[0], t)])
            if partial:
                partial.keep(add, sums, counts, batch.indices[-1] + 1)
            if progress:
                progress(int(counts[1]))
        if not _any(batch is not None, rtol, _device_of(sums)):
            break
    return counts


def _enough(counts: list[float], rtol: float | None, device: torch.device) -> bool:
    """Whether the estimate of all ranks together is good enough to stop; every rank must ask."""
    if rtol is None:
        return False
    _, _, *moments = _total(counts, device)
    error = relative_se(moments)
    return moments[0] >= MIN_BATCHES and error is not None and error <= rtol


def _any(more: bool, rtol: float | None, device: torch.device) -> bool:
    """Whether a rank had a batch. Without rtol ranks do not wait for one another: each goes by its own."""
    return more if rtol is None else _total([float(more)], device)[0] > 0


def _reduce(sums: Named, counts: list[float], device: torch.device) -> list[float]:
    if ranks()[1] == 1:
        return counts
    for value in sums.values():
        on_group(dist.all_reduce, value)
    return _total(counts, device)


def _total(counts: list[float], device: torch.device) -> list[float]:
    """The sum over ranks."""
    if ranks()[1] == 1:
        return counts
    total = torch.tensor(counts, dtype=torch.float64, device=device)
    on_group(dist.all_reduce, total)
    return [float(value) for value in total.tolist()]


def _device_of(sums: Named) -> torch.device:
    return next(iter(sums.values())).device


def _counts(counts: list[float]) -> Info:
    tokens, sequences, *moments = counts
    info = {"tokens": int(tokens), "sequences": int(sequences), "batches": int(moments[0])}
    return {**info, "moments": moments, "relative_se": relative_se(moments)}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _estimator(kind: str, work: Work) -> Any:
    if kind == "exact":
        return Exact(work)
    return Sampled(work) if kind == "mc" and work.clip is None else PerSequence(work, kind)
