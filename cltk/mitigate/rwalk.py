"""RWalk: EWC's Fisher and a score of the path, how much the loss fell for each unit of KL divergence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cltk import tensors
from cltk.errors import InputError
from cltk.importance.fisher import Importance
from cltk.mitigate.anchored import Anchored
from cltk.mitigate.interface import Plan, Run
from cltk.mitigate.path import Tracker, check_names, mean_of
from cltk.mitigate.quadratic import EWC


def per_divergence(path: Tensor, moved: Tensor, fisher: Tensor, xi: float) -> Tensor:
    """RWalk: max(omega, 0) / (F moved² / 2 + xi): the loss's fall for each unit of KL divergence that the move made."""
    return path.clamp(min=0) / (fisher * moved.float().square() / 2 + xi)


class RWalk(EWC):
    """Riemannian walk: EWC's penalty with the Fisher plus a path score: the loss's fall for each unit of KL divergence.

        L + strength/2 sum_i (F_i + s_i) (theta_i - theta*_i)²
        s_i += max(omega_i, 0) / (F_i moved_i² / 2 + xi)      every `interval` steps, omega and moved over these

    F is EWC's, of the old data, so that the first training is EWC to the bit; s comes from the trainings that this object
    was attached to before. Between trainings s is scaled to the mean of F and averaged half and half with the earlier one
    (the paper scales both to a maximum of 1, which one outlier decides; and has no 1/2: its lambda is strength/2).

    Args:
        strength: lambda, as EWC's; 0 changes no bit and computes nothing.
        importance: of the old data; see EWC.
        alpha: above 0, F in the divergence is a running mean of squared batch gradients, F <- alpha g² + (1 - alpha) F
            (EWC++; an empirical Fisher of batches, not a sampled one), and half of it, at F's mean, joins F at the end.
        interval: steps between scores.
        xi: keeps weights that hardly moved from scoring high.
        log_every: steps between log lines of the penalty; 0 for none.

    Raises:
        InputError: what EWC raises; alpha outside [0, 1], interval below 1, xi not above 0; or a later training with other
            parameters.

    Source: Chaudhry et al. 2018 (arXiv 1801.10112).
    """

    name = "rwalk"

    def __init__(
        self,
        strength: float,
        importance: Importance | Mapping[str, Any] | str | Path | None = None,
        alpha: float = 0.0,
        interval: int = 10,
        xi: float = 1e-8,
        log_every: int = 10,
    ) -> None:
        if isinstance(strength, str):
            raise InputError(f"rwalk: strength is {strength!r}; give a finite number >= 0")
        super().__init__(strength, importance, "gradient", False, log_every)
        if not 0 <= alpha <= 1 or interval < 1 or not xi > 0:
            raise InputError(f"rwalk: alpha from 0 to 1, interval at least 1, xi above 0; got {alpha}, {interval}, {xi}")
        self.alpha, self.interval, self.xi = alpha, interval, xi
        self.fisher: dict[str, Tensor] = {}  # carried from training to training, whole
        self.score: dict[str, Tensor] = {}
        self.tracker = Tracker([])
        self.begun = False  # whether a gradient was seen in this training
        self.running: dict[str, list[Tensor]] = {}  # of this training, as the parameters are placed

    def setup(self, plan: Plan) -> None:
        if not self.fisher:
            super().setup(plan)
            self.fisher = dict(self.importance or {})
            return
        Anchored.setup(self, plan)
        check_names(self.name, self.fisher, self.anchors)
        self.importance = self._weights()
        plan.notes["rwalk"] = {"strength": self.strength, "mean": mean_of(self.importance), "alpha": self.alpha, "xi": self.xi}

    def _weights(self) -> dict[str, Tensor]:
        return {name: F + self.score[name].to(F.device) if self.score else F for name, F in self.fisher.items()}

    def start(self, run: Run) -> None:
        super().start(run)
        params = self.columns[0]
        self.tracker, self.begun = Tracker(params), False
        self.running = {"score": [torch.zeros_like(path) for path in self.tracker.path]}
        self.running["mark"] = [p.detach().clone() for p in params]
        if self.alpha:
            self.running["mean_square"] = [torch.zeros_like(path) for path in self.tracker.path]
        else:
            self.running["fisher"] = [tensors.like(p, self.fisher[name]) for p, name in zip(params, self.names, strict=True)]

    def grad(self, run: Run) -> None:
        self.tracker.before()
        alpha = self.alpha if self.begun else 1.0  # the first square is the mean so far
        self.begun = True
        for p, mean in zip(self.columns[0], self.running.get("mean_square", []), strict=False):
            if p.grad is not None:
                g = tensors.local(p.grad).float()
                tensors.local(mean).mul_(1 - alpha).addcmul_(g, g, value=alpha)
        super().grad(run)

    def step(self, run: Run) -> None:
        self.tracker.after()
        if run.step % self.interval == 0:
            self._score()

    def _score(self) -> None:
        """Close the window: its score is added, the next one starts at the weights now."""
        fisher = self.running["mean_square" if self.alpha else "fisher"]
        columns = (self.columns[0], self.tracker.path, self.running["score"], self.running["mark"], fisher)
        for row in zip(*columns, strict=True):
            p, path, score, mark, F = (tensors.local(tensor.detach()) for tensor in row)
            score.add_(per_divergence(path, p.float() - mark.float(), F, self.xi))
            path.zero_()
            mark.copy_(p)

    def finish(self, run: Run) -> None:
        if not self.strength:
            return
        self._score()  # of a window that was open
        found = {
            key: {name: tensors.whole(value) for name, value in zip(self.names, self.running[key], strict=True)}
            for key in ("score", "mean_square")
            if key in self.running
        }
        level = mean_of(self.fisher)
        score = _scaled(found["score"], level)
        self.score = _half(self.score, score) if self.score else score
        if self.alpha:
            self.fisher = _half(self.fisher, _scaled(found["mean_square"], level))
        self.tracker, self.running, self.columns = Tracker([]), {}, ([], [], None)

    def state_dict(self) -> dict[str, Any]:
        if not self.strength:
            return {}
        rows = {**{key: value for key, value in self.running.items() if key != "fisher"}, "path": self.tracker.path}
        kept = {key: {n: tensors.whole(t) for n, t in zip(self.names, column, strict=False)} for key, column in rows.items()}
        return {"running": kept, "fisher": self.fisher, **({"earlier": self.score} if self.score else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fisher, self.score, self.begun = state["fisher"], state.get("earlier", {}), True
        self._weigh(self._weights())
        rows = {**self.running, "path": self.tracker.path}
        for key, values in state["running"].items():
            for name, tensor in zip(self.names, rows[key], strict=True):
                tensor.copy_(tensors.like(tensor, values[name]))
        if "fisher" in self.running:
            self.running["fisher"] = [tensors.like(p, self.fisher[n]) for p, n in zip(self.columns[0], self.names, strict=True)]


def _scaled(named: tensors.Named, mean: float) -> tensors.Named:
    """The same proportions with this mean; all zero stays so."""
    found = mean_of(named)
    return {name: value * (mean / found) for name, value in named.items()} if found > 0 else named


def _half(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> tensors.Named:
    return {name: (a[name].to(value.device) + value) / 2 for name, value in b.items()}
