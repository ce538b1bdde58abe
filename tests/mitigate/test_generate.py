"""Texts of the start model: reproducible, resumable, from the right contexts, with the random states left alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import cltk
from cltk import tensors
from cltk.errors import InputError
from cltk.mitigate import generate
from cltk.mitigate.generate import TextJournal, sample
from cltk.mitigate.interface import Plan
from cltk.mitigate.mixed import Mixed

NEW = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]} for _ in range(12)]
SETTINGS = {"max_new_tokens": 5, "temperature": 1.0, "top_p": 1.0}


@pytest.fixture(autouse=True)
def _small(monkeypatch: Any) -> None:
    monkeypatch.setattr(generate, "BATCH", 3)


def texts(model: Any, tokenizer: Any, cache: Path | None = None, **arguments: Any) -> list[list[int]]:
    args = SimpleNamespace(
        per_device_train_batch_size=2, gradient_accumulation_steps=1, world_size=1, num_train_epochs=1, max_steps=-1
    )
    plan = Plan(model, NEW, args, tokenizer, cache=cache)
    cltk.SelfReplay(0.4, 8, max_new_tokens=5, **arguments).setup(plan)
    assert isinstance(plan.data, Mixed)
    assert plan.notes["self_replay"]["old_rows"] == 8 == len(plan.data) - 12
    return [row["input_ids"] for row in plan.data.old]


def test_the_same_texts_again_and_nothing_else_touched(tiny: Any, tokenizer: Any) -> None:
    model = tiny().train()
    before, state = tensors.digest(model), torch.get_rng_state()
    found = texts(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert tensors.digest(model) == before
    torch.rand(3)
    assert texts(model, tokenizer) == found
    assert texts(model, tokenizer, seed=1) != found
    assert texts(tiny(seed=3), tokenizer) != found
    assert all(row[0] == tokenizer.bos_token_id and 2 <= len(row) <= 6 for row in found)
    assert len({tuple(row) for row in found}) > 1


def test_a_sharp_temperature_is_greedy(tiny: Any) -> None:
    model, contexts = tiny(), [[7, 8, 9], [4]]
    found = sample(model, contexts, None, 1, SETTINGS | {"temperature": 1e-4}, seed=0)
    model.eval()
    for context, written in zip(contexts, found, strict=True):
        ids = list(context)
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert written == ids[len(context) :]


def test_texts_end_at_the_end_token(tiny: Any) -> None:
    model = tiny()
    greedy = SETTINGS | {"temperature": 1e-4}
    (whole,) = sample(model, [[7, 8, 9]], None, 1, greedy, seed=0)
    (cut,) = sample(model, [[7, 8, 9]], whole[2], 1, greedy, seed=0)
    assert cut == whole[: whole.index(whole[2]) + 1]


def test_frequencies_are_the_models(tiny: Any) -> None:
    model = tiny().eval()
    with torch.no_grad():
        model.lm_head.weight *= 20  # a distribution with a few likely tokens
    found = sample(model, [[7, 8]] * 2000, None, 1, SETTINGS | {"max_new_tokens": 1}, seed=5)
    p = model(torch.tensor([[7, 8]])).logits[0, -1].softmax(-1)
    best = int(p.argmax())
    share, expected = sum(row[0] == best for row in found) / 2000, p[best].item()
    assert 0.02 < expected < 0.98
    assert abs(share - expected) < 5 * (expected * (1 - expected) / 2000) ** 0.5


def test_an_interrupted_start_goes_on_with_the_same_texts(tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    whole = texts(tiny(), tokenizer)
    calls = []

    def stopping(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(*args)

    monkeypatch.setattr(generate, "sample", stopping)
    with pytest.raises(KeyboardInterrupt):
        texts(tiny(), tokenizer, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + b'{"batch": 2, "ro')  # a write that a kill cut short
    assert texts(tiny(), tokenizer, tmp_path) == whole
    assert len(calls) == 4  # two batches of three were kept
    assert texts(tiny(), tokenizer, tmp_path) == whole
    assert len(calls) == 4
    changes: list[dict[str, Any]] = [{"temperature": 0.01}, {"prompts": ["a cat"]}, {"seed": 1}]
    for number, other in enumerate(changes, 2):
        assert texts(tiny(), tokenizer, tmp_path, **other) != whole  # another key, another file
        assert len(list(tmp_path.iterdir())) == number
    texts(tiny(seed=1), tokenizer, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_damage_is_generated_again(tmp_path: Path) -> None:
    journal = TextJournal(tmp_path / "texts.jsonl")
    for i in range(3):
        journal.append(i, [[i, i]])
    journal.append(1, [[9]])  # another process was faster
    assert journal.read() == [[[0, 0]], [[1, 1]], [[2, 2]]]
    lines = journal.path.read_text().splitlines()  # type: ignore[union-attr]
    lines[1] = json.dumps(json.loads(lines[1]) | {"rows": [[7]]})
    journal.path.write_text("\n".join(lines) + "\n")  # type: ignore[union-attr]
    assert journal.read() == [[[0, 0]]]
    journal.append(1, [[1, 1]])
    assert journal.read() == [[[0, 0]], [[1, 1]]]


def test_prompts_are_replayed_and_examples_are_not(tiny: Any, tokenizer: Any, monkeypatch: Any) -> None:
    seen: list[list[int]] = []

    def writing(model: Any, contexts: list[list[int]], *_: Any) -> list[list[int]]:
        seen.extend(contexts)
        return [[42]] * len(contexts)

    monkeypatch.setattr(generate, "sample", writing)
    ids = [tokenizer(text)["input_ids"] for text in ("a cat", "the dog")]
    assert texts(tiny(), tokenizer, prompts=["a cat", "the dog"])[:3] == [ids[0] + [42], ids[1] + [42], ids[0] + [42]]
    assert seen[:2] == ids
    seen.clear()
    rows = texts(tiny(), tokenizer, prompts=["a cat"], memory=["red", "blue", "green"])
    assert rows == [ids[0] + [42]] * 8
    between = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    colours = [tokenizer(text)["input_ids"] + between for text in ("red", "blue", "green")]
    allowed = [[tokenizer.bos_token_id] + a + b + ids[0] for a in colours for b in colours if a != b]
    assert all(context in allowed for context in seen)
    assert len({tuple(context) for context in seen}) > 1


def test_refusals(tiny: Any, tokenizer: Any) -> None:
    for wrong in (lambda: cltk.SelfReplay(1.0), lambda: cltk.SelfReplay(0.1, 0), lambda: cltk.SelfReplay(0.1, temperature=0),
                  lambda: cltk.SelfReplay(0.1, top_p=0), lambda: cltk.SelfReplay(0.1, prompts=[]),
                  lambda: cltk.SelfReplay(0.1, memory=[]), lambda: cltk.SelfReplay(0.1, max_new_tokens=0)):  # fmt: skip
        with pytest.raises(InputError):
            wrong()
    with pytest.raises(InputError, match="exceed the model's 256"):
        texts(tiny(), tokenizer, prompts=[{"input_ids": [5] * 300}])
    with pytest.raises(InputError, match="needs a tokenizer"):
        texts(tiny(), None)
