"""fisher() against autograd loops and Jacobians; Importance as an object and as a file."""

import copy
import itertools
import json
import logging
import math
import random
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from cltk import tensors
from cltk.errors import InputError, RunError
from cltk.importance.diagonal import relative_se, trace
from cltk.importance.estimators import scores, uniforms
from cltk.importance.fisher import Importance, fisher, update
from cltk.importance.sequences import Rows
from tests import forks
from tests.conftest import checkpointing_on, is_checkpointing

VOCAB = 13
COMMON = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}


def llama(tied=False, seed=0, words=VOCAB, **settings):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "max_position_embeddings": 32, "initializer_range": 0.3, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**{**COMMON, "vocab_size": words}, **sizes, tie_word_embeddings=tied, **settings))


def gpt2(tied=False):
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**COMMON, **sizes, tie_word_embeddings=tied))


def neox(tied=False):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 32, "initializer_range": 0.3}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**COMMON, **sizes, tie_word_embeddings=tied))


def rows_of(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(0, VOCAB, (n,), generator=generator)} for n in lengths]


def loop(model, rows, absolute=False):
    """One sequence at a time, plain autograd, from the definition."""
    model = copy.deepcopy(model).eval()
    result = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in tensors.trainable(model)}
    for row in rows:
        ids = torch.as_tensor(row["input_ids"])[None]
        labels = torch.as_tensor(row.get("labels", row["input_ids"]))[1:]
        logits = model(input_ids=ids).logits[0, :-1]
        model.zero_grad()
        kept = labels != -100
        value = (logits[kept] ** 2).sum() if absolute else F.cross_entropy(logits, labels, reduction="sum")
        value.backward()
        for name, p in tensors.trainable(model):
            grad = p.grad.double()
            result[name] += (grad.abs() if absolute else grad**2) / len(rows)
    return result


def jacobian_fisher(model, rows):
    """sum_v p_v (J_v - sum_u p_u J_u)² a token, mean over tokens: the definition, without sampling or backward passes."""
    model = copy.deepcopy(model).eval()
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")  # vmap has no rule for the fused one
    values = {name: p.detach() for name, p in model.named_parameters()}
    total, count = {name: torch.zeros_like(v, dtype=torch.float64) for name, v in values.items()}, 0
    for row in rows:
        ids = row["input_ids"][None]

        def logits(v, ids=ids):
            return torch.func.functional_call(model, v, (), {"input_ids": ids}).logits[0, :-1]

        p = logits(values).softmax(-1).detach()
        for name, J in torch.func.jacrev(logits)(values).items():
            q = p.reshape(*p.shape, *[1] * (J.dim() - 2))
            total[name] += (q * (J - (q * J).sum(1, keepdim=True)) ** 2).sum((0, 1)).double()
        count += len(p)
    return {name: value / count for name, value in total.items()}


def assert_close(found, expected, tolerance=1e-4):
    assert set(found) == set(expected)
    for name, reference in expected.items():
        error = (found[name].double() - reference.double()).abs().max() / reference.abs().max().clamp_min(1e-30)
        assert error <= tolerance, f"{name}: {error}"


