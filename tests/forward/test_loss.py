"""The loss without float32 copies of logits, against torch's and transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr, softmax
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from cltk.forward import loss
from cltk.forward.loss import causal_lm_loss, cross_entropy, kl_divergence, squared_distance
from cltk.forward.packing import label_head


def sample(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    logits = (20 * torch.randn(50, 300)).to(dtype).requires_grad_()
    targets = torch.randint(0, 300, (50,))
    targets[[0, 7, 49]] = -100
    return logits, targets, torch.rand(50)


@pytest.mark.parametrize("block", [1, 7 * 300, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_losses_and_gradients_are_torchs(dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss.BLOCK, "cpu", block)
    logits, targets, weights = sample(dtype)
    wide = logits if dtype == torch.float64 else logits.float()
    expected, found = F.cross_entropy(wide, targets, reduction="none"), cross_entropy(logits, targets)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    a, b = (torch.autograd.grad((x * weights).sum(), logits)[0] for x in (found, expected))
    assert a.dtype == dtype
    torch.testing.assert_close(a, b, rtol=torch.finfo(dtype).eps, atol=1e-6 if dtype != torch.float64 else 1e-12)
    assert not a[[0, 7, 49]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_tokens_that_are_excluded_add_nothing(direction: Any, dtype: torch.dtype) -> None:
    """Logits of -inf in both models, and in the one whose probabilities weigh (scipy: rel_entr(0, y) = 0).

    Reported as NaN of a whole training: p-e-w/heretic#348, google-deepmind/optax#1786.
    """
    torch.manual_seed(0)
    z, start = torch.randn(2, 6, 40).to(dtype)
    z[:, 30:], start[:, 30:] = -torch.inf, -torch.inf
    (start if direction == "forward" else z)[:2, 5:9] = -torch.inf
    z.requires_grad_()
    p, q = (start, z) if direction == "forward" else (z, start)
    p, q = (softmax(x.detach().double().numpy(), axis=-1) for x in (p, q))
    found = kl_divergence(z, start, direction=direction)
    assert float(found.detach()) == pytest.approx(rel_entr(p, q).sum(-1).mean(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, z)
    assert gradient.isfinite().all()
    assert not gradient[:, 30:].any()
    far = squared_distance(z, start.where((start > -torch.inf) & (z > -torch.inf), z.detach()))
    assert far.isfinite()
    assert torch.autograd.grad(far, z)[0].isfinite().all()


def test_what_only_the_other_model_excludes_is_infinite() -> None:
    z, start = torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([[0.0, 1.0, 2.0]])
    assert kl_divergence(z, start) == torch.inf
    assert kl_divergence(start, z, direction="reverse") == torch.inf


DISTANCES: dict[str, Any] = {  # ours, and torch's on whole float32 (float64) matrices
    "forward": (lambda z, s, T: kl_divergence(z, s, temperature=T), lambda z, s, T: naive_kl(s, z, T)),
    "reverse": (lambda z, s, T: kl_divergence(z, s, direction="reverse", temperature=T), lambda z, s, T: naive_kl(z, s, T)),
    "square": (lambda z, s, T: squared_distance(z, s), lambda z, s, T: F.mse_loss(z, s)),
}


def naive_kl(of: Tensor, to: Tensor, T: float) -> Tensor:
    """Mean over rows of T² KL(of || to)."""
    target, other = ((z / T).log_softmax(-1) for z in (of, to))
    return T**2 * F.kl_div(other, target, log_target=True, reduction="batchmean")


@pytest.mark.parametrize("T", [1.0, 2.5])
@pytest.mark.parametrize("block", [1, 7 * 300, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", DISTANCES)
def test_distances_and_gradients_are_torchs(
    kind: str, dtype: torch.dtype, block: int, T: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.BLOCK, "cpu", block)
    logits, _, _ = sample(dtype)
    start = (logits + 3 * torch.randn(50, 300)).detach().to(dtype)
    ours, theirs = DISTANCES[kind]
    found, exact = ours(logits, start, T), theirs(logits.double(), start.double(), T)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=1e-12 if dtype == torch.float64 else 2e-6, atol=0)
    scale = 2.0**16  # of fp16 training: it comes with the backward pass, and what it saves must not be lost before
    a, b = (torch.autograd.grad(x * scale, logits)[0].double() for x in (found, exact))
    # two roundings to 16 bits here (made, scaled), one in the reference; log p of -100 is off by 100 ulps of 1, so p by a ratio
    bound = 1.5 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
    whole = 0.0 if kind == "square" else scale * T / len(logits)  # the gradient of a p of 1
    exactly = {"rtol": 1e-11, "atol": 1e-12 * whole} if dtype == torch.float64 else {"rtol": bound, "atol": 1e-5 * whole}
    torch.testing.assert_close(a, b, **exactly)
    assert kind != "square" or torch.equal(a == 0, b == 0)


@pytest.mark.parametrize("kind", DISTANCES)
def test_distances_against_finite_differences(kind: str) -> None:
    torch.manual_seed(0)
    z, start = (torch.randn(3, 7, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: DISTANCES[kind][0](x, start, 1.7), z.requires_grad_())


def test_distances_where_there_is_nothing_to_tell() -> None:
    """No positions: 0, with a gradient of none. The same logits: 0 and no gradient. Without autograd: the value alone."""
    logits, _, _ = sample(torch.float32)
    for ours, _ in DISTANCES.values():
        nothing = ours(logits[:0], logits[:0].detach(), 1.0)
        assert nothing == 0
        assert not torch.autograd.grad(nothing, logits)[0].any()
        same = ours(logits, logits.detach(), 2.0)
        assert same == 0
        assert not torch.autograd.grad(same, logits)[0].any()
        with torch.no_grad():
            assert not ours(logits, logits + 1, 1.0).requires_grad


def test_one_matrix_is_made_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the two that are given: float32, counted as torch allocates on the CPU."""
    from torch.profiler import ProfilerActivity, profile

    monkeypatch.setitem(loss.BLOCK, "cpu", 10 * 3000)
    logits, start = (torch.randn(400, 3000) for _ in range(2))
    logits.requires_grad_()

    def most(make: Any) -> float:
        """The highest sum of what is allocated and freed, in matrices."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            make()
        held = top = 0
        for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                top = max(top, held)
        return top / (logits.numel() * 4)

    for kind, (ours, theirs) in DISTANCES.items():
        assert most(lambda ours=ours: ours(logits, start, 1.0)) < 1.3, kind
        assert most(lambda theirs=theirs: theirs(logits, start, 1.0)) > (0.9 if kind == "square" else 1.9), kind


@pytest.mark.parametrize("items", [None, 40, torch.tensor(40)])
def test_the_models_loss_is_transformers(items: Any) -> None:
    logits, targets, _ = sample(torch.float32)
    five = {"labels": targets.where(targets != -100, 5)[None], "ignore_index": 5}
    for given in ({"labels": None, "shift_labels": targets[None]}, {"labels": targets[None]}, five):
        expected = ForCausalLMLoss(logits[None], vocab_size=300, num_items_in_batch=items, **given)
        found = causal_lm_loss(logits[None], vocab_size=300, num_items_in_batch=items, **given)
        torch.testing.assert_close(found, expected)


def test_label_head_lends_it_to_the_model(tiny: Any) -> None:
    model = tiny().train()
    kept = {name: value for name, value in vars(model).items() if name == "_loss_function"}
    with label_head(model):
        assert model.loss_function is causal_lm_loss
    assert model.loss_function is ForCausalLMLoss
    assert {name: value for name, value in vars(model).items() if name == "_loss_function"} == kept
    model.loss_function = own = lambda *a, **k: torch.zeros(())
    with label_head(model):
        assert model.loss_function is own
