"""Around attach: what belongs to the caller, what would do nothing, interrupted and repeated training, resuming, float16."""

from __future__ import annotations

import contextlib
import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments, get_linear_schedule_with_warmup, set_seed

import cltk
from cltk import tensors
from cltk.data import Collator, tokenize_pairs
from cltk.errors import InputError
from cltk.mitigate import Mitigator
from tests.conftest import sentences
from tests.mitigator_cases import CASES

OLD = sentences(60, seed=1)
RATE = 3e-3


@pytest.fixture(autouse=True)
def _warnings() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*learning rate")
        warnings.filterwarnings("ignore", message="si: ")
        warnings.filterwarnings(
            "ignore", message="Detected call of `lr_scheduler.step"
        )  # torch's, where a first step is skipped
        yield


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[dict[str, Any]]:
    pairs = [{"q": f"{s} why", "a": f" {s.split()[0]}"} for s in sentences(40, seed=5)]
    return tokenize_pairs(pairs, tokenizer, prompt="q", completion="a")


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    def make(**changes: Any) -> TrainingArguments:
        defaults: dict[str, Any] = {
            "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": RATE, "report_to": "none", "use_cpu": True,
            "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "seed": 7, "remove_unused_columns": False,
            "dataloader_pin_memory": False,
        }  # fmt: skip
        return TrainingArguments(str(tmp_path / "trainer"), **(defaults | changes))

    return make


@pytest.fixture
def make(tiny: Any, tokenizer: Any, rows: Any, arguments: Any) -> Callable[..., Any]:
    """make(methods, args=..., cls=..., **given): an attached Trainer that has not trained."""

    def of(methods: list[Mitigator], args: Any = None, cls: type[Trainer] = Trainer, **given: Any) -> Any:
        args = arguments() if args is None else args
        set_seed(args.seed)
        settings = {"eval_dataset": rows[32:], "data_collator": Collator(1), "processing_class": tokenizer}
        settings |= {"model": tiny()} | given if "model_init" not in given else given
        return cltk.attach(cls(args=args, train_dataset=rows[:32], **settings), methods)

    return of


def trained(trainer: Any, **how: Any) -> str:
    trainer.train(**how)
    return tensors.digest(trainer.model)


# --- what belongs to the caller ----------------------------------------------------------------------------------------
TEN = ["ewc", "low_lr", "replay", "l2_sp", "rewarm", "sam", "ulmfit", "lora", "freeze", "kl"]


def test_ten_trainers_of_one_arguments_object_train_as_ten_separate_ones(make: Any, arguments: Any) -> None:
    shared = arguments(max_steps=2)
    told = shared.to_dict()
    for name in TEN:
        alone = trained(make([CASES[name].active(OLD)], arguments(max_steps=2)))
        assert trained(make([CASES[name].active(OLD)], shared)) == alone, name
        assert shared.to_dict() == told, name


class Stop(Exception):
    pass


class Breaks(Mitigator):
    """Raises in a hook of step 2."""

    def __init__(self, hook: str, error: type[BaseException]) -> None:
        self.hook, self.error, self.armed = hook, error, True

    def _maybe(self, step: int) -> None:
        if self.armed and step >= 1:
            self.armed = False
            raise self.error("stopped here")

    def loss(self, inputs: Any, logits_NV: Any) -> Any:
        if self.hook == "loss":
            self._maybe(1)

    def grad(self, run: Any) -> None:
        if self.hook == "grad":
            self._maybe(run.step)


