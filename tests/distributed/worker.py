"""One rank of a launch: trains job after job under one engine and saves each one's final weights, or why it was refused.

    python -m tests.distributed.worker ENGINE FOLDER JOB...

ENGINE is single, ddp, fsdp2, zero1, zero2 or zero3; FOLDER holds the start model. A job is the name of a case of the table, or
`penalty-HOW-ACCUMULATION-SETTING` with HOW one of autograd (the penalty in the loss), ewc, l2_sp, none, and SETTING one of clip
(small gradient norms), free (no clipping), bf16 (autocast, or the engine's own mixed precision; also no clipping); or
`scale-HOST-METHOD-ACCUMULATION`: one SGD step of rate 1 in a host of tests/hosts/test_scale.py, METHOD one of none, own (the
host's loss once more), nothing (token weights of 0); or `held-METHOD`: the bytes of all tensors behind the first optimiser
step, METHOD a case or plain; or `watch-on`, `watch-off`: with a watch on FOLDER/tasks and a text, or without; or
`resumed-METHOD`: the weights of four steps, and those of a training that a new object takes up behind the second; or `torn`:
a training of `cltk run`'s in peace, and one that is taken up where two checkpoints are torn.
"""

from __future__ import annotations

import copy
import faulthandler
import gc
import logging
import shutil
import sys
import warnings
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import DistributedType, PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed

import cltk
from cltk import tensors
from cltk.data import Collator, tokenize_pairs
from cltk.errors import InputError, RunError
from cltk.importance.fisher import Importance
from cltk.measure.evaluate import TextTask
from tests.conftest import sentences
from tests.mitigator_cases import CASES

OLD = sentences(60, seed=1)
STRENGTH = 20.0
UNION = 4  # rows of all ranks together in a micro-batch
STATEFUL: dict[str, Any] = {  # what keeps something from step to step, and what only looks as if
    **{name: CASES[name].active for name in (
        "early_stopping", "ema", "ewc", "mofo", "online_ewc", "osft", "reservoir", "rwalk", "si", "token_weights", "wise_ft",
    )},
    "der_pp": CASES["der_pp"].active,
    "random": lambda old: cltk.TokenWeights("random"),
    "watch": lambda old: cltk.Watch(texts=[TextTask("old_text", [{"text": s} for s in old[:6]])], every=1, sample=None,
                                    keep_best={"old_text": 10.0}),
}  # fmt: skip


@cache
def start(folder: Path) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Model, tokeniser and rows, read once: before any DeepSpeed configuration exists, so that the weights are whole."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [{"q": f"{s} why", "a": f" {s.split()[0]}"} for s in sentences(72, seed=5)]
    return AutoModelForCausalLM.from_pretrained(folder), tokenizer, tokenize_pairs(pairs, tokenizer, prompt="q", completion="a")


def random_importance(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.rand(p.shape, generator=generator) for name, p in tensors.trainable(model)}


