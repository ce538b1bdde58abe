"""LoRA: what it adds is B A, checkpoints resume, and a plain model comes out."""

import types

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

import cltk
from cltk import tensors
from cltk.data import Collator
from cltk.errors import InputError
from cltk.importance.fisher import fisher
from cltk.mitigate import EWC, source
from cltk.mitigate.adapters import LoRA
from cltk.mitigate.interface import Mitigator, Plan

ROWS = [{"input_ids": [3, 1, 4, 1, 5, 9 + i]} for i in range(8)]
IDS = torch.tensor([ROWS[0]["input_ids"]])


def make_trainer(model, mitigators, folder, **arguments):
    defaults = {"max_steps": 4, "learning_rate": 1e-2, "save_strategy": "no"}
    args = TrainingArguments(
        str(folder), report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
        remove_unused_columns=False, **(defaults | arguments),
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=ROWS, data_collator=Collator(0))
    return cltk.attach(trainer, mitigators)


class Look(Mitigator):
    """Keeps the adapters as they are at the end of training."""

    def finish(self, run):
        self.adapters = {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("kind", "alpha"), [("llama", None), ("llama", 3.0), ("gpt2", None), ("neox", None)])
def test_the_update_is_the_product_and_the_model_is_plain(kind, alpha, tiny, tmp_path):
    start, look = tiny(kind), Look()
    start.config.use_cache = False  # as Trainer sets it
    trainer = make_trainer(tiny(kind), [LoRA(4, alpha), look], tmp_path)
    trainer.train()
    merged = trainer.model
    assert type(merged) is type(start)
    assert list(merged.state_dict()) == list(start.state_dict())
    assert merged.config.to_dict() == start.config.to_dict()
    assert not hasattr(merged, "peft_config")
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == (kind != "neox")
    assert all(parameter.requires_grad for parameter in merged.parameters())
    changed = 0
    for name, parameter in merged.named_parameters():
        before = start.state_dict()[name]
        root = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (look.adapters.get(f"{root}.lora_{letter}.default.weight") for letter in "AB")
        if a is None:
            assert torch.equal(parameter, before), name
            continue
        product = (8.0 if alpha is None else alpha) / 4 * b @ a
        torch.testing.assert_close(parameter - before, product.T if kind == "gpt2" else product, rtol=1e-4, atol=1e-6)
        changed += 1
    assert changed == (14 if kind == "llama" else 8)
    merged.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(again(IDS).logits, merged(IDS).logits)


def test_the_start_is_the_start_and_the_random_state_is_left_alone(tiny):
    model, expected = tiny(), tiny()(IDS).logits
    torch.manual_seed(5)
    before = torch.get_rng_state()
    plan = Plan(model, None, types.SimpleNamespace(seed=3))
    LoRA(4).setup(plan)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(plan.model(IDS).logits, expected)
    other = Plan(tiny(), None, types.SimpleNamespace(seed=3))
    LoRA(4).setup(other)
    assert tensors.digest(plan.model) == tensors.digest(other.model)
    assert plan.notes["lora"]["trained"] == sum(p.numel() for p in plan.model.parameters() if p.requires_grad)


def test_checkpoints_hold_adapters_alone_and_resume(tiny, tmp_path):
    whole = make_trainer(tiny(), [LoRA(4, dropout=0.2)], tmp_path, save_strategy="steps", save_steps=2)
    whole.train()
    files = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    resumed = make_trainer(tiny(), [LoRA(4, dropout=0.2)], tmp_path, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert tensors.digest(resumed.model) == tensors.digest(whole.model)


def test_the_rate_is_of_the_adapters(tiny, tmp_path):
    trainer = make_trainer(tiny(), [LoRA(4, rate=10.0)], tmp_path, max_steps=1)
    trainer.train()
    groups = [group for group in trainer.optimizer.param_groups if group["params"]]
    assert [group["initial_lr"] for group in groups] == pytest.approx([0.1])


def test_early_stopping_goes_back_before_the_merge(tiny, tmp_path):
    """The best weights are the adapters': the merge comes last, wherever LoRA stands in the list."""
    method = cltk.EarlyStopping(patience=1, every=1, validation=ROWS)
    trainer = make_trainer(tiny(), [LoRA(4), method], tmp_path, learning_rate=30.0)
    trainer.train()
    assert method.best["step"] == 0
    assert tensors.digest(trainer.model) == tensors.digest(tiny())


def test_bare_loop(tiny):
    model = tiny()
    with cltk.session(model, lambda groups: torch.optim.AdamW(groups, lr=1e-2), [LoRA(4)]) as s:
        s.model(input_ids=IDS, labels=IDS).loss.backward()
        s.before_step()
        s.optimizer.step()
        s.after_step()
    assert type(s.model) is type(tiny())
    assert tensors.digest(s.model) != tensors.digest(tiny())
    with pytest.raises(InputError, match="give a function instead"):
        cltk.session(tiny(), torch.optim.SGD(tiny().parameters(), 0.1), [LoRA(4)])


def test_refusals(tiny):
    for wrong in ({"r": -1}, {"dropout": 1.0}, {"alpha": 0.0}, {"rate": 0.0}):
        with pytest.raises(InputError, match="lora"):
            LoRA(**wrong)
    with pytest.raises(InputError, match=r"lora\.targets"):
        LoRA(4, targets=["no_such_layer"]).setup(Plan(tiny(), None, None))
    plan = Plan(tiny(), None, None)
    LoRA(4, targets=["q_proj"]).setup(plan)
    assert {n.split(".")[-4] for n, p in plan.model.named_parameters() if p.requires_grad} == {"q_proj"}
    with pytest.raises(InputError, match="adapters already"):
        LoRA(4).setup(plan)


def test_a_cached_fisher_is_that_of_its_base_model_and_adapter(tiny, tmp_path, monkeypatch):
    """New adapters are alike on every model: their digests said nothing of the base, nor of alpha, which F grows with."""
    calls = []
    monkeypatch.setattr(source, "fisher", lambda *a, **k: calls.append(1) or fisher(*a, **k))

    def importance(seed=0, alpha=4.0):
        plan = Plan(
            tiny(seed=seed), ROWS, TrainingArguments(str(tmp_path / "t"), report_to="none", use_cpu=True), cache=tmp_path
        )
        lora, ewc = LoRA(2, alpha), EWC(1.0, {"memory": ROWS, "samples": 4, "normalize": None})
        lora.setup(plan)
        ewc.setup(plan)
        return ewc.importance

    first = importance()
    for changed in ({"seed": 1}, {"alpha": 8.0}):
        other = importance(**changed)
        assert not all(torch.equal(first[name], other[name]) for name in first)
    assert len(calls) == 3
    again = importance()
    assert len(calls) == 3
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_failing_attach_takes_its_adapters_along(tiny, tmp_path):
    model = tiny()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(InputError, match="typo"):
        make_trainer(model, [LoRA(2), EWC(1.0, {"memory": str(tmp_path / "typo.txt")})], tmp_path)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == dict.fromkeys(before, True)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    trainer = make_trainer(model, [LoRA(2)], tmp_path, max_steps=1)
    trainer.train()


def test_callbacks_see_the_merged_model_when_training_ends(tiny, tmp_path):
    """What uploads weights then (WANDB_LOG_MODEL=end) wrote an adapter without its tensors."""
    seen = []

    class Upload(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **_):
            seen.append(model)

    trainer = make_trainer(tiny(), [LoRA(2)], tmp_path, max_steps=1)
    trainer.add_callback(Upload())
    trainer.train()
    assert seen == [trainer.model]
    assert not hasattr(seen[0], "peft_config")
