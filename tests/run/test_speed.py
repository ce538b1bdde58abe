"""The choices: what is on, why, what it becomes in a Trainer, that each can be switched off, and that all is taken back."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cltk import tensors
from cltk.data import IGNORED, Collator
from cltk.errors import InputError
from cltk.forward.probe import evaluating, row_nll
from cltk.run import machine, speed
from cltk.run.config import load_config
from cltk.run.methods import build_mitigators
from cltk.run.plans import Cell
from cltk.run.proven import Choice
from cltk.run.spec import SpeedSpec
from cltk.run.speed import choose, say, tune_allocator
from cltk.run.train import Counter, DivergedError, Prepared, Trained, make_callbacks, prepare_data, train_cell

NAMES = ["packing", "attention", "grouping", "label_head", "autocast", "fused", "onednn", "allocator"]
OFF = dict.fromkeys(NAMES, False)


class Config:
    """What `choose` reads of an experiment."""

    def __init__(self, train: dict[str, Any] | None = None, **switches: Any) -> None:
        self.speed, self.train = SpeedSpec(**switches), train or {}


def choice(found: speed.Speed, what: str) -> Choice:
    return next(c for c in found.choices if c.what == what)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without bfloat16 units, whatever this one is; no `cltk run` in this process before."""
    monkeypatch.setattr(machine, "faster_in_bfloat16", lambda device: False)
    monkeypatch.setattr(machine, "onednn_gain", lambda: 1.0)
    monkeypatch.setattr(speed, "_allocator", speed.GUEST)


