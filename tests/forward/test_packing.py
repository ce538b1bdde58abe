"""Packed rows and the head on label positions: the same loss, gradients and trained weights as padded rows."""

from __future__ import annotations

import copy
import itertools
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments, set_seed

import cltk
from cltk.data import IGNORED, Collator, tokenize_pairs
from cltk.errors import InputError
from cltk.forward.packing import PackedCollator, arrange, collate_training, label_head, pack, place, predicting, row_counts
from cltk.forward.packing_proof import head_error, packing_error
from tests.conftest import checkpointing_on, sentences
from tests.mitigator_cases import CASES

OLD = sentences(60, seed=1)
KINDS = ["llama", "gpt2", "neox"]


def ragged(n: int = 8, seed: int = 0, longest: int = 40) -> list[dict[str, Any]]:
    """Rows of 1 to `longest` tokens; every second one with a prompt that does not count."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        ids = [rng.randrange(2, 300) for _ in range(rng.randint(2, longest))]
        masked = rng.randrange(len(ids)) if i % 2 else 0
        rows.append({"input_ids": ids, "labels": [IGNORED] * masked + ids[masked:]})
    return rows


def loud(model: Any) -> Any:
    """Weights ten times as large: attention that sees the wrong tokens then changes the loss a lot."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return model


def gradients(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(a: tuple[float, dict[str, Tensor]], b: tuple[float, dict[str, Tensor]]) -> None:
    assert a[0] == pytest.approx(b[0], rel=1e-6)
    assert a[1].keys() == b[1].keys()
    largest = max(float(g.abs().max()) for g in b[1].values())
    for name, gradient in a[1].items():
        torch.testing.assert_close(gradient, b[1][name], rtol=0, atol=1e-6 * max(largest, 1), msg=name)


def test_place_and_arrange() -> None:
    assert place([5, 9, 2, 4], 2) == [[1, 2], [0, 3]]
    rng = random.Random(1)
    for _ in range(50):
        lengths = [rng.randint(1, 90) for _ in range(rng.randint(1, 12))]
        bound, width = rng.choice([10, 60, 200, 10**6]), rng.choice([8, 512])
        rows = arrange(lengths, bound, width)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        totals = [sum(lengths[i] for i in row) for row in rows]
        assert max(totals) <= max(bound, *lengths)

        def cost(rows: list[list[int]], lengths: list[int] = lengths, width: int = width) -> float:
            longest = max(sum(lengths[i] for i in row) for row in rows)
            return len(rows) * longest * (longest + 6 * width)

        fitting = [place(lengths, n) for n in range(1, len(lengths) + 1)]
        fitting = [r for r in fitting if max(sum(lengths[i] for i in row) for row in r) <= max(bound, *lengths)]
        assert cost(rows) == min(map(cost, fitting))
    assert arrange([64] * 8, 512, 512) == [[i] for i in range(8)]  # nothing to gain: one sequence a row, as padded


def test_a_batch_holds_every_token_once() -> None:
    rows = [{"input_ids": [11, 12, 13], "labels": [IGNORED, 12, 13]}, {"input_ids": [21, 22]}, {"input_ids": [31]}]
    batch = pack(rows, [[0, 2], [1]], 9)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 31], [21, 22, 9, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0], [0, 1, 0, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 12, 13, IGNORED], [IGNORED, 22, IGNORED, IGNORED]]
    assert set(batch) == {"input_ids", "position_ids", "labels", "use_cache"}
    many = ragged(20)
    packed, padded = PackedCollator(1)(many), Collator(1)(many)
    assert (packed["labels"][:, 1:] != IGNORED).sum() == (padded["labels"][:, 1:] != IGNORED).sum()
    assert packed["input_ids"].numel() < 0.7 * padded["input_ids"].numel()
    assert all(torch.equal(packed[name], PackedCollator(1)(many)[name]) for name in ("input_ids", "position_ids", "labels"))


