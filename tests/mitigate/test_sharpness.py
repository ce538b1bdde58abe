"""SAM against a plain loop with autograd."""

import pytest
import torch

import cltk
from cltk.errors import InputError, RunError
from cltk.mitigate.interface import Mitigator, Run
from cltk.mitigate.sharpness import SAM

IDS = [torch.tensor([[3, 1, 4, 1, 5, 9 + i, 2, 6]]) for i in range(4)]


def loss(model, ids):
    return model(input_ids=ids, labels=ids).loss


def reference(model, rho, accumulation):
    for step in range(0, 4, accumulation):
        parameters = list(model.parameters())

        def gradient(parameters=parameters, step=step):
            total = sum(loss(model, ids) for ids in IDS[step : step + accumulation]) / accumulation
            return torch.autograd.grad(total, parameters)

        first = gradient()
        norm = sum((g.double() ** 2).sum() for g in first) ** 0.5
        saved = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, first, strict=True):
                p.add_(rho * g / norm)
        second = gradient()
        with torch.no_grad():
            for p, s, g in zip(parameters, saved, second, strict=True):
                p.copy_(s - 0.5 * g)
    return torch.nn.utils.parameters_to_vector(model.parameters())


def ours(model, rho, accumulation):
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    with cltk.session(model, optimizer, [SAM(rho)]) as s:
        for step in range(0, 4, accumulation):

            def backward(step=step):
                for ids in IDS[step : step + accumulation]:
                    (loss(model, ids) / accumulation).backward()

            backward()
            s.before_step(repeat=backward)
            optimizer.step()
            s.after_step()
            optimizer.zero_grad()
    return torch.nn.utils.parameters_to_vector(model.parameters())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_sam_equals_a_plain_loop(accumulation, tiny):
    expected = reference(tiny(), 0.3, accumulation)
    torch.testing.assert_close(ours(tiny(), 0.3, accumulation), expected, rtol=1e-5, atol=1e-6)
    assert (ours(tiny(), 0.0, accumulation) - expected).abs().max() > 1e-4


def test_weights_are_put_back_bit_for_bit_and_gradient_zero_is_no_direction(tiny):
    model, start = tiny(), torch.nn.utils.parameters_to_vector(tiny().parameters())
    loss(model, IDS[0]).backward()
    seen = []
    run = Run(model, model, repeat=lambda: seen.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach()))
    SAM(0.3).grad(run)
    assert torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()), start)
    assert (seen[0] - start).norm().item() == pytest.approx(0.3, rel=1e-5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    SAM(0.3).grad(run)
    assert torch.equal(seen[1], start)


def test_refusals(tiny):
    with pytest.raises(InputError, match=r"sam\.rho"):
        SAM(-1)
    model = tiny()
    with pytest.raises(RunError, match="second pass"):
        SAM().grad(Run(model, model))

    class Adds(Mitigator):
        def grad(self, run):
            pass

    with pytest.raises(InputError, match="put SAM before it"):
        cltk.session(model, torch.optim.SGD(model.parameters(), 0.1), [Adds(), SAM()])
    cltk.session(model, torch.optim.SGD(model.parameters(), 0.1), [Adds(), SAM(0.0)])
