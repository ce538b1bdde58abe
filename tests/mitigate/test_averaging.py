"""Averages of weights against slow references, in plain loops, with adapters, and what they refuse."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cltk
from cltk import tensors
from cltk.errors import InputError
from cltk.forward.probe import mean_nll
from cltk.mitigate.averaging import EMA, WiSEFT, interpolate, mixture
from cltk.mitigate.cocktail import LMCocktail
from cltk.mitigate.interface import Mitigator, Plan, Run

ROWS = [{"input_ids": [5, 6, 7, 8, 9, 10]}, {"input_ids": [20, 30, 40, 50]}, {"input_ids": [7, 7, 7]}]


def weights_of(model: nn.Module) -> tensors.Named:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train(model: Any, mitigators: list[Mitigator], steps: int = 4, seen: list[Any] | None = None, **plan: Any) -> Any:
    """SGD in a bare loop; `seen` collects the weights after every step."""
    with cltk.session(model, lambda groups: torch.optim.SGD(groups, 0.5), mitigators, data=ROWS, **plan) as s:
        for step in range(steps):
            batch = {"input_ids": torch.randint(0, 300, (2, 8), generator=torch.Generator().manual_seed(step))}
            s.model(**batch, labels=batch["input_ids"]).loss.backward()
            s.before_step()
            s.optimizer.step()
            s.after_step()
            s.optimizer.zero_grad()
            if seen is not None:
                seen.append(weights_of(s.model))
    return s.model


# --- the pure functions


def test_interpolation_is_the_line_and_its_ends_are_exact() -> None:
    start, tuned = torch.randn(4, 3, dtype=torch.bfloat16), torch.randn(4, 3, dtype=torch.bfloat16)
    assert interpolate(start, tuned, 0) is start
    assert interpolate(start, tuned, 1) is tuned
    expected = (0.7 * start.double() + 0.3 * tuned.double()).to(torch.bfloat16)
    torch.testing.assert_close(interpolate(start, tuned, 0.3), expected)


def test_mixture_is_a_softmax_of_minus_the_losses() -> None:
    losses = [2.0, 1.0, 4.0]
    total = sum(math.exp(-loss / 0.5) for loss in losses)
    assert mixture(losses, 0.5) == pytest.approx([math.exp(-loss / 0.5) / total for loss in losses])
    assert mixture([3000.0, 3000.0]) == [0.5, 0.5]
    assert mixture([math.inf, 1.0, math.nan]) == [0, 1, 0]
    assert mixture([math.nan, math.inf]) == [0.5, 0.5]


# --- WiSE-FT


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_wise_ft_is_the_average_of_start_and_tuned(alpha: float, tiny: Callable[..., Any]) -> None:
    start, tuned = weights_of(tiny()), weights_of(train(tiny(), []))
    found = weights_of(train(tiny(), [WiSEFT(alpha)]))
    for name, value in found.items():
        expected = (1 - alpha) * start[name].double() + alpha * tuned[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-7)
        if alpha in (0, 1):
            assert torch.equal(value, (start, tuned)[int(alpha)][name])


@pytest.mark.parametrize("lora_first", [True, False])
def test_wise_ft_averages_the_merged_weights_of_adapters(lora_first: bool, tiny: Callable[..., Any]) -> None:
    start, tuned = weights_of(tiny()), weights_of(train(tiny(), [cltk.LoRA(4)]))
    methods = [cltk.LoRA(4), WiSEFT(0.25)]
    model = train(tiny(), methods if lora_first else methods[::-1])
    assert not hasattr(model, "merge_and_unload")
    found = weights_of(model)
    assert set(found) == set(start)
    assert any((tuned[name] - start[name]).abs().max() > 1e-4 for name in start)
    for name, value in found.items():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * tuned[name], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own use
def test_adapters_of_the_users_own_are_merged(tiny: Callable[..., Any]) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model: Any = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj"]))
    start, tuned = weights_of(tiny()), weights_of(train(copy.deepcopy(model), []).merge_and_unload())
    found = weights_of(train(model, [WiSEFT(0.5), EMA(0.0)]))
    assert set(found) == set(start)
    for name, value in found.items():
        torch.testing.assert_close(value, (start[name] + tuned[name]) / 2, rtol=0, atol=1e-6)


# --- EMA


@pytest.mark.parametrize("every", [1, 2])
def test_ema_is_the_average_of_the_path(every: int, tiny: Callable[..., Any]) -> None:
    seen: list[tensors.Named] = []
    train(tiny(), [], seen=seen)
    expected = {name: value.double() for name, value in weights_of(tiny()).items()}
    for step, weights in enumerate(seen, 1):
        if step % every == 0:
            expected = {name: 0.7 * value + 0.3 * weights[name].double() for name, value in expected.items()}
    found = weights_of(train(tiny(), [EMA(0.7, every)]))
    for name, value in found.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=1e-6)
    assert any((found[name] - seen[-1][name]).abs().max() > 1e-3 for name in found)


def test_ema_of_decay_zero_computes_nothing(tiny: Callable[..., Any]) -> None:
    method = EMA(0.0)
    assert tensors.digest(train(tiny(), [method])) == tensors.digest(train(tiny(), []))
    assert method.average == {}
    assert method.state_dict() == {}


def test_ema_goes_on_from_its_state() -> None:
    model = nn.Linear(3, 2)
    method, run = EMA(0.5), Run(model, model)
    method.start(run)
    with torch.no_grad():
        for run.step in (1, 2):
            model.weight.add_(1.0)
            method.step(run)
        state = {name: value.clone() for name, value in method.state_dict().items()}
        again = EMA(0.5)
        again.start(run)
        again.load_state_dict(state)
        for each in (method, again):
            run.step = 3
            each.step(run)
    assert torch.equal(method.average["weight"], again.average["weight"])
    assert not torch.equal(method.average["weight"], model.weight.detach())


def test_ema_keeps_float32_of_bfloat16_weights() -> None:
    model = nn.Linear(2, 2, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    method, run = EMA(0.99), Run(model, model)
    method.start(run)
    nn.init.constant_(model.weight, 2.0)
    for run.step in range(1, 101):
        method.step(run)
    assert method.average["weight"].mean().item() == pytest.approx(2 - 0.99**100, rel=1e-5)
    method.finish(run)
    assert model.weight[0, 0].item() == pytest.approx(2 - 0.99**100, rel=1e-2)


def test_ema_of_adapters_is_merged(tiny: Callable[..., Any]) -> None:
    plain = train(tiny(), [cltk.LoRA(4)])
    model = train(tiny(), [cltk.LoRA(4), EMA(0.9)])
    assert not hasattr(model, "merge_and_unload")
    assert tensors.digest(model) not in (tensors.digest(plain), tensors.digest(tiny()))


# --- LM-Cocktail


def test_lm_cocktail_weighs_by_loss(tiny: Callable[..., Any], tmp_path: Path, tokenizer: Any) -> None:
    other = tiny(seed=4)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    start, tuned = tiny(), train(tiny(), [])
    losses = [sum(mean_nll(model, [row]) for row in ROWS[:2]) / 2 for model in (start, other, tuned)]
    shares = torch.softmax(-torch.tensor(losses, dtype=torch.float64) / 0.1, 0).tolist()
    method = LMCocktail([tmp_path / "other"], ROWS, temperature=0.1, limit=2)
    found = weights_of(train(tiny(), [method]))
    columns = [weights_of(model) for model in (start, other, tuned)]
    for name, value in found.items():
        expected = sum(share * column[name].double() for share, column in zip(shares, columns, strict=True))
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)
    assert list(method.notes["weights"].values()) == pytest.approx(shares, rel=1e-4)
    assert list(method.notes["losses"]) == ["start", str(tmp_path / "other"), "tuned"]
    assert max(shares) < 0.99  # the reference distinguishes


def test_lm_cocktail_as_printed(tiny: Callable[..., Any]) -> None:
    """alpha of the tuned model, the rest by loss among the others: with the start model alone, an interpolation."""
    start, tuned = weights_of(tiny()), weights_of(train(tiny(), []))
    found = weights_of(train(tiny(), [LMCocktail(memory=ROWS, alpha=0.3)]))
    for name, value in found.items():
        torch.testing.assert_close(value, 0.3 * tuned[name] + 0.7 * start[name], rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="alpha"):
        LMCocktail(alpha=1.1)


def test_lm_cocktail_takes_validation_rows(tiny: Callable[..., Any]) -> None:
    method = LMCocktail(limit=2)
    train(tiny(), [method], validation=ROWS)
    assert method.rows == [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in ROWS[:2]]
    with pytest.raises(InputError, match=r"lm_cocktail\.memory: no validation rows"):
        train(tiny(), [LMCocktail()])


def test_other_models_must_fit(tiny: Callable[..., Any], tmp_path: Path, tokenizer: Any) -> None:
    tiny(intermediate_size=40).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no fine-tune of this model: model\.layers\.0\.mlp\.gate_proj\.weight is \(40, 32\)"):
        LMCocktail([tmp_path], ROWS).setup(Plan(tiny(), None, None))
    with pytest.raises(InputError, match="absent"):
        LMCocktail([tmp_path], ROWS).setup(Plan(tiny("gpt2"), None, None))


@pytest.mark.parametrize(
    "make",
    [
        lambda: WiSEFT(-0.1), lambda: WiSEFT(1.1), lambda: EMA(1.0), lambda: EMA(-0.5), lambda: EMA(0.5, 0),
        lambda: LMCocktail(temperature=0.0), lambda: LMCocktail(limit=0),
    ],
)  # fmt: skip
def test_wrong_arguments(make: Callable[[], Any]) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
