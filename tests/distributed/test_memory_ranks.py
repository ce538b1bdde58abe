"""What each of two ranks holds while FSDP2 trains, in float32, against `cltk estimate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cltk.run.estimate import Setup, estimate
from cltk.run.shape import meta_model, shape_of
from tests.distributed.launch import RANKS, launch

METHODS = ["plain", "ewc", "kl", "ema", "wise_ft", "si", "early_stopping"]


@pytest.mark.slow
def test_ranks_hold_what_is_estimated(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Behind the optimiser's step: activations are gone, and on a CPU what waits in its memory counts too.

    A whole copy of the weights that outlives their sharding would be a fifth to a half more.
    """
    tiny().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    done = launch("fsdp2", tmp_path, [f"held-{method}" for method in METHODS])
    shape, setup = shape_of(meta_model(tmp_path)), Setup(gpus=RANKS, sharding="fsdp", batch=1, length=1)
    for method in METHODS:
        parts = estimate(shape, setup, [] if method == "plain" else [method])
        expected = parts.weights + parts.gradients + parts.optimizer + parts.mitigators + parts.host
        for rank in done[f"held-{method}"]:
            assert rank.get("held") == pytest.approx(expected, rel=0.05), (method, rank)
