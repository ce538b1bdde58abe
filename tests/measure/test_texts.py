"""Held-out text: windows, bytes, short rows, other tokenisers and vocabularies. float32."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.divergence import divergence, row_kl
from cltk.measure.evaluate import Suite, TextTask
from cltk.measure.texts import scored_bytes
from cltk.measure.windows import windows
from tests.conftest import sentences


def scored(text: TextTask, model: Any, tokenizer: Any) -> Any:
    return Suite([], texts=[text]).evaluate(model, tokenizer).tasks[text.name]


@pytest.mark.parametrize("length", [2, 7, 8, 9, 15, 16, 29, 30])
@pytest.mark.parametrize("size", [3, 8])
def test_windows_are_lm_evals(length: int, size: int) -> None:
    """Its windows of the tokens behind the first one, which stands for the prefix token."""
    ids = list(range(100, 100 + length))
    rolling = get_rolling_token_windows(token_list=ids[1:], prefix_token=ids[0], max_seq_len=size - 1, context_len=1)
    expected = [
        [(context + target[:i], token) for i, token in enumerate(target)]
        for context, target in map(make_disjoint_window, rolling)
    ]
    found = windows({"input_ids": ids}, size)
    assert all(len(row["input_ids"]) <= size for row in found)
    assert [
        [(row["input_ids"][: i + 1], label) for i, label in enumerate(row.get("labels", row["input_ids"])[1:]) if label != -100]
        for row in found
    ] == expected


def test_windows_keep_labels_that_do_not_count() -> None:
    row = {"input_ids": list(range(20)), "labels": [-100] * 12 + list(range(12, 20))}
    parts = windows(row, 8)
    counted = [label for part in parts for label in part["labels"][1:] if label != -100]
    assert counted == list(range(12, 20))


def test_a_text_longer_than_the_model_is_read_whole(tiny: Any, tokenizer: Any) -> None:
    """GPT-2 has 256 positions. By hand: every token once, by plain forwards."""
    model, text = tiny("gpt2").eval(), " ".join(sentences(120))
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > 512
    found = scored(TextTask("long", [{"text": text}]), model, tokenizer)
    total = 0.0
    for context, target in map(
        make_disjoint_window, get_rolling_token_windows(token_list=ids[1:], prefix_token=ids[0], max_seq_len=255, context_len=1)
    ):
        with torch.no_grad():
            logp = model(torch.tensor([context + target])).logits[0].double().log_softmax(-1)
        total -= sum(logp[len(context) - 1 + i, token].item() for i, token in enumerate(target))
    assert found.values["nll"][0] == pytest.approx(total / (len(ids) - 1), rel=1e-6)
    first = len(tokenizer.decode(ids[:1]))
    assert found.values["bits_per_byte"][0] == pytest.approx(total / math.log(2) / (len(text) - first), rel=1e-6)


def test_bits_over_bytes_of_what_was_scored(tiny: Any, tokenizer: Any) -> None:
    text = "the cat sat. " * 300
    tasks = [scored(TextTask("t", [{"text": text}], max_length=n), tiny(), tokenizer) for n in (40, None)]
    for task in tasks:
        bits = task.values["nll"][0] / math.log(2)
        assert task.values["bits_per_byte"][0] / bits == pytest.approx(1 / 3, rel=0.35)  # some three bytes a token
    assert tasks[0].notes == ["1 of 1 rows are measured on their first 40 tokens"]
    assert tasks[1].notes == []


def test_bytes_by_offsets_and_by_decoding_agree(tokenizer: Any) -> None:
    text = "the café ran 日本 over"
    ids = tokenizer(text)["input_ids"]
    slow = copy.deepcopy(tokenizer)
    slow.__class__ = type("Slow", (type(tokenizer),), {"is_fast": False})
    first = len(tokenizer.decode(ids[:1]).encode())
    assert scored_bytes(text, ids, tokenizer) == scored_bytes(text, ids, slow) == len(text.encode()) - first


def test_rows_with_nothing_to_predict_are_counted_not_scored(tiny: Any, tokenizer: Any) -> None:
    rows = [
        {"text": "", "c": "x"},
        {"text": "a", "c": "y"},
        {"text": "the cat sat", "c": "z"},
        {"text": "a big bird", "c": "z"},
    ]
    found = scored(TextTask("t", rows, cluster="c"), tiny(), tokenizer)
    whole = scored(TextTask("t", rows[2:], cluster="c"), tiny(), tokenizer)
    assert found.values == whole.values
    assert found.cluster == ["z", "z"]
    assert found.notes == ["2 of 4 rows have no token to predict and are left out"]
    with pytest.raises(InputError, match="text t: none of its 2 rows"):
        scored(TextTask("t", rows[:2]), tiny(), tokenizer)


def test_a_token_outside_of_the_embedding_is_a_line(tiny: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"text t: token 300 .* vocabulary of 300"):
        scored(TextTask("t", [{"input_ids": [1, 300, 2]}]), tiny(), tokenizer)


def test_a_text_with_nothing_to_predict_is_found_before_anything_is_scored(tiny: Any, tokenizer: Any) -> None:
    def never(*_: Any) -> None:
        pytest.fail("something was scored")

    texts = [TextTask("good", [{"text": "the cat sat"}]), TextTask("bad", [{"text": ""}])]
    with pytest.raises(InputError, match="text bad"):
        Suite([], texts=texts).evaluate(tiny(), tokenizer, progress=never)


TEXT = TextTask("old", [{"text": s, "from": str(i // 4)} for i, s in enumerate(sentences(12))], cluster="from")


def test_kl_over_the_ids_that_both_have(tiny: Any) -> None:
    """A pad token was added and the embedding resized: the same predictions but for the new ids."""
    start, tuned, rows = tiny(), tiny(), [{"input_ids": [5, 9, 20, 7, 3]}]
    tuned.resize_token_embeddings(304, mean_resizing=False)
    assert row_kl(start, tuned, rows) == pytest.approx([0], abs=1e-6)
    other = tiny(seed=1)
    other.resize_token_embeddings(304, mean_resizing=False)
    assert row_kl(start, other, rows) == pytest.approx(row_kl(start, tiny(seed=1), rows), rel=1e-4)


def test_kl_has_the_standard_error_of_clusters(tiny: Any, tokenizer: Any) -> None:
    rows = [{"input_ids": tokenizer(row["text"])["input_ids"]} for row in TEXT.rows]
    found = divergence(tiny(), tiny(seed=1), {"old": rows}, 100, clusters={"old": TEXT.labels()})[0]["old"]
    values = np.array(row_kl(tiny(), tiny(seed=1), rows))
    sums = (values - values.mean()).reshape(3, 4).sum(1)
    assert found["se"] == pytest.approx(math.sqrt(3 / 2 * (sums**2).sum()) / 12, rel=1e-6)
    assert divergence(tiny(), tiny(), {"old": rows}, 1)[0]["old"] == {"kl": 0.0, "se": None, "ci": [None, None], "n": 1}


def test_a_resized_vocabulary_loses_no_table(tiny: Any, tokenizer: Any) -> None:
    tuned = tiny(seed=1)
    tuned.resize_token_embeddings(304, mean_resizing=False)
    result = cltk.measure((tiny(), tokenizer), (tuned, tokenizer), texts=[TEXT])
    assert {row.metric for row in result.rows} == {"nll", "bits_per_byte"}
    assert result.divergence["old"]["kl"] > 0
    assert any("300 and 304" in note for note in result.notes)


@pytest.fixture(scope="module")
def bytewise() -> Any:
    """Another tokeniser: one token a byte, and a first token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<s>", *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>")