def hooks(model: Any) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.mark.parametrize(("hook", "error"), [("", Stop), ("loss", Stop), ("grad", KeyboardInterrupt)])
def test_the_model_is_the_callers_again(hook: str, error: type[BaseException], make: Any, tiny: Any, tokenizer: Any) -> None:
    model, own = tiny(), copy.deepcopy(tokenizer)
    model.model.norm.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    plain, words, special = hooks(model), own.get_vocab(), own.special_tokens_map
    methods = [cltk.Freeze(1), cltk.EWC(1.0, {"memory": OLD, "samples": 2, "block": 16}), cltk.KL(0.5), Breaks(hook, error)]
    trainer = make(methods, model=model, processing_class=own)
    if hook:
        with pytest.raises(error):
            trainer.train()
    else:
        trainer.train()
    assert {name: p.requires_grad for name, p in trainer.model.named_parameters()} == before
    assert hooks(model) == plain
    assert (own.get_vocab(), own.special_tokens_map) == (words, special)


def settings(tokenizer: Any) -> list[Any]:
    names = ("padding_side", "truncation_side", "model_max_length", "pad_token", "eos_token", "chat_template", "init_kwargs")
    return [copy.deepcopy(getattr(tokenizer, name)) for name in names]


def state_of(optimizer: Any) -> list[Any]:
    """The groups, but for `params` and what a scheduler sets: identities, order and numbers."""
    pre, post = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    return [
        [([id(p) for p in g["params"]], {k: v for k, v in g.items() if k != "params"}) for g in optimizer.param_groups],
        len(pre), len(post), vars(optimizer).keys(),
    ]  # fmt: skip


@pytest.mark.parametrize(("hook", "error"), [("", Stop), ("loss", Stop), ("grad", KeyboardInterrupt)])
def test_what_was_given_to_the_trainer_is_the_callers(
    hook: str, error: type[BaseException], make: Any, tiny: Any, arguments: Any, tokenizer: Any
) -> None:
    """Optimizer, scheduler, callbacks, tokenizer and arguments: as after the same training without methods."""

    def after(methods: list[Mitigator]) -> tuple[Any, ...]:
        model, args, own = tiny(), arguments(), copy.deepcopy(tokenizer)
        optimizer = torch.optim.AdamW([{"params": [p], "lr": RATE / (i + 1)} for i, p in enumerate(model.parameters())])
        scheduler = get_linear_schedule_with_warmup(optimizer, 1, 9)
        given = {"model": model, "processing_class": own, "optimizers": (optimizer, scheduler)}
        trainer = make([Breaks(hook, error)] if hook and not methods else [], args, **given)
        callbacks, told = list(trainer.callback_handler.callbacks), args.to_dict()
        cltk.attach(trainer, [*methods, Breaks(hook, error)] if methods else [])
        with pytest.raises(error) if hook else contextlib.nullcontext():
            trainer.train()
        assert [c for c in trainer.callback_handler.callbacks if c in callbacks] == callbacks
        assert (args.to_dict(), settings(own)) == (told, settings(tokenizer))
        while hasattr(scheduler, "scheduler"):
            scheduler = scheduler.scheduler
        places = {id(p): i for i, p in enumerate(model.parameters())}
        groups, *rest = state_of(optimizer)
        return [([places[i] for i in ids], numbers) for ids, numbers in groups], rest, scheduler.last_epoch, scheduler.base_lrs

    ewc = cltk.EWC(1.0, {"memory": OLD, "samples": 2, "block": 16})
    assert after([cltk.Freeze(1), ewc, cltk.KL(0.5), cltk.EMA(0.1)]) == after([])


