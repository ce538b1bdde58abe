"""Importance over a stream of trainings, or without labels: online EWC and MAS. The penalty is EWC's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cltk.data.readers import Row
from cltk.errors import InputError
from cltk.importance.fisher import Importance, update
from cltk.mitigate.anchored import Anchored
from cltk.mitigate.interface import Plan
from cltk.mitigate.memory import labelled
from cltk.mitigate.quadratic import EWC
from cltk.mitigate.source import importance_of, summary


def sample(rows: Any, count: int) -> list[Row]:
    """`count` rows at equal distances: {"input_ids", "labels"}; all of them when there are no more."""
    total = len(rows)
    return [labelled(rows[i * total // min(count, total)]) for i in range(min(count, total))]


class OnlineEWC(EWC):
    """EWC over successive trainings with one object: one anchor, the weights now; one importance, decayed and added to.

        L + strength/2 sum_i F_i (theta_i - theta*_i)²
        F <- decay F + F_new,   theta* <- theta,   each time the object is attached again

    The first training uses `importance`, as EWC does. Later ones add the Fisher on a sample of the rows of the training
    that ended, at the weights it ended with: computed at the next attach, where the model is whole and the last training
    of a stream pays nothing. Each F_new has the kind and the normalisation of the first.

    Args:
        strength: lambda, as EWC's; 0 changes no bit and computes nothing.
        importance: of the old data, for the first training; see EWC.
        decay: gamma, 0 (the last training alone) to 1 (keep all). With normalised importance the mean of F grows to
            1 / (1 - decay) at most.
        samples: rows of a training that its Fisher is computed on.
        form, offload: see EWC.

    Raises:
        InputError: decay outside 0 to 1, samples below 1, what EWC raises, or training data without length or input_ids.

    Source: Schwarz et al. 2018 (arXiv 1805.06370); Huszar 2018 (arXiv 1712.03847) on the single anchor.
    """

    name = "online_ewc"

    def __init__(
        self,
        strength: float,
        importance: Importance | Mapping[str, Any] | str | Path | None = None,
        decay: float = 0.95,
        samples: int = 200,
        form: str = "gradient",
        offload: bool = False,
    ) -> None:
        if isinstance(strength, str):
            raise InputError(f"online_ewc: strength is {strength!r}; give a finite number >= 0")
        super().__init__(strength, importance, form, offload)
        if not 0 <= decay <= 1 or samples < 1:
            raise InputError(f"online_ewc: decay must be from 0 to 1 and samples at least 1; got {decay} and {samples}")
        self.decay, self.samples = decay, samples
        self.carried: Importance | None = None  # the sum so far, as of the last setup
        self.rows: list[Row] = []  # of the training that runs, or ended
        self.trainings = 0

    def setup(self, plan: Plan) -> None:
        if not self.strength:
            return
        if not hasattr(plan.data, "__len__") or not len(plan.data) or "input_ids" not in plan.data[0]:
            raise InputError("online_ewc: the trainer's data must have a length and hold tokenised rows with input_ids")
        Anchored.setup(self, plan)
        if self.carried is None:
            found = importance_of(self.source, plan)
        else:
            new = importance_of({**self._arguments(self.carried), "memory": self.rows, "samples": None}, plan)
            found = update(self.carried, new, self.decay)
        self.carried, self.trainings = found, self.trainings + 1
        self.rows = sample(plan.data, self.samples)
        self.importance = {name: self._parked(value) for name, value in found.items()}
        note = {"strength": self.strength, "form": self.form, "decay": self.decay, "training": self.trainings}
        plan.notes[self.name] = {**note, **summary(found)}

    def _arguments(self, found: Importance) -> dict[str, Any]:
        """Those of fisher() that the first importance was made with; what an object or a file does not say is the default."""
        if isinstance(self.source, Mapping) and "memory" in self.source:
            return {key: value for key, value in self.source.items() if key != "block"}
        info = {"normalize": None, **found.info}
        keys = ("kind", "seed", "floor", "normalize", "clip")
        return {key: info[key] for key in keys if key in info and info[key] != "given"}

    def state_dict(self) -> dict[str, Any]:
        """The sum so far and the rows: a stream that was cut goes on with them. Rows are one tensor [2, all tokens]."""
        if self.carried is None:
            return {}
        ids = [token for row in self.rows for token in row["input_ids"]]
        labels = [token for row in self.rows for token in row["labels"]]
        return {
            "trainings": self.trainings, "info": self.carried.info, "importance": dict(self.carried),
            "lengths": [len(row["input_ids"]) for row in self.rows], "rows": torch.tensor([ids, labels]),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trainings = int(state["trainings"])
        self.carried = Importance(state["importance"], state["info"])
        ids, labels = (part.split(state["lengths"]) for part in state["rows"])
        self.rows = [{"input_ids": i.tolist(), "labels": n.tolist()} for i, n in zip(ids, labels, strict=True)]
        self._weigh({name: self._parked(value) for name, value in self.carried.items()})


class MAS(EWC):
    """Memory-aware synapses: EWC's penalty, with an importance that needs no labels: how much the outputs move.

        L + strength/2 sum_i Omega_i (theta_i - theta*_i)²,   Omega_i = mean over sequences |d sum_t ||logits_t||² / d theta_i|

    The paper has no 1/2: its lambda is strength/2. Omega is divided by its mean, so that strength compares with L2-SP's.

    Args:
        strength: 0 changes no bit and computes nothing.
        memory: text or rows of what shall be kept; see `cltk.data.memory_rows`. Any text does, the outputs are its own.
        samples: sequences used at most.
        block: tokens of a sequence, when the memory is text.
        form, offload: see EWC.
        clip: the largest norm of a sequence's gradient in Omega; see `cltk.fisher`.

    Raises:
        InputError: no memory, or what EWC raises.

    Source: Aljundi et al. 2018 (arXiv 1711.09601).
    """

    name = "mas"

    def __init__(
        self,
        strength: float,
        memory: Any = None,
        samples: int = 500,
        block: int = 256,
        form: str = "gradient",
        offload: bool = False,
        clip: float | None = None,
    ) -> None:
        if isinstance(strength, str):
            raise InputError(f"mas: strength is {strength!r}; give a finite number >= 0")
        if memory is None and strength:
            raise InputError("mas: no memory; give a path, texts or rows of the old data")
        arguments = {"memory": memory, "samples": samples, "block": block, "kind": "mas"} if strength else None
        if arguments is not None and clip is not None:
            arguments["clip"] = clip
        super().__init__(strength, arguments, form, offload)
