"""float32 passes without a backward take oneDNN's products where these are float32: against float64, and taken back."""

from contextlib import nullcontext

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from cltk.forward import products
from cltk.forward.probe import row_nll
from cltk.importance.fisher import fisher
from cltk.measure.divergence import row_kl
from cltk.measure.identity import identity
from cltk.measure.scoring import PrefixLM
from cltk.run import records
from cltk.run.sameness import changes

SETTINGS = torch.backends.mkldnn.matmul
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "initializer_range": 0.2,
}  # large enough for oneDNN
FOUND = products.exact  # before it is patched
with_onednn = pytest.mark.skipif(not products.exact(), reason="a processor whose oneDNN computes float32")


@pytest.fixture(autouse=True)
def as_on_an_exact_machine(monkeypatch):
    monkeypatch.setattr(products, "exact", lambda: True)


def seen_in(model):
    """The setting in every forward pass of `model`."""
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(SETTINGS.fp32_precision))
    return seen


def requests(tokenizer, n=6):
    class Request:
        def __init__(self, *args):
            self.args = args

    words = ["the cat sat", "a dog ran", "red bird flew on", "blue house"]
    return [Request(words[i % 4] + " and then", f" {word}") for i in range(n) for word in ("it was", "not small", "big")]


@pytest.mark.parametrize("what", ["loglikelihood", "rolling", "nll", "kl"])
def test_passes_without_a_backward_take_them_and_give_them_back(what, tiny, tokenizer):
    model, before = tiny(), SETTINGS.fp32_precision
    seen, rows = seen_in(model), [{"input_ids": [1, 5, 9, 12]}, {"input_ids": [3, 4]}]
    if what == "loglikelihood":
        PrefixLM(model, tokenizer).loglikelihood(requests(tokenizer), disable_tqdm=True)
    elif what == "rolling":
        PrefixLM(model, tokenizer).loglikelihood_rolling(requests(tokenizer, 1), disable_tqdm=True)
    elif what == "nll":
        row_nll(model, rows)
    else:
        row_kl(model, tiny(seed=1), rows)
    assert seen[-1] == "bf16"
    assert SETTINGS.fp32_precision == before


def test_what_fails_inside_gives_them_back(tiny):
    before = SETTINGS.fp32_precision
    with pytest.raises(IndexError):
        row_nll(tiny(), [{"input_ids": [1, 5000]}])
    assert SETTINGS.fp32_precision == before


@pytest.mark.parametrize("case", ["bfloat16", "float64", "not exact", "not allowed", "allowed inside of not allowed"])
def test_nothing_is_set_for_other_weights_or_where_it_is_not_exact_or_not_wanted(case, tiny, monkeypatch):
    model, before = tiny(), SETTINGS.fp32_precision
    model = model.to(getattr(torch, case)) if hasattr(torch, case) else model
    if case == "not exact":
        monkeypatch.setattr(products, "exact", lambda: False)
    seen = seen_in(model)
    with products.allowed("allowed" not in case), products.allowed(True):
        row_nll(model, [{"input_ids": [1, 5, 9]}])
    assert seen == [before]
    assert products.chosen(tiny()) == (case not in ("not exact",))


def test_lm_eval_s_own_model_stays_as_it_ships(tiny, tokenizer):
    model, before = tiny(), SETTINGS.fp32_precision
    seen = seen_in(model)
    HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4).loglikelihood(requests(tokenizer, 2), disable_tqdm=True)
    assert set(seen) == {before}


def test_a_backward_pass_stays_as_it_is_set(tiny):
    model, before = tiny(), SETTINGS.fp32_precision
    seen = seen_in(model)
    fisher(model, [{"input_ids": [1, 5, 9]}])
    assert seen[-1] == before


def test_answers_of_one_are_not_taken_for_those_of_the_other(tiny, tokenizer):
    model = tiny()
    with products.allowed(False):
        other, plain = identity(model, tokenizer), records.environment()
    assert identity(model, tokenizer) != other
    assert (plain["products"], records.environment()["products"]) == ("torch", "oneDNN")
    assert "products torch, now oneDNN" in list(changes(plain, records.environment()))
    assert products.named("cuda") == "torch"