# --- what belongs to the caller of a session -----------------------------------------------------------------------------
@pytest.mark.parametrize("error", [None, Stop, KeyboardInterrupt])
def test_after_a_session_everything_is_the_callers(error: Any, tiny: Any, rows: Any, tokenizer: Any) -> None:
    model, own = tiny(), copy.deepcopy(tokenizer)
    model.model.norm.weight.requires_grad_(False)
    names = dict(model.named_parameters())
    optimizer = torch.optim.AdamW([{"params": [p], "lr": RATE / (i + 1)} for i, p in enumerate(names.values())])
    flags, plain, before = {n: p.requires_grad for n, p in names.items()}, hooks(model), copy.deepcopy(state_of(optimizer)[0])
    ewc = cltk.EWC(1.0, {"memory": OLD, "samples": 2, "block": 16})
    for scheduled in (False, True):  # the second begins where the first did
        methods = [cltk.ULMFiT(1.3, cut_frac=0.0), ewc, cltk.KL(0.5)]
        with (
            contextlib.suppress(Stop, KeyboardInterrupt),
            cltk.session(model, optimizer, methods, max_steps=3, tokenizer=own) as s,
        ):
            scheduler = get_linear_schedule_with_warmup(s.optimizer, 0, 9) if scheduled else None
            assert [group["lr"] for group in s.optimizer.param_groups] != [group["lr"] for _, group in before]
            for step in range(3):
                batch = Collator(1)(rows[step : step + 2])
                out = model(**batch)
                (out.loss + s.loss(batch, out.logits)).backward()
                s.before_step()
                if error and step == 1:
                    raise error
                optimizer.step()
                s.after_step()
                optimizer.zero_grad()
                if scheduler is not None:
                    scheduler.step()
        assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
        assert (hooks(model), settings(own)) == (plain, settings(tokenizer))
        assert state_of(optimizer)[0] == before


@pytest.mark.parametrize("bad", [lambda: cltk.Replay([], 0.5), lambda: cltk.EWC("auto", {"memory": OLD})])
def test_a_refused_session_leaves_everything_as_it_was(bad: Any, tiny: Any, rows: Any, tokenizer: Any) -> None:
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    before = copy.deepcopy(state_of(optimizer)[0])
    with pytest.raises(InputError, match=r"is empty|session leaves to your loop"):
        cltk.session(model, optimizer, [cltk.LowLR(0.5), cltk.Freeze(1), bad()], data=rows, tokenizer=tokenizer)
    assert all(p.requires_grad for p in model.parameters())
    assert state_of(optimizer)[0] == before


class Replaces(Mitigator):
    """Other parameters in the places of the model's, as FSDP2 puts its shards there; counts those of the first that live on."""

    def __init__(self, model: Any) -> None:
        self.old, self.alive, self.flags = [weakref.ref(p) for p in model.parameters()], -1, {}

    def start(self, run: Any) -> None:
        new: dict[Any, Any] = {}
        for module in run.model.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                new.setdefault(p, torch.nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad))
                module.register_parameter(name, new[p])
        for group in run.optimizer.param_groups:
            group["params"] = [new[p] for p in group["params"]]

    def step(self, run: Any) -> None:
        gc.collect()
        self.alive = sum(reference() is not None for reference in self.old)
        self.flags = {name: p.requires_grad for name, p in run.model.named_parameters()}


def test_parameters_that_are_replaced_are_freed_and_keep_their_flags(make: Any, tiny: Any) -> None:
    model = tiny()
    method = Replaces(model)
    trainer = make([cltk.Freeze(1), method, cltk.KL(0.5)], model=model)
    trainer.train()
    assert method.alive == 0
    assert not all(method.flags.values())
    assert all(p.requires_grad for p in model.parameters())
    trainer.train()
    assert not all(method.flags.values())  # frozen again


def test_a_refused_attach_leaves_everything_as_it_was(make: Any, tiny: Any, arguments: Any, tokenizer: Any) -> None:
    model, args = tiny(), arguments()
    trainer = make([], args, model=model)
    with pytest.raises(InputError, match="empty"):
        cltk.attach(trainer, [cltk.Freeze(1), cltk.Replay([], 0.5)])
    assert trainer.args is args
    assert all(p.requires_grad for p in model.parameters())


# --- again -------------------------------------------------------------------------------------------------------------
class Counts(Mitigator):
    calls = 0

    def loss(self, inputs: Any, logits_NV: Any) -> None:
        self.calls += 1


