"""attach(): every method in the table, inside a real Trainer and SFTTrainer, against untouched training and references."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments, set_seed

import cltk
from cltk import tensors
from cltk.data import Collator, tokenize_pairs
from cltk.errors import InputError
from cltk.forward.loss import kl_divergence
from cltk.mitigate import MITIGATORS, Mitigator
from cltk.mitigate.interface import counted
from tests.conftest import checkpointing, is_checkpointing, sentences
from tests.mitigator_cases import CASES

OLD = sentences(60, seed=1)


@pytest.fixture(autouse=True)
def _warnings() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="low_lr: learning rate")
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")  # SFTConfig's own default
        yield


@pytest.fixture
def train(tiny: Any, tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """train(mitigators, **arguments) -> a Trainer that has trained six steps from the same start."""
    rows = tokenize_pairs(
        [{"q": f"{s} why", "a": f" {s.split()[0]}"} for s in sentences(40, seed=5)], tokenizer, prompt="q", completion="a"
    )

    def run(
        mitigators: list[Mitigator] | None, cls: type[Trainer] = Trainer, go: bool = True, resume: Any = None, **arguments: Any
    ) -> Any:
        defaults: dict[str, Any] = {
            "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "report_to": "none", "use_cpu": True,
            "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "seed": 7, "remove_unused_columns": False,
            "dataloader_pin_memory": False,
        }  # fmt: skip
        args = TrainingArguments(str(tmp_path / "trainer"), **(defaults | arguments))
        set_seed(args.seed)
        trainer = cls(
            model=tiny(), args=args, train_dataset=rows[:32], eval_dataset=rows[32:], data_collator=Collator(1),
            processing_class=tokenizer,
        )  # fmt: skip
        if mitigators is not None:
            cltk.attach(trainer, mitigators)
        if go:
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def digest(trainer: Any) -> str:
    return tensors.digest(trainer.model)


def distance(a: Any, b: Any) -> float:
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    with torch.no_grad():
        return max(float((x - y).abs().max()) for x, y in pairs)


def test_every_method_is_in_the_table() -> None:
    assert set(CASES) == set(MITIGATORS)


def test_empty_list_is_the_untouched_trainer(train: Any) -> None:
    assert digest(train([])) == digest(train(None))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.nothing])
def test_strength_zero_changes_no_bit(name: str, accumulation: int, train: Any) -> None:
    nothing = CASES[name].nothing
    assert nothing is not None
    settings = {"gradient_accumulation_steps": accumulation, "max_grad_norm": 0.5}
    assert digest(train([nothing(OLD)], **settings)) == digest(train(None, **settings))


@pytest.mark.parametrize("name", CASES)
def test_active_settings_change_the_weights(name: str, train: Any) -> None:
    mitigated = train([CASES[name].active(OLD)])
    assert digest(mitigated) != digest(train(None)) or not CASES[name].moves


@pytest.mark.parametrize("without", ["ema", "early_stopping"])  # each ends with weights of its own choice
def test_all_methods_in_one_list(without: str, train: Any) -> None:
    cases = [case for name, case in CASES.items() if name != without]
    trainer = train([case.active(OLD) for case in sorted(cases, key=lambda case: case.place)])
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("name", [name for name in CASES if name != "wise_ft"])
def test_resume_equals_no_interruption(name: str, train: Any, tmp_path: Path) -> None:
    whole = train([CASES[name].active(OLD)], save_strategy="steps", save_steps=2)
    checkpoint = tmp_path / "trainer" / "checkpoint-2"
    resumed = train([CASES[name].active(OLD)], resume=str(checkpoint), save_strategy="steps", save_steps=2)
    assert resumed.state.global_step == whole.state.global_step
    assert digest(resumed) == digest(whole)


@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_ewc_equals_the_penalty_in_the_loss(accumulation: int, clip: float, train: Any, tiny: Any) -> None:
    strength, start = 20.0, {name: p.detach().clone() for name, p in tiny().named_parameters()}
    torch.manual_seed(3)
    importance = {name: torch.rand_like(p) for name, p in start.items()}

    class WithPenalty(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None) -> Any:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            pulls = [(importance[n] * (p - start[n]) ** 2).sum() for n, p in model.named_parameters()]
            return loss + strength / 2 * sum(pulls) / accumulation  # added once in every micro-batch

    settings = {"gradient_accumulation_steps": accumulation, "max_grad_norm": clip, "optim": "sgd", "learning_rate": 0.05}
    reference = train(None, cls=WithPenalty, **settings)
    ours = train([cltk.EWC(strength, _importance(importance, tiny()))], **settings)
    assert distance(reference, ours) < 1e-6
    assert distance(reference, train(None, **settings)) > 1e-4  # the penalty matters here


def _importance(values: dict[str, torch.Tensor], model: Any) -> cltk.Importance:
    rows = [{"input_ids": [5, 6, 7, 8]}]
    found = cltk.fisher(model, rows, "mc")
    return cltk.Importance(values, found.info)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_kl_equals_the_term_in_the_loss(accumulation: int, train: Any, tiny: Any) -> None:
    start = tiny().eval()

    class WithKL(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None) -> Any:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            where = counted(inputs)
            with torch.no_grad():
                reference = start(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            return loss + 2.0 * kl_divergence(outputs.logits[where], reference[where]) * where.sum() / num_items_in_batch

    settings = {"gradient_accumulation_steps": accumulation, "optim": "sgd", "learning_rate": 5e-2}
    reference = train(None, cls=WithKL, **settings)
    assert distance(reference, train([cltk.KL(2.0)], **settings)) < 1e-6
    assert distance(reference, train(None, **settings)) > 1e-5


def test_kl_gradient_is_the_difference_of_probabilities() -> None:
    torch.manual_seed(0)
    logits, start = torch.randn(5, 11, requires_grad=True), torch.randn(5, 11)
    kl_divergence(logits, start).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, (logits.softmax(-1) - start.softmax(-1)).detach() / 5)


def test_order_is_the_lists(train: Any) -> None:
    calls = []

    class Spy(Mitigator):
        def __init__(self, name: str) -> None:
            self.name = name

        def grad(self, run: Any) -> None:
            calls.append(self.name)

    train([Spy("b"), Spy("a")], max_steps=2)
    assert calls == ["b", "a", "b", "a"]


def test_extra_metrics_reach_the_loggers(train: Any) -> None:
    trainer = train([cltk.EarlyStopping(patience=9, every=2)])
    logged = [line for line in trainer.state.log_history if "validation_nll" in line]
    assert logged
    assert all("loss" in line for line in logged)
    assert trainer.cltk_plan.notes["early_stopping"]["trace"]


def test_early_stopping_restores_the_best(train: Any) -> None:
    method = cltk.EarlyStopping(patience=2, every=1)
    trainer = train([method], learning_rate=3.0, max_steps=30)  # far too high: it gets worse at once
    assert trainer.state.global_step < 30
    assert "not improved" in trainer.cltk_plan.notes["stopped"]["reason"]
    probed = [(probe["validation_nll"], probe["step"]) for probe in method.trace]
    start = train(None, go=False)
    from cltk.forward.probe import mean_nll

    candidates = [(mean_nll(start.model, trainer.eval_dataset), 0), *probed]
    assert method.best["step"] == min(candidates)[1]
    assert mean_nll(trainer.model, trainer.eval_dataset) == pytest.approx(min(candidates)[0], abs=1e-6)


def test_early_stopping_on_budget(train: Any) -> None:
    method = cltk.EarlyStopping(patience=99, every=1, budget=0.02, memory=OLD)
    trainer = train([method], learning_rate=0.5, max_steps=30)
    assert "budget of 0.02" in trainer.cltk_plan.notes["stopped"]["reason"]
    assert method.trace[-1]["old_nll_rise"] > 0.02
    assert all(probe["old_nll_rise"] <= 0.02 for probe in method.trace[:-1])


@pytest.mark.parametrize("extra", [True, False])
def test_replay_mixes_the_stated_share(extra: bool, train: Any) -> None:
    trainer = train([cltk.Replay(OLD, 0.2, extra_steps=extra, length=24)], go=False, max_steps=10)
    data = trainer.train_dataset
    assert len(data) == 40  # 32 new + 8 old
    assert trainer.args.max_steps == (13 if extra else 10)  # 10 / (1 - 0.2)
    old = [data[i] for i in range(32, 40)]
    assert all(row["labels"] == row["input_ids"] for row in old)
    assert all(len(row["input_ids"]) == 24 for row in old)
    note = trainer.cltk_plan.notes["replay"]
    assert (note["extra_steps"], note["steps"], note["steps_without"]) == (extra, 13 if extra else 10, 10)


def test_low_lr_warns_outside_the_usual_range(train: Any) -> None:
    with pytest.warns(UserWarning, match="below the usual range"):
        train([cltk.LowLR(1e-9)], go=False)


def test_scale_lr_makes_parameter_groups(train: Any) -> None:
    class Slow(Mitigator):
        def setup(self, plan: Any) -> None:
            plan.scale_lr(lambda name: 0.0 if "layers.0" in name else 1.0)

    trainer = train([Slow()])
    start = train(None, go=False).model.state_dict()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, start[name]) == ("layers.0" in name)


@pytest.mark.parametrize("name", CASES)
def test_sft_trainer(name: str, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    def run(mitigators: list[Mitigator]) -> Any:
        data = Dataset.from_list([{"prompt": f"{s} why", "completion": f" {s.split()[0]}"} for s in sentences(24, seed=5)])
        args = SFTConfig(
            str(tmp_path / "sft"), max_steps=3, per_device_train_batch_size=4, learning_rate=3e-3, report_to="none",
            use_cpu=True, save_strategy="no", disable_tqdm=True, max_length=64, bf16=False,
            dataloader_pin_memory=False, logging_steps=1,
        )  # fmt: skip
        set_seed(3)
        trainer = SFTTrainer(
            model=tiny(), args=args, train_dataset=data, eval_dataset=data.select(range(8)), processing_class=tokenizer
        )
        cltk.attach(trainer, mitigators)
        trainer.train()
        return trainer

    plain, mitigated = run([]), run([CASES[name].active(OLD)])
    assert all(torch.isfinite(p).all() for p in mitigated.model.parameters())
    assert digest(plain) != digest(mitigated) or not CASES[name].moves


def test_refusals(train: Any) -> None:
    with pytest.raises(InputError, match="is not a mitigator"):
        train([cltk.LowLR], go=False)
    trainer = train([cltk.LowLR(0.5)], go=False)
    with pytest.raises(InputError, match="all of them in one list"):
        cltk.attach(trainer, [cltk.LowLR(0.5)])
    for wrong in (lambda: cltk.LowLR(0), lambda: cltk.Replay(OLD, 1.0), lambda: cltk.WiSEFT(1.2), lambda: cltk.KL(-1),
                  lambda: cltk.EarlyStopping(budget=0.1), lambda: cltk.EWC(-1.0, {"memory": OLD})):  # fmt: skip
        with pytest.raises(InputError):
            wrong()
    with pytest.raises(InputError, match="empty"):
        train([cltk.Replay([], 0.5)], go=False)


@pytest.mark.parametrize(
    ("mitigators", "message"),
    [
        (lambda: [cltk.LoRA(2), cltk.LoRA(4)], "LoRA stands twice"),
        (lambda: [cltk.SAM(0.05), cltk.SAM(0.1)], "SAM stands twice"),
        (lambda: [cltk.EarlyStopping(every=2), cltk.EarlyStopping(every=3)], "EarlyStopping stands twice"),
        (lambda: [cltk.EMA(0.5), cltk.EMA(0.9)], "EMA stands twice"),
        (lambda: [cltk.Rewarm(), cltk.ULMFiT()], "schedule"),
        (lambda: [cltk.LoRA(2, targets=["nothing_of_this_name"])], r"lora\.targets"),
        (lambda: [cltk.Replay([], 0.5)], "empty"),
        (lambda: [cltk.EWC(1.0, {"memory": []})], "empty|no "),
        (lambda: [cltk.EWC(1.0, {"no.such.weight": torch.ones(3)})], "another model|no.such.weight|lacks|missing"),
        (lambda: [cltk.WiSEFT(1.2)], "alpha"),
        (lambda: [cltk.WiSEFT(-0.1)], "alpha"),
        (lambda: [cltk.DERPP(OLD, alpha=-1.0)], "alpha"),
        (lambda: [cltk.LoRA(2, alpha=0.0)], "alpha"),
    ],
)
def test_bad_input_is_refused_at_attach(mitigators: Any, message: str, train: Any) -> None:
    with pytest.raises(InputError, match=message):
        train(mitigators(), go=False)


def test_what_may_stand_twice(train: Any) -> None:
    """Two replays of two memories; learning rate factors multiply."""
    both = train([cltk.LowLR(0.5), cltk.LowLR(0.5)])
    assert both.optimizer.param_groups[0]["initial_lr"] == pytest.approx(3e-3 / 4)
    assert len(train([cltk.Replay(OLD[:30], 0.25), cltk.Replay(OLD[30:], 0.25)], go=False).train_dataset) > 32


REPORTED = {  # pairs that the literature reports as additive
    "hft + replay": lambda: [cltk.Replay(OLD, 0.25), cltk.HFT()],
    "stm + lora": lambda: [cltk.LoRA(4, rate=1.0), cltk.TokenWeights("stm", tau=280.0)],
    "sam + replay": lambda: [cltk.Replay(OLD, 0.25), cltk.SAM(0.05)],
}


@pytest.mark.parametrize("pair", REPORTED)
def test_reported_pairs_train_as_neither_alone(pair: str, train: Any) -> None:
    """Each of the two has its effect beside the other."""
    both = train(REPORTED[pair]())
    assert all(torch.isfinite(p).all() for p in both.model.parameters())
    alone = [train([REPORTED[pair]()[i]]) for i in (0, 1)]
    assert len({digest(t) for t in (both, *alone, train([]))}) == 4
    for one in alone:
        assert set(one.cltk_plan.notes) <= set(both.cltk_plan.notes)


def rates(trainer: Any) -> list[float]:
    """The logged learning rates, as shares of the peak."""
    return [round(line["learning_rate"] / 3e-3, 3) for line in trainer.state.log_history if "learning_rate" in line]


ARGUMENTS: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    ({"optim": "sgd"}, lambda t: type(t.optimizer.optimizer).__name__ == "SGD"),
    ({"lr_scheduler_type": "cosine", "warmup_steps": 3}, lambda t: rates(t)[:4] == [0, 0.333, 0.667, 1]),
    ({"gradient_accumulation_steps": 2}, lambda t: t.state.epoch == pytest.approx(6 * 2 / 8)),
    ({"bf16": True}, lambda t: t.accelerator.mixed_precision == "bf16"),
    ({checkpointing(): True}, lambda t: is_checkpointing(t.model)),
    ({"max_grad_norm": 1e-3}, lambda t: True),
    ({"weight_decay": 0.5}, lambda t: {g["weight_decay"] for g in t.optimizer.param_groups} == {0.5, 0.0}),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "took_effect"), ARGUMENTS, ids=[next(iter(a)) for a, _ in ARGUMENTS])
def test_training_arguments_take_effect_beside_mitigators(arguments: dict[str, Any], took_effect: Any, train: Any) -> None:
    trainer = train([cltk.L2SP(0.1, form="gradient")], **arguments)
    assert took_effect(trainer)
    changed = digest(trainer) != digest(train([cltk.L2SP(0.1, form="gradient")]))
    assert changed or arguments == {checkpointing(): True}  # which changes memory, not numbers


def test_tf32_takes_effect(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="tf32 requires"):  # no such units here: said, not ignored
        train([], tf32=True)
    monkeypatch.setattr("transformers.training_args.is_torch_tf32_available", lambda: True)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        train([cltk.L2SP(0.1)], tf32=True)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_fp16_scales_every_gradient_alike(train: Any) -> None:
    """accelerate keeps float16 for GPUs. With its two parts, autocast and the loss scale, switched on here, a method's loss, a
    second pass and a penalty must come out as in float32: each is scaled, or unscaled, in another place."""

    class Half(Trainer):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            self.accelerator.native_amp, self.accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def run(**settings: Any) -> Any:
        methods = [cltk.SAM(0.05), cltk.EWC(20.0, {"memory": OLD, "samples": 4, "block": 16}), cltk.KL(2.0)]
        return train(methods, optim="sgd", learning_rate=0.05, gradient_accumulation_steps=2, **settings)

    half = run(cls=Half, fp16=True)
    assert half.accelerator.mixed_precision == "fp16"
    assert half.accelerator.scaler.get_scale() == 2.0**10  # no step was skipped
    single = run()
    moved = distance(single, train(None, go=False))
    assert 0 < distance(half, single) < 0.01 * moved