@pytest.mark.parametrize("supported", [True, False])
def test_a_processor_without_bfloat16_computes_by_torch_and_is_recorded_so(supported, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert FOUND.__wrapped__() == (supported and products.onednn_error() <= products.CLOSE)


def test_what_is_recorded_is_what_computes():
    """Where the setting changes no product's last bit, torch's own kernels computed it."""
    a, b = torch.randn(300, 512), torch.randn(512, 300)
    with products.products(True):
        found = a @ b
    assert torch.equal(found, a @ b) != FOUND() or products.onednn_error() > products.CLOSE


@with_onednn
@pytest.mark.parametrize("onednn", [True, False])
def test_scores_are_float64_s_to_a_hundred_thousandth(onednn, tiny, tokenizer):
    """The reference: transformers' own forward in float64, one request at a time."""
    model, double = tiny(**WIDE), tiny(**WIDE).double()
    asked = requests(tokenizer, 4)
    with nullcontext() if onednn else products.allowed(False):
        found = PrefixLM(model, tokenizer).loglikelihood(asked, disable_tqdm=True)
        nll = row_nll(model, [{"input_ids": list(range(3, 40))}])[0][0]
    for request, (logprob, greedy) in zip(asked, found, strict=True):
        context, text = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in request.args)
        with torch.no_grad():
            logp = double(input_ids=torch.tensor([context + text])).logits[0].log_softmax(-1)[len(context) - 1 : -1]
        expected = float(logp[torch.arange(len(text)), torch.tensor(text)].sum())
        assert logprob == pytest.approx(expected, rel=1e-5)
        assert greedy == (logp.argmax(-1).tolist() == text)
    with torch.no_grad():
        ids = torch.arange(3, 40)[None]
        assert nll == pytest.approx(float(double(input_ids=ids, labels=ids).loss), rel=1e-5)


@with_onednn
def test_onednn_does_compute_here(tiny):
    """Another order of sums: were these equal, the setting would do nothing for a model."""
    model, ids = tiny(**WIDE), torch.arange(64)[None]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with products.fast(model):
            found = model(input_ids=ids).logits
    assert 0 < float((found - plain).abs().max()) < 1e-4 * float(plain.abs().max())


@pytest.mark.parametrize("rows", [1, 2, products.FEW, products.FEW + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_give_the_layer_s_values(rows, bias, monkeypatch):
    """The reference is numpy's product in float64. torch's own form is called for other numbers of rows alone."""
    calls, own = [], torch.nn.functional.linear
    monkeypatch.setattr("torch.nn.functional.linear", lambda *given: calls.append(1) or own(*given))
    layer = torch.nn.Linear(96, 48, bias=bias)
    x = torch.randn(rows, 1, 96)
    weight, added = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy() if bias else 0
    exact = x.double().numpy() @ weight.T + added
    with torch.no_grad(), products.few_rows(torch.nn.Sequential(layer)):
        found = layer(input=x)
    assert len(calls) == (rows in (1, products.FEW + 1))
    assert found.shape == (rows, 1, 48)
    assert found.is_contiguous()
    assert abs(found.double().numpy() - exact).max() < 1e-5 * abs(exact).max()
    assert "forward" not in vars(layer)


def test_few_rows_leave_what_is_not_theirs():
    """Layers that another library has hooked, other widths of numbers, classes derived from Linear."""

    class Own(torch.nn.Linear):
        pass

    class Packed(torch.nn.Parameter):
        pass

    plain, hooked, half, own = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4).bfloat16(), Own(4, 4)
    packed = torch.nn.Linear(4, 4)
    packed.weight = Packed(packed.weight.detach())
    hooked.forward = lambda x: x + 1
    with products.few_rows(torch.nn.ModuleList([plain, hooked, half, own, packed])):
        assert ["forward" in vars(layer) for layer in (plain, half, own, packed)] == [True, False, False, False]
        assert torch.equal(hooked(torch.ones(2, 4)), 2 * torch.ones(2, 4))
    assert "forward" not in vars(plain)
    assert "forward" in vars(hooked)


def failing(model):
    with products.few_rows(model):
        raise RuntimeError


def test_few_rows_end_with_an_error():
    layer = torch.nn.Linear(4, 4)
    with pytest.raises(RuntimeError):
        failing(layer)
    assert "forward" not in vars(layer)
