"""Token reweighting: which tokens teach. Shapes: B rows, T tokens, N counted tokens, S samples, V vocabulary, K of it.

    L = sum_t w_t l_t / sum_t 1          l_t the token's NLL under the model, w_t without gradient

Every rule is a pure function from losses or logits to w_N. All are one family (Lin et al. 2025): w = exp(-l / tau) of a
token or of a sample, under the model or under the start model, as it is or cut to 0 and 1.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cltk.errors import InputError
from cltk.forward.causal import check_causal
from cltk.forward.loss import cross_entropy
from cltk.forward.probe import row_nll
from cltk.mitigate.distill import Reference
from cltk.mitigate.interface import Mitigator, Plan, Run, counted, targets
from cltk.mitigate.memory import labelled

Setting = Literal["stm", "talr", "flow", "dft", "eaft", "random", "none"]
PROBED = 256  # rows of the training data from which flow takes tau and its scale
TINY = 1e-6


def stm(start_N: Tensor, tau: float = 2.5) -> Tensor:
    """1 where the start model's perplexity exp(l) of the token is at most tau, else 0. Source: Wu et al. 2025."""
    return (start_N <= math.log(tau)).float()


def talr(nll_N: Tensor, sample_N: Tensor, tau: float | None = None) -> Tensor:
    """exp(-l / tau) = p^(1/tau) under the model itself; tau: the median of the batch's mean losses of a sample.

    Source: Lin et al. 2025, as reimplemented in public (median of per-sequence NLL, floor 0.01).
    """
    if tau is None:
        tau = max(float(_sample_means(nll_N, sample_N)[sample_N.unique()].median()), TINY)
    return torch.exp(-nll_N / tau)


def flow(start_N: Tensor, sample_N: Tensor, tau: float | None = None) -> Tensor:
    """exp(-l_i / tau), l_i the mean loss of the token's sample under the start model; tau: the median of the batch's l_i.

    Source: Sanyal et al. 2025.
    """
    of_sample_S = _sample_means(start_N, sample_N)
    if tau is None:
        tau = max(float(of_sample_S[sample_N.unique()].median()), TINY)
    return torch.exp(-of_sample_S / tau)[sample_N]


def _sample_means(values_N: Tensor, sample_N: Tensor) -> Tensor:
    sums_S = values_N.new_zeros(int(sample_N.max()) + 1)
    counts_S = torch.zeros_like(sums_S).index_add_(0, sample_N, torch.ones_like(values_N))
    return sums_S.index_add_(0, sample_N, values_N) / counts_S.clamp(min=1)


def dft(nll_N: Tensor) -> Tensor:
    """p = exp(-l) under the model itself. Source: Wu et al. 2025b (arXiv 2508.05629)."""
    return torch.exp(-nll_N)


def eaft(logits_NV: Tensor, top_k: int = 20) -> Tensor:
    """Entropy of the K likeliest tokens, renormalised to sum 1, over ln K: 0 (certain) to 1. Source: Diao et al. 2026."""
    top_NK = F.log_softmax(logits_NV.topk(min(top_k, logits_NV.shape[-1]), -1).values.float(), -1)
    return -(top_NK.exp() * top_NK).sum(-1) / math.log(top_NK.shape[-1])