@pytest.mark.parametrize("hook", ["loss", "grad"])
def test_train_again_after_an_interrupt(hook: str, make: Any, tiny: Any) -> None:
    """As a training that was never interrupted: each extra loss once."""
    counts = Counts()
    trainer = make([cltk.SAM(0.05), cltk.KL(2.0), Breaks(hook, KeyboardInterrupt), counts])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.model.load_state_dict(tiny().state_dict())
    trainer.optimizer = trainer.lr_scheduler = None
    counts.calls = 0
    set_seed(7)
    again = trained(trainer)
    assert counts.calls == 8  # four steps, twice each for SAM
    assert again == trained(make([cltk.SAM(0.05), cltk.KL(2.0), Counts()]))


def test_auto_find_batch_size_begins_again(make: Any, arguments: Any) -> None:
    class Full(Trainer):
        full = True

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if self.full:
                self.full = False
                raise RuntimeError("CUDA out of memory.")
            return loss

    counts = Counts()
    trainer = make([cltk.SAM(0.05), cltk.KL(2.0), counts], arguments(auto_find_batch_size=True, max_steps=3), Full)
    trainer.train()
    assert trainer._train_batch_size < 4
    assert counts.calls == 1 + 6


@pytest.mark.parametrize("name", [name for name in CASES if name != "lora"])
def test_a_second_training_goes_on(name: str, make: Any, arguments: Any) -> None:
    trainer = make([CASES[name].active(OLD)], arguments(max_steps=1))
    trainer.train()
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_merged_adapters_do_not_train_twice(make: Any, arguments: Any) -> None:
    trainer = make([cltk.LoRA(2)], arguments(max_steps=1))
    trainer.train()
    with pytest.raises(InputError, match=r"LoRA: its adapters were merged .* make a new trainer"):
        trainer.train()


def test_a_logged_number_stands_in_one_line(make: Any) -> None:
    class Says(Mitigator):
        def step(self, run: Any) -> None:
            if run.step == 2:
                run.log("said", 1.0)

    trainer = make([Says()])
    trainer.train()
    assert [line["step"] for line in trainer.state.log_history if "said" in line] == [2]


# --- never inert -------------------------------------------------------------------------------------------------------
def sgd(model: Any) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.05)


class OwnRates(Trainer):
    """An optimizer of its own, at a rate that is nowhere in the arguments."""

    def create_optimizer(self, model: Any = None) -> Any:
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=0.05)
        return self.optimizer


@pytest.mark.parametrize("name", ["low_lr", "ulmfit", "lora"])
def test_an_optimizer_given_to_the_trainer(name: str, make: Any, tiny: Any) -> None:
    model = tiny()
    with pytest.raises(InputError, match="has its optimizer already"):
        make([CASES[name].active(OLD)], model=model, optimizers=(sgd(model), None))


@pytest.mark.parametrize("name", ["rewarm", "ewc", "kl", "freeze", "a_gem", "ema"])
def test_methods_that_need_no_rates_beside_an_optimizer_given(name: str, make: Any, tiny: Any) -> None:
    found = []
    for methods in ([], [CASES[name].active(OLD)]):
        model = tiny()
        found.append(trained(make(methods, model=model, optimizers=(sgd(model), None))))
    assert found[0] != found[1]


def test_a_scheduler_given_beside_a_method_that_sets_one(make: Any, tiny: Any) -> None:
    model = tiny()
    optimizer = sgd(model)
    with pytest.raises(InputError, match="Rewarm: sets the schedule"):
        make([cltk.Rewarm()], model=model, optimizers=(optimizer, get_linear_schedule_with_warmup(optimizer, 0, 4)))