def test_with_another_tokeniser_bits_per_byte_compare_and_nats_do_not(tiny: Any, tokenizer: Any, bytewise: Any) -> None:
    result = cltk.measure((tiny(), tokenizer), (tiny(seed=1), bytewise), texts=[TEXT])
    (row,) = result.rows
    assert row.metric == "bits_per_byte"
    assert result.divergence == {}
    assert [note.split(" is left out: the two tokenisers")[0] for note in result.notes] == ["old: nll", "old: KL"]
    words = [r["text"] for r in TEXT.rows]
    for side, own, seed in (("pre", tokenizer, 0), ("post", bytewise, 1)):
        task = scored(TEXT, tiny(seed=seed), own)
        ids = [own(word)["input_ids"] for word in words]
        sizes = [len(w) - (len(own.decode(i[:1])) if own is tokenizer else 0) for w, i in zip(words, ids, strict=True)]
        bits = sum(x * (len(i) - 1) for x, i in zip(task.values["nll"], ids, strict=True)) / math.log(2)
        assert getattr(row, side) == pytest.approx(bits / sum(sizes), rel=1e-6)


def test_each_model_is_loaded_once(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cltk.measure import sides

    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    loaded: list[Any] = []
    load = sides.load_model
    monkeypatch.setattr(sides, "load_model", lambda spec, **settings: (loaded.append(spec), load(spec, **settings))[1])
    result = cltk.measure("tiny-llama", "tiny-llama", dtype="float32", texts=[TEXT])
    assert result.divergence["old"]["kl"] == 0
    assert len(loaded) == 2


def test_where_two_models_do_not_fit_kl_is_by_predictions_on_disk(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cltk.measure import sides

    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    load, calls = sides.load_model, 0

    def full(*given: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(*given, **settings)

    monkeypatch.setattr(sides, "load_model", full)
    result = cltk.measure("tiny-llama", "tiny-llama", dtype="float32", texts=[TEXT])
    assert calls == 5  # base, no room beside it, tuned alone; then base and tuned, each alone
    assert {row.metric for row in result.rows} == {"nll", "bits_per_byte"}
    assert result.divergence["old"]["kl"] == 0
    assert not result.notes
    call = ["measure", "tiny-llama", "tiny-llama", "--text", "old.jsonl", "--limit", "4", "--dtype", "float32", "--kl-rows"]
    for rows, shown in (("0", False), ("2", True)):
        assert main([*call, rows]) == 0
        assert ("KL" in capsys.readouterr().out) == shown
    assert main([*call, "-1"]) == 2
