"""A model that is as before, whatever happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cltk.measure.prompting import own_randomness


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Whatever happens inside, the model's modes and every random state are as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        with own_randomness():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
