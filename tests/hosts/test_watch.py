"""The watch: no effect on training, numbers of lm-eval's own run, rules, resuming, loggers. Weights are float32."""

from __future__ import annotations

import copy
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

import cltk
from cltk import tensors
from cltk.data import Collator, tokenize_pairs
from cltk.errors import InputError
from cltk.hosts.reading import undisturbed
from cltk.measure.evaluate import Suite, TextTask
from tests.conftest import WORDS, checkpointing, sentences, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")  # SFTConfig's own default
ODD = TextTask("odd", [{"text": "".join(random.Random(i).sample("0123456789%&/()=?", 12))} for i in range(30)])
TEXT = TextTask("old_text", [{"text": s} for s in sentences(30, seed=1)])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: Any) -> Path:
    """toy: 40 multiple-choice documents."""
    folder = tmp_path_factory.mktemp("tasks")
    docs = [{"q": s, "choices": random.Random(i).sample(WORDS, 3), "label": i % 3} for i, s in enumerate(sentences(40, seed=3))]
    data = write_jsonl(folder / "docs.jsonl", docs)
    (folder / "toy.yaml").write_text(
        "task: toy\ndataset_path: json\ndataset_kwargs: {data_files: {validation: " + str(data) + "}}\n"
        "validation_split: validation\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: label\nmetric_list: [{metric: acc}]\n"
    )
    return folder


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[dict[str, Any]]:
    pairs = [{"q": f"{s} why", "a": f" {s.split()[0]}"} for s in sentences(40, seed=5)]
    return tokenize_pairs(pairs, tokenizer, prompt="q", completion="a")


@pytest.fixture
def make(tiny: Any, tokenizer: Any, rows: Any, tmp_path: Path) -> Callable[..., Any]:
    """make(methods, cls=..., model=..., **arguments): a Trainer with these methods that has not trained."""

    def of(methods: list[Any], cls: Any = Trainer, model: Any = None, callbacks: Any = None, **changes: Any) -> Any:
        defaults: dict[str, Any] = {
            "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "report_to": "none", "use_cpu": True,
            "save_strategy": "no", "disable_tqdm": True, "logging_steps": 3, "seed": 7, "remove_unused_columns": False,
            "dataloader_pin_memory": False,
        }  # fmt: skip
        args = TrainingArguments(str(tmp_path / "trainer"), **(defaults | changes))
        set_seed(args.seed)
        trainer = cls(
            model=tiny() if model is None else model, args=args, train_dataset=rows[:32], eval_dataset=rows[32:],
            data_collator=Collator(1), processing_class=tokenizer, callbacks=callbacks,
        )  # fmt: skip
        return cltk.attach(trainer, methods)

    return of


def watch(folder: Path, **changes: Any) -> cltk.Watch:
    return cltk.Watch(**({"tasks": "toy", "texts": [TEXT], "every": 2, "sample": 12, "include_path": folder} | changes))


