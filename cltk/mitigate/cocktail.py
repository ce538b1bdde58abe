"""LM-Cocktail: the tuned model mixed with others, weighted by their loss on a few examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cltk import tensors
from cltk.errors import InputError
from cltk.forward.causal import check_causal
from cltk.forward.probe import mean_nll
from cltk.mitigate.averaging import FromStart, fitting, mixture
from cltk.mitigate.interface import Plan, Run
from cltk.mitigate.memory import old_rows, probe_rows
from cltk.ranks import agreed


class LMCocktail(FromStart):
    """Average the start model, the tuned model and further ones, weighted by how well each does on a few examples.

        theta = sum_k w_k theta_k,   w = softmax(-loss / temperature),   loss_k: mean NLL of the examples under model k

    The tuned model is one of them, as in the released `mix_models_with_data`. With `alpha` it has a share of its own and the
    softmax goes over the others, as the paper prints it:

        theta = alpha theta_tuned + (1 - alpha) sum_k w_k theta_k

    Args:
        models: further fine-tunes of the start model: folders, hub ids, asset:NAME. They wait in memory as float32.
        memory: the examples: rows or text of what the result shall be good at; validation rows when not given.
        temperature: above 0; small picks the best model alone, large weighs all the same.
        limit: examples used, from the first.
        alpha: the tuned model's share, 0 to 1 (0.5 in the paper); None leaves it to the softmax.

    Raises:
        InputError: temperature not above 0, limit below 1, alpha outside 0 to 1, no examples, or a model that is
            no fine-tune of this one.

    Source: Xiao et al. 2023 (arXiv 2311.13534).
    """

    once = True

    name = "lm_cocktail"

    def __init__(
        self,
        models: Sequence[str | Path] = (),
        memory: Any = None,
        temperature: float = 1.0,
        limit: int = 16,
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0 or limit < 1:
            raise InputError(f"lm_cocktail: temperature must be above 0 and limit at least 1; got {temperature} and {limit}")
        if alpha is not None and not 0 <= alpha <= 1:
            raise InputError(f"lm_cocktail.alpha: must be between 0 and 1, got {alpha}")
        self.models, self.memory, self.temperature, self.limit = list(models), memory, temperature, limit
        self.alpha = alpha
        self.others: list[tensors.Named] = []
        self.losses: dict[str, float] = {}

    def setup(self, plan: Plan) -> None:
        """All but the tuned model is at hand now: their losses are taken here."""
        super().setup(plan)
        rows = plan.validation if self.memory is None else old_rows("lm_cocktail", self.memory, plan, limit=self.limit)
        check_causal(plan.model, "lm_cocktail")
        self.rows = probe_rows(rows, self.limit, "lm_cocktail.memory")
        self.losses, self.others = {"start": mean_nll(plan.model, self.rows)}, []
        for spec in self.models:
            model, weights = fitting(spec, self.anchor, "lm_cocktail.models")
            self.losses[str(spec)] = mean_nll(model, self.rows)
            self.others.append({name: weight.cpu() for name, weight in weights.items()})
        self.notes = plan.notes.setdefault("lm_cocktail", {"rows": len(self.rows), "temperature": self.temperature})

    def finish(self, run: Run) -> None:
        losses = agreed([*self.losses.values(), mean_nll(run.model, self.rows)])
        if self.alpha is None:
            *weights, own = mixture(losses, self.temperature)
        else:
            own = self.alpha
            weights = [(1 - own) * weight for weight in mixture(losses[:-1], self.temperature)]
        for name, parameter, start in self.pairs(run):
            mixed = own * parameter.data.float() + weights[0] * start.float()
            for weight, other in zip(weights[1:], self.others, strict=True):
                mixed += weight * tensors.like(parameter, other[name])
            parameter.data.copy_(mixed)
        names = [*self.losses, "tuned"]
        self.notes |= {
            "losses": dict(zip(names, losses, strict=True)),
            "weights": dict(zip(names, [*weights, own], strict=True)),
        }