@pytest.mark.parametrize("how", ["class", "override"])
@pytest.mark.parametrize("name", ["low_lr", "ulmfit"])
def test_rates_in_an_optimizer_of_the_callers_kind(name: str, how: str, make: Any, arguments: Any) -> None:
    """The rate the caller chose, times the method's factors: SGD at 0.05, by hand."""
    given: dict[str, Any] = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.05})} if how == "class" else {}
    args = arguments(lr_scheduler_type="constant", max_steps=1, weight_decay=0.0, max_grad_norm=0.0)
    method = cltk.LowLR(0.5) if name == "low_lr" else cltk.ULMFiT(1.3, cut_frac=0.0, unfreeze=False)
    grads: dict[str, torch.Tensor] = {}

    class Keep(Mitigator):
        def grad(self, run: Any) -> None:
            grads.update({n: p.grad.clone() for n, p in tensors.trainable(run.model)})

    trainer = make([method, Keep()], args, OwnRates if how == "override" else Trainer, **given)
    start = tensors.snapshot(trainer.model)
    trainer.train()
    assert type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)) is torch.optim.SGD
    for n, p in tensors.trainable(trainer.model):
        depth = 0 if "embed" in n else 1 + int(n.split(".")[2]) if ".layers." in n else 2
        rate = 0.05 * (0.5 if name == "low_lr" else 1.3 ** (depth - 2))
        torch.testing.assert_close(p.detach(), start[n] - rate * grads[n], rtol=0, atol=1e-7)


def test_lora_in_an_optimizer_that_the_trainer_makes_by_itself(make: Any, tiny: Any) -> None:
    assert trained(make([cltk.LoRA(2)], cls=OwnRates)) != tensors.digest(tiny())


def test_model_init_is_refused(make: Any, tiny: Any) -> None:
    with pytest.raises(InputError, match="model_init makes a new model"):
        make([cltk.Freeze(1)], model_init=lambda: tiny())


def test_several_gpus_without_ddp_are_refused(make: Any, arguments: Any) -> None:
    args = arguments()
    trainer = make([], args)
    args._n_gpu = 2
    with pytest.raises(InputError, match=r"DataParallel on 2 GPUs .* torchrun"):
        cltk.attach(trainer, [cltk.KL(0.5)])


@pytest.mark.parametrize("optim", ["lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise"])
def test_optimizers_that_step_inside_backward(optim: str, make: Any, arguments: Any) -> None:
    args = arguments()
    trainer = make([], args)
    args.optim = optim
    with pytest.raises(InputError, match=f"EWC: optim={optim} steps inside backward"):
        cltk.attach(trainer, [cltk.EWC(1.0, {"memory": OLD, "samples": 2})])


def test_hooks_that_step_inside_backward(make: Any, tiny: Any) -> None:
    model = tiny()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: None)
    for attached in (lambda: make([cltk.L2SP(0.1)], model=model), lambda: cltk.session(model, sgd(model), [cltk.L2SP(0.1)])):
        with pytest.raises(InputError, match="L2SP: the parameters have hooks"):
            attached()


def test_fsdp_of_version_1_is_refused(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make([])
    trainer.is_fsdp_enabled = True
    with pytest.raises(InputError, match=r"L2SP: FSDP version 1 .* fsdp_version: 2"):
        cltk.attach(trainer, [cltk.L2SP(0.1)])


def test_averages_and_the_best_checkpoint(make: Any, arguments: Any) -> None:
    best = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
    }
    with pytest.raises(InputError, match="EMA: load_best_model_at_end"):
        make([cltk.EMA(0.5)], arguments(**best))
    make([cltk.EMA(0.0), cltk.WiSEFT(0.5)], arguments(**best))
    with pytest.raises(InputError, match="EarlyStopping and EMA each end with weights"):
        make([cltk.EarlyStopping(every=2), cltk.EMA(0.5)])


def test_a_scheduler_made_before_the_session(tiny: Any) -> None:
    model = tiny()
    optimizer = sgd(model)
    get_linear_schedule_with_warmup(optimizer, 0, 4)
    with pytest.raises(InputError, match="scheduler made before"):
        cltk.session(model, optimizer, [cltk.LowLR(0.1)])
    cltk.session(model, optimizer, [cltk.LowLR(1.0), cltk.KL(0.1)])


# --- resuming ----------------------------------------------------------------------------------------------------------
def saved(arguments: Any, **changes: Any) -> Any:
    return arguments(**{"save_strategy": "steps", "save_steps": 2} | changes)


