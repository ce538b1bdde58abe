"""session(): the bare loop gives the weights that Trainer gives, for every method in the table."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments, set_seed

import cltk
from cltk import tensors
from cltk.data import Collator, tokenize_pairs
from cltk.errors import InputError, RunError
from tests.conftest import sentences
from tests.mitigator_cases import CASES

OLD = sentences(60, seed=1)
RATE, STEPS = 3e-3, 5
# Trainer sums the loss and divides it, a loop takes the mean: gradients differ in their last bits. AdamW's step is at most
# RATE g / (|g| + eps), eps = 1e-8: where g is about 0 a rounding of d moves the weight by RATE d / eps. In float32, d of some
# 1e-8 decides the sign of whole steps, otherwise on each processor; in float64 it is below 1e-15 (ten roundings of numbers
# below 1), which five steps make 1.5e-9.
CLOSE = STEPS * RATE * 1e-15 / 1e-8


@pytest.fixture(autouse=True)
def _warnings() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*learning rate")
        warnings.filterwarnings("ignore", message="si: ")
        yield


@pytest.fixture
def rows(tokenizer: Any) -> list[dict[str, Any]]:
    pairs = [{"q": f"{s} why", "a": f" {s.split()[0]}"} for s in sentences(40, seed=5)]
    return tokenize_pairs(pairs, tokenizer, prompt="q", completion="a")


def by_trainer(method: Any, tiny: Any, tokenizer: Any, rows: list[Any], folder: Path) -> tuple[Any, list[Any], int]:
    """The trained model, the batches it saw, and the steps it took."""
    seen: list[Any] = []

    class Spy(Collator):
        def __call__(self, rows: Any) -> Any:
            seen.append(super().__call__(rows))
            return seen[-1]

    set_seed(7)
    args = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=4, learning_rate=RATE, lr_scheduler_type="constant",
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, seed=7, remove_unused_columns=False,
        dataloader_pin_memory=False, max_grad_norm=0.5,
    )  # fmt: skip
    trainer = Trainer(
        model=tiny().double(),
        args=args,
        train_dataset=rows[:32],
        eval_dataset=rows[32:],
        data_collator=Spy(1),
        processing_class=tokenizer,
    )
    cltk.attach(trainer, [method])
    trainer.train()
    return trainer.model, seen, trainer.state.global_step


@pytest.mark.parametrize("name", CASES)
def test_same_weights_as_trainer(name: str, tiny: Any, tokenizer: Any, rows: list[Any], tmp_path: Path) -> None:
    expected, batches, steps = by_trainer(CASES[name].active(OLD), tiny, tokenizer, rows, tmp_path)
    set_seed(7)
    session = cltk.session(
        tiny().double(), lambda groups: torch.optim.AdamW(groups, lr=RATE, weight_decay=0.0), [CASES[name].active(OLD)],
        data=rows[:32], validation=rows[32:], tokenizer=tokenizer, max_steps=STEPS, batch_size=4, learning_rate=RATE, seed=7,
    )  # fmt: skip
    session.model.train()
    with session as s:
        for batch in batches[:steps]:

            def backward(batch: Any = batch) -> None:
                out = s.model(**batch)
                (out.loss + s.loss(batch, out.logits)).backward()

            backward()
            s.before_step(repeat=backward)
            torch.nn.utils.clip_grad_norm_(s.model.parameters(), 0.5)
            s.optimizer.step()
            s.after_step()
            s.optimizer.zero_grad()
    pairs = zip(expected.named_parameters(), s.model.named_parameters(), strict=True)
    gaps = {a: float((x - y).detach().abs().max()) for (a, x), (b, y) in pairs if a == b}
    assert len(gaps) == len(list(expected.parameters()))
    assert max(gaps.values()) < CLOSE, max(gaps, key=gaps.__getitem__)


def test_an_optimizer_made_before(tiny: Any, tokenizer: Any, rows: list[Any]) -> None:
    model = tiny()
    optimizer = torch.optim.AdamW(
        [{"params": list(model.parameters())[:3], "lr": 1.0}, {"params": list(model.parameters())[3:]}]
    )
    session = cltk.session(model, optimizer, [cltk.LowLR(0.25)])
    assert [group["lr"] for group in session.optimizer.param_groups] == [0.25, 0.25e-3]
    with pytest.raises(InputError, match="give a function instead"):
        cltk.session(tiny(), torch.optim.AdamW(model.parameters()), [cltk.L2SP(0.1)])


def test_state_is_taken_back(tiny: Any, tokenizer: Any, rows: list[Any]) -> None:
    def run(first: int, then: int) -> Any:
        torch.manual_seed(0)
        model = tiny()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        state: dict[str, Any] = {}
        for count, start in ((first, 0), (then, first)):
            with cltk.session(model, optimizer, [cltk.EMA(0.5)], max_steps=first + then) as s:
                if state:
                    s.load_state_dict(state)
                for row in rows[start : start + count]:
                    batch = Collator(1)([row])
                    model(**batch).loss.backward()
                    s.before_step()
                    optimizer.step()
                    s.after_step()
                    optimizer.zero_grad()
                state = s.state_dict()
                if start + count < first + then:
                    s.mitigators = []  # an interruption: nothing is finished
        return s.run.step, tensors.digest(model)

    assert run(6, 0) == run(2, 4)


def test_what_fails_on_entering_leaves_nothing_changed(tiny: Any) -> None:
    """Python calls no __exit__ then: a second try trained at the square of the factor."""
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(2):
        with (
            pytest.raises(RunError, match="max_steps"),
            cltk.session(model, optimizer, [cltk.LowLR(0.2), cltk.Freeze(), cltk.Rewarm()]),
        ):
            pass
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert [group["lr"] for group in optimizer.param_groups] == [1e-2]