def test_bad_rows_are_refused() -> None:
    with pytest.raises(InputError, match="row 1 of the batch has no tokens"):
        PackedCollator(0)([{"input_ids": [1]}, {"input_ids": []}])
    with pytest.raises(InputError, match="max_tokens"):
        PackedCollator(0, 0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_loss_and_gradients_equal_padded(kind: str, attention: str, count: int, tiny: Any) -> None:
    model = loud(tiny(kind)).train()
    model.set_attn_implementation(attention)
    rows = ragged()
    layout = place([len(row["input_ids"]) for row in rows], count)
    assert_same(gradients(model, pack(rows, layout, 1)), gradients(model, Collator(1)(rows)))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing(kind: str, tiny: Any) -> None:
    model, rows = loud(tiny(kind)).train(), ragged()
    expected = gradients(model, Collator(1)(rows))
    checkpointing_on(model)
    with label_head(model):
        assert_same(gradients(model, PackedCollator(1, 80)(rows)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_do_not_see_each_other(kind: str, tiny: Any) -> None:
    model, rows = loud(tiny(kind)).train(), ragged(4)
    layout = [[0, 1], [2, 3]]
    batch = pack(rows, layout, 1)
    before = model(**batch).logits
    first = len(rows[0]["input_ids"])
    batch["input_ids"][0, :first] = 7
    after = model(**batch).logits
    assert torch.equal(before[0, first:], after[0, first:])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0, :first], after[0, :first])


def test_a_cache_would_mix_sequences(tiny: Any) -> None:
    """Why a packed batch says use_cache=False."""
    model, batch = loud(tiny()), pack(ragged(4), [[0, 1, 2, 3]], 1)
    right, wrong = model(**batch).loss, model(**{**batch, "use_cache": True}).loss
    assert abs((right - wrong).item()) > 1e-2


def test_arrangement_is_the_written_out_one_and_stays_cheap() -> None:
    """Rows of equal fill are taken in order, as by a search through all of them; large batches try few numbers of rows."""
    rng = random.Random(0)
    for _ in range(50):
        lengths = [rng.randint(1, 9) for _ in range(rng.randint(1, 20))]
        for count in range(1, len(lengths) + 1):
            rows: list[list[int]] = [[] for _ in range(count)]
            for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
                min(rows, key=lambda row: sum(lengths[k] for k in row)).append(i)
            assert place(lengths, count) == rows
    assert row_counts(3, 30) == list(range(3, 31))
    for batch in (256, 4096):
        counts = row_counts(1, batch)
        assert counts == sorted(set(counts))
        assert counts[-1] == batch
        assert len(counts) < 120
        assert all(b <= max(a + 1, a * 17 / 16) for a, b in itertools.pairwise(counts))


def test_experts_that_are_balanced_by_the_loss_are_not_packed() -> None:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    small = {
        "vocab_size": 60, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16, "num_hidden_layers": 1,
        "shared_expert_intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4,
    }  # fmt: skip
    rows = [{"input_ids": [3, 4, 5]}, {"input_ids": [6, 7, 8, 9]}]
    torch.manual_seed(0)
    balanced = Qwen2MoeForCausalLM(Qwen2MoeConfig(**small, output_router_logits=True))
    with pytest.raises(InputError, match="load-balancing"):
        packing_error(balanced, rows)
    assert packing_error(Qwen2MoeForCausalLM(Qwen2MoeConfig(**small)), rows) < 1e-5


def test_errors_tell_exact_models_from_others(tiny: Any) -> None:
    rows = ragged(3)
    for kind in KINDS:
        model = loud(tiny(kind)).train()
        assert packing_error(model, rows) < 1e-6
        assert head_error(model, rows) < 1e-6
        assert model.training
        assert not hooks(model)
    deaf = loud(tiny())
    forward = deaf.forward
    deaf.forward = lambda *args, position_ids=None, **kwargs: forward(*args, **kwargs)  # positions run on, all is seen
    assert packing_error(deaf, rows) > 1e-2


def hooks(model: Any) -> list[str]:
    return [name for name, m in model.named_modules() if m._forward_pre_hooks or m._forward_hooks or "forward" in vars(m)]


@pytest.mark.parametrize("items", [None, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_head_on_labels_equals_stock(kind: str, items: int | None, tiny: Any) -> None:
    model = loud(tiny(kind)).train()
    extra = {} if items is None else {"num_items_in_batch": torch.tensor(items)}
    for batch in (Collator(1)(ragged()), PackedCollator(1, 80)(ragged())):
        expected = gradients(model, {**batch, **extra})
        with label_head(model):
            assert_same(gradients(model, {**batch, **extra}), expected)
            logits = model(**batch).logits
            assert logits.shape == (1, int(predicting(batch["labels"]).sum()), 300)
            assert model(input_ids=batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape  # no labels: all logits
            with torch.no_grad():
                assert model(**batch).logits.shape[:2] == batch["input_ids"].shape
            model.eval()
            assert model(**batch).logits.shape[:2] == batch["input_ids"].shape
            model.train()
    assert not hooks(model)


def test_head_on_labels_keeps_soft_capping(tiny: Any) -> None:
    """What a model does to its logits stays part of the loss: Gemma 2 caps them."""
    import transformers as t

    torch.manual_seed(0)
    config = t.Gemma2Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, final_logit_softcapping=2.0, initializer_range=0.3, attn_implementation="eager",
        bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    model, batch = t.Gemma2ForCausalLM(config).train(), {**Collator(1)(ragged()), "use_cache": False}
    expected = gradients(model, batch)
    with label_head(model):
        assert_same(gradients(model, batch), expected)
    uncapped = copy.deepcopy(config)
    uncapped.final_logit_softcapping = None
    other = t.Gemma2ForCausalLM(uncapped)
    other.load_state_dict(model.state_dict())
    assert abs(other(**batch).loss.item() - expected[0]) > 1e-2  # the cap matters here


def test_hooks_of_the_decoder_may_call_the_head(tiny: Any) -> None:
    model, batch, seen = tiny().train(), Collator(1)(ragged()), []
    with label_head(model):
        model.get_decoder().register_forward_hook(lambda m, a, out: seen.append(model.lm_head(out[0]).shape), prepend=True)
        model(**batch)
    assert seen == [(*batch["input_ids"].shape, 300)]


def test_hooks_go_away_on_errors(tiny: Any) -> None:
    model = tiny()
    with pytest.raises(ZeroDivisionError), label_head(model):
        _ = 1 / 0
    assert not hooks(model)
    with pytest.raises(InputError, match="no decoder"), label_head(torch.nn.Linear(2, 2)):
        pass


@pytest.fixture
def train(tiny: Any, tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """train(packed, mitigators, **arguments) -> a Trainer that has trained six steps from the same start."""
    pairs = [{"q": " ".join(s.split()[: 1 + 3 * (i % 4)]), "a": f" {s}"} for i, s in enumerate(sentences(40, seed=5))]
    rows = tokenize_pairs(pairs, tokenizer, prompt="q", completion="a")

    def run(packed: bool, mitigators: list[Any] = [], kind: str = "llama", **arguments: Any) -> Any:  # noqa: B006
        defaults: dict[str, Any] = {
            "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.1, "report_to": "none", "use_cpu": True,
            "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "seed": 7, "remove_unused_columns": False,
            "dataloader_pin_memory": False, "optim": "sgd",
        }  # fmt: skip
        set_seed(7)
        trainer = Trainer(
            model=tiny(kind), args=TrainingArguments(str(tmp_path / "out"), **(defaults | arguments)), train_dataset=rows[:32],
            eval_dataset=rows[32:], data_collator=Collator(1), processing_class=tokenizer,
        )  # fmt: skip
        cltk.attach(trainer, mitigators)
        if not packed:
            trainer.train()
            return trainer
        collate_training(trainer, PackedCollator(1, 96))
        with label_head(trainer.model):
            trainer.train()
        assert not hooks(trainer.model)
        return trainer

    return run


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def distance(a: Any, b: Any) -> float:
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    with torch.no_grad():
        return max(float((x - y).abs().max()) for x, y in pairs)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_trainer_packed_equals_padded(kind: str, accumulation: int, train: Any) -> None:
    settings = {"gradient_accumulation_steps": accumulation, "kind": kind}
    padded, packed = train(False, **settings), train(True, **settings)
    assert losses(packed) == pytest.approx(losses(padded), rel=1e-6)
    assert distance(packed, padded) < 1e-6
    assert distance(packed, train(False, **(settings | {"max_steps": 5}))) > 1e-4  # a step is far more than that


def test_evaluation_stays_padded(train: Any) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 4}
    found = [[x["eval_loss"] for x in train(p, **settings).state.log_history if "eval_loss" in x] for p in (False, True)]
    assert found[0]
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_every_micro_batch_is_packed(train: Any) -> None:
    shapes: dict[bool, list[tuple[int, ...]]] = {}
    for packed in (False, True):
        seen = shapes.setdefault(packed, [])

        class Spy(cltk.Mitigator):
            def loss(self, inputs: dict[str, Tensor], logits_NV: Tensor, seen: Any = seen) -> None:
                assert len(logits_NV) == int(predicting(inputs["labels"]).sum())
                assert ("position_ids" in inputs) == packed  # noqa: B023
                seen.append(tuple(inputs["input_ids"].shape))

        train(packed, [Spy()])
    assert len(shapes[True]) == len(shapes[False]) == 6
    assert all(r <= b and r * n <= b * m for (r, n), (b, m) in zip(shapes[True], shapes[False], strict=True))
    assert sum(r * n for r, n in shapes[True]) < 0.9 * sum(b * m for b, m in shapes[False])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_packing_holds_with_every_mitigator(name: str, accumulation: int, train: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="low_lr: learning rate")
        settings: dict[str, Any] = {"gradient_accumulation_steps": accumulation}
        if name == "mofo":  # a large epsilon: Adam must not make steps of rounding
            settings |= {"optim": "adamw_torch", "adam_epsilon": 1e-2}
        padded, packed = (train(p, [CASES[name].active(OLD)], **settings) for p in (False, True))
    acts = CASES[name].moves and (name, accumulation) not in (
        ("a_gem", 2),
        ("gem", 2),
    )  # no conflict comes up in these six steps
    assert distance(packed, padded) < 1e-5
    assert distance(packed, train(True, **settings)) > 1e-5 or not acts  # the method does something
