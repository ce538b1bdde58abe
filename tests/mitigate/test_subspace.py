"""OSFT: the protected block stays after AdamW's steps, and is what numpy's SVD says."""

import numpy as np
import pytest
import torch

from cltk.errors import InputError, RunError
from cltk.mitigate.freezing import Freeze
from cltk.mitigate.interface import Plan, Run
from cltk.mitigate.subspace import OSFT, linear_weights, outside, top_directions

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def train(model, method, steps=3):
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    run = Run(model, model, optimizer=optimizer)
    method.setup(Plan(model, None, None))
    method.start(run)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        run.step += 1
        method.step(run)
        optimizer.zero_grad()


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 4)])
def test_projection_against_numpy(shape):
    generator = torch.Generator().manual_seed(0)
    start, moved = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    u, s, vh = np.linalg.svd(start.double().numpy(), full_matrices=False)
    k = round(0.5 * min(shape))
    u, vh = u[:, :k], vh[:k]
    delta = moved.double().numpy() - start.double().numpy()
    expected = start.double().numpy() + delta - u @ (u.T @ delta @ vh.T) @ vh  # the update projected, not the weight
    found = outside(moved, top_directions(start, 0.5))
    np.testing.assert_allclose(found.double().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(top_directions(start, 0.5).values.numpy(), s[:k], rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 4)])
def test_released_form_against_numpy(shape):
    """Nothing moves in the rows of U_h nor in the columns of V_h; what is outside both moves as it did."""
    generator = torch.Generator().manual_seed(0)
    start, moved = (torch.randn(shape, generator=generator, dtype=torch.float64).numpy() for _ in range(2))
    u, _, vh = np.linalg.svd(start, full_matrices=False)
    k = round(0.5 * min(shape))
    u, v = u[:, :k], vh[:k].T
    delta = moved - start
    expected = start + (np.eye(shape[0]) - u @ u.T) @ delta @ (np.eye(shape[1]) - v @ v.T)
    basis = top_directions(torch.tensor(start), 0.5)
    np.testing.assert_allclose(outside(torch.tensor(moved), basis, "released").double().numpy(), expected, atol=1e-5)


def test_the_released_form_keeps_both_sides_under_adamw(tiny):
    model, start = tiny(), tiny().state_dict()
    method = OSFT(0.5, "released")
    train(model, method)
    for name, weight in linear_weights(model).items():
        basis, delta = method.bases[name], weight.detach() - start[name]
        assert max((basis.left.T @ delta).abs().max(), (delta @ basis.right).abs().max()) < 2e-6
    assert delta.abs().max() > 1e-4
    with pytest.raises(InputError, match="form"):
        OSFT(0.5, "other")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_the_protected_block_does_not_move_under_adamw(kind, tiny):
    model, start = tiny(kind), tiny(kind).state_dict()
    method = OSFT(0.5)
    train(model, method)
    assert len(method.bases) == {"llama": 14, "gpt2": 8, "neox": 8}[kind]  # q k v o + 3 of the FFN; 4 with fused qkv
    largest = 0.0
    for name, weight in linear_weights(model).items():
        basis, delta = method.bases[name], weight.detach() - start[name]
        assert (basis.left.T @ delta @ basis.right).abs().max() < 2e-6
        largest = max(largest, float(delta.abs().max()))
    assert largest > 1e-3
    free = tiny(kind)
    train(free, OSFT(0.0))
    moved = [
        (method.bases[n].left.T @ (w.detach() - start[n]) @ method.bases[n].right).abs().max()
        for n, w in linear_weights(free).items()
    ]
    assert max(moved) > 1e-3  # without the method it does


def test_embeddings_and_head_are_left_alone(tiny):
    untied = tiny(tie_word_embeddings=False)
    assert not any("embed" in name or "head" in name for name in linear_weights(untied))


def test_all_directions_kept_freezes_square_matrices(tiny):
    model, start = tiny(), tiny().state_dict()
    train(model, OSFT(1.0))
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(model.state_dict()[name], start[name], rtol=0, atol=5e-6)


def test_refusals(tiny):
    with pytest.raises(InputError, match=r"osft\.keep"):
        OSFT(1.5)
    with pytest.raises(InputError, match="no linear layer"):
        OSFT(0.001).setup(Plan(tiny(), None, None))
    model, method = tiny(), OSFT(0.5)
    method.setup(Plan(model, None, None))
    Freeze(1).setup(Plan(model, None, None))
    with pytest.raises(RunError, match="no longer trained"):
        method.start(Run(model, model))
