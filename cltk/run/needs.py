"""What each mitigator holds in memory, in copies of the trained parameters: the table behind `cltk estimate`.

Copies are sharded as the parameters are (FSDP) unless they are called whole: these every GPU, or every process, holds in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class Needs:
    """Beside plain training."""

    own: float = 0.0  # copies of the trained parameters in their dtype, all through training
    wide: float = 0.0  # float32 copies
    step: float = 0.0  # copies around the optimiser's step
    host: float = 0.0  # copies in CPU memory, in their dtype
    host_wide: float = 0.0  # and in float32
    parked: float = 0.0  # whole copies that wait in CPU memory under FSDP, in their dtype
    parked_wide: float = 0.0  # and in float32
    aside: float = 0.0  # whole float32 copies in CPU memory
    whole: float = 0.0  # whole copies on every GPU of what training changes in the plain model: under LoRA all of it
    frozen: float = 0.0  # whole copies of the model on every GPU
    logits: int = 0  # bytes for each counted token and vocabulary entry
    old: tuple[tuple[int | None, int], ...] = ()  # (rows, tokens) of passes over old data; None: the trainer's batch
    keep: float = 0.0  # OSFT's share of singular directions
    unknown: frozenset[str] = field(default_factory=frozenset)

    def second(self, batch: int) -> int:
        """Tokens of old rows whose activations stand beside the batch's."""
        return sum((rows or batch) * tokens for rows, tokens in self.old)

    def floats(self, shape: Any) -> float:
        """OSFT's bases: K (out + in) for each matrix of a layer, K = keep min(out, in)."""
        h, q, k, m = shape.hidden, shape.query, shape.shared, shape.inner
        matrices = [(q, h), (k, h), (k, h), (h, q), *([(m, h), (h, m)] + ([(m, h)] if shape.gated else []))]
        return self.keep * shape.layers * sum((a + b) * min(a, b) for a, b in matrices)


NONE = Needs()
PENALTY = Needs(own=1, wide=1, parked=1, parked_wide=1)  # anchors and importance
START = Needs(whole=1)  # the start weights, for an average at the end
NEEDS: dict[str, Needs] = {
    "a_gem": Needs(own=1), "dare": START, "der_pp": Needs(logits=16), "early_stopping": Needs(host=1), "ema": Needs(wide=1),
    "ewc": PENALTY, "freeze": NONE, "gem": Needs(own=1), "hft": NONE, "kl": Needs(frozen=1, logits=16),
    "l2_sp": Needs(own=1, parked=1), "lm_cocktail": START, "lora": NONE, "low_lr": NONE, "lwf": Needs(frozen=1, logits=16),
    "mas": PENALTY, "mofo": Needs(step=1), "online_ewc": PENALTY, "osft": Needs(keep=0.5), "replay": NONE, "replay_loss": NONE,
    "reservoir": NONE, "rewarm": NONE, "rwalk": replace(PENALTY, own=2, wide=4, step=2), "sam": Needs(own=1),
    "self_replay": NONE, "si": replace(PENALTY, wide=2, step=2), "task_arithmetic": START, "ties": START, "token_weights": NONE,
    "ulmfit": NONE, "wise_ft": START,
}  # fmt: skip


def split(entry: Any) -> tuple[str, dict[str, Any]]:
    """A YAML entry's name and arguments."""
    if isinstance(entry, dict):
        name, arguments = next(iter(entry.items()))
        return str(name), arguments if isinstance(arguments, dict) else {}
    return str(entry), {}


def needs_of(entries: Sequence[Any]) -> Needs:
    """The sum over a list of mitigators, as their arguments change it."""
    total, adapters = Needs(), False
    for name, arguments in map(split, entries):
        one = _adjusted(name, arguments, adapters)
        adapters = adapters or (name == "lora" and arguments.get("r", 16) > 0)
        sums = {
            f.name: getattr(total, f.name) + getattr(one, f.name) for f in fields(Needs) if f.name not in ("keep", "unknown")
        }
        total = Needs(**sums, keep=max(total.keep, one.keep), unknown=total.unknown | ({name} - set(NEEDS)))
    return total


def _adjusted(name: str, arguments: dict[str, Any], adapters: bool) -> Needs:
    one = NEEDS.get(name, NONE)
    off: Callable[[str], bool] = lambda key: key in arguments and not arguments[key]  # noqa: E731
    if off("strength") or off("rho") or off("keep"):
        return NONE
    if arguments.get("offload"):
        one = replace(one, own=0, wide=0, host=one.own, host_wide=one.wide)
    if name in ("kl", "lwf") and adapters:
        one = replace(one, frozen=0)  # the model without its adapters is the start model
    if name in ("replay_loss", "der_pp") or (name == "kl" and (arguments.get("memory") or arguments.get("prompts"))):
        one = replace(one, old=((arguments.get("batch_size"), int(arguments.get("length", 256))),))
    if (name == "der_pp" and arguments.get("top_k", 64) is None) or arguments.get("setting") in ("stm", "flow"):
        one = replace(one, frozen=1)
    more = arguments.get("models") or arguments.get("others") or ()
    one = replace(one, aside=float(len(more)))
    if name == "gem":
        one = replace(one, own=float(max(1, len(arguments.get("memories") or ()))))
    if name == "osft":
        one = replace(one, keep=float(arguments.get("keep", 0.5)))
    return one
