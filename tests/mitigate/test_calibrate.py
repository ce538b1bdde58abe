"""EWC(strength="auto"): the search on known curves, and the calibration of a tiny model against an own training loop."""

import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from cltk import tensors
from cltk.errors import InputError
from cltk.forward.probe import mean_nll
from cltk.importance.fisher import fisher
from cltk.mitigate.calibrate import search
from cltk.mitigate.interface import Plan
from cltk.mitigate.memory import labelled
from cltk.mitigate.quadratic import EWC

# --- the search


def curve(scale, top=1.0):
    """Falls from `top` at strength 0, to half of it at `scale`."""
    return lambda strength: top / (1 + strength / scale)


@pytest.mark.parametrize("scale", [1e-3, 0.04, 1.0, 7.0, 100.0])
@pytest.mark.parametrize("top", [0.05, 1.0])
def test_it_finds_the_strength_of_a_known_curve(scale, top):
    strength, state, done = search(curve(scale, top), 0.02, 8)
    assert state == "met"
    assert curve(scale, top)(strength) == pytest.approx(0.02, rel=0.2)
    assert strength == pytest.approx(scale * (top / 0.02 - 1), rel=0.4)
    assert done[-1] == (strength, curve(scale, top)(strength))


def test_the_unit_scales_the_strengths_alone():
    one, two = search(curve(5.0), 0.02, 6), search(curve(5e3), 0.02, 6, unit=1e3)
    assert two[0] == pytest.approx(1e3 * one[0])
    assert [trial.rise for trial in one[2]] == pytest.approx([trial.rise for trial in two[2]])


def test_zero_is_enough_where_it_keeps_the_budget():
    assert search(lambda strength: 0.01, 0.02, 6) == (0.0, "unneeded", [(0.0, 0.01)])


def test_it_says_when_the_largest_strength_does_not_help():
    strength, state, done = search(lambda strength: 0.5 + 0.1 * (strength == 1), 0.02, 9)
    assert state == "exceeded"
    assert [trial.strength for trial in done] == [0, 1, 100, 1e4]
    assert strength == 0


def test_out_of_trials_it_keeps_the_budget_rather_than_hit_it():
    def cliff(strength):
        return 1.0 if strength < 50 else 1e-5

    strength, state, done = search(cliff, 0.02, 5)
    assert (state, len(done)) == ("kept", 5)
    assert strength == min(trial.strength for trial in done if trial.rise < 1)


def test_a_diverged_trial_counts_as_too_much():
    strength, state, done = search(lambda s: math.nan if s < 10 else curve(1.0)(s), 0.02, 9)
    assert state == "met"
    assert done[0].rise == math.inf
    assert curve(1.0)(strength) == pytest.approx(0.02, rel=0.2)


# --- a tiny model

RATE = 0.01


def llama():
    torch.manual_seed(0)
    sizes = {"vocab_size": 13, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_key_value_heads=1, max_position_embeddings=32, attention_dropout=0.1)
    return LlamaForCausalLM(config)


def old_rows(n=16):
    return [{"input_ids": [(i + 3 * t) % 13 for t in range(10)]} for i in range(n)]


def new_row(i):
    ids = [(5 * i + t * t) % 13 for t in range(8)]
    return {"input_ids": ids, "labels": [-100] * 3 + ids[3:]}


NEW = [new_row(i) for i in range(11)]


@pytest.fixture(scope="module")
def base():
    """A model that knows the old rows, so that there is something to forget."""
    model = llama().eval()
    ids = torch.tensor([row["input_ids"] for row in old_rows()])
    optimizer = torch.optim.AdamW(model.parameters(), 0.03)
    for _ in range(80):
        F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def plan_of(model, tmp_path, **changes):
    defaults = {"learning_rate": RATE, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "seed": 3}
    settings = {"use_cpu": True, "report_to": "none", "weight_decay": 0.1, "max_grad_norm": 0.5}
    return Plan(model, NEW, TrainingArguments(str(tmp_path), **(defaults | settings | changes)))