class States(TrainerCallback):
    """Every random state, mode, hook, gradient and optimiser tensor when a step ends."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any) -> None:
        randoms = [torch.get_rng_state().tolist(), str(np.random.get_state()), str(random.getstate())]
        modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))) for m in model.modules()]
        moments = [tensors.digest({k: v for k, v in s.items() if torch.is_tensor(v)}) for s in optimizer.state.values()]
        flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
        self.seen.append((randoms, modules, moments, flags, model.config.to_dict(), tensors.digest(model)))


@pytest.mark.filterwarnings("ignore:LlamaForCausalLM. contexts are not shared")  # dynamic rotary factors
@pytest.mark.parametrize("case", ["plain", "methods", "checkpointing", "dynamic"])
def test_training_is_bit_for_bit_as_without_it(case: str, make: Any, tiny: Any, tasks: Path) -> None:
    old = sentences(30, seed=1)
    methods: Callable[[], list[Any]] = lambda: (  # noqa: E731
        [cltk.KL(0.5), cltk.EWC(1.0, {"memory": old, "samples": 4, "block": 16}), cltk.Replay(old, 0.25)]
        if case == "methods" else []
    )  # fmt: skip
    given: dict[str, Any] = {checkpointing(): True} if case == "checkpointing" else {}
    given |= {"gradient_accumulation_steps": 2, "max_grad_norm": 0.3} if case == "methods" else {}

    def model() -> Any:
        changes: dict[str, Any] = {"attention_dropout": 0.3}
        if case == "dynamic":  # rotary factors that grow with the longest text
            changes |= {"max_position_embeddings": 16}
            changes |= {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
        return tiny(**changes)

    alone, watched = States(), States()
    make(methods(), model=model(), callbacks=[alone], **given).train()
    trainer = make([*methods(), watch(tasks, keep_best=False)], model=model(), callbacks=[watched], **given)
    trainer.train()
    assert watched.seen == alone.seen
    assert len(trainer.cltk_plan.notes["watch"]["trace"]) >= 3


def test_whatever_a_reading_leaves_on_the_model_is_gone(tiny: Any) -> None:
    model = tiny()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # tied in the configuration alone
    rotary, frequencies = model.model.rotary_emb, model.model.rotary_emb.inv_freq.clone()
    before, attributes = tensors.digest(model), set(vars(model))
    with undisturbed(model):
        rotary.inv_freq.mul_(2)
        rotary.max_seq_len_cached = 10_000
        model.config.use_cache = not model.config.use_cache
        model.register_forward_hook(lambda *_: None)
        model.tie_weights()
        model.eval()
    assert torch.equal(rotary.inv_freq, frequencies)
    assert rotary.max_seq_len_cached != 10_000
    assert model.config.use_cache
    assert model.training
    assert not model._forward_hooks
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert (tensors.digest(model), set(vars(model))) == (before, attributes)


def test_a_row_is_what_lm_eval_alone_finds(make: Any, tiny: Any, tokenizer: Any, tasks: Path) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    mine = watch(tasks, sample=None)
    trainer = make([mine])
    trainer.train()

    def accuracies(model: Any) -> np.ndarray:
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        found = lm_eval.simple_evaluate(
            HFLM(pretrained=model.eval(), tokenizer=copy.deepcopy(tokenizer), batch_size=4), tasks=["toy"],
            task_manager=manager, bootstrap_iters=0,
        )  # fmt: skip
        return np.array([one["acc"] for one in sorted(found["samples"]["toy"], key=lambda one: one["doc_id"])])

    before, after = accuracies(tiny()), accuracies(trainer.model)
    assert mine.final["step"] == 4
    assert mine.final["forgetting_toy"] == pytest.approx((before - after).mean(), abs=1e-12)
    assert (before != after).any()
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(row["text"])["input_ids"]]) for row in TEXT.rows]
        rises = [float(trainer.model(input_ids=x, labels=x).loss - tiny().eval()(input_ids=x, labels=x).loss) for x in ids]
    assert mine.final["forgetting_old_text"] == pytest.approx(np.mean(rises), abs=1e-4)


def test_the_curve_is_in_the_log_at_its_own_steps(make: Any, tasks: Path) -> None:
    mine = watch(tasks)
    trainer = make([mine], max_steps=5, logging_steps=2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "eval_forgetting_macro" in line]
    assert [line["step"] for line in lines] == [0, 2, 4, 5]
    assert [point["step"] for point in mine.trace] == [0, 2, 4, 5]
    for line, point in zip(lines, mine.trace, strict=True):
        assert line["eval_forgetting_old_text"] == point["forgetting_old_text"]
        assert point["forgetting_old_text_low"] <= point["forgetting_old_text"] <= point["forgetting_old_text_high"]
    assert lines[0]["eval_forgetting_macro"] == 0
    assert trainer.cltk_plan.notes["watch"]["documents"] == {"toy": 12, "old_text": 12}
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses == [line["loss"] for line in logged(make([], max_steps=5, logging_steps=2)) if "loss" in line]


def logged(trainer: Any) -> list[dict[str, Any]]:
    trainer.train()
    return trainer.state.log_history


def test_trl_keeps_the_running_means_of_its_next_line(
    make: Any, tasks: Path, tokenizer: Any, tiny: Any, tmp_path: Path
) -> None:
    from trl import SFTConfig, SFTTrainer

    def trained(methods: list[Any]) -> list[dict[str, Any]]:
        data = [{"prompt": f"{s} why", "completion": f" {s.split()[0]}"} for s in sentences(16, seed=5)]
        from datasets import Dataset

        args = SFTConfig(
            str(tmp_path), max_steps=4, per_device_train_batch_size=2, logging_steps=4, report_to="none", use_cpu=True,
            bf16=False, save_strategy="no", disable_tqdm=True, seed=7, gradient_checkpointing=False,
        )  # fmt: skip
        set_seed(7)
        trainer = SFTTrainer(tiny(), args, train_dataset=Dataset.from_list(data), processing_class=copy.deepcopy(tokenizer))
        cltk.attach(trainer, methods)
        return logged(trainer)

    keys = ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm")
    plain, watched = (
        [{k: v for k, v in line.items() if k in keys} for line in trained(methods) if "loss" in line]
        for methods in ([], [watch(tasks)])
    )
    assert plain
    assert "entropy" in plain[0]
    assert watched == plain


@pytest.mark.parametrize("keep", [False, True])
def test_resumed_it_is_the_curve_of_one_training(keep: bool, make: Any, tasks: Path, tmp_path: Path) -> None:
    def curve(resume: Any = None) -> tuple[Any, Any, str]:
        mine = watch(tasks, keep_best=keep)
        trainer = make([mine], max_steps=6, save_strategy="steps", save_steps=3)
        trainer.train(resume_from_checkpoint=resume)
        return mine.trace, mine.final, tensors.digest(trainer.model)

    whole = curve()
    assert curve(str(tmp_path / "trainer" / "checkpoint-3")) == whole
    (tmp_path / "trainer" / "checkpoint-3" / "cltk.safetensors").unlink()
    with pytest.raises(InputError, match="does not say what the start model scored"):
        curve(str(tmp_path / "trainer" / "checkpoint-3"))


def test_training_stops_where_more_than_the_margin_is_lost(make: Any, tasks: Path, caplog: Any) -> None:
    mine = watch(tasks, tasks=(), texts=[ODD], sample=None, stop_at={"odd": 0.1})
    with caplog.at_level(logging.WARNING):
        trainer = make([mine], max_steps=40, learning_rate=0.05)
        trainer.train()
    stopped = trainer.cltk_plan.notes["stopped"]
    assert trainer.state.global_step == stopped["step"] < 40
    assert "odd lost" in stopped["reason"]
    assert mine.trace[-1]["forgetting_odd_low"] > 0.1
    assert all(point["forgetting_odd_low"] <= 0.1 for point in mine.trace[:-1])
    assert sum("odd is forgotten" in record.message for record in caplog.records) == 1
    assert mine.final["verdicts"]["odd"] == "forgets"
    never = watch(tasks, tasks=(), texts=[ODD], sample=None, stop_at={"odd": 1e6})
    make([never], max_steps=6, learning_rate=0.05).train()
    assert [point["step"] for point in never.trace] == [0, 2, 4, 6]


def test_the_best_moment_within_the_budget_is_kept(make: Any, tasks: Path, rows: Any) -> None:
    from cltk.forward.probe import mean_nll

    def trained(rule: Any) -> tuple[Any, Any]:
        mine = watch(tasks, tasks=(), texts=[ODD], sample=None, keep_best=rule)
        trainer = make([mine], max_steps=12, learning_rate=0.05)
        trainer.train()
        return mine, trainer

    free = trained(True)
    chosen = free[0].final["best_step"]
    most = next(point["forgetting_odd"] for point in free[0].trace if point["step"] == chosen) - 1e-3  # one less would do
    bound = trained({"odd": most})
    for (mine, trainer), limit in ((free, np.inf), (bound, most)):
        within = [point for point in mine.trace[:7] if point["forgetting_odd"] <= limit]
        best = min(within, key=lambda point: point["validation_nll"])
        assert mine.final["best_step"] == best["step"]
        assert mean_nll(trainer.model, rows[32:]) == pytest.approx(best["validation_nll"], abs=1e-6)
        assert mine.final["forgetting_odd"] == pytest.approx(best["forgetting_odd"], abs=1e-6)
    assert bound[0].final["best_step"] != chosen


def test_a_score_that_is_a_row_leaves_the_macro(make: Any, tasks: Path) -> None:
    other = TextTask("new", [{"text": s} for s in sentences(8, seed=9)])
    mine = watch(tasks, tasks=(), texts=[TEXT, other], score="new", keep_best={"macro": 10.0})
    make([mine]).train()
    last = mine.trace[-1]
    assert last["forgetting_macro"] == pytest.approx(last["forgetting_old_text"])
    assert mine.final["best_step"] == min(mine.trace[:3], key=lambda point: point["forgetting_new"])["step"]


@pytest.mark.parametrize("method", ["lora", "ema", "wise_ft"])
def test_the_final_moment_is_of_the_weights_that_are_left(
    method: str, make: Any, tiny: Any, tokenizer: Any, tasks: Path
) -> None:
    mine = watch(tasks, sample=None)
    other = {"lora": cltk.LoRA(4), "ema": cltk.EMA(0.9), "wise_ft": cltk.WiSEFT(0.5)}[method]
    trainer = make([mine, other], learning_rate=0.02)
    trainer.train()
    suite = Suite("toy", texts=[TEXT], include_path=tasks)
    before, after = (suite.evaluate(model, tokenizer).tasks["old_text"].values["nll"] for model in (tiny(), trainer.model))
    assert mine.final["forgetting_old_text"] == pytest.approx(np.mean(after) - np.mean(before), abs=1e-6)
    changed = abs(mine.final["forgetting_old_text"] - mine.trace[2]["forgetting_old_text"]) > 1e-5
    assert changed == (method != "lora")


def test_in_a_loop_of_ones_own(tiny: Any, tokenizer: Any, rows: Any, tasks: Path) -> None:
    def trained(methods: list[Any]) -> str:
        model = tiny()
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with cltk.session(model, optimizer, methods, tokenizer=tokenizer, max_steps=4) as s:
            for step in range(4):
                model(**Collator(1)(rows[4 * step : 4 * step + 4])).loss.backward()
                s.before_step()
                optimizer.step()
                s.after_step()
                optimizer.zero_grad()
        if methods:
            assert s.metrics["eval_forgetting_old_text"] == methods[0].trace[-1]["forgetting_old_text"]
        return tensors.digest(model)

    mine = watch(tasks)
    assert trained([mine]) == trained([])
    assert [point["step"] for point in mine.trace] == [0, 2, 4]


def test_event_files_hold_the_curve(make: Any, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    mine = watch(tasks)
    make([mine, cltk.EMA(0.9)], report_to="tensorboard").train()
    curve = scalars(tmp_path / "events")["eval/forgetting_old_text"]
    assert [step for step, _ in curve] == [0, 2, 4, 4]  # the last is of the averaged weights
    assert [value for _, value in curve] == pytest.approx([point["forgetting_old_text"] for point in mine.trace], rel=1e-5)
    assert len(list((tmp_path / "events").glob("events.*"))) == 1  # the run was open until the last number


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": "toyy"}, "toyy"),
        ({"every": -1}, "watch.every"),
        ({"every": 2.5}, "watch.every"),
        ({"stop_at": {"macr": 0.02}}, "watch.stop_at: nothing that is watched is called 'macr'; rows are toy, old_text, macro"),
        ({"stop_at": {"macro": -1}}, "watch.stop_at: expected rows and numbers from 0"),
        ({"stop_at": 0.02}, "watch.stop_at: expected rows and numbers from 0"),
        ({"keep_best": {"other": 1}}, "watch.keep_best: nothing"),
        ({"score": "other", "keep_best": True}, "watch.score: nothing"),
        ({"sample": 0}, "sample"),
        ({"nonsense": 1}, "watch: .*nonsense"),
    ],
)
def test_what_is_wrong_is_said_at_attach(changes: dict[str, Any], words: str, make: Any, tasks: Path) -> None:
    with pytest.raises(InputError, match=words):
        make([watch(tasks, **changes)])


def test_what_a_watch_needs(make: Any, tasks: Path, tiny: Any, rows: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Watch stands twice"):
        make([watch(tasks), watch(tasks)])
    with pytest.raises(InputError, match="each end with weights of their own choice"):
        make([cltk.EarlyStopping(every=2), watch(tasks, keep_best=True)])
    with pytest.raises(InputError, match="watch: needs the tokenizer"):
        cltk.session(tiny(), torch.optim.SGD(tiny().parameters(), lr=0.1), [watch(tasks)])
    args = TrainingArguments(str(tmp_path / "t"), report_to="none", use_cpu=True)
    trainer = Trainer(tiny(), args, train_dataset=rows, data_collator=Collator(1))
    trainer.processing_class = make([]).processing_class
    with pytest.raises(InputError, match=r"watch\.keep_best: no validation rows"):
        cltk.attach(trainer, [watch(tasks, keep_best=True)])
    off = watch(tasks, every=0)
    make([off]).train()
    assert off.trace == []
    json.dumps(off.final)


def test_a_moment_that_cannot_be_measured_does_not_end_training(
    make: Any, tasks: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, evaluate = watch(tasks), Suite.evaluate

    def broken(self: Suite, *args: Any, digest: str = "", **kwargs: Any) -> Any:
        if digest == "step 2":
            raise InputError("the forward fails")
        return evaluate(self, *args, digest=digest, **kwargs)

    monkeypatch.setattr(Suite, "evaluate", broken)
    trainer = make([mine])
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 4
    assert mine.trace[1] == {"step": 2, "failed": "the forward fails"}
    assert "step 2 could not be measured" in caplog.text
    assert mine.final["step"] == 4
