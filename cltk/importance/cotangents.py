"""What a backward pass begins with: gradients of sums over counted positions by the logits, with labels given or drawn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cltk.data.rows import IGNORED
from cltk.importance.sequences import Batch

CHUNK = 2**22  # logits handled at a time when labels are drawn: 16 MiB of float32


def scores(logits_BTV: Tensor, targets_BT: Tensor, uniforms_BT: Tensor | None = None) -> Tensor:
    """d(-sum over counted positions of log p(y)) / d logits = p - onehot(y), 0 elsewhere; y the target, or drawn from p.

    A draw is the first label whose cumulated probability exceeds the position's uniform number.
    """
    V = logits_BTV.shape[-1]
    logits_NV, targets_N = logits_BTV.reshape(-1, V), targets_BT.reshape(-1).to(logits_BTV.device)
    result_NV = torch.zeros_like(logits_NV)
    for rows in (targets_N != IGNORED).nonzero().flatten().split(max(1, CHUNK // V)):
        p_nV = logits_NV[rows].float().softmax(-1)
        y_n = targets_N[rows]
        if uniforms_BT is not None:
            cumulated_nV = p_nV.cumsum(-1)
            u_n = uniforms_BT.reshape(-1).to(p_nV.device)[rows] * cumulated_nV[:, -1]
            y_n = torch.searchsorted(cumulated_nV, u_n[:, None], right=True)[:, 0].clamp_(max=V - 1)
        p_nV[torch.arange(len(rows), device=rows.device), y_n] -= 1
        result_NV[rows] = p_nV.to(result_NV.dtype)
    return result_NV.view_as(logits_BTV)


def outputs(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """d(sum over counted positions of ||logits||²) / d logits = 2 logits, 0 elsewhere."""
    return 2 * logits_BTV * (targets_BT != IGNORED).to(logits_BTV.device)[..., None]


def uniforms(batch: Batch, seed: int) -> Tensor:
    """U(0, 1) numbers, B x T, float32: of each row from (seed, its index) alone, on every machine the same."""
    result_BT = torch.zeros(batch.targets.shape)
    for i, (index, length) in enumerate(zip(batch.indices, batch.lengths, strict=True)):
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
        result_BT[i, :length] = torch.from_numpy(generator.random(length, dtype=np.float32))
    return result_BT
