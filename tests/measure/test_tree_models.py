"""Models that cannot run on trees are scored by lm-eval's own code from the first answer on, in 32 and in 16 bits."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM

from cltk.measure.journal import Journal
from cltk.measure.scoring import PrefixLM
from cltk.measure.tree_forward import TreeForward, UnsupportedModelError
from cltk.measure.tree_proof import check_close, prove, switch_length
from tests.forward.causal_models import EVERY, build

HYBRID = ["lfm2", "granitemoehybrid", "qwen3_next", "falcon_h1"]
NO_TREES = [*HYBRID, "bloom", "mpt", "gpt_neo"]
TREES = ["llama", "gemma3_text", "gpt2", "phi3", "qwen3_moe"]


def requests(seed: int = 0, documents: int = 8, header: int = 0) -> list[tuple[None, list[int], list[int]]]:
    """Token ids of documents with 3 choices of up to 24 tokens, half of them behind one header."""
    rng = random.Random(seed)
    head = [rng.randrange(3, 300) for _ in range(header)]
    made: list[tuple[None, list[int], list[int]]] = []
    for document in range(documents):
        context = head * (document % 2) + [rng.randrange(3, 300) for _ in range(rng.randint(5, 30))]
        made += [(None, context, [rng.randrange(3, 300) for _ in range(rng.randint(1, 24))]) for _ in range(3)]
    return made


def stock_of(model: Any, tokenizer: Any, asked: Any, batch_size: int = 8) -> Any:
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=256)._loglikelihood_tokens(
        asked, disable_tqdm=True
    )


def ours_of(model: Any, tokenizer: Any, **settings: Any) -> PrefixLM:
    lm = PrefixLM(model, tokenizer, **settings)
    lm._max_length = 256
    return lm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", NO_TREES)
def test_what_cannot_run_on_trees_gives_stocks_answers_to_the_bit(kind: str, dtype: torch.dtype, tokenizer: Any) -> None:
    model, asked = build(kind).to(dtype), requests(header=80)
    lm = ours_of(model, tokenizer)
    with pytest.warns(UserWarning, match="contexts are not shared"):
        found = lm._loglikelihood_tokens(asked)
    assert lm._trees is None
    assert found == stock_of(model, tokenizer, asked)  # the same rows in the same batches


@pytest.mark.parametrize("kind", TREES)
def test_attention_alone_runs_on_trees(kind: str, tokenizer: Any) -> None:
    asked = requests(header=80)
    wide = build(kind)
    exact = [logprob for logprob, _ in stock_of(wide, tokenizer, asked)]
    lm = ours_of(wide, tokenizer)
    assert [logprob for logprob, _ in lm._loglikelihood_tokens(asked)] == pytest.approx(exact, rel=1e-4, abs=1e-3)
    assert lm._trees is not None
    assert set(lm._checked) == {False, True}
    narrow = build(kind).to(torch.bfloat16)
    apart = [
        sum(abs(a - b) for (a, _), b in zip(found, exact, strict=True))
        for found in (ours_of(narrow, tokenizer)._loglikelihood_tokens(asked), stock_of(narrow, tokenizer, asked))
    ]
    assert apart[0] <= 2 * apart[1]  # no further from 32 bits than twice stock's own rounding


def test_factors_that_switch_with_the_length_are_not_split(tokenizer: Any) -> None:
    """Phi-3 128k takes other rotary factors for all positions once one is beyond the original length."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}
    model = build(
        "phi3", original_max_position_embeddings=100, rope_scaling=scaling | {"original_max_position_embeddings": 100}
    )
    assert switch_length(model.config) == 100
    short = [r for r in requests(header=40) if len(r[1]) + len(r[2]) <= 100]
    lm = ours_of(model, tokenizer)
    found = [logprob for logprob, _ in lm._loglikelihood_tokens(short)]
    assert lm._trees is not None
    assert found == pytest.approx([logprob for logprob, _ in stock_of(model, tokenizer, short)], rel=1e-4, abs=1e-3)
    long = requests(header=90)
    with pytest.warns(UserWarning, match="rotary embedding changes beyond 100 tokens"):
        assert lm._loglikelihood_tokens(long) == stock_of(model, tokenizer, long)


def test_a_window_that_the_first_trees_do_not_reach(tokenizer: Any) -> None:
    """GPT-Neo cuts its window by index: trees of 200 nodes are wrong where those of 30 are right."""
    model = build("gpt_neo", window_size=128)
    asked = requests(documents=2) + requests(seed=1, documents=12, header=70)
    with pytest.warns(UserWarning, match="attention window of its own"):
        assert ours_of(model, tokenizer)._loglikelihood_tokens(asked) == stock_of(model, tokenizer, asked)