def random_mask(targets_N: Tensor, sample_N: Tensor, rate: float, seed: int = 0) -> Tensor:
    """0 for about a share `rate` of tokens, else 1; a sample's mask depends on its own target tokens and the seed alone.

    So it is the same in every epoch, in every batch, padded or packed, and after a resume.
    """
    keep_N = torch.empty(len(targets_N))
    tokens, samples = targets_N.cpu(), sample_N.cpu()
    for sample in samples.unique().tolist():
        here = samples == sample
        key = hashlib.sha256(f"{seed}:{tokens[here].tolist()}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
        keep_N[here] = (torch.rand(int(here.sum()), generator=generator) >= rate).float()
    return keep_N.to(targets_N.device)


def samples_of(inputs: dict[str, Tensor]) -> Tensor:
    """The sample [N] of each counted position: rows; in packed rows, the runs between restarts of position_ids."""
    where_BT = counted(inputs)
    starts_BT = torch.zeros_like(where_BT)
    starts_BT[:, 0] = True
    if (positions_BT := inputs.get("position_ids")) is not None:
        starts_BT[:, 1:] = positions_BT[:, 1:] != positions_BT[:, :-1] + 1
    return (starts_BT.flatten().cumsum(0) - 1).view_as(where_BT)[where_BT]


class TokenWeights(Mitigator):
    """Train less on the tokens that pull the model furthest: the loss of each counted token times a weight w.

        L = sum_t w_t l_t / sum_t 1

    exactly, in the trainer's own normalisation over micro-batches and ranks; under label smoothing l_t is the smoothed loss,
    and w as without. A trainer whose loss is no such sum (DPO, a loss of its own) is refused at its first step.

    Args:
        setting: "stm" (mask tokens that the start model finds unlikely), "talr", "flow" (per sample), "dft", "eaft", "random"
            (control: mask a random share; compare stm with it at the share that stm masked, see the record's notes), or
            "none" (changes no bit).
        tau: stm: perplexity above which a token is masked, 2.5; talr and flow: the temperature, the median of the samples'
            mean losses, of the micro-batch (talr) or of the training data (flow).
        floor: smallest weight, before rescaling; 0.01 for talr, else 0.
        top_k: of eaft.
        rate: share that random masks.
        rescale: weights are divided by their mean over the micro-batch's counted tokens, for otherwise the method is a
            lower learning rate too; for flow by the mean over the training data, since a micro-batch may hold one sample.
        seed: of random.

    Raises:
        InputError: an unknown setting, or a number out of its range.

    Sources: Wu et al. 2025 (arXiv 2501.14315), stm; Lin et al. 2025 (arXiv 2509.20758), talr; Sanyal et al. 2025
    (arXiv 2502.02797), flow; Wu et al. 2025b (arXiv 2508.05629), dft; Diao et al. 2026 (arXiv 2601.02151), eaft.
    """

    once = True  # weights of two add up to less than none: a token that both weigh 0 would be trained away from

    def __init__(
        self, setting: Setting, *, tau: float | None = None, floor: float | None = None, top_k: int = 20, rate: float = 0.25,
        rescale: bool = True, seed: int = 0,
    ) -> None:  # fmt: skip
        if setting not in get_args(Setting):
            raise InputError(f"token_weights.setting: {setting!r} is unknown; give one of {', '.join(get_args(Setting))}")
        if (tau is not None and not tau > 0) or not 0 <= (floor or 0) <= 1 or top_k < 2 or not 0 <= rate < 1:
            raise InputError(
                "token_weights: tau must be above 0, floor 0 to 1, top_k at least 2, rate at least 0 and below 1;"
                f" got {tau}, {floor}, {top_k}, {rate}"
            )
        floor = (0.01 if setting == "talr" else 0.0) if floor is None else floor
        self.setting, self.tau, self.floor, self.top_k = setting, tau, floor, top_k
        self.rate, self.rescale, self.seed = rate, rescale, seed
        self.reweighs = setting != "none"
        self.reference: Reference | None = None
        self.scale = 1.0
        self.note: dict[str, Any] = {}
        self.seen = torch.zeros(2, dtype=torch.long)  # counted tokens, and those of weight 0

    def setup(self, plan: Plan) -> None:
        self.note = plan.notes["token_weights"] = {"setting": self.setting}
        self.seen = torch.zeros(2, dtype=torch.long)
        if self.setting != "none":
            check_causal(plan.model, "token_weights", head=True)
        if self.setting == "flow":
            self._measure(plan)
        if self.setting in ("stm", "flow"):
            self.reference = Reference.of(plan)

    def _measure(self, plan: Plan) -> None:
        """tau and the mean weight over up to PROBED rows of the training data, evenly spaced."""
        count = len(plan.data) if hasattr(plan.data, "__len__") else 0
        if not count or "input_ids" not in plan.data[0]:
            raise InputError("token_weights: flow needs training data with a length and tokenised rows with input_ids")
        rows = [labelled(plan.data[i * count // min(count, PROBED)]) for i in range(min(count, PROBED))]
        nll, counts = row_nll(plan.model, rows)
        losses, sizes = torch.tensor(nll, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64)
        self.rows_tau = self.tau or max(float(losses[sizes > 0].median()), TINY)
        weights = torch.exp(-losses / self.rows_tau).clamp(min=self.floor)
        self.scale = float((weights * sizes).sum() / sizes.sum()) if self.rescale else 1.0
        self.note |= {"tau": self.rows_tau, "mean_weight": self.scale, "rows": len(rows)}

    def start(self, run: Run) -> None:
        self.seen = self.seen.to(next(run.model.parameters()).device)
        if self.reference is not None:
            self.reference.place(run)

    def loss(self, inputs: dict[str, Tensor], logits_NV: Tensor) -> Tensor | None:
        if self.setting == "none" or not len(logits_NV):
            return None
        nll_N = host_N = cross_entropy(logits_NV, targets(inputs))
        if smoothing := float(inputs.get("smoothing", 0.0)):
            host_N = F.cross_entropy(logits_NV.float(), targets(inputs), reduction="none", label_smoothing=smoothing)
        with torch.no_grad():
            w_N = self._weights(inputs, logits_NV, nll_N)
            self.seen += torch.stack([torch.ones_like(w_N), w_N == 0]).sum(1).long().to(self.seen.device)
            if self.rescale and self.setting != "flow":
                w_N = w_N / w_N.mean().clamp(min=TINY)
        return ((w_N / self.scale - 1) * host_N).sum() / inputs["divisor"]

    def _weights(self, inputs: dict[str, Tensor], logits_NV: Tensor, nll_N: Tensor) -> Tensor:
        if self.setting == "random":
            w_N = random_mask(targets(inputs), samples_of(inputs), self.rate, self.seed)
        elif self.setting == "eaft":
            w_N = eaft(logits_NV, self.top_k)
        elif self.setting == "stm":
            w_N = stm(self._start_nll(inputs), self.tau or 2.5)
        elif self.setting == "flow":
            w_N = flow(self._start_nll(inputs), samples_of(inputs), self.rows_tau)
        else:
            w_N = dft(nll_N) if self.setting == "dft" else talr(nll_N, samples_of(inputs), self.tau)
        return w_N.clamp(min=self.floor)

    def _start_nll(self, inputs: dict[str, Tensor]) -> Tensor:
        assert self.reference is not None
        logits_NV = self.reference.logits(inputs, counted(inputs))
        return cross_entropy(logits_NV, targets(inputs))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen} if self.setting != "none" else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"].to(self.seen.device)

    def finish(self, run: Run) -> None:
        total, masked = self.seen.tolist()
        if total:
            self.note |= {"tokens": total, "masked": masked / total}
