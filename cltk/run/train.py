"""Data and arguments -> Trainer -> a fine-tuned model. The loop itself is transformers' Trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cltk.data.readers import Row
from cltk.data.rows import IGNORED, Collator, pad_id
from cltk.errors import RunError
from cltk.ranks import decided, first, gathered
from cltk.run import leaving
from cltk.run.arguments import training_arguments
from cltk.run.plans import Cell
from cltk.run.prepare import Prepared as Prepared
from cltk.run.prepare import prepare_data as prepare_data

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

CURVES = "curves"  # TensorBoard's files of a training, in its folder
Tell = Callable[[int, int, dict[str, float]], None]  # step, steps, last log line


@dataclass
class Trained:
    """What training left: the model and what must go into the record."""

    model: Any
    tokenizer: Any
    steps: int
    seconds: float
    tokens: int
    history: list[dict[str, float]]
    parameters: int  # that were trained
    peak_bytes: int  # of the GPU during training; without one, of the process since it began
    notes: dict[str, Any] = field(default_factory=dict)
    loggers: Any = None  # `cltk.run.loggers.Loggers`: open until the caller closes them
    release: Callable[[], None] = lambda: None  # what holds memory beside the model; once its weights were read


class DivergedError(RunError):
    """The loss or a gradient is not finite."""


def train_cell(
    cell: Cell, model: Any, tokenizer: Any, prepared: Prepared, mitigators: Sequence[Any], output: Path,
    *, cache: Path | None = None, tell: Tell | None = None, choices: dict[str, bool] | None = None,
    folder: Path | None = None,
) -> Trained:  # fmt: skip
    """Fine-tune `model` in place. Continues from the newest whole checkpoint in `output` when there is one.

    `choices` are taken instead of what `speed: auto` would measure; a checkpoint's own go before them. Of trainings with one
    `folder` the first measures for all of them.

    Raises:
        DivergedError: a gradient was not finite; the last good weights are saved in `output`/last_good.
        OutOfMemoryError, DiskError: the message says what to lower, or what could not be written.
    """
    import torch
    from transformers import PrinterCallback, Trainer, set_seed

    from cltk.forward.packing import collate_training
    from cltk.hosts import deepspeed
    from cltk.hosts.trainer import attach
    from cltk.run.checkpoints import MEASURED, Keeper, settled, taken_up
    from cltk.run.loggers import Loggers
    from cltk.run.streams import Stream
    from cltk.run.trouble import explained

    checkpoint, kept = taken_up(output)
    whole = kept.get("finished") or not checkpoint or any(checkpoint.glob("*optim*"))  # of `leaving` it has the optimiser
    if cell.config.train.get("save_only_model") and not whole:
        checkpoint, kept = None, {}  # without the optimiser's state it would be another training
    speed = _speed(settled(cell.config, {"choices": choices or {}, **kept}), model, tokenizer, folder)
    given = {**speed.arguments, **cell.config.train}
    called = [given.get("run_name"), cell.name, cell.stage]  # a run of its own in W&B, MLflow and others
    given["run_name"] = "/".join(filter(None, called))
    args = training_arguments(given, cell.config.seed, output)
    set_seed(args.seed)
    rows = prepared.train
    if isinstance(rows, Stream):
        rows = rows.seeded(args.seed if args.data_seed is None else args.data_seed)
    trainer = Trainer(
        model=model, args=args, train_dataset=rows, eval_dataset=prepared.validation,
        data_collator=Collator(pad_id(tokenizer)), processing_class=tokenizer,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it prints every log line; the history goes into the record
    place_curves(trainer, output.parent / CURVES)
    loggers = Loggers(trainer)
    with explained(cell.config, output, model.config):
        attach(trainer, mitigators, cache=cache)
    counter = Counter(speed.collator(trainer.model, tokenizer))
    collate_training(trainer, counter)
    counter.watch(trainer)
    keeper = Keeper(trainer, output, counter, {what: speed.on(what) for what in MEASURED}, kept)
    for callback in (*make_callbacks(trainer, output, tell), keeper):
        trainer.add_callback(callback)
    trained: Any = trainer.model
    parameters = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    under_way: Any = lambda: trainer.state.global_step + 1  # noqa: E731
    with explained(cell.config, output, model.config, under_way), speed.running(trainer.model), leaving.steady():
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except BaseException:
            loggers.close()
            deepspeed.end(trainer)
            raise
    loggers.trained(trainer)
    plan = getattr(trainer, "cltk_plan", None)
    return Trained(
        trainer.accelerator.unwrap_model(trainer.model), tokenizer, trainer.state.global_step, keeper.seconds,
        sum(gathered(int(counter.trained))), keeper.history(), parameters, peak_bytes(),
        {**(plan.notes if plan else {}), "speed": speed.notes(), **prepared.notes()},
        loggers, partial(deepspeed.end, trainer),
    )  # fmt: skip


def _speed(config: Any, model: Any, tokenizer: Any, folder: Path | None) -> Any:
    """What `speed` comes to: decided by the first rank, and said."""
    from cltk.run.agreed_speed import of_folder
    from cltk.run.speed import choose, say

    device = next(model.parameters()).device.type
    speed = decided(lambda: choose(model, tokenizer, config, of_folder(folder, config.speed, device)))
    if first():
        say(speed)
    return speed


def place_curves(trainer: Any, folder: Path) -> None:
    """TensorBoard's files go there: beside the checkpoints, which are removed. TENSORBOARD_LOGGING_DIR goes before."""
    from transformers.integrations import TensorBoardCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder)