def test_an_encoder_decoder_is_scored_as_lm_eval_does(tokenizer: Any) -> None:
    from lm_eval.api.instance import Instance

    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=300, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=1, eos_token_id=0,
        decoder_start_token_id=1,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    pairs = [("the cat sat on", " the mat"), ("the cat sat on", " a tree"), ("a dog", " ran")]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    assert PrefixLM(model, tokenizer).loglikelihood(asked, disable_tqdm=True) == stock.loglikelihood(asked, disable_tqdm=True)


def test_only_rotary_settings_are_read_for_their_length() -> None:
    model = build("llama")
    assert switch_length(model.config) is None
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert switch_length(model.config) == 256  # from the model's own positions on
    model.config.rope_parameters = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    model.config.quantization_config = {"type": "dynamic"}
    assert switch_length(model.config) is None


class Late(transformers.LlamaForCausalLM):
    """Wrong only where a forward is longer than any that is tried: nothing of the small trees may stay."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **rest: Any) -> Any:
        if position_ids is not None and input_ids.shape[1] > 60:
            position_ids = position_ids // 2
        return super().forward(input_ids=input_ids, position_ids=position_ids, **rest)


def test_answers_of_a_path_that_is_refused_late_are_dropped(tokenizer: Any, tmp_path: Any) -> None:
    model = Late(build("llama").config).eval()
    asked = requests(documents=8)
    book = Journal(tmp_path / "j")
    lm = ours_of(model, tokenizer, journal=book, digest="abc", max_tokens=64)
    few = [r for r in asked if len(r[1]) < 8]
    small = lm._loglikelihood_tokens(few)  # small trees are right, and kept
    assert [p for p, _ in small] == pytest.approx([p for p, _ in stock_of(model, tokenizer, few)], rel=1e-4)
    assert lm._trees is not None
    assert len(book) == len(few)
    with pytest.warns(UserWarning, match="against"):
        found = lm._loglikelihood_tokens(asked)
    expected = stock_of(model, tokenizer, asked)
    assert found == expected
    again = ours_of(model, tokenizer, journal=Journal(tmp_path / "j"), digest="abc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # refused for good: it is not tried again
        assert again._loglikelihood_tokens(asked) == expected


def test_tokens_that_a_model_excludes_have_no_probability(tokenizer: Any) -> None:
    class Masked(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **rest: Any) -> Any:
            found = super().forward(*args, **rest)
            excluded = torch.zeros_like(found.logits).index_fill_(-1, torch.arange(100, 320), float("-inf"))
            found.logits = found.logits + excluded
            return found

    model, asked = Masked(build("llama").config).eval(), requests()
    lm = ours_of(model, tokenizer)
    found, expected = lm._loglikelihood_tokens(asked), stock_of(model, tokenizer, asked)
    assert lm._trees is not None
    assert [p for p, _ in found] == pytest.approx([p for p, _ in expected], rel=1e-4)
    assert any(p == float("-inf") for p, _ in found)


def test_log_probabilities_in_16_bits_are_held_to_the_rounding_of_rows() -> None:
    rows = torch.linspace(-9, -5, 30).double().numpy()
    check_close(rows + 0.01, rows, rows + 0.004, torch.bfloat16)
    check_close(rows + 0.05, rows, rows, torch.bfloat16)  # 4 roundings of 7 nats to 8 bits: 0.11
    with pytest.raises(UnsupportedModelError, match="apart"):
        check_close(rows + 0.2, rows, rows + 0.004, torch.bfloat16)
    with pytest.raises(UnsupportedModelError, match="against"):
        check_close(rows + 0.01, rows, rows, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"),  # of 16 bits a third: two minutes on a processor without them, and a model is proven before its answers
    [*((kind, torch.float32) for kind in EVERY), *((kind, torch.bfloat16) for kind in EVERY[::3])],
)
def test_every_class_gives_stocks_answers(kind: str, dtype: torch.dtype, tokenizer: Any) -> None:
    """By trees, or by the stock path to the bit. 16 bits: the mean distance to 32 bits is at most twice stock's."""
    model, asked = build(kind), requests(header=80)
    exact = torch.tensor([p for p, _ in stock_of(model, tokenizer, asked)]).double()
    model = model.to(dtype)
    lm = ours_of(model, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = lm._loglikelihood_tokens(asked)
    stock = stock_of(model, tokenizer, asked)
    if lm._trees is None:
        assert found == stock
        return
    mine, theirs = (torch.tensor([p for p, _ in side]).double() for side in (found, stock))
    if dtype == torch.float32:
        assert ((mine - theirs).abs() <= 1e-3 + 1e-4 * theirs.abs()).all()
    else:
        assert (mine - exact).abs().mean() <= 2 * (theirs - exact).abs().mean()


@pytest.mark.slow
def test_the_table_is_long_and_has_both_kinds() -> None:
    found = {"trees": 0, "stock": 0}
    for kind in EVERY:
        try:
            prove(TreeForward(build(kind)), 256)
            found["trees"] += 1
        except UnsupportedModelError:
            found["stock"] += 1
    assert found["trees"] >= 90
    assert found["stock"] >= 30
