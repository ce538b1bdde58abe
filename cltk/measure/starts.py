"""The base of a comparison, where a tuned model's predictions are compared with its own: in memory beside it, or remembered."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch

from cltk.measure.bench import Bench, Pair
from cltk.measure.divergence import remember, text_divergence
from cltk.measure.sides import Side, config_of
from cltk.measure.texts import TextTask
from cltk.measure.windows import WINDOW, named_positions


class Start:
    """KL(base || tuned) on texts, of one base and those tuned from it.

    The base stays in memory beside each tuned model, which is fastest; `apart`, or where a tuned model does not fit beside it,
    its predictions are kept on disk and it goes (`Remembered`): the same KL to the last bit. So it is where a model is spread
    over devices (`device_map`), which then are full. An adapter on the base takes no room of its own.

    Args:
        bench: loads the models.
        tuned: all that will be compared.
        rows: of each text; 0: no KL.
    """

    def __init__(
        self, bench: Bench, tuned: Sequence[Side], texts: Sequence[TextTask], rows: int, apart: bool, tell: Any
    ) -> None:
        self.bench, self.tuned, self.texts, self.tell = bench, tuned, texts, tell
        self.rows = rows if texts else 0
        sides = [bench.base, *tuned]
        spread = any(not isinstance(one, tuple) and one.spread is not None for one in sides)
        loose = not isinstance(bench.base, tuple) and not any(bench.shares(one) for one in tuned)
        self.apart = (apart or spread) and loose
        self.kept: list[Pair] = []  # the base, while it is in memory
        self._remembered: list[Pair] = []

    def keep(self, base: Pair) -> None:
        """Called with the base when it has been scored."""
        if self.rows and self.apart:
            self._remember(base)
        elif self.rows:
            self.kept.append(base)

    def divergence(self, held: list[Pair], model: Side, wear: Any) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """`text_divergence` of the base and the tuned model in `held`.

        Where the base had to leave memory unseen, it is loaded once more, alone, and then the tuned model, into `held`.
        """
        if not self.rows:
            return {}, []
        if not self.kept and not self._remembered:
            held.clear()
            free()
            base = self.bench.load(self.bench.base)
            self._remember((base[0], wear(base[1])))
            del base
            free()
            held.append(self.bench.load(model))
        start = self._remembered[0] if self._remembered else self.bench.start(self.kept[0])
        return text_divergence(start, held[0], self.texts, self.rows, self.tell)

    def _remember(self, base: Pair) -> None:
        configs = [config for config in map(config_of, self.tuned) if config is not None]
        sizes = [min(named_positions(config), default=WINDOW) for config in configs]
        self._remembered = [(remember(base, self.texts, self.rows, sizes, self.tell), base[1])]


def free() -> None:
    """Give back what models that nobody holds any more had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