def test_the_order_of_a_resumed_list_is_free(make: Any, arguments: Any, tmp_path: Path) -> None:
    whole = trained(make([cltk.KL(2.0), cltk.EMA(0.5)], saved(arguments)))
    checkpoint = str(tmp_path / "trainer" / "checkpoint-2")
    assert trained(make([cltk.EMA(0.5), cltk.KL(2.0)], saved(arguments)), resume_from_checkpoint=checkpoint) == whole


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (lambda: [cltk.KL(2.0)], r"EMA\(.*is in the checkpoint only"),
        (lambda: [cltk.KL(2.0), cltk.EMA(0.9)], r"EMA\(decay=0.9.* is not in the checkpoint"),
        (lambda: [cltk.KL(2.0), cltk.EMA(0.5), cltk.SI(1.0)], r"SI\(.*is not in the checkpoint"),
        (lambda: [cltk.KL(0.1), cltk.EMA(0.5)], r"KL\(strength=0.1"),
    ],
)
def test_an_edited_list_is_not_resumed(methods: Any, message: str, make: Any, arguments: Any, tmp_path: Path) -> None:
    make([cltk.KL(2.0), cltk.EMA(0.5)], saved(arguments, max_steps=2)).train()
    trainer = make(methods(), saved(arguments))
    with pytest.raises(InputError, match=message):
        trainer.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))


def test_a_whole_model_is_no_checkpoint_of_adapters_nor_the_other_way_round(make: Any, arguments: Any, tmp_path: Path) -> None:
    """transformers looks for weights that are not there (huggingface/transformers#29607), or goes on with new adapters."""
    checkpoint = tmp_path / "trainer" / "checkpoint-2"
    make([cltk.L2SP(0.1)], saved(arguments, max_steps=2)).train()
    with pytest.raises(InputError, match="checkpoint-2: holds a whole model and no adapters, and LoRA trains adapters"):
        make([cltk.LoRA(2)], saved(arguments)).train(resume_from_checkpoint=str(checkpoint))
    make([cltk.LoRA(2)], saved(arguments, max_steps=2)).train()
    make([cltk.LoRA(2)], saved(arguments)).train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(InputError, match="checkpoint-2: holds adapters, and the model has none"):
        make([cltk.L2SP(0.1)], saved(arguments)).train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_without_states(make: Any, arguments: Any, tmp_path: Path) -> None:
    make([cltk.EMA(0.5)], saved(arguments, max_steps=2)).train()
    checkpoint = tmp_path / "trainer" / "checkpoint-2"
    (checkpoint / "cltk.safetensors").unlink()
    with pytest.raises(InputError, match=r"checkpoint-2: has no cltk\.safetensors, so that EMA would lose its state"):
        make([cltk.EMA(0.5)], saved(arguments)).train(resume_from_checkpoint=str(checkpoint))
    trained(make([cltk.L2SP(0.1)], saved(arguments)), resume_from_checkpoint=str(checkpoint))  # has no state to lose


def test_checkpoints_of_a_trial_hold_the_states(make: Any, arguments: Any, tmp_path: Path) -> None:
    """A hyperparameter search keeps its checkpoints in a folder a trial."""
    trainer = make([cltk.EMA(0.5)], saved(arguments, max_steps=2))
    trainer._get_output_dir = lambda trial=None: str(tmp_path / "trainer" / "run-0")
    trainer.train()
    assert (tmp_path / "trainer" / "run-0" / "checkpoint-2" / "cltk.safetensors").exists()


def test_token_counts_are_resumed(make: Any, arguments: Any, tmp_path: Path) -> None:
    whole = make([cltk.TokenWeights("random", rate=0.5)], saved(arguments))
    whole.train()
    resumed = make([cltk.TokenWeights("random", rate=0.5)], saved(arguments))
    resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    assert resumed.cltk_plan.notes == whole.cltk_plan.notes