class PenaltyInLoss(Trainer):
    """The reference: autograd differentiates the penalty."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        total = loss
        for name, parameter in tensors.trainable(model):
            anchor, weight = (tensors.like(parameter, named[name]) for named in (self.anchors, self.weights))
            term = (weight * (parameter - anchor) ** 2).sum()
            total = total + STRENGTH / 2 / self.args.gradient_accumulation_steps * tensors.whole(term)
        return total


def settings(engine: str) -> dict[str, Any]:
    """What the engine asks of TrainingArguments."""
    if engine == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}
    if engine.startswith("zero"):
        config = {
            "zero_optimization": {"stage": int(engine[-1]), "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True, "gradient_clipping": "auto", "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
        }  # fmt: skip
        return {"deepspeed": config}
    return {}


def trainer_of(engine: str, folder: Path, cls: type[Trainer] = Trainer, **changes: Any) -> Any:
    world = dist.get_world_size() if dist.is_initialized() else 1
    model, tokenizer, rows = start(folder)
    defaults: dict[str, Any] = {
        "max_steps": 3, "learning_rate": 3e-3, "adam_epsilon": 1e-3,  # a small one makes the noise of sums visible
        "per_device_train_batch_size": UNION // world, "report_to": "none", "use_cpu": True, "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 1, "seed": 7, "remove_unused_columns": False, "dataloader_pin_memory": False,
        "ddp_backend": "gloo" if world > 1 else None,
    }  # fmt: skip
    args = TrainingArguments(**({"output_dir": str(folder / "trainer")} | defaults | changes | settings(engine)))
    if engine == "fsdp2":  # accelerate offers FSDP on accelerators alone; gloo shards on a CPU as well
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    set_seed(args.seed)
    return cls(
        model=copy.deepcopy(model), args=args, train_dataset=rows[:64], eval_dataset=rows[64:], data_collator=Collator(1),
        processing_class=tokenizer,
    )  # fmt: skip


SETTINGS: dict[str, dict[str, Any]] = {
    "clip": {"max_grad_norm": 0.3},  # clipping must see the penalty
    "free": {"max_grad_norm": 0.0},
    # two steps: the first has no penalty, so that the second starts from the same bits and its bfloat16 products are the same
    "bf16": {"max_grad_norm": 0.0, "bf16": True, "max_steps": 2},
    "bf16first": {"max_grad_norm": 0.0, "bf16": True, "max_steps": 1},
}


def penalty(engine: str, folder: Path, how: str, accumulation: int, setting: str) -> Any:
    """SGD and no Adam: its square root would blur what is compared."""
    changes = {"gradient_accumulation_steps": accumulation, "optim": "sgd", "learning_rate": 0.05} | SETTINGS[setting]
    trainer = trainer_of(engine, folder, PenaltyInLoss if how == "autograd" else Trainer, **changes)
    model = start(folder)[0]
    trainer.anchors, trainer.weights = tensors.snapshot(model), random_importance(model)
    if how == "ewc":
        cltk.attach(trainer, [cltk.EWC(STRENGTH, Importance(trainer.weights))])
    if how == "l2_sp":  # EWC with importance 1
        cltk.attach(trainer, [cltk.L2SP(STRENGTH, form="gradient")])
    return trainer


def scale(engine: str, folder: Path, host: str, method: str, accumulation: int) -> Any:
    from tests.hosts.test_scale import HOSTS, Nothing, Own

    cls, changes, _ = HOSTS[host]
    step = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    trainer = trainer_of(engine, folder, cls, **step, gradient_accumulation_steps=accumulation, **changes)
    return cltk.attach(trainer, {"none": [], "own": [Own()], "nothing": [Nothing()]}[method])


def bytes_of_tensors() -> int:
    """Of every tensor that Python can reach, each storage once; of a sharded one this rank's part."""
    gc.collect()
    storages = {}
    for tensor in gc.get_objects():
        if issubclass(type(tensor), torch.Tensor):  # the instance's own __class__ may be a lazy module's
            storage = tensors.local(tensor.detach()).untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class Count(TrainerCallback):
    """Counts behind the first optimiser step: gradients and moments are there, activations are not."""

    held = 0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.held = self.held or bytes_of_tensors()


def held(engine: str, folder: Path, method: str) -> int:
    """What a training holds beyond what was there before it was set up."""
    start(folder)
    before, count = bytes_of_tensors(), Count()
    trainer = trainer_of(engine, folder, max_steps=1)
    cltk.attach(trainer, [] if method == "plain" else [CASES[method].active(OLD)]).add_callback(count)
    trainer.train()
    return count.held - before


