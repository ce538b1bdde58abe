"""Where methods can be attached: DPOTrainer, a peft model, checkpointing, torch.compile, and the example of each host."""

from __future__ import annotations

import contextlib
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from transformers import Trainer, TrainingArguments, set_seed

import cltk
from cltk import tensors
from cltk.data import Collator, tokenize_pairs
from cltk.errors import InputError, RunError
from cltk.mitigate import Mitigator
from tests import forks
from tests.conftest import sentences, write_jsonl
from tests.mitigator_cases import CASES

ROOT = Path(cltk.__file__).parent.parent
OLD = sentences(60, seed=1)


@pytest.fixture(autouse=True)
def _warnings() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*learning rate")
        warnings.filterwarnings("ignore", message="si: ")
        warnings.filterwarnings("ignore", message="The `KTO(Config|Trainer)` is now located in")  # TRL before 1.8
        # TRL's and peft's own use
        warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing\w*` is deprecated")
        yield


@pytest.mark.parametrize("name", ["ewc", "kl", "l2_sp", "low_lr", "wise_ft", "ema", "mofo", "hft", "freeze", "a_gem", "lora"])
def test_dpo_trainer(name: str, tiny_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    def run(mitigators: list[Mitigator]) -> str:
        words = [s.split() for s in sentences(24, seed=5)]
        data = Dataset.from_list([{"prompt": " ".join(w), "chosen": f" {w[0]}", "rejected": f" {w[1]} {w[2]}"} for w in words])
        args = DPOConfig(
            str(tmp_path / "dpo"), max_steps=3, per_device_train_batch_size=4, learning_rate=3e-3, report_to="none",
            use_cpu=True, save_strategy="no", disable_tqdm=True, max_length=64, bf16=False, dataloader_pin_memory=False,
        )  # fmt: skip
        set_seed(3)
        model = AutoModelForCausalLM.from_pretrained(tiny_folder)  # TRL loads the reference from where the model came from
        trainer = DPOTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
        cltk.attach(trainer, mitigators)
        trainer.train()
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
        return tensors.digest(trainer.model)

    assert run([]) != run([CASES[name].active(OLD)])


def trained(model: Any, mitigators: list[Mitigator], tokenizer: Any, folder: Path, **arguments: Any) -> Any:
    pairs = [{"q": f"{s} why", "a": f" {s.split()[0]}"} for s in sentences(32, seed=5)]
    args = TrainingArguments(
        str(folder), max_steps=3, per_device_train_batch_size=4, learning_rate=3e-3, report_to="none", use_cpu=True, seed=3,
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False, **arguments,
    )  # fmt: skip
    set_seed(3)
    rows = tokenize_pairs(pairs, tokenizer, prompt="q", completion="a")
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=Collator(1), processing_class=tokenizer)
    cltk.attach(trainer, mitigators)
    trainer.train()
    return trainer.model


@pytest.mark.parametrize("name", ["ewc", "kl", "l2_sp", "replay"])
def test_peft_model(name: str, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    def run(mitigators: list[Mitigator]) -> Any:
        torch.manual_seed(0)
        model = get_peft_model(tiny(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        return trained(model, mitigators, tokenizer, tmp_path)

    assert tensors.digest(run([])) != tensors.digest(run([CASES[name].active(OLD)]))


@pytest.mark.parametrize("name", ["ewc", "kl"])
def test_same_weights_with_checkpointing(name: str, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    expected = trained(tiny(), [CASES[name].active(OLD)], tokenizer, tmp_path)
    same(expected, trained(tiny(), [CASES[name].active(OLD)], tokenizer, tmp_path, gradient_checkpointing=True))


def test_same_weights_compiled(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    compiled = {"torch_compile_backend": "aot_eager"}
    small = {"num_hidden_layers": 1}
    expected = trained(tiny(**small), [CASES["ewc"].active(OLD)], tokenizer, tmp_path)
    same(expected, trained(tiny(**small), [CASES["ewc"].active(OLD)], tokenizer, tmp_path, **compiled))
    with pytest.raises(InputError, match=r"KL: .* torch_compile"):  # its loss would be traced once and never seen again
        trained(tiny(), [cltk.KL(0.5)], tokenizer, tmp_path, **compiled)


def same(expected: Any, found: Any) -> None:
    for (name, x), (_, y) in zip(expected.named_parameters(), found.named_parameters(), strict=True):
        assert torch.allclose(x, y, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(p.stem for p in (ROOT / "experiments/examples").glob("*.py") if p.stem != "common"))
def test_example(script: str, tiny_folder: Path, tmp_path: Path) -> None:
    new = [{"prompt": f"{s} what?", "completion": f" {s.split()[0]} {i}"} for i, s in enumerate(sentences(60, seed=2))]
    old = write_jsonl(tmp_path / "old.jsonl", [{"text": s} for s in sentences(600, seed=1)])
    command = [
        sys.executable, str(ROOT / "experiments/examples" / f"{script}.py"), "--model", str(tiny_folder), "--steps", "2",
        "--new", str(write_jsonl(tmp_path / "new.jsonl", new)), "--old", str(old), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    done = forks.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


NOT_OF_PAIRS = ["token_weights", "early_stopping", "lm_cocktail", "replay", "reservoir", "online_ewc", "self_replay"]
NOWHERE = [(host, name) for host in ("DPOTrainer", "KTOTrainer", "GRPOTrainer") for name in NOT_OF_PAIRS]


NOWHERE += [(host, name) for host in ("GRPOTrainer", "RLOOTrainer") for name in ("kl", "lwf", "sam")]
NOWHERE += [("RLOOTrainer", "replay"), *((host, "l2_sp") for host in ("RewardTrainer", "DistillationTrainer"))]


@pytest.mark.parametrize(("host", "name"), NOWHERE)
def test_what_a_trainer_of_preferences_cannot_run(host: str, name: str) -> None:
    """The card says so, and attach names the alternative."""
    from cltk.hosts.checks import check_host

    own = type("Own", (type(host, (), {"model_init": None, "args": TrainingArguments(use_cpu=True)}),), {})
    with pytest.raises(InputError, match=rf"not in a {host}.* use it in Trainer or SFTTrainer"):
        check_host(own(), [CASES[name].active(OLD)])


@pytest.mark.parametrize("host", ["GRPOTrainer", "RLOOTrainer"])
def test_a_loss_of_ones_own_is_no_part_of_grpo(host: str) -> None:
    from cltk.hosts.checks import check_host

    class Own(Mitigator):
        def loss(self, inputs: Any, logits_NV: Any) -> Any:
            return None

    trainer: Any = type(host, (), {"model_init": None, "args": TrainingArguments(use_cpu=True)})()
    with pytest.raises(InputError, match=rf"Own: not in a {host}.* give it `grad` or `step`"):
        check_host(trainer, [Own()])


PREFERRED = "a_gem dare der_pp ema ewc freeze gem hft l2_sp lora low_lr mas mofo osft replay_loss rewarm rwalk si".split()
PREFERRED += ["task_arithmetic", "ties", "ulmfit", "wise_ft"]


def rewarded(host: str, folder: Path, tokenizer: Any, out: Path) -> Any:
    """A KTOTrainer, GRPOTrainer or RLOOTrainer of two steps."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    own: dict[str, Any] = {}
    given: dict[str, Any] = {}
    rows: list[dict[str, Any]] = [{"prompt": text} for text in sentences(8, seed=5)]
    if host in ("GRPOTrainer", "RLOOTrainer"):
        own = {"num_generations": 4, "max_completion_length": 8}
        given = {"reward_funcs": lambda completions, **_: [float(len(set(one))) for one in completions]}
    else:
        rows = [{**row, "completion": " yes it was", "label": i % 2 == 0} for i, row in enumerate(rows)]
    args = getattr(trl, host.replace("Trainer", "Config"))(
        str(out), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none", use_cpu=True, seed=3,
        save_strategy="no", disable_tqdm=True, bf16=False, dataloader_pin_memory=False, logging_strategy="no", **own,
    )  # fmt: skip
    set_seed(3)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return getattr(trl, host)(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **given
    )  # fmt: skip


@pytest.mark.parametrize("host", ["KTOTrainer", "GRPOTrainer"])
def test_preference_trainers(host: str, tiny_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """What a card names runs there, moves the weights elsewhere than the trainer alone does, and an empty list nowhere else."""
    import trl

    from cltk.mitigate.catalog import card

    assert {name for name in CASES if host in card(name).engines} == {
        *PREFERRED, *(["kl", "lwf", "sam"] if host == "KTOTrainer" else []),
    }  # fmt: skip
    alone = rewarded(host, tiny_folder, tokenizer, tmp_path)
    alone.train()
    plain = tensors.digest(alone.model)
    for name in ["", *(name for name in CASES if host in card(name).engines)]:
        trainer = rewarded(host, tiny_folder, tokenizer, tmp_path)
        cltk.attach(trainer, [CASES[name].active(sentences(40))] if name else [])
        if host == "KTOTrainer" and name in ("kl", "lwf") and Version(trl.__version__) < Version("1.8"):
            with pytest.raises(InputError, match="this release of TRL does not say which tokens of a KTOTrainer are answers"):
                trainer.train()
            continue
        trainer.train()
        assert trainer.state.global_step == 2, name
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters()), name
        assert (tensors.digest(trainer.model) == plain) == (not name), name


def test_rloo_runs_what_grpo_does(tiny_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Methods of each kind: a penalty, a projection, rows of one's own, an average, adapters."""
    found = []
    for name in ["", "l2_sp", "a_gem", "replay_loss", "ema", "lora"]:
        trainer = rewarded("RLOOTrainer", tiny_folder, tokenizer, tmp_path)
        cltk.attach(trainer, [CASES[name].active(sentences(40))] if name else [])
        trainer.train()
        assert trainer.state.global_step == 2, name
        found.append(tensors.digest(trainer.model))
    assert len(set(found)) == len(found)


def test_a_penalty_in_grpo_is_its_gradient(tiny_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """L2-SP in GRPO: at the second step the gradient is the trainer's own and strength (theta - theta*), by hand; float32."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Seen(Mitigator):
        def grad(self, run: Any) -> None:
            found.append(tuple(torch.cat([f(p).flatten().clone() for p in run.model.parameters()]) for f in (grad, data)))  # type: ignore[arg-type]

    def grad(p: Any) -> Any:
        return torch.zeros_like(p) if p.grad is None else p.grad

    def data(p: Any) -> Any:
        return p.data

    trainer = rewarded("GRPOTrainer", tiny_folder, tokenizer, tmp_path)
    cltk.attach(trainer, [Seen(), cltk.L2SP(2.0, form="gradient"), Seen()])
    trainer.train()
    (before, weights), (after, _) = found[2], found[3]
    start = found[0][1]
    assert (weights - start).abs().max() > 1e-3
    torch.testing.assert_close(after - before, 2.0 * (weights - start), atol=1e-6, rtol=1e-4)


def test_a_second_pass_is_not_counted_by_trl(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    def counted(methods: list[Mitigator]) -> list[float]:
        args = SFTConfig(
            str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True, save_strategy="no",
            disable_tqdm=True, bf16=False, dataloader_pin_memory=False, logging_steps=1,
        )  # fmt: skip
        data = Dataset.from_list([{"text": s} for s in sentences(8)])
        trainer = SFTTrainer(tiny(), args=args, train_dataset=data, processing_class=tokenizer)
        cltk.attach(trainer, methods)
        trainer.train()
        return [line["num_tokens"] for line in trainer.state.log_history if "num_tokens" in line]

    assert counted([cltk.SAM(0.05)]) == counted([])


# --- every pair, in both orders where the order is known to matter, under the head that runs where labels are ---------
ROOTS = [*CASES, "stm", "flow", "kl_memory"]
MADE: dict[str, Any] = {
    "stm": lambda old: cltk.TokenWeights("stm", tau=280.0),
    "flow": lambda old: cltk.TokenWeights("flow"),
    "kl_memory": lambda old: cltk.KL(0.5, memory=old, length=16),
    "ewc": lambda old: cltk.EWC(3.0, WEIGHTS),  # a Fisher once, not in every pair
    "self_replay": lambda old: cltk.Replay(old, 0.25),
    **{name: case.active for name, case in CASES.items() if name not in ("ewc", "self_replay")},
}
WEIGHTS: dict[str, Any] = {"memory": OLD[:2], "samples": 1, "block": 16, "normalize": "mean"}
LOSSES = ["kl", "lwf", "token_weights", "stm", "flow", "lora", "sam", "der_pp", "kl_memory"]  # what meets in a forward pass
FAST = [(a, b) for a in LOSSES for b in LOSSES if a != b]
TAKES = {"freeze", "hft", "lora", "osft", "ulmfit"}  # parameters away from what comes before or after


def first_step(pair: tuple[str, str], tiny: Any, rows: Any, tokenizer: Any, folder: Path) -> None:
    from cltk.forward.packing import label_head

    args = TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=2, learning_rate=3e-3, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model=tiny(), args=args, train_dataset=rows[:8], eval_dataset=rows[:4], data_collator=Collator(1),
                      processing_class=tokenizer)  # fmt: skip
    try:
        cltk.attach(trainer, [MADE[name](OLD[:8]) for name in pair])
    except InputError:
        return  # a line that says why not
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    refused = ""
    try:
        with label_head(trainer.model):
            trainer.train()
    except RunError as error:  # a penalty whose parameters a later method took away: said before a weight has changed
        refused = str(error)
    if refused:
        assert pair[0] in refused
        assert all(torch.equal(p, start[name]) for name, p in trainer.model.named_parameters())
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters()), pair


@pytest.mark.parametrize("first", LOSSES)
def test_first_step_of_pairs_with_losses(first: str, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = tokenize_pairs([{"q": s, "a": f" {s.split()[0]}"} for s in sentences(8)], tokenizer, prompt="q", completion="a")
    for pair in [pair for pair in FAST if pair[0] == first]:
        first_step(pair, tiny, rows, tokenizer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", ROOTS)
def test_first_step_of_all_pairs(first: str, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = tokenize_pairs([{"q": s, "a": f" {s.split()[0]}"} for s in sentences(8)], tokenizer, prompt="q", completion="a")
    for second in ROOTS[ROOTS.index(first) + 1 :]:
        orders = [(first, second), (second, first)]
        alone = orders if {first, second} & TAKES else [min(orders, key=lambda pair: zlib.crc32("".join(pair).encode()))]
        for pair in alone:
            if pair not in FAST:
                first_step(pair, tiny, rows, tokenizer, tmp_path)


@pytest.mark.parametrize("second", ["kl", "stm", "flow"])
def test_adapters_beside_a_loss_train_under_the_label_head_as_without(
    second: str, tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """The reference without adapters calls the decoder from inside the decoder's hook."""
    from cltk.forward.packing import label_head

    def run(narrow: bool) -> Any:
        model = tiny()
        with label_head(model) if narrow else contextlib.nullcontext():
            return trained(model, [cltk.LoRA(4), MADE[second](OLD)], tokenizer, tmp_path)

    same(run(False), run(True))