def test_a_training_that_was_stopped_stays_stopped(make: Any, arguments: Any, tmp_path: Path) -> None:
    def run(**how: Any) -> Any:
        trainer = make([cltk.EarlyStopping(patience=1, every=2, restore=False)],
                       saved(arguments, max_steps=30, learning_rate=3.0, save_steps=1))  # fmt: skip
        trainer.train(**how)
        return trainer

    whole = run()
    end = whole.state.global_step
    assert end < 30
    resumed = run(resume_from_checkpoint=str(tmp_path / "trainer" / f"checkpoint-{end}"))
    assert resumed.state.global_step <= end + 1
    assert tensors.digest(resumed.model) == tensors.digest(whole.model)
    assert resumed.cltk_plan.notes["stopped"] == whole.cltk_plan.notes["stopped"]


# --- float16 -----------------------------------------------------------------------------------------------------------
def half(scale: float) -> type[Trainer]:
    """accelerate keeps float16 for GPUs: its two parts, autocast and the loss scale, switched on by hand."""

    class Half(Trainer):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            self.accelerator.native_amp, self.accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)

    return Half


def whole_numbers(found: Any) -> bool:
    """Whether every tensor and number in a state is finite."""
    if isinstance(found, dict):
        return all(map(whole_numbers, found.values()))
    if isinstance(found, list | tuple):
        return all(map(whole_numbers, found))
    return not isinstance(found, torch.Tensor | float) or bool(torch.as_tensor(found).isfinite().all())


@pytest.mark.parametrize("name", CASES)
def test_overflows_poison_no_method(name: str, make: Any, arguments: Any) -> None:
    """At 2^20 the first steps overflow and are skipped: weights, states and the next training stay finite."""
    method = CASES[name].active(OLD)
    trainer = make([method], arguments(fp16=True, max_steps=8), half(2.0**20))
    start = tensors.digest(trainer.model)
    trainer.train()
    scale = trainer.accelerator.scaler.get_scale()
    assert 1 <= scale < 2.0**20
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert whole_numbers(method.state_dict())
    assert tensors.digest(trainer.model) != start or not CASES[name].moves
    again = make([method], arguments(max_steps=1))
    again.train()
    assert all(torch.isfinite(p).all() for p in again.model.parameters())


@pytest.mark.parametrize("rho", [0.5, 2.0])
def test_sam_at_the_default_scale(rho: float, make: Any, arguments: Any) -> None:
    """An overflow of the second pass alone: the scaler has to hear of it."""
    trainer = make([cltk.SAM(rho)], arguments(fp16=True, max_steps=6), half(2.0**16))
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("name", ["replay_loss", "a_gem", "gem", "der_pp"])
def test_extra_passes_are_scaled_as_the_loss(name: str, make: Any, arguments: Any) -> None:
    """One SGD step in float16 is the step in float32 but for rounding; without a loss scale small gradients are lost."""
    settings = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    moves = []
    for cls, changes in ((half(2.0**12), {"fp16": True}), (Trainer, {})):
        trainer = make([CASES[name].active(OLD)], arguments(**settings, **changes), cls)
        start = tensors.snapshot(trainer.model)
        trainer.train()
        moves.append(torch.cat([(p.detach() - start[n]).flatten() for n, p in tensors.trainable(trainer.model)]))
    assert (moves[0] - moves[1]).norm() < 2e-3 * moves[1].norm()  # two ulps of float16


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own
def test_averages_of_a_users_own_adapters_do_not_train_twice(make: Any, arguments: Any, tiny: Any) -> None:
    """They merge what the optimizer holds; nobody in the list wraps the model, and it was a StopIteration."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny(), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    trainer = make([cltk.WiSEFT(0.5)], arguments(max_steps=1), model=model)
    trainer.train()
    with pytest.raises(InputError, match=r"WiSEFT: its adapters were merged"):
        trainer.train()
