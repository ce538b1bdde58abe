"""Schedules and rates against their formulas, in a Trainer and in a bare loop."""

import math
import warnings

import pytest
import torch
from transformers import Trainer, TrainingArguments

import cltk
from cltk.data import Collator
from cltk.errors import InputError
from cltk.mitigate.freezing import ULMFiT
from cltk.mitigate.interface import Plan
from cltk.mitigate.rates import LowLR, Rewarm, rewarmed

ROWS = [{"input_ids": [3, 1, 4, 1, 5, 9 + i]} for i in range(8)]


def test_rewarmed_is_a_line_and_a_cosine():
    total, rising = 100, 5
    for t in range(total):
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * (t - rising) / (total - rising)))
        expected = (t + 1) / rising if t < rising else cosine
        assert rewarmed(t, total, 0.05, 0.1) == pytest.approx(expected)
    assert rewarmed(total, total) == pytest.approx(0.1)
    assert rewarmed(0, 10, 0.0, 1.0) == rewarmed(9, 10, 0.0, 1.0) == 1
    assert rewarmed(0, 1) == 1


def test_the_trainer_follows_it(tiny, tmp_path):
    args = TrainingArguments(
        str(tmp_path), max_steps=6, learning_rate=1e-3, lr_scheduler_type="constant", report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False, logging_steps=1,
    )  # fmt: skip
    trainer = cltk.attach(Trainer(model=tiny(), args=args, train_dataset=ROWS, data_collator=Collator(0)), [Rewarm(0.3, 0.2)])
    trainer.train()
    found = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert found == pytest.approx([1e-3 * rewarmed(t, 6, 0.3, 0.2) for t in range(6)])


def step(model, s):
    ids = torch.tensor([ROWS[0]["input_ids"]])
    model(input_ids=ids, labels=ids).loss.backward()
    s.before_step()
    s.optimizer.step()
    s.after_step()
    s.optimizer.zero_grad()


def test_the_bare_loop_follows_it(tiny):
    model, found = tiny(), []
    with cltk.session(model, torch.optim.SGD(model.parameters(), 0.5), [Rewarm(0.5)], max_steps=4) as s:
        for _ in range(4):
            found.append(s.optimizer.param_groups[0]["lr"])
            step(model, s)
    assert found == pytest.approx([0.5 * rewarmed(t, 4, 0.5) for t in range(4)])


def weights(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def test_low_lr_in_a_bare_loop(tiny):
    """With an optimiser made before, and with one that the session makes, it is the lower rate."""

    def train(mitigators, rate, make=None, **arguments):
        model = tiny()
        optimizer = make or torch.optim.SGD(model.parameters(), rate)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="low_lr: learning rate")
            with cltk.session(model, optimizer, mitigators, **arguments) as s:
                step(model, s)
                step(model, s)
        return weights(model)

    expected = train([], 0.1)
    assert torch.equal(train([LowLR(0.2)], 0.5), expected)
    assert torch.equal(train([LowLR(0.2)], 0.5, torch.optim.SGD, learning_rate=0.5), expected)
    with pytest.raises(InputError, match="give learning_rate"):
        train([LowLR(0.2)], 0.5, lambda groups: torch.optim.SGD(groups, 0.5))
    plain = train([], 0.5)
    assert torch.equal(train([LowLR(1.0)], 0.5, lambda groups: torch.optim.SGD(groups, 0.5)), plain)


def test_refusals(tiny):
    for wrong in ({"warmup": 1.0}, {"warmup": -0.1}, {"decay_to": 1.1}):
        with pytest.raises(InputError, match="rewarm"):
            Rewarm(**wrong)
    plan = Plan(tiny(), None, None)
    Rewarm().setup(plan)
    with pytest.raises(InputError, match="ulmfit: another method sets the schedule"):
        ULMFiT().setup(plan)


def test_each_training_has_a_trace_of_its_own(tiny, tmp_path):
    """One object in two trainings: the second's steps stood among the first's, in the records of both."""
    method, notes = cltk.EarlyStopping(every=1, validation=ROWS[:2], patience=9), []
    for run in range(2):
        args = TrainingArguments(
            str(tmp_path / str(run)), max_steps=2 + run, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False, remove_unused_columns=False,
        )  # fmt: skip
        trainer = cltk.attach(Trainer(model=tiny(), args=args, train_dataset=ROWS, data_collator=Collator(0)), [method])
        trainer.train()
        notes.append(trainer.cltk_plan.notes["early_stopping"]["trace"])
    assert [[line["step"] for line in one] for one in notes] == [[1, 2], [1, 2, 3]]