def peak_bytes() -> int:
    """The most memory that was held, in bytes: of the GPU since it was last reset, or of the process since it began.

    getrusage(2) counts in KiB on Linux and in bytes on macOS; without it, Windows' own peak, or what is held now.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        import psutil

        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss))
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


class Counter:
    """A collator that notes in every batch how many tokens it has, without padding, and counts them when it is trained on.

    The note travels with the batch: data loader workers make batches in processes of their own, ahead of time.
    """

    NOTE = "cltk_tokens"

    def __init__(self, collate: Callable[[Sequence[Row]], Any]) -> None:
        self.collate = collate
        self.trained: Any = 0  # a tensor on the batches' device after the first: no step waits for it

    def __call__(self, rows: Sequence[Row]) -> Any:
        batch = self.collate(rows)
        batch["labels"][:, 0] = IGNORED  # nothing predicts a first token, yet Trainer counts it for some models (GPT-2)
        note = batch["labels"].new_zeros(len(batch["labels"]))  # as long as the batch, for whoever cuts it in parts
        note[0] = sum(len(row["input_ids"]) for row in rows)
        return {**batch, self.NOTE: note}

    def watch(self, trainer: Any) -> None:
        """Take the note out of every batch before the model sees it."""
        step = trainer.training_step

        def counted(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self.trained = self.trained + inputs.pop(self.NOTE).sum()
            return step(model, inputs, *args, **kwargs)

        trainer.training_step = counted


def make_callbacks(trainer: Any, output: Path, tell: Tell | None) -> list[Any]:
    """Watches for non-finite gradients, reports progress."""
    import torch
    from transformers import TrainerCallback

    from cltk.hosts.scale import loss_scale

    known: list[Any] = []  # Trainer's norm of the gradient that the optimizer gets
    norm_of = trainer._get_grad_norm

    def keep_norm(*args: Any, **kwargs: Any) -> Any:
        known[:] = [norm_of(*args, **kwargs)]
        return known[0]

    trainer._get_grad_norm = keep_norm

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not known or known[0] is None or args.max_grad_norm == 0:  # else a mitigator may have changed it since
                grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
                known[:] = torch._foreach_norm(grads) if grads else [torch.zeros(())]  # DeepSpeed keeps its own
            norms = [torch.as_tensor(norm) for norm in known]
            known.clear()
            norm = torch.stack([n.to(norms[0].device) for n in norms])
            overflow = not (torch.isfinite(norm) & (norm >= 0)).all()  # DeepSpeed says -1
            if overflow and loss_scale(trainer) <= 1:  # above it a step of fp16 is skipped, and the scale halved
                step = state.global_step + 1
                trainer.save_model(str(output / "last_good"))
                error = DivergedError(
                    f"the loss or a gradient is not finite at step {step}; the weights of step {step - 1} are kept in"
                    f" {output / 'last_good'}; lower learning_rate, lengthen warmup_steps, or set max_grad_norm"
                )
                error.step = step
                raise error

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if tell:
                last = state.log_history[-1] if state.log_history else {}
                tell(state.global_step, state.max_steps, last)

    return [Watch()]
