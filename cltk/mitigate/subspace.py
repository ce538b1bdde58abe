"""Updates outside the old weights' main directions: OSFT. Shapes: M rows, N columns of a matrix, K protected directions.

Experts that are fused in one tensor [E, M, N] are E matrices: every function takes leading dimensions.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from cltk import tensors
from cltk.errors import InputError, RunError
from cltk.mitigate.interface import Mitigator, Plan, Run


class Basis(NamedTuple):
    """The K largest singular directions and values of a matrix, float32."""

    left: Tensor  # U [..., M, K]
    values: Tensor  # S [..., K]
    right: Tensor  # V [..., N, K]


def top_directions(weight_MN: Tensor, keep: float) -> Basis:
    """The round(keep * min(M, N)) largest singular triplets."""
    u, s, vh = torch.linalg.svd(weight_MN.detach().float(), full_matrices=False)
    k = round(keep * s.shape[-1])
    return Basis(u[..., :k].contiguous(), s[..., :k].contiguous(), vh[..., :k, :].mT.contiguous())


Form = Literal["printed", "released"]


def outside(weight_MN: Tensor, basis: Basis, form: Form = "printed") -> Tensor:
    """W without what moved in the protected directions, float32.

    printed: W - U (U^T W V - diag(S)) V^T, the nearest matrix whose U x V block is the old one, diag(S).
    released: U diag(S) V^T + (1 - U U^T) W (1 - V V^T), the nearest with U^T W and W V as they were.
    """
    weight_MN = weight_MN.float()
    if form == "released":
        low_MN = weight_MN - basis.left @ (basis.left.mT @ weight_MN)
        old_MN = (basis.left * basis.values[..., None, :]) @ basis.right.mT
        return old_MN + low_MN - (low_MN @ basis.right) @ basis.right.mT
    moved_KK = basis.left.mT @ weight_MN @ basis.right - torch.diag_embed(basis.values)
    return weight_MN - basis.left @ moved_KK @ basis.right.mT


def linear_weights(model: Any) -> dict[str, nn.Parameter]:
    """The trainable matrices of linear layers and of fused experts [E, M, N] by parameter name: not embeddings, nor a head,
    nor what is tied to them."""
    apart = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        apart.add(id(head.weight))
    owners = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"}
    return {
        tensors.clean(name): p for name, p in model.named_parameters()
        if name in owners and p.requires_grad and id(p) not in apart and p.dim() == 2
    } | {tensors.clean(name): p for name, p in fused_experts(model).items() if p.requires_grad}  # fmt: skip


def fused_experts(model: Any) -> dict[str, nn.Parameter]:
    """Parameters [E, M, N] by name: mixtures of experts keep a matrix of each of E experts in one tensor."""
    return {
        f"{owner}.{name}": p for owner, module in model.named_modules() if not isinstance(module, _CONVOLUTIONS)
        for name, p in module.named_parameters(recurse=False) if p.dim() == 3
    }  # fmt: skip


_CONVOLUTIONS = nn.Conv1d | nn.ConvTranspose1d


class OSFT(Mitigator):
    """Orthogonal subspace fine-tuning: weights move, but not between the start matrix's main singular directions.

        W_0 = U S V^T;   after each step   W <- W - U_h (U_h^T W V_h - diag(S_h)) V_h^T

    with the `keep` largest directions h. Since the projection is linear this takes the protected block out of every
    update, as the optimiser made it (projecting the gradient alone would not: Adam rescales each coordinate). The blocks
    (U_h, V_l) and (U_l, V_h) still move. The authors' released code (mini_trainer) and peft's OSF train low factors that are
    orthogonal to the high ones, so that those blocks stay, too: form="released",

        W <- U_h diag(S_h) V_h^T + (1 - U_h U_h^T) W (1 - V_h V_h^T)

    Args:
        keep: share of singular directions that are protected in every matrix; 0 changes nothing.
        form: "printed", the projection of the paper, or "released".

    Raises:
        InputError: keep outside 0 to 1, an unknown form, or a model without linear layers to train.

    Source: Nayak et al. 2025 (arXiv 2504.07097), who set keep layer by layer; here it is one number.
    """

    def __init__(self, keep: float = 0.5, form: Form = "printed") -> None:
        if not 0 <= keep <= 1:
            raise InputError(f"osft.keep: must be between 0 and 1, got {keep}")
        if form not in get_args(Form):
            raise InputError(f"osft.form: {form!r} is unknown; give one of {', '.join(get_args(Form))}")
        self.keep, self.form = keep, form
        self.bases: dict[str, Basis] = {}

    def setup(self, plan: Plan) -> None:
        """The start model is here and nowhere else: a resumed run begins training with other weights."""
        if not self.keep:
            return
        found = {name: top_directions(weight, self.keep) for name, weight in linear_weights(plan.model).items()}
        self.bases = {name: basis for name, basis in found.items() if basis.values.shape[-1]}
        if not self.bases:
            raise InputError("osft: the model has no linear layer to train whose directions could be kept; raise keep")
        plan.notes["osft"] = {"keep": self.keep, "form": self.form, "matrices": len(self.bases)}

    def start(self, run: Run) -> None:
        named = dict(tensors.trainable(run.model))
        if missing := [name for name in self.bases if name not in named]:
            raise RunError(f"osft: {missing[0]} is no longer trained; put osft behind what freezes or adds parameters")
        for name, basis in self.bases.items():
            self.bases[name] = Basis(*(tensor.to(tensors.local(named[name]).device) for tensor in basis))

    @torch.no_grad()
    def step(self, run: Run) -> None:
        if not self.bases:
            return
        for name, parameter in tensors.trainable(run.model):
            if name in self.bases and parameter.grad is not None:
                moved = outside(tensors.whole(parameter.detach()), self.bases[name], self.form)
                parameter.copy_(tensors.like(parameter, moved.to(parameter.dtype)))