class Toy(nn.Module):
    """A language model of three small layers, fast enough for many draws."""

    def __init__(self, scale=1.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.middle, self.head = nn.Embedding(VOCAB, 6), nn.Linear(6, 8), nn.Linear(8, VOCAB)
        self.scale = scale

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return SimpleNamespace(logits=self.scale * self.head(torch.tanh(self.middle(self.embedding(input_ids)))))


def chain(number, length, seed=0, other=False):
    """Sequences of a random Markov chain, something that a model can fit; `other`: of another, nearly certain one."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(VOCAB, VOCAB, generator=torch.Generator().manual_seed(98 if other else 99)).pow(40 if other else 4)
    ids = torch.randint(0, VOCAB, (number, 1), generator=generator)
    while ids.shape[1] < length:
        ids = torch.cat([ids, torch.multinomial(table[ids[:, -1]], 1, generator=generator)], 1)
    return [{"input_ids": row} for row in ids]


def trained(model, steps=300, seed=1, other=False):
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(steps):
        ids = torch.stack([row["input_ids"] for row in chain(16, 8, seed=1000 * seed + step, other=other)])
        loss = F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def model_in(state):
    """At its optimum; over-confident (the same, logits times 16); off its optimum (trained on another language)."""
    model = trained(Toy(), 600 if state == "off" else 300, other=state == "off")
    model.scale = 16.0 if state == "over-confident" else 1.0
    return model


# --- per sequence: empirical and MAS


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", [llama, gpt2, neox])
@pytest.mark.parametrize("kind", ["empirical", "mas"])
def test_per_sequence_equals_the_autograd_loop(make, tied, kind):
    model, rows = make(tied), rows_of(5, 12, 3, 12, 9)
    found = fisher(model, rows, kind, batch_size=3)
    assert found.info["method"] == "hooks"
    assert found.info["level"] == "sequence"
    assert_close(found, loop(model, rows, absolute=kind == "mas"))


def test_it_does_not_depend_on_the_batch_size_or_on_padding():
    model, rows = llama(tied=True), rows_of(4, 15, 7, 2, 11)
    one = fisher(model, rows, "empirical", batch_size=1)
    for size in (2, 3, 5):
        assert_close(fisher(model, rows, "empirical", batch_size=size), one, 1e-5)


def test_labels_mark_the_counted_positions():
    model, rows = gpt2(tied=True), rows_of(6, 9)
    for row in rows:
        row["labels"] = row["input_ids"].clone()
        row["labels"][:4] = -100
    found = fisher(model, rows, "empirical", batch_size=2)
    assert found.info["tokens"] == (6 - 4) + (9 - 4)
    assert_close(found, loop(model, rows))
    assert fisher(model, rows, "mc").info["tokens"] == 7
    assert_close(fisher(model, rows, "mas"), loop(model, rows, absolute=True))


def test_the_padding_token_s_embedding_has_no_gradient_but_its_head_row_has():
    model, rows = llama(tied=True), [{"input_ids": [0, 3, 0, 5, 0]}, {"input_ids": [4, 0, 0]}]
    assert model.get_input_embeddings().padding_idx == 0
    assert_close(fisher(model, rows, "empirical"), loop(model, rows))


class Raw(Toy):
    """A parameter outside any layer."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([1.5, 0.5]))

    def forward(self, **inputs):
        return SimpleNamespace(logits=super().forward(**inputs).logits * self.gain.prod())


class Twice(Toy):
    """A layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.middle = nn.Linear(6, 6)
        self.head = nn.Linear(6, VOCAB)

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return SimpleNamespace(logits=self.head(torch.tanh(self.middle(torch.tanh(self.middle(self.embedding(input_ids)))))))


class Disguised(Toy):
    """A layer's weight used behind its back: only the comparison with autograd can tell."""

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        out = super().forward(input_ids).logits
        return SimpleNamespace(logits=out * (1 + self.middle.weight.sum()))


class Doubled(nn.Embedding):
    def forward(self, ids):
        return 2 * super().forward(ids)


class DoubledToy(Toy):
    def __init__(self):
        super().__init__()
        self.embedding = Doubled(VOCAB, 6)


class Checkpointed(Toy):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        x = self.embedding(input_ids)
        inner = lambda x: torch.tanh(self.middle(x))  # noqa: E731
        return SimpleNamespace(logits=self.head(checkpoint(inner, x, use_reentrant=self.reentrant)))


@pytest.mark.parametrize("make", [Raw, Twice, Disguised, DoubledToy])
@pytest.mark.parametrize("kind", ["empirical", "mas"])
def test_a_layer_that_the_hooks_do_not_know_takes_the_loop_and_says_so_once(make, kind, caplog):
    model, rows = make(), rows_of(5, 8, 8, 3)
    with caplog.at_level(logging.WARNING):
        found = fisher(model, rows, kind, batch_size=2)
    assert found.info["method"] == "loop"
    assert len(caplog.records) == 1
    assert_close(found, loop(model, rows, absolute=kind == "mas"))


class Shifted(Toy):
    """A shift that the softmax cancels: its gradient is rounding alone, and no reason to distrust the hooks."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Linear(6, 1)

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        x = self.embedding(input_ids)
        return SimpleNamespace(logits=self.head(torch.tanh(self.middle(x))) + self.shift(x.detach()))


def test_a_gradient_of_rounding_alone_is_no_disagreement():
    model, rows = Shifted(), rows_of(5, 8, 8, 3)
    found = fisher(model, rows, "empirical", batch_size=2)
    assert found.info["method"] == "hooks"
    expected = loop(model, rows)
    for name in ("shift.weight", "shift.bias"):
        assert found[name].max() < 1e-10 * found["head.weight"].max()
        del expected[name]
    assert_close({name: found[name] for name in expected}, expected)


class Routed(Toy):
    """An expert that sees the tokens it is sent, one after the other: as many as sequences by chance."""

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        x = self.embedding(input_ids)
        sent = input_ids == 3
        y = torch.zeros(*input_ids.shape, 8).masked_scatter(sent[..., None], torch.tanh(self.middle(x[sent])))
        return SimpleNamespace(logits=self.head(y))


def test_an_expert_s_tokens_are_not_taken_for_sequences():
    rows = [{"input_ids": [1, 3, 4, 5]}, {"input_ids": [3, 2, 2, 6]}, {"input_ids": [3, 2, 3, 6]}, {"input_ids": [2, 2, 9, 6]}]
    found = fisher(Routed(), rows, "empirical", batch_size=2)
    assert found.info["method"] == "loop"
    assert_close(found, loop(Routed(), rows))


class SurpriseToy(Toy):
    """Calls a layer twice, but only on long sequences: the hooks learn it in the middle."""

    def __init__(self):
        super().__init__()
        self.middle, self.head = nn.Linear(6, 6), nn.Linear(6, VOCAB)

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        x = torch.tanh(self.middle(self.embedding(input_ids)))
        return SimpleNamespace(logits=self.head(self.middle(x) if input_ids.shape[1] > 9 else x))


def test_a_late_surprise_takes_the_loop_from_there(caplog):
    rows = rows_of(5, 5, 4, 12, 12, 6)
    with caplog.at_level(logging.WARNING):
        found = fisher(SurpriseToy(), rows, "empirical", batch_size=2)
    assert found.info["method"] == "loop"
    assert len(caplog.records) == 1
    alone = [loop(SurpriseToy(), [row]) for row in rows]
    assert_close(found, {name: sum(part[name] for part in alone) / len(rows) for name in found})


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["empirical", "mc"])
def test_checkpointed_layers(reentrant, kind):
    model, plain, rows = Checkpointed(reentrant), Toy(), rows_of(5, 8, 8, 3)
    assert_close(fisher(model, rows, kind, batch_size=2), fisher(plain, rows, kind, batch_size=2), 1e-5)


def test_gradient_checkpointing_changes_nothing():
    model, rows = llama(), rows_of(5, 8, 3)
    expected = {kind: fisher(model, rows, kind) for kind in ("mc", "empirical")}
    checkpointing_on(model)
    model.train()
    for kind, reference in expected.items():
        assert_close(fisher(model, rows, kind), reference, 1e-6)
    assert is_checkpointing(model)


# --- per token: mc and exact


@pytest.mark.parametrize("make", [llama, gpt2])
def test_exact_equals_the_jacobian_form(make):
    model, rows = make(tied=True), rows_of(4, 5)
    found = fisher(model, rows, "exact", batch_size=2)
    assert found.info["level"] == "token"
    assert found.info["tokens"] == 7
    assert_close(found, jacobian_fisher(model, rows))


def mean_of_draws(model, rows, draws):
    """One call over `draws` copies of the rows: every copy is one batch with labels of its own."""
    return fisher(model, itertools.chain.from_iterable(itertools.repeat(rows, draws)), "mc", batch_size=len(rows))


@pytest.mark.parametrize("state", ["trained", "over-confident", "off"])
def test_mc_is_unbiased_where_the_empirical_fisher_is_not(state):
    model, rows = model_in(state), chain(4, 6, seed=5)
    expected = jacobian_fisher(model, rows)
    found = mean_of_draws(model, rows, 1500)
    assert found.info["relative_se"] < 0.03
    assert found.trace == pytest.approx(trace(expected), rel=0.05)
    for name, reference in expected.items():
        assert found[name].sum().item() == pytest.approx(reference.sum().item(), rel=0.12), name
    pairs = [{"input_ids": row["input_ids"][i : i + 2]} for row in rows for i in range(5)]  # one token a sequence
    ratio = fisher(model, pairs, "empirical").trace / trace(expected)
    assert (ratio > 3) == (state != "trained"), ratio


@pytest.mark.slow
@pytest.mark.parametrize("state", ["trained", "over-confident", "off"])
def test_mc_mean_over_many_draws_is_within_two_percent(state):
    model, rows = model_in(state), chain(4, 6, seed=5)
    expected, found = jacobian_fisher(model, rows), mean_of_draws(model, rows, 8000)
    assert found.trace == pytest.approx(trace(expected), rel=0.02)
    for name, reference in expected.items():
        assert found[name].sum().item() == pytest.approx(reference.sum().item(), rel=0.02), name


def test_one_mc_pass_over_enough_tokens_is_within_ten_percent_of_the_expectation():
    model, rows = trained(llama(), 60), chain(120, 8, seed=6)
    found = fisher(model, rows, "mc", batch_size=1)
    assert found.trace == pytest.approx(trace(jacobian_fisher(model, rows)), rel=0.1)


def test_drawn_labels_follow_the_model_s_distribution():
    logits = torch.tensor([2.0, -1.0, 0.5, -40.0]).expand(1, 40000, 4).contiguous()
    targets, u = torch.zeros(1, 40000, dtype=torch.long), torch.rand(1, 40000, generator=torch.Generator().manual_seed(0))
    onehot = logits.softmax(-1) - scores(logits, targets, u)
    assert onehot.sum(-1).sub(1).abs().max() < 1e-5
    frequency, p = onehot.mean((0, 1)), logits[0, 0].softmax(-1)
    assert ((frequency - p).abs() <= 4 * (p * (1 - p) / 40000).sqrt() + 1e-6).all()
    assert frequency[3] == pytest.approx(0, abs=1e-6)


def test_scores_are_the_gradient_of_the_counted_cross_entropy():
    logits = torch.randn(2, 5, VOCAB, requires_grad=True, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, VOCAB, (2, 5), generator=torch.Generator().manual_seed(1))
    targets[0, 3:] = -100
    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    torch.testing.assert_close(scores(logits.detach(), targets), logits.grad)


def test_a_row_s_labels_depend_on_the_seed_and_its_index_alone():
    rows = rows_of(5, 8, 3, 6)

    def drawn(size, seed=0, first=0, chosen=rows):
        batches = Rows(chosen, None, first, 0, 1, VOCAB).batches(size, torch.device("cpu"))
        return torch.cat([uniforms(b, seed)[i, :n] for b in batches for i, n in enumerate(b.lengths)])

    assert torch.equal(drawn(1), drawn(3))
    assert torch.equal(drawn(2)[5:], drawn(2, first=1, chosen=rows[1:]))
    assert not torch.equal(drawn(1), drawn(1, seed=1))


def test_mc_repeats_with_its_seed_and_changes_with_another():
    model, rows = llama(), rows_of(8, 8, 5)
    one, same, other = (fisher(model, rows, "mc", seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert one.trace != other.trace


@pytest.mark.parametrize("kind", ["mc", "empirical", "exact", "mas"])
def test_parts_merge_to_the_whole(kind):
    model, rows = llama(tied=True), rows_of(4, 6, 3, 5, 4, 6)
    whole = fisher(model, rows, kind, batch_size=2)
    parts = fisher(model, rows[:4], kind, batch_size=2), fisher(model, rows[4:], kind, batch_size=2, first=4)
    merged = parts[0].merge(parts[1])
    assert_close(merged, whole, 1e-6)
    for key in ("tokens", "sequences", "batches"):
        assert merged.info[key] == whole.info[key]
    assert merged.info["relative_se"] == pytest.approx(whole.info["relative_se"])


def test_the_relative_standard_error_is_that_of_a_ratio():
    rng = np.random.default_rng(0)
    n, t = rng.integers(5, 20, 12).astype(float), rng.gamma(2, 3, 12)
    ratio = t.sum() / n.sum()
    expected = math.sqrt(12 / 11 * ((t - ratio * n) ** 2).sum()) / n.sum() / ratio
    moments = [12, n.sum(), t.sum(), (t * t).sum(), (t * n).sum(), (n * n).sum()]
    assert relative_se(moments) == pytest.approx(expected)
    assert relative_se([1, 2, 3, 9, 6, 4]) is None


def test_the_relative_standard_error_predicts_the_spread_over_seeds():
    model, rows = trained(Toy()), chain(40, 6, seed=5)
    found = [fisher(model, rows, "mc", batch_size=1, seed=seed) for seed in range(40)]
    spread = np.std([f.trace for f in found], ddof=1) / np.mean([f.trace for f in found])
    predicted = np.mean([f.info["relative_se"] for f in found])
    assert 0.7 * spread < predicted < 2 * spread  # it also counts the rows' own differences


def test_rtol_stops_as_soon_as_the_estimate_is_good_enough():
    model, rows = trained(Toy(), 50), chain(300, 6, seed=5)
    found = fisher(model, rows, "mc", batch_size=2, rtol=0.15)
    assert found.info["relative_se"] <= 0.15
    assert 5 <= found.info["batches"] < 150
    assert fisher(model, rows, "mc", batch_size=2, samples=found.info["sequences"] - 2).info["relative_se"] > 0.15


# --- what is left behind, and what is needed


def test_nothing_of_the_model_or_of_the_random_states_is_changed():
    model = llama(tied=True, attention_dropout=0.5)
    model.train()
    model.model.layers[0].eval()
    model.model.norm.weight.requires_grad_(False)
    model.lm_head.weight.grad = torch.full_like(model.lm_head.weight, 3.0)
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    needs, grads = [p.requires_grad for p in model.parameters()], [p.grad for p in model.parameters()]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    def noisy(rows):
        for row in rows:
            random.random(), np.random.rand(), torch.rand(1)
            yield row

    for kind in ("mc", "empirical", "exact", "mas"):
        fisher(model, noisy(rows_of(4, 6, 3)), kind)
    with pytest.raises(InputError, match="row 1"):
        fisher(model, [*rows_of(4), {"text": "x"}], batch_size=1)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == needs
    assert all(a is b for a, b in zip((p.grad for p in model.parameters()), grads, strict=True))
    assert (model.lm_head.weight.grad == 3).all()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_dropout_is_off_whatever_the_mode():
    model, rows = llama(attention_dropout=0.9), rows_of(8, 6)
    expected = fisher(model.eval(), rows, "mc")
    assert_close(fisher(model.train(), rows, "mc"), expected, 0)


def test_it_works_inside_no_grad():
    model, rows = llama(), rows_of(8, 6)
    expected = loop(model, rows)
    with torch.no_grad():
        assert_close(fisher(model, rows, "empirical"), expected)


@pytest.mark.parametrize("kind", ["mc", "empirical"])
def test_memory_is_flat_in_the_number_of_rows(kind):
    alive, most = weakref.WeakSet(), 0

    class Row(dict):
        __hash__ = object.__hash__

    def stream():
        nonlocal most
        for row in rows_of(*[6] * 64):
            item = Row(row)
            alive.add(item)
            most = max(most, len(alive))
            yield item

    assert fisher(llama(), stream(), kind, batch_size=4, samples=60).info["sequences"] == 60
    assert most <= 4 + 2


def test_progress_and_samples():
    seen = []
    found = fisher(llama(), rows_of(*[4] * 10), samples=7, batch_size=3, progress=seen.append)
    assert seen == [3, 6, 7]
    assert (found.info["sequences"], found.info["tokens"], found.info["batches"]) == (7, 21, 3)


def test_frozen_parameters_have_no_importance():
    model, rows = llama(), rows_of(5, 9)
    model.get_input_embeddings().requires_grad_(False)
    model.model.layers[0].requires_grad_(False)
    for kind in ("mc", "empirical"):
        found = fisher(model, rows, kind)
        assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert found.info["method"] == "hooks"
    assert_close(found, loop(model, rows))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own
def test_lora():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], lora_dropout=0.3))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    rows = rows_of(5, 9, 4)
    found = fisher(model, rows, "empirical", batch_size=2)
    assert len(found) == 8
    assert found.info["method"] == "hooks"
    assert_close(found, loop(model, rows))
    assert fisher(model, rows, "mc").trace > 0


def test_low_precision_weights_give_float32_sums():
    model, rows = llama(tied=True), rows_of(5, 9, 4)
    low = copy.deepcopy(model).bfloat16()
    for kind in ("mc", "empirical"):
        found = fisher(low, rows, kind)
        assert {value.dtype for value in found.values()} == {torch.float32}
        assert found.info["dtype"] == "bfloat16"
    high = fisher(low.float(), rows, "empirical")
    assert found.trace == pytest.approx(high.trace, rel=0.05)


def test_normalize_and_floor():
    model, rows = llama(), rows_of(5, 9, 4)
    raw = fisher(model, rows, "empirical")
    unused = sorted(set(range(VOCAB)) - {int(t) for row in rows for t in row["input_ids"]})
    assert (raw["model.embed_tokens.weight"][unused] == 0).all()
    floored = fisher(model, rows, "empirical", floor=0.1)
    for name, value in raw.items():
        torch.testing.assert_close(floored[name], value + 0.1 * raw.mean)
    scaled = fisher(model, rows, "empirical", normalize="mean", floor=0.1)
    assert scaled.mean == pytest.approx(1, rel=1e-6)
    for name, value in floored.items():
        torch.testing.assert_close(scaled[name], value / floored.mean)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "no row has a counted token"),
        ([{"input_ids": [3]}], {}, "no row has a counted token"),
        ([{"input_ids": [3, 4], "labels": [3, -100]}], {}, "no row has a counted token"),
        ([{"text": "a"}], {}, "row 0: no input_ids"),
        ([{"input_ids": [1, 2]}, {"input_ids": [[1, 2]]}], {}, "row 1: input_ids: 2-D"),
        ([{"input_ids": [1, VOCAB]}], {}, "token id 13, vocabulary 13"),
        ([{"input_ids": [1, 2], "labels": [1]}], {}, "1 labels for 2 tokens"),
        ([{"input_ids": [1, 2]}], {"kind": "true"}, "mc, exact, empirical, mas"),
        ([{"input_ids": [1, 2]}], {"batch_size": 0}, "batch_size"),
        ([{"input_ids": [1, 2]}], {"samples": 0}, "samples"),
        ([{"input_ids": [1, 2]}], {"rtol": -1.0}, "rtol"),
        ([{"input_ids": [1, 2]}], {"seed": -1}, "seed"),
        ([{"input_ids": [1, 2]}], {"normalize": "max"}, "normalize"),
        ([{"input_ids": [1, 2]}], {"floor": -0.1}, "floor"),
    ],
)
def test_wrong_input_is_one_clear_line(rows, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        fisher(llama(), rows, **settings)
    assert "\n" not in str(caught.value)


def test_a_model_without_trainable_parameters_and_one_with_nan():
    with pytest.raises(InputError, match="no trainable parameter"):
        fisher(llama().requires_grad_(False), rows_of(4))
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    for kind in ("mc", "empirical"):
        with pytest.raises(RunError, match="nan"):
            fisher(model, rows_of(4, 5), kind)


# --- the object and its file


def test_it_is_a_mapping_of_clean_names_with_a_tied_tensor_once():
    model = llama(tied=True)
    found = fisher(nn.ModuleDict({"module": model})["module"], rows_of(5))
    assert list(found) == [name for name, _ in tensors.trainable(model)]
    assert "lm_head.weight" not in found
    assert all(found[name].shape == p.shape for name, p in model.named_parameters())


def test_the_info_says_what_it_is():
    model, rows = llama(), rows_of(5, 9, 4)
    info = fisher(model, rows, seed=7, batch_size=2).info
    assert info["kind"] == "mc"
    assert info["level"] == "token"
    assert "sampled" in info["labels"]
    assert (info["tokens"], info["sequences"], info["batches"], info["seed"]) == (15, 3, 2, 7)
    assert info["anchor_digest"] == tensors.digest(tensors.snapshot(model))
    assert info["data_digest"] == fisher(model, iter(rows), "empirical", batch_size=1).info["data_digest"]
    assert info["data_digest"] != fisher(model, rows[::-1]).info["data_digest"]
    assert json.loads(json.dumps(info)) == info


def test_save_and_load_give_the_same(tmp_path):
    found = fisher(llama(tied=True), rows_of(5, 9, 4), normalize="mean")
    path = found.save(tmp_path / "deep" / "f.safetensors")
    again = Importance.load(path)
    assert again.info == found.info
    assert all(torch.equal(again[name], found[name]) for name in found)
    assert [p.name for p in path.parent.iterdir()] == ["f.safetensors"]
    found.uniform().save(path)
    assert "uniform" in Importance.load(path).info["control"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    found = fisher(llama(), rows_of(5, 9))
    path = found.save(tmp_path / "f.safetensors")
    before = path.read_bytes()

    def full(values, name, metadata):
        name.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("cltk.importance.diagonal.save_file", full)
    with pytest.raises(OSError, match="no space"):
        found.uniform().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]


def test_a_damaged_file_is_refused(tmp_path):
    path = fisher(llama(), rows_of(5, 9)).save(tmp_path / "f.safetensors")
    whole = path.read_bytes()
    for damaged, message in [
        (whole[:-100], "truncated or damaged"),
        (whole[:20], "truncated or damaged"),
        (b"", "truncated or damaged"),
        (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], "sha256"),
        (whole.replace(b'\\"seed\\": 0', b'\\"seed\\": 1'), "sha256"),
    ]:
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=message):
            Importance.load(path)
    with pytest.raises(InputError, match="no such file"):
        Importance.load(tmp_path / "none.safetensors")


def test_another_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="not one that"):
        Importance.load(tmp_path / "a.safetensors")


def test_check_names_what_does_not_fit():
    model = llama()
    found = fisher(model, rows_of(5, 9))
    found.check(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    with pytest.raises(InputError, match="computed for another model: its start weights have digest"):
        found.check(other)
    with pytest.raises(InputError, match=r"embed_tokens\.weight is 13x8 there and 14x8 in the model"):
        found.check(llama(words=14))
    with pytest.raises(InputError, match=r"it has lm_head\.weight, the model has not"):
        found.check(llama(tied=True))
    model.lm_head.requires_grad_(False)
    found.check(model)  # frozen since: still the same weights
    part = fisher(model, rows_of(5, 9))
    model.lm_head.requires_grad_(True)
    with pytest.raises(InputError, match=r"lm_head\.weight is trained but has no importance"):
        part.check(model)
    with pytest.raises(InputError, match="float32 there, bfloat16 here"):
        found.check(copy.deepcopy(model).bfloat16())


def test_merge_refuses_what_does_not_add():
    model, rows = llama(), rows_of(5, 9)
    mc = fisher(model, rows)
    with pytest.raises(InputError, match="kind is mc and empirical"):
        mc.merge(fisher(model, rows, "empirical"))
    with pytest.raises(InputError, match="anchor_digest"):
        mc.merge(fisher(llama(seed=1), rows))
    scaled = fisher(model, rows, normalize="mean")
    with pytest.raises(InputError, match="after normalize"):
        scaled.merge(scaled)
    with pytest.raises(InputError, match="autocast"):
        mc.merge(fisher(model, rows, autocast=True))
    older = Importance(dict(mc), {key: value for key, value in mc.info.items() if key != "autocast"})
    assert_close(older.merge(mc), mc, 1e-6)  # the same rows twice; written before there was autocast


def test_controls_keep_the_numbers_or_their_mean():
    found = fisher(llama(), rows_of(5, 9), "empirical")
    shuffled, again, uniform = found.shuffled(3), found.shuffled(3), found.uniform()
    for name, value in found.items():
        assert torch.equal(shuffled[name].flatten().sort().values, value.flatten().sort().values)
        assert torch.equal(shuffled[name], again[name])
        assert (uniform[name] == uniform[name].flatten()[0]).all()
    assert any(not torch.equal(shuffled[name], value) for name, value in found.items())
    assert uniform.mean == pytest.approx(found.mean, rel=1e-6)
    assert "seed 3" in shuffled.info["control"]
    assert "uniform" in uniform.info["control"]


def test_online_update():
    model = llama()
    old, new = fisher(model, rows_of(5, 9), "empirical"), fisher(model, rows_of(4, seed=1), "empirical")
    both = update(old, new, 0.9)
    for name in old:
        torch.testing.assert_close(both[name], 0.9 * old[name] + new[name])
    assert both.info["decay"] == 0.9
    with pytest.raises(InputError, match="decay"):
        update(old, new, 1.5)


# --- several processes


def _worker(rank, folder, kind):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/sync", rank=rank, world_size=2)
    found = fisher(llama(tied=True), rows_of(5, 9, 4, 7, 6), kind, batch_size=2)
    if rank == 1:
        found.save(f"{folder}/found.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_two_processes_equal_one(tmp_path, kind):
    forks.ranks(_worker, str(tmp_path), kind)
    found, expected = Importance.load(tmp_path / "found.safetensors"), fisher(llama(tied=True), rows_of(5, 9, 4, 7, 6), kind)
    assert_close(found, expected, 1e-5)
    for key in ("tokens", "sequences", "data_digest", "anchor_digest"):
        assert found.info[key] == expected.info[key]


def _stops(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/sync", rank=rank, world_size=2)
    model = trained(Toy(), 50)
    loose = fisher(model, chain(300, 6, seed=5), "mc", batch_size=2, rtol=0.03)
    sooner = fisher(model, chain(300, 6, seed=5), "mc", batch_size=2, samples=loose.info["sequences"] - 4)
    all_of_it = fisher(model, chain(13, 6, seed=5), "mc", batch_size=2, rtol=1e-9)  # 7 rows and 6: 4 batches and 3
    for name, found in (("loose", loose), ("sooner", sooner), ("all", all_of_it)):
        found.save(f"{folder}/{name}{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_stop_together(tmp_path):
    forks.ranks(_stops, str(tmp_path))
    for name in ("loose", "sooner", "all"):
        first, second = (Importance.load(tmp_path / f"{name}{rank}.safetensors") for rank in (0, 1))
        assert_close(first, second, 0.0)
        for key in ("sequences", "batches", "relative_se", "data_digest"):
            assert first.info[key] == second.info[key]
        if name == "all":
            assert (first.info["sequences"], first.info["batches"]) == (13, 7)
        elif name == "loose":
            assert first.info["relative_se"] <= 0.03
            assert 10 <= first.info["batches"] < 150
        else:  # a batch less on each rank: by its own estimate, neither would have stopped as early as both together
            assert first.info["relative_se"] > 0.03


@pytest.mark.parametrize("make", [llama, gpt2, neox])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["empirical", "mas", "mc"])
def test_autocast_is_near_and_said(kind, tied, make):
    model, rows = make(tied), rows_of(9, 5, 12, 7, 10, 6)
    wide, narrow = fisher(model, rows, kind), fisher(model, rows, kind, autocast=True)
    assert (wide.info["autocast"], narrow.info["autocast"]) == (False, True)
    assert wide.info["method"] == narrow.info["method"] == ("batch" if kind == "mc" else "hooks")
    a, b = (torch.cat([found[name].flatten() for name in sorted(found)]) for found in (wide, narrow))
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    assert narrow.trace == pytest.approx(wide.trace, rel=0.1)  # eight-wide layers: single roundings of 2^-8 are seen
    assert F.cosine_similarity(a, b, dim=0) > (0.95 if kind == "mc" else 0.99)  # rounding may turn a drawn label into another
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_after_a_training_in_bfloat16_it_is_computed_in_the_weights_precision(tmp_path):
    """accelerate leaves its autocast around forward; an online EWC's second Fisher would be of another precision."""
    from transformers import Trainer, TrainingArguments

    from cltk.data import Collator

    model, rows = llama(), [{"input_ids": list(range(3, 12)), "labels": list(range(3, 12))} for _ in range(8)]
    args = TrainingArguments(str(tmp_path), bf16=True, max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=Collator(0))
    trainer.train()
    fresh = llama()
    fresh.load_state_dict(model.state_dict())
    for kind in ("mc", "empirical"):
        assert tensors.digest(fisher(model, rows, kind)) == tensors.digest(fisher(fresh, rows, kind))
        assert tensors.digest(fisher(model, rows, kind)) != tensors.digest(fisher(fresh, rows, kind, autocast=True))