def resumed(engine: str, folder: Path, method: str) -> dict[str, Any]:
    """Final weights of a training in peace, and of one that goes on from its checkpoint with new objects everywhere."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    settings["output_dir"] = str(folder / engine / f"of-{method}")

    def trained(checkpoint: str | None) -> tuple[dict[str, torch.Tensor], int]:
        trainer = trainer_of(engine, folder, **settings)
        cltk.attach(trainer, [] if method == "plain" else [STATEFUL[method](OLD)])
        trainer.train(resume_from_checkpoint=checkpoint)
        return final_weights(trainer.model), trainer.state.global_step

    (weights, steps), place = trained(None), Path(settings["output_dir"]) / "checkpoint-2"
    shutil.rmtree(place.with_name("checkpoint-4"), ignore_errors=True) if dist.get_rank() == 0 else None
    dist.barrier()
    again, steps_again = trained(str(place))
    dist.barrier()
    kept = sorted(path.name for path in place.iterdir())
    return {"weights": weights, "again": again, "steps": (steps, steps_again), "kept": kept}


def torn(engine: str, folder: Path) -> dict[str, Any]:
    """What `cltk run` trains with checkpoints, in peace and behind two torn ones: final weights, steps, what lies there."""
    from cltk.run.checkpoints import SEAL
    from cltk.run.plans import Cell
    from cltk.run.spec import Experiment
    from cltk.run.train import Prepared, train_cell
    from tests.distributed import sharding

    if engine == "fsdp2":
        sharding.devices()
    model, tokenizer, rows = start(folder)
    given: dict[str, Any] = {
        "max_steps": 6, "learning_rate": 3e-3, "per_device_train_batch_size": UNION // 2, "save_strategy": "steps",
        "save_steps": 2, "save_total_limit": 3, "ddp_backend": "gloo",
    }  # fmt: skip
    config = Experiment.model_validate({
        "model": {"pretrained": "-"}, "data": {"train": {"path": "-"}}, "train": given | settings(engine),
        "speed": {"autocast": False, "onednn": False},
    })  # fmt: skip
    peace, again = (folder / engine / name / "checkpoints" for name in ("peace", "torn"))

    def trained(output: Path) -> dict[str, Any]:
        methods = [] if engine.startswith("zero") else [STATEFUL["ema"](OLD)]
        prepared = Prepared(rows[:64], rows[64:], rows[64:])
        found = train_cell(Cell("ema", {}, config), copy.deepcopy(model), tokenizer, prepared, methods, output)
        left = sorted(path.name for path in output.iterdir())
        return {"weights": final_weights(found.model), "steps": found.steps, "tokens": found.tokens, "left": left}

    first = trained(peace)
    if dist.get_rank() == 0:
        shutil.copytree(peace, again)
        (again / "checkpoint-6" / SEAL).unlink()  # rank 1 was killed while it wrote
        for step in (6, 4):  # and of the one before its part is cut
            part = max((again / f"checkpoint-{step}").rglob("*_1[._]*"), key=lambda file: file.stat().st_size)
            part.write_bytes(part.read_bytes()[:-1])
    dist.barrier()
    return {"peace": first, "again": trained(again)}


def train(engine: str, folder: Path, job: str) -> Any:
    """The trainer after the job. Raises InputError or RunError: the engine cannot do it."""
    if job.startswith("penalty-"):
        _, how, accumulation, setting = job.split("-")
        trainer = penalty(engine, folder, how, int(accumulation), setting)
    elif job.startswith("scale-"):
        _, host, method, accumulation = job.split("-")
        trainer = scale(engine, folder, host, method, int(accumulation))
    elif job.startswith("watch-"):
        text = TextTask("old_text", [{"text": s} for s in OLD[:12]])
        watch = cltk.Watch("toy", texts=[text], every=2, sample=None, include_path=folder / "tasks")
        trainer = cltk.attach(trainer_of(engine, folder), [watch] if job == "watch-on" else [])
    else:
        trainer = cltk.attach(trainer_of(engine, folder), [CASES[job].active(OLD)])
    trainer.train()
    return trainer


def final_weights(model: Any) -> dict[str, torch.Tensor]:
    """Whole weights, whatever holds them; every rank must call it."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:  # DeepSpeed's bf16: what it steps with are float32 masters
            from deepspeed.utils import safe_get_full_fp32_param

            found[tensors.clean(name)] = safe_get_full_fp32_param(parameter).clone()
        elif hasattr(parameter, "ds_id"):
            from deepspeed import zero

            with zero.GatheredParameters([parameter]):
                found[tensors.clean(name)] = parameter.detach().clone()
        else:
            found[tensors.clean(name)] = tensors.whole(parameter.detach()).clone()
    return found


def outcome(engine: str, folder: Path, job: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if job.startswith("held-"):
            return {"held": held(engine, folder, job.removeprefix("held-"))}
        try:
            if job == "torn":
                return torn(engine, folder)
            if job.startswith("resumed-"):
                return resumed(engine, folder, job.removeprefix("resumed-"))
            trainer = train(engine, folder, job)
        except (InputError, RunError) as error:
            return {"refused": str(error)}
        notes = getattr(trainer, "cltk_plan", None)
        curve = {"curve": notes.notes["watch"]["trace"]} if job == "watch-on" and notes else {}
        return {"weights": final_weights(trainer.model), "engine": type(trainer.model_wrapped).__name__, **curve}


def main(engine: str, folder: Path, jobs: list[str]) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    gc.freeze()  # what was imported: Trainer collects garbage at the end of each training, two seconds a time
    if engine.startswith("zero"):
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False  # a C++ build of minutes, for what gloo does as well
    out = folder / engine
    out.mkdir(exist_ok=True)
    faulthandler.dump_traceback_later(120, repeat=True)
    for job in jobs:
        torch.save(outcome(engine, folder, job), out / f"{job}.{dist.get_rank()}.pt")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
