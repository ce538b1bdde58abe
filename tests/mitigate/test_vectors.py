"""Task vectors against loops over every element; the classes and merge() on tiny models."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cltk
from cltk import tensors
from cltk.errors import InputError
from cltk.mitigate import merging, vectors
from cltk.mitigate.vectors import DARE, TIES, TaskArithmetic, merge
from tests.mitigate.test_averaging import train, weights_of

SHAPES = {"a": (3, 4), "b": (5,), "c": ()}


def drawn(seed: int) -> tensors.Named:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def flat(vector: Any) -> list[float]:
    return [value for name in SHAPES for value in vector[name].reshape(-1).tolist()]


TAUS = [drawn(0), drawn(1), drawn(2)]


# --- the pure functions


def test_a_sum() -> None:
    expected = [sum(column) for column in zip(*map(flat, TAUS), strict=True)]
    assert flat(merging.added(TAUS)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.9])
def test_trimming_keeps_the_largest_of_the_whole_vector(density: float) -> None:
    values = flat(TAUS[0])
    order = sorted(range(len(values)), key=lambda i: -abs(values[i]))
    kept = set(order[: max(1, round(density * len(values)))])
    assert flat(merging.trimmed(TAUS[0], density)) == [value if i in kept else 0.0 for i, value in enumerate(values)]


def test_trimming_keeps_ties_and_all_at_density_one() -> None:
    same = {"a": torch.tensor([1.0, -1.0, 1.0, 0.0])}
    assert merging.trimmed(same, 0.25)["a"].tolist() == [1, -1, 1, 0]
    assert merging.trimmed(same, 1.0)["a"] is same["a"]


def test_ties_is_trim_elect_and_disjoint_mean() -> None:
    columns = [flat(merging.trimmed(tau, 0.5)) for tau in TAUS]
    expected = []
    for values in zip(*columns, strict=True):
        sign = 1 if sum(values) > 0 else -1
        agree = [value for value in values if value * sign > 0]
        expected.append(sum(agree) / len(agree) if agree else 0.0)
    assert flat(merging.ties(TAUS, 0.5)) == pytest.approx(expected, abs=1e-6)
    assert flat(merging.ties(TAUS, 0.5)) != pytest.approx([sum(values) / 3 for values in zip(*columns, strict=True)])


def test_magmax_takes_the_largest_change() -> None:
    expected = [max(values, key=abs) for values in zip(*map(flat, TAUS), strict=True)]
    assert flat(merging.magmax(TAUS)) == expected


def test_dropping_is_unbiased_and_reproducible() -> None:
    tau = {"a": torch.ones(200, 200), "b": torch.ones(200, 200)}
    found = merging.dropped(tau, 0.75, seed=3)
    assert set(found["a"].unique().tolist()) == {0.0, 4.0}
    assert found["a"].mean().item() == pytest.approx(1, abs=0.05)
    assert not torch.equal(found["a"], found["b"])
    again = merging.dropped(dict(reversed(tau.items())), 0.75, seed=3)  # whatever the order
    assert all(torch.equal(found[name], again[name]) for name in tau)
    assert not torch.equal(found["a"], merging.dropped(tau, 0.75, seed=4)["a"])
    assert merging.dropped(tau, 0.0)["a"] is tau["a"]


def test_dare_thins_each_vector_on_its_own() -> None:
    ones = {"a": torch.ones(100, 100)}
    assert set(merging.dare([ones, ones], 0.5)["a"].unique().tolist()) == {0.0, 2.0, 4.0}


def test_a_task_vector_is_a_difference_in_float32() -> None:
    start, tuned = ({"a": torch.randn(4).to(torch.bfloat16)} for _ in range(2))
    found = merging.task_vector(start, tuned)["a"]
    assert found.dtype == torch.float32
    assert found.tolist() == [t - s for s, t in zip(start["a"].tolist(), tuned["a"].tolist(), strict=True)]


# --- the classes


@pytest.fixture
def other(tiny: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Path:
    """Another fine-tune of tiny()."""
    model = tiny()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def taus(tiny: Callable[..., Any], other: Path) -> tuple[tensors.Named, list[tensors.Named]]:
    start, tuned = weights_of(tiny()), weights_of(train(tiny(), []))
    second = weights_of(type(tiny()).from_pretrained(other, dtype=torch.float32))
    return start, [{name: w[name] - start[name] for name in start} for w in (tuned, second)]


@pytest.mark.parametrize(
    ("method", "combined"),
    [
        (lambda o: TaskArithmetic(0.4, [o]), lambda t: merging.added(t)),
        (lambda o: TIES(0.4, 0.3, [o]), lambda t: merging.ties(t, 0.3)),
        (lambda o: DARE(0.5, 0.4, [o], seed=2), lambda t: merging.dare(t, 0.5, 2)),
    ],
)
def test_a_class_adds_its_scaled_combination_to_the_start(
    method: Any, combined: Any, tiny: Callable[..., Any], other: Path
) -> None:
    start, columns = taus(tiny, other)
    found, merged = weights_of(train(tiny(), [method(other)])), combined(columns)
    for name, value in found.items():
        torch.testing.assert_close(value, start[name] + 0.4 * merged[name], rtol=0, atol=1e-6)


def test_alone_task_arithmetic_is_wise_ft(tiny: Callable[..., Any]) -> None:
    a, b = (weights_of(train(tiny(), [method])) for method in (TaskArithmetic(0.3), cltk.WiSEFT(0.3)))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [TaskArithmetic(1.0), TIES(1.0, 1.0), DARE(0.0, 1.0)], ids=lambda m: m.name)
def test_the_identity_keeps_nothing_and_changes_no_bit(method: Any, tiny: Callable[..., Any]) -> None:
    assert tensors.digest(train(tiny(), [method])) == tensors.digest(train(tiny(), []))
    assert method.anchor == {}


def test_ties_alone_returns_the_small_changes(tiny: Callable[..., Any]) -> None:
    start, found = weights_of(tiny()), weights_of(train(tiny(), [TIES(density=0.1)]))
    moved = sum(int((found[name] != start[name]).sum()) for name in start)
    assert moved == pytest.approx(0.1 * sum(value.numel() for value in start.values()), rel=0.02)


def test_behind_adapters_the_merged_weights_count(tiny: Callable[..., Any]) -> None:
    start, tuned = weights_of(tiny()), weights_of(train(tiny(), [cltk.LoRA(4)]))
    found = weights_of(train(tiny(), [cltk.LoRA(4), TIES(0.5, 0.1)]))
    expected = merging.ties([merging.task_vector(start, tuned)], 0.1)
    for name, value in found.items():
        torch.testing.assert_close(value, start[name] + 0.5 * expected[name], rtol=0, atol=1e-6)


def test_frozen_weights_stay(tiny: Callable[..., Any]) -> None:
    model = tiny()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = model.model.embed_tokens.weight.clone()
    after = train(model, [TIES()])
    assert torch.equal(after.model.embed_tokens.weight, before)


# --- merge()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare", "magmax"])
def test_merge_of_finished_runs(method: str, tiny_folder: Path, other: Path, tiny: Callable[..., Any], tmp_path: Path) -> None:
    start, (_, second) = taus(tiny, other)
    model = merge(tiny_folder, [other, other], method, out=tmp_path / "merged", scale=0.5)
    function, defaults = vectors.MERGES[method]
    expected = function([second, second], **{key: value for key, value in defaults.items() if key != "scale"})
    for name, value in weights_of(model).items():
        torch.testing.assert_close(value, start[name] + 0.5 * expected[name], rtol=0, atol=1e-6)
    again = type(model).from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert tensors.digest(again) == tensors.digest(model)
    assert (tmp_path / "merged" / "tokenizer.json").exists()


def test_a_head_of_its_own_is_not_left_out_of_a_merge(tiny: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    """The start model ties its head to the embedding, the fine-tune does not, or the other way round."""
    for name, tied in (("tied", True), ("apart", False)):
        tiny(tie_word_embeddings=tied).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    for base, tuned in (("tied", "apart"), ("apart", "tied")):
        with pytest.raises(InputError, match=r"lm_head\.weight"):
            merge(tmp_path / base, [tmp_path / tuned], "task_arithmetic", scale=1.0)


def test_merge_keeps_the_dtype_and_the_tie(tiny: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("tuned", 1)):
        tiny(seed=seed).to(torch.bfloat16).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    model = cltk.merge(tmp_path / "base", [tmp_path / "tuned"], "task_arithmetic", scale=1.0)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tensors.digest(dict(model.named_parameters())) == tensors.digest(
        {name: parameter.to(torch.bfloat16) for name, parameter in tiny(seed=1).named_parameters()}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "tie"}, "give one of dare, magmax"),
        ({"method": "ties", "drop": 0.1}, "ties has no setting 'drop'; it has scale, density"),
        ({"tuned": []}, "list of one or more"),
        ({"tuned": "folder"}, "list of one or more"),
        ({"density": 0.0}, "density: must be above 0"),
        ({"out": "full"}, "not empty"),
    ],
)
def test_merge_refuses(arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError, match=message):
        merge("base", **({"tuned": ["a"]} | arguments))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TaskArithmetic(-1.0), lambda: TIES(density=0.0), lambda: TIES(density=1.1), lambda: DARE(1.0),
        lambda: DARE(-0.1), lambda: DARE(seed=-1), lambda: TaskArithmetic(float("nan")),
    ],
)  # fmt: skip
def test_wrong_arguments(make: Callable[[], Any]) -> None:
    with pytest.raises(InputError):
        make()


def test_the_threshold_is_the_element_of_that_rank() -> None:
    rng = random.Random(0)
    values = [rng.choice([-1, 1]) * 10 ** rng.uniform(-30, 30) for _ in range(97)]
    vector = {"a": torch.tensor(values[:50]), "b": torch.tensor(values[50:])}
    ranked = sorted((abs(x) for x in torch.tensor(values).tolist()), reverse=True)
    for keep in (1, 10, 48, 97):
        assert merging._threshold(vector, keep / 97) == ranked[keep - 1]