def auto(budget=0.05, **changes):
    arguments = {"trials": 10, "trial_steps": 12} | changes
    return EWC("auto", {"memory": old_rows(), "kind": "empirical"}, budget=budget, **arguments)


def rise_of(model, strength, form, steps=12):
    """The trial from its definition, for a model without dropout."""
    model, rows = copy.deepcopy(model), old_rows()
    importance = fisher(model, rows[:12], "empirical", normalize="mean")
    start, before = copy.deepcopy(dict(model.named_parameters())), mean_nll(model, rows[12:])
    decay = [{"params": [p], "weight_decay": 0.1 if p.dim() > 1 else 0.0} for p in model.parameters()]
    optimizer = torch.optim.AdamW(decay, RATE)
    order = torch.randperm(len(NEW), generator=torch.Generator().manual_seed(3)).tolist()
    for step in range(steps):
        rows_now = [NEW[order[i % len(order)]] for i in range(4 * step, 4 * step + 4)]
        ids, labels = (torch.tensor([row[key] for row in rows_now]) for key in ("input_ids", "labels"))
        loss = F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        if form == "gradient":
            loss = loss + strength / 2 * sum(
                (importance[n] * (p - start[n].detach()) ** 2).sum() for n, p in model.named_parameters()
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if form == "proximal":
            with torch.no_grad():
                for n, p in model.named_parameters():
                    c = RATE * strength * importance[n]
                    p.copy_((p + c * start[n]) / (1 + c))
    return mean_nll(model, old_rows()[12:]) - before


@pytest.mark.parametrize("form", ["gradient", "proximal"])
def test_the_rise_at_the_found_strength_is_the_budget(form, base, tmp_path):
    model = copy.deepcopy(base)
    model.config.attention_dropout = 0.0
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    budget = rise_of(model, 0.0, form) / 4
    assert budget > 0.005  # without EWC it forgets four times as much
    method, plan = auto(budget, form=form), plan_of(model, tmp_path)
    method.setup(plan)
    note = plan.notes["ewc"]
    assert note["calibration"]["state"] == "met"
    assert note["strength"] == method.strength > 0
    assert rise_of(model, method.strength, form) == pytest.approx(budget, rel=0.22)
    for trial in note["calibration"]["trials"]:
        assert trial["rise"] == pytest.approx(rise_of(model, trial["strength"], form), rel=0.02, abs=1e-4)
    assert note["calibration"]["rows"] == 4
    assert note["sequences"] == 12  # the importance used the others
    assert note["calibration"]["start_nll"] == pytest.approx(mean_nll(model, old_rows()[12:]))


def test_model_gradients_modes_and_random_states_are_as_before(base, tmp_path):
    model = copy.deepcopy(base).train()
    model.model.layers[0].eval()
    model.model.norm.weight.requires_grad_(False)
    marked = torch.full_like(model.lm_head.weight, 7.0)
    model.lm_head.weight.grad = marked
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(4)
    before, modes = tensors.digest(model), [m.training for m in model.modules()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    auto().setup(plan_of(model, tmp_path))
    assert tensors.digest(model) == before
    assert [m.training for m in model.modules()] == modes
    assert model.lm_head.weight.grad is marked
    assert bool((marked == 7).all())
    assert not model.model.norm.weight.requires_grad
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_weights_come_back_from_an_interrupted_trial(base, tmp_path, monkeypatch):
    model, method = copy.deepcopy(base), auto()
    before, calls = tensors.digest(model), []

    def interrupt(run):
        calls.append(tensors.digest(model))
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(method, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        method.setup(plan_of(model, tmp_path))
    assert calls[2] != before
    assert tensors.digest(model) == before


def test_it_repeats_with_dropout_whatever_the_random_state(base, tmp_path):
    notes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        plan = plan_of(copy.deepcopy(base), tmp_path)
        auto().setup(plan)
        notes.append(plan.notes["ewc"]["calibration"])
    assert notes[0] == notes[1]
    torch.manual_seed(1)
    plan = plan_of(copy.deepcopy(base), tmp_path, seed=4)
    auto().setup(plan)
    assert plan.notes["ewc"]["calibration"] != notes[0]


def test_a_large_budget_needs_no_penalty_and_the_object_can_be_used_again(base, tmp_path):
    method, plan = auto(1e3), plan_of(copy.deepcopy(base), tmp_path)
    method.setup(plan)
    assert method.strength == 0
    assert plan.notes["ewc"]["calibration"]["state"] == "unneeded"
    assert len(plan.notes["ewc"]["calibration"]["trials"]) == 1
    method.budget = 0.05
    method.setup(plan)
    assert method.strength > 0


def test_an_unreachable_budget_is_said(base, tmp_path, caplog):
    plan = plan_of(copy.deepcopy(base), tmp_path, learning_rate=0.5, max_grad_norm=0.0, weight_decay=0.0)
    method = auto(1e-9, trials=5)
    method.setup(plan)
    note = plan.notes["ewc"]["calibration"]
    assert note["state"] == "exceeded"
    assert min(note["trials"], key=lambda trial: trial["rise"])["strength"] == method.strength
    assert "no strength tried keeps the budget" in caplog.text


def test_a_resumed_run_keeps_its_strength():
    method = auto()
    method.strength = 12.5
    other = auto()
    other.load_state_dict(method.state_dict())
    assert other.strength == 12.5
    assert EWC(3.0, {"memory": old_rows()}).state_dict() == {}


def test_rate_scales_are_those_of_the_plan(base, tmp_path):
    plan = plan_of(copy.deepcopy(base), tmp_path)
    plan.scale_lr(lambda name: 0.0)
    method = auto()
    method.setup(plan)
    assert plan.notes["ewc"]["calibration"]["trials"] == [{"strength": 0.0, "rise": 0.0}]


def test_masks_of_trl_say_what_counts():
    assert labelled({"input_ids": [4, 5, 6], "completion_mask": [0, 1, 1]})["labels"] == [-100, 5, 6]
    both = {"input_ids": [4, 5, 6], "completion_mask": [0, 1, 1], "assistant_masks": [1, 1, 0]}
    assert labelled(both)["labels"] == [-100, 5, -100]
    assert labelled({"input_ids": [4, 5]})["labels"] == [4, 5]
    assert labelled({"input_ids": [4, 5], "labels": [-100, 5], "completion_mask": [1, 1]})["labels"] == [-100, 5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EWC(1.0, {"memory": old_rows()}, budget=0.02), "budget 0.02 goes with strength 'auto'"),
        (lambda: EWC("auto", {"samples": 4}), "no memory"),
        (lambda: EWC("auto"), "no importance"),
        (lambda: EWC("auto", "fisher.safetensors"), "give importance as"),
        (lambda: EWC("auto", {"weight": torch.ones(3)}), "give importance as"),
        (lambda: auto(0.0), "budget is 0.0"),
        (lambda: auto(math.nan), "budget is nan"),
        (lambda: auto(True), "budget is True"),
        (lambda: auto(trials=1), "at least 1 step and 2 trials"),
        (lambda: auto(trial_steps=0), "at least 1 step and 2 trials"),
        (lambda: EWC("automatic", {"memory": old_rows()}), "strength is 'automatic'"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_what_only_the_plan_shows(base, tmp_path):
    model = copy.deepcopy(base)
    with pytest.raises(InputError, match="has 3 rows; 'auto' needs 4"):
        EWC("auto", {"memory": old_rows(3)}).setup(plan_of(model, tmp_path))
    with pytest.raises(InputError, match="tries AdamW, this training uses"):
        auto().setup(plan_of(model, tmp_path, optim="sgd"))
    with pytest.raises(InputError, match="needs arguments and tokenised rows"):
        auto().setup(Plan(model, None, None))
