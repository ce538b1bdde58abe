"""Every method under DDP, FSDP2 and DeepSpeed on two gloo processes, against one process; one launch an engine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from cltk.mitigate import catalog
from tests.distributed import worker
from tests.distributed.launch import launch
from tests.mitigator_cases import CASES

pytestmark = pytest.mark.slow

# What these add depends on which rows share a rank or a micro-batch: one process is another training.
BY_RANK = {
    "ewc": "labels of the mc Fisher are drawn batch by batch", "online_ewc": "as ewc", "rwalk": "as ewc",
    "token_weights": "compares a micro-batch's tokens",
}  # fmt: skip
SETTINGS = [f"{accumulation}-{setting}" for accumulation in (1, 4) for setting in ("clip", "free")]
PENALTIES = [f"penalty-{how}-{setting}" for how in ("ewc", "l2_sp") for setting in SETTINGS]
AUTOGRAD = [f"penalty-autograd-{setting}" for setting in SETTINGS]
NARROW = [f"penalty-{how}-{n}-{setting}" for how in ("ewc", "none") for n in (1, 4) for setting in ("bf16", "bf16first")]
WRAPPERS = {"ddp": "DistributedDataParallel", "fsdp2": "FSDPLlamaForCausalLM"}
ZERO = ["zero1", "zero2", "zero3"]
with_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install cltk-forgetting[deepspeed]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any, tiny: Any, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("start")
    tiny().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one(folder: Path) -> Iterator[Callable[[str], dict[str, Any]]]:
    """one(job): its outcome in this process, on the rows of both ranks."""
    known: dict[str, dict[str, Any]] = {}

    def outcome(job: str) -> dict[str, Any]:
        if job not in known:
            gc.freeze()  # Trainer collects garbage after each training
            known[job] = worker.outcome("single", folder, job)
        return known[job]

    yield outcome
    gc.unfreeze()


@pytest.fixture(scope="module")
def two(folder: Path) -> Callable[[str, str], list[dict[str, Any]]]:
    """two(engine, job): its outcome on both ranks; all jobs of an engine run in one launch."""
    known: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def outcomes(engine: str, job: str) -> list[dict[str, Any]]:
        if engine not in known:
            known[engine] = launch(engine, folder, [*CASES, *PENALTIES, *NARROW, *([] if engine in ZERO else AUTOGRAD)])
        found = known[engine][job]
        assert "broke" not in found[0], f"{job}: {found[0]['broke']}"
        return found

    return outcomes


def distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    assert a["weights"].keys() == b["weights"].keys()
    return max(float((x - b["weights"][name]).abs().max()) for name, x in a["weights"].items())


def check_refusal(found: list[dict[str, Any]], name: str, engine: str) -> None:
    """It is the same on all ranks, names the alternative, and the method's card does not promise the engine."""
    assert all(rank.get("refused") == found[0]["refused"] for rank in found)
    assert "use " in found[0]["refused"], f"{name} names no alternative: {found[0]['refused']}"
    assert engine not in catalog.card(name).engines


@pytest.mark.parametrize("name", CASES)
def test_ddp_replicas_stay_equal_and_equal_one_process(name: str, one: Any, two: Any) -> None:
    first, second = two("ddp", name)
    assert first["engine"] == WRAPPERS["ddp"] or name == "lora"  # merged: a plain model again
    for key, value in first["weights"].items():
        assert torch.equal(value, second["weights"][key]), f"{name}: ranks differ in {key}"
    if name not in BY_RANK:
        assert distance(first, one(name)) < 1e-6, name
    assert "DDP" in catalog.card(name).engines


@pytest.mark.parametrize("name", CASES)
def test_fsdp2_equals_whole_replicas(name: str, one: Any, two: Any) -> None:
    found = two("fsdp2", name)
    if "refused" in found[0]:
        return check_refusal(found, name, "FSDP2")
    assert found[0]["engine"] == WRAPPERS["fsdp2"]
    assert distance(found[0], found[1]) == 0
    assert distance(found[0], two("ddp", name)[0]) < 1e-6, f"{name}: not DDP's weights"
    assert name in BY_RANK or distance(found[0], one(name)) < 1e-6, f"{name}: not one process's weights"
    assert "FSDP2" in catalog.card(name).engines


@pytest.mark.parametrize("job", PENALTIES)
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_penalty_is_what_autograd_gives(engine: str, job: str, one: Any, two: Any) -> None:
    found, setting = two(engine, job)[0], job.split("-", 2)[2]
    if "ewc" in job:
        assert distance(found, one(f"penalty-autograd-{setting}")) < 1e-6
        assert distance(found, two(engine, f"penalty-autograd-{setting}")[0]) < 1e-6
    assert distance(found, one(job)) < 1e-6
    assert distance(found, one(f"penalty-none-{setting}")) > 1e-4  # it matters here


BF16_ENGINES = ["single", "ddp", "fsdp2", *(pytest.param(engine, marks=with_deepspeed) for engine in ZERO)]


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("engine", BF16_ENGINES)
def test_penalty_under_bfloat16(engine: str, accumulation: int, folder: Path, one: Any, two: Any) -> None:
    """Second step of SGD: with the penalty less without it is -lr strength F (theta_1 - theta*).

    Autograd is no reference here: FSDP2 leaves its root's parameters rounded after forward, where a loss would take them.
    """

    def weights(how: str, setting: str) -> dict[str, Any]:
        job = f"penalty-{how}-{accumulation}-{setting}"
        return (one(job) if engine == "single" else two(engine, job)[0])["weights"]

    model, first = worker.start(folder)[0], weights("none", "bf16first")
    importance, at = worker.random_importance(model), dict(model.named_parameters())
    assert all(torch.equal(value, first[name]) for name, value in weights("ewc", "bf16first").items())  # none at the start
    seen = (lambda x: x.bfloat16().float()) if engine in ZERO else (lambda x: x)
    ours, without = weights("ewc", "bf16"), weights("none", "bf16")
    rate = 0.025  # half of 0.05: the linear schedule's second of two steps
    expected = {
        name: -rate * worker.STRENGTH * importance[name] * (seen(first[name]) - seen(at[name].detach())) for name in ours
    }
    errors, pulls = (torch.cat([part[name].flatten() for name in ours]) for part in (
        {name: ours[name] - without[name] - expected[name] for name in ours}, expected,
    ))  # fmt: skip
    assert errors.norm() < (0.05 if engine in ZERO else 1e-3) * pulls.norm()  # DeepSpeed adds in bfloat16


@with_deepspeed
@pytest.mark.parametrize("job", PENALTIES)
@pytest.mark.parametrize("engine", ZERO)
def test_deepspeed_delivers_penalties_by_hooks(engine: str, job: str, one: Any, two: Any) -> None:
    found = two(engine, job)
    assert found[0]["engine"] == "DeepSpeedEngine"
    assert distance(found[0], found[1]) == 0
    assert distance(found[0], one(job.replace("ewc", "autograd"))) < 1e-6


@with_deepspeed
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("engine", ZERO)
def test_deepspeed_works_or_names_the_alternative(engine: str, name: str, one: Any, two: Any) -> None:
    found = two(engine, name)
    if "refused" in found[0]:
        return check_refusal(found, name, "DeepSpeed")
    assert distance(found[0], found[1]) == 0, f"{name}: ranks differ"
    assert distance(found[0], two("ddp", name)[0]) < 1e-6, f"{name}: not DDP's weights"
    assert "DeepSpeed" in catalog.card(name).engines
