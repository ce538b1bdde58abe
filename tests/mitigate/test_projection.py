"""A-GEM and GEM: the constraints hold, and the quadratic program agrees with a search over active sets."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import cltk
from cltk.errors import InputError
from cltk.mitigate.projection import a_gem_, gem_, gem_dual

SHAPES = [(4, 3), (5,), ()]


def drawn(seed: int, shift: float = 0.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) + shift for shape in SHAPES]


def flat(tensors: list[Tensor]) -> np.ndarray:
    return np.concatenate([t.double().numpy().ravel() for t in tensors])


def by_active_sets(g: np.ndarray, olds: np.ndarray, margin: float) -> np.ndarray:
    """v >= margin of least 1/2 ||g + sum v_k g_k||²: every set of v that may exceed the margin, solved."""
    best, found = np.inf, None
    for free in itertools.product([False, True], repeat=len(olds)):
        chosen, v = np.array(free), np.full(len(olds), margin)
        if chosen.any():
            rest = g + v[~chosen] @ olds[~chosen]
            v[chosen] = np.linalg.lstsq(olds[chosen] @ olds[chosen].T, -olds[chosen] @ rest, rcond=None)[0]
        value = 0.5 * np.sum((g + v @ olds) ** 2)
        if (v >= margin - 1e-9).all() and value < best:
            best, found = value, v
    assert found is not None
    return found


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_dual_against_active_sets(count: int, margin: float) -> None:
    rng = np.random.default_rng(count)
    for _ in range(40):
        g, olds = rng.normal(size=8), rng.normal(size=(count, 8)) * rng.uniform(0.01, 10, size=(count, 1))
        v = gem_dual(olds @ olds.T, olds @ g, margin)
        expected = by_active_sets(g, olds, margin)
        np.testing.assert_allclose(v @ olds, expected @ olds, atol=1e-7 * np.abs(expected @ olds).max() + 1e-9)
        assert (v >= margin - 1e-9).all()


def test_equal_and_zero_memories_do_no_harm() -> None:
    old = np.array([1.0, 2.0, 0.0])
    olds, g = np.stack([old, old, 0 * old]), np.array([-3.0, 0.0, 1.0])
    u = g + gem_dual(olds @ olds.T, olds @ g) @ olds
    np.testing.assert_allclose(u, g - old * (old @ g) / (old @ old), atol=1e-9)
    assert gem_dual(np.zeros((2, 2)), np.zeros(2), 0.5).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(20))
def test_gem_meets_every_constraint(seed: int, margin: float) -> None:
    g, olds = drawn(seed), [drawn(100 * seed + k + 1) for k in range(3)]
    before = flat(g)
    along, v = gem_(g, olds, margin)
    u, old = flat(g), np.stack([flat(one) for one in olds])
    np.testing.assert_allclose(along, old @ before, rtol=1e-4, atol=1e-5)
    assert (old @ u >= -1e-5 * np.linalg.norm(u)).all()
    if min(along) >= 0:
        assert (u == before).all()
        assert v == [0.0] * 3
    else:
        assert not (u == before).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_gem_is_gem_with_one_memory(seed: int) -> None:
    one, two, old = drawn(seed), drawn(seed), drawn(seed + 50)
    start = flat(one)
    along = a_gem_(one, old)
    gem_(two, [old])
    np.testing.assert_allclose(flat(one), flat(two), atol=1e-6)
    reference = flat(old)
    expected = start - min(0.0, start @ reference) / (reference @ reference) * reference
    np.testing.assert_allclose(flat(one), expected, atol=1e-6)
    assert flat(one) @ reference >= -1e-5
    if along >= 0:
        assert (flat(one) == start).all()


@pytest.mark.parametrize("method", [lambda rows: cltk.AGEM(rows), lambda rows: cltk.GEM([rows, rows[:1]], 0.0)])
def test_in_a_loop_against_autograd(method: Any, tiny: Any) -> None:
    model, twin = tiny(), tiny()
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[5, 6, 7, 8]])}
    g = torch.autograd.grad(twin(**batch).loss, list(twin.parameters()))
    along, step = 0.0, 2
    while along >= 0:  # a row whose gradient is against the new one
        step += 1
        ids = torch.arange(4)[None] * step + 5
        r = torch.autograd.grad(twin(input_ids=ids, labels=ids).loss, list(twin.parameters()))
        along, size = sum(float((x * y).sum()) for x, y in zip(g, r, strict=True)), sum(float((y * y).sum()) for y in r)
    with cltk.session(model, torch.optim.SGD(model.parameters(), 0.1), [method([{"input_ids": ids[0].tolist()}])]) as s:
        model(**batch).loss.backward()
        s.before_step()
    for parameter, x, y in zip(model.parameters(), g, r, strict=True):
        torch.testing.assert_close(parameter.grad, x - along / size * y, rtol=1e-4, atol=1e-6)


def test_refusals_and_paths(tmp_path: Path) -> None:
    from cltk.run.methods import build_mitigators

    for wrong in (lambda: cltk.AGEM([]), lambda: cltk.AGEM(["a"], -1), lambda: cltk.GEM([]), lambda: cltk.GEM({"a": []}),
                  lambda: cltk.GEM(["a"], -0.5), lambda: cltk.GEM("a")):  # fmt: skip
        with pytest.raises(InputError):
            wrong()
    (tmp_path / "a.txt").write_text("a cat")
    for memories in ({"a": "a.txt"}, ["a.txt"]):
        (gem,) = build_mitigators([{"gem": {"memories": memories}}], tmp_path)
        assert list(gem.memories.values()) == [str(tmp_path / "a.txt")]
    with pytest.raises(InputError, match="no such file"):
        build_mitigators([{"gem": {"memories": ["b.txt"]}}], tmp_path)