@pytest.fixture
def deaf(tiny: Any) -> Any:
    """A model that does not listen to position_ids: packed sequences would see each other."""
    model = tiny()

    class Deaf(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model.__class__ = Deaf
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


def test_exact_architectures_are_packed(tiny: Any, tokenizer: Any) -> None:
    for kind in ("llama", "gpt2", "neox"):
        model = tiny(kind).train()
        before, state = tensors.digest(model), torch.get_rng_state()
        found = choose(model, tokenizer, Config())
        assert [c.what for c in found.choices] == NAMES
        assert [c.what for c in found.choices if c.on] == ["packing", "attention", "label_head", "fused"]
        assert found.arguments == {"optim": "adamw_torch_fused"}
        assert torch.equal(torch.get_rng_state(), state)
        assert tensors.digest(model) == before
        assert model.training
        assert not model._forward_pre_hooks


def test_others_fall_back_to_like_lengths(deaf: Any, tokenizer: Any) -> None:
    found = choose(deaf, tokenizer, Config())
    assert not found.on("packing")
    assert "losses differ" in choice(found, "packing").why
    assert found.on("grouping")
    assert found.on("label_head")
    assert found.arguments["train_sampling_strategy"] == "group_by_length"
    assert not choose(deaf, tokenizer, Config(grouping=False)).on("grouping")
    with pytest.raises(InputError, match=r"speed\.packing: true, but for this model losses differ"):
        choose(deaf, tokenizer, Config(packing=True))


def test_a_model_that_cannot_run_packed_falls_back(tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    forward = model.forward

    def strict(input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, use_cache: bool = False) -> Any:
        return forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=use_cache)

    monkeypatch.setattr(model, "forward", strict)
    found = choose(model, tokenizer, Config())
    assert "unexpected keyword argument" in choice(found, "packing").why
    assert "unexpected keyword argument" in choice(found, "label_head").why


def test_everything_can_be_switched_off(tiny: Any, tokenizer: Any) -> None:
    found = choose(tiny(), tokenizer, Config(**OFF))
    assert not any(c.on for c in found.choices)
    assert found.arguments == {"optim": "adamw_torch"}
    for name in ("packing", "attention", "label_head", "fused"):
        one = choose(tiny(), tokenizer, Config(**{name: False}))
        assert not one.on(name)
        assert choice(one, name).why == f"speed.{name}: false"
        assert sum(c.on for c in one.choices) == (2 if name == "packing" else 3)
    assert choice(choose(tiny(), tokenizer, Config(packing=False)), "attention").why == "rows are not packed"


def test_attention_by_sequence_runs_and_takes_whole_batches_in_one_row(tiny: Any, tokenizer: Any) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, rows = tiny(), [{"input_ids": [5] * n} for n in (300, 400, 500)]
    for switches, height in (({}, 1), ({"attention": False}, 3)):
        found = choose(model, tokenizer, Config(**switches))
        assert found.collator(model, tokenizer)(rows)["input_ids"].shape[0] == height
        stock = ALL_ATTENTION_FUNCTIONS["sdpa"]
        with found.running(model):
            assert (ALL_ATTENTION_FUNCTIONS["sdpa"] is stock) == (not found.on("attention"))
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is stock


def test_attention_by_sequence_is_refused_where_it_cannot_be(tiny: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"speed\.attention: true, but rows are not packed; use auto or false"):
        choose(tiny(), tokenizer, Config(packing=False, attention=True))
    compiled = choose(tiny(), tokenizer, Config({"torch_compile": True}))
    assert choice(compiled, "attention").why == "train.torch_compile takes the model's own"
    eager = tiny()
    eager.set_attn_implementation("eager")
    assert "its attention is eager" in choice(choose(eager, tokenizer, Config()), "attention").why
    with pytest.raises(InputError, match="its attention is eager, not sdpa"):
        choose(eager, tokenizer, Config(attention=True))


def test_the_users_arguments_win(tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "faster_in_bfloat16", lambda device: True)
    train = {"optim": "sgd", "fp16": False, "train_sampling_strategy": "sequential", "label_smoothing_factor": 0.1}
    found = choose(tiny(), tokenizer, Config(train, packing=False, grouping=True))
    assert found.arguments == {}
    assert "train.label_smoothing_factor takes all logits" in choice(found, "label_head").why
    assert choice(found, "autocast").why == "train.fp16: false decides"
    assert not choice(found, "fused").on


def test_autocast_where_it_is_faster(tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "bf16" not in choose(tiny(), tokenizer, Config()).arguments
    assert choose(tiny(), tokenizer, Config(autocast=True)).arguments["bf16"] is True
    monkeypatch.setattr(machine, "faster_in_bfloat16", lambda device: True)
    assert choose(tiny(), tokenizer, Config()).arguments["bf16"] is True
    assert "bf16" not in choose(tiny(), tokenizer, Config(autocast=False)).arguments
    assert not choose(tiny().bfloat16(), tokenizer, Config()).on("autocast")  # nothing is left to cast


def test_bfloat16_is_asked_of_the_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    machine.faster_in_bfloat16.cache_clear()
    monkeypatch.setattr("cltk.measure.settings.fast_dtype", lambda device: torch.bfloat16)
    assert machine.faster_in_bfloat16("cpu")
    machine.faster_in_bfloat16.cache_clear()


def test_onednn_only_where_exact_and_faster(tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(error: float, gain: float, wanted: Any = "auto") -> bool:
        monkeypatch.setattr(machine, "onednn_error", lambda: error)
        monkeypatch.setattr(machine, "onednn_gain", lambda: gain)
        return choose(tiny(), tokenizer, Config(onednn=wanted)).on("onednn")

    assert found(1e-6, 1.8)
    assert not found(1e-6, 1.0)
    assert found(1e-6, 1.0, True)
    assert not found(1e-6, 1.8, False)
    assert not found(4e-3, 3.0)  # tiles: it computes in bfloat16
    with pytest.raises(InputError, match="differs from float64 by 4e-03"):
        found(4e-3, 3.0, True)


def test_onednn_is_taken_back() -> None:
    settings: Any = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    with machine.products(True):
        assert settings.fp32_precision == "bf16"
    assert settings.fp32_precision == before
    with pytest.raises(ZeroDivisionError), machine.products(True):
        _ = 1 / 0
    assert settings.fp32_precision == before
    with machine.products(False):
        assert settings.fp32_precision == before
    assert machine.onednn_error() > 0  # float32 at best, or bfloat16: never float64


def test_allocator_is_the_command_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not speed._allocator.on
    assert "only in `cltk run`" in speed._allocator.why
    for works, wanted, on in ((True, "auto", True), (True, False, False), (False, "auto", False)):
        monkeypatch.setattr(machine, "keep_memory", lambda works=works: works)
        assert tune_allocator(wanted).on == on == speed._allocator.on
    with pytest.raises(InputError, match="glibc"):
        tune_allocator(True)


FREED = """
import ctypes
from cltk.run import machine
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
pages = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
if {keep}:
    print(machine.keep_memory())
before = pages()
block = libc.malloc(300 * 2**20)
ctypes.memset(block, 1, 300 * 2**20)
libc.free(block)
print(pages() - before > 250)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.parametrize(("keep", "said"), [(True, ["True", "True"]), (False, ["False"])])
def test_freed_memory_stays_with_the_process(keep: bool, said: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", FREED.format(keep=keep)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == said


def test_choices_are_said_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_said", set())
    found = speed.Speed((Choice("packing", True, "losses equal"), Choice("onednn", False, "not faster")), {})
    say(found)
    say(found)
    assert capsys.readouterr().err == "speed: packing: on (losses equal)\nspeed: onednn: off (not faster)\n"
    assert found.notes()[0] == {"what": "packing", "on": True, "why": "losses equal"}


def test_yaml(experiment: Path) -> None:
    text = experiment.read_text()
    for line, expected in (("speed: {packing: no}", False), ("speed: {packing: auto}", "auto"), ("speed: {}", "auto")):
        experiment.write_text(f"{text}{line}\n")
        assert load_config(experiment).cells[0].config.speed.packing == expected
    for line, message in (("speed: {packing: maybe}", "speed.packing"), ("speed: {paking: no}", "did you mean 'packing'")):
        experiment.write_text(f"{text}{line}\n")
        with pytest.raises(InputError, match=message):
            load_config(experiment)


@pytest.fixture
def run(experiment: Path, tiny: Any, tokenizer: Any, tmp_path: Path) -> Any:
    """run(method, model, **switches) -> what train_cell gave for this method of the tiny experiment."""
    plan = load_config(experiment)
    prepared = prepare_data(plan.experiment.data, tokenizer, plan.folder)

    def one(method: str, model: nn.Module | None = None, train: dict[str, Any] | None = None, **switches: Any) -> Trained:
        cell = next(cell for cell in plan.cells if cell.method == method)
        config = cell.config.model_copy(
            update={"speed": SpeedSpec(**switches), "train": {**cell.config.train, "optim": "sgd", **(train or {})}}
        )
        rows = Prepared(prepared.train, prepared.validation, prepared.heldout)
        mitigators = build_mitigators(config.mitigators, plan.folder)
        output = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        return train_cell(Cell(method, {}, config), model or tiny(), tokenizer, rows, mitigators, output)

    return one


def distance(a: Any, b: Any) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    with torch.no_grad():
        return max(float((x - y).abs().max()) for x, y in pairs)


@pytest.mark.parametrize("method", ["plain", "replay", "ewc", "early_stopping"])
def test_fast_and_plain_train_the_same_weights(method: str, run: Any, tiny: Any) -> None:
    fast, plain = run(method), run(method, **OFF)
    assert {c["what"] for c in fast.notes["speed"] if c["on"]} == {"packing", "attention", "label_head"}
    assert not any(c["on"] for c in plain.notes["speed"])
    assert distance(fast.model, plain.model) < 1e-6
    assert distance(fast.model, tiny()) > 1e-4
    assert fast.tokens == plain.tokens
    assert fast.tokens > 4 * 10 * fast.steps
    assert [x["loss"] for x in fast.history if "loss" in x] == pytest.approx([x["loss"] for x in plain.history if "loss" in x])


def test_only_trained_tokens_are_counted() -> None:
    counter = Counter(Collator(0))
    batches = [[{"input_ids": [5] * n} for n in lengths] for lengths in ((3, 9), (4, 4), (7, 1))]
    made = [counter(rows) for rows in batches]  # all are drawn ahead
    seen: list[set[str]] = []
    trainer = SimpleNamespace(training_step=lambda model, inputs: seen.append(set(inputs)))
    counter.watch(trainer)
    for batch, trained in zip(made, (12, 20, 28), strict=True):
        assert (batch["labels"][:, 0] == IGNORED).all()
        trainer.training_step(None, batch)
        assert int(counter.trained) == trained
    assert seen == [{"input_ids", "attention_mask", "labels"}] * 3


@pytest.mark.parametrize(
    ("clip", "norm", "gradient", "scale", "diverged"),
    [
        (1.0, 2.0, 1.0, 1.0, False),
        (1.0, float("nan"), 0.0, 1.0, True),  # clipped by it, gradients say nothing any more
        (1.0, float("inf"), 0.0, 1.0, True),
        (0.0, 2.0, float("nan"), 1.0, True),  # a mitigator changed the gradient behind Trainer's norm
        (1.0, None, float("nan"), 1.0, True),
        (1.0, -1.0, 0.0, 1.0, True),  # DeepSpeed's word for it
        (1.0, float("inf"), 0.0, 65536.0, False),  # fp16's first steps: skipped, with half the scale for the next one
        (1.0, None, float("nan"), 2.0, False),
    ],
)
def test_what_is_not_finite_is_found(
    clip: float, norm: float | None, gradient: float, scale: float, diverged: bool, tmp_path: Path
) -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.grad = torch.full((1, 1), gradient)
    saved: list[str] = []
    scaler = SimpleNamespace(get_scale=lambda: scale)
    trainer: Any = SimpleNamespace(
        model=model, _get_grad_norm=lambda *_: norm, save_model=saved.append, accelerator=SimpleNamespace(scaler=scaler)
    )
    (watch,) = make_callbacks(trainer, tmp_path, None)
    trainer._get_grad_norm(model)
    with pytest.raises(DivergedError, match="not finite at step 4") if diverged else nullcontext():
        watch.on_pre_optimizer_step(SimpleNamespace(max_grad_norm=clip), SimpleNamespace(global_step=3), None)
    assert saved == ([str(tmp_path / "last_good")] if diverged else [])


def test_nothing_is_left_patched(run: Any) -> None:
    setting = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    model = run("plain").model
    assert not any(m._forward_pre_hooks or m._forward_hooks or "forward" in vars(m) for m in model.modules())
    ids = torch.tensor([[5, 6, 7]])
    assert model.train()(ids, labels=ids).logits.shape == (1, 3, 300)
    assert torch.backends.mkldnn.matmul.fp32_precision == setting  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["plain", "replay"])
def test_fall_back_trains(method: str, deaf: Any, run: Any) -> None:
    trained = run(method, deaf)
    on = {c["what"] for c in trained.notes["speed"] if c["on"]}
    assert on == {"grouping", "label_head"}
    assert trained.steps == {"plain": 6, "replay": 8}[method]


def test_autocast_trains(run: Any) -> None:
    wide, narrow = run("plain"), run("plain", autocast=True)
    assert 0 < distance(wide.model, narrow.model) < 1e-2


def test_what_autocast_trained_is_measured_as_the_start_model_was(run: Any, tiny: Any) -> None:
    """In the weights' own dtype: accelerate leaves its autocast around forward. Another training of the model has it again."""
    model, same = run("plain", autocast=True).model, tiny()
    same.load_state_dict(model.state_dict())
    ids = torch.tensor([[5, 6, 7, 8]])
    with evaluating(model), evaluating(same):
        assert torch.equal(model(ids).logits, same(ids).logits)
    again, wide = run("plain", model, autocast=True), run("plain", same, autocast=False)
    assert {"packing", "autocast"} <= {c["what"] for c in again.notes["speed"] if c["on"]}
    assert 0 < distance(again.model, wide.model) < 1e-2


def test_a_trainers_model_is_measured_in_its_own_precision(tiny: Any, tokenizer: Any, study: Path, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from cltk.data import Collator as Batches
    from cltk.measure.divergence import row_kl
    from cltk.measure.evaluate import Suite, TextTask

    rows = [{"input_ids": list(range(3, 20)), "labels": list(range(3, 20))} for _ in range(8)]
    args = TrainingArguments(str(tmp_path), bf16=True, max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True)
    model, same = tiny(), tiny()
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=Batches(1))
    trainer.train()
    same.load_state_dict(model.state_dict())
    wrapped = model.forward
    assert row_nll(model, rows) == row_nll(same, rows)
    assert max(row_kl(same, model, rows)) == 0
    suite = Suite(["toy"], texts=[TextTask("old", [{"text": "the heart pumps the blood"}] * 3)], include_path=study / "tasks")
    for scorer in ("prefix", "stock"):
        found, expected = (suite.evaluate(one, tokenizer, scorer=scorer).tasks for one in (model, same))
        assert {name: task.values for name, task in found.items()} == {name: task.values for name, task in expected.items()}
    assert model.forward == wrapped  # training can go on


def test_first_tokens_do_not_count_for_gpt2_either(run: Any, tiny: Any) -> None:
    """Replay's rows have a label on their first token; Trainer's count for GPT-2 would hold it when padded only."""
    fast, plain = (run("replay", tiny("gpt2"), train={"learning_rate": 1.0}, **switches) for switches in ({}, OFF))
    assert "packing" in {c["what"] for c in fast.notes["speed"] if c["on"]}
    assert distance(fast.model, plain.model) < 2e-6
    assert [x["loss"] for x in fast.history if "loss" in x] == pytest.approx([x["loss"] for x in plain.history if "loss" in x])
