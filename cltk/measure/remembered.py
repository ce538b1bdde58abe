"""A model's predictions on rows, kept on disk and read back exactly: what compares it with another that is in memory alone.

Shapes: B rows, K positions that some row counts, N counted positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

from cltk.data.pinned import cache_dir
from cltk.data.readers import Row
from cltk.data.rows import IGNORED, Collator
from cltk.errors import InputError
from cltk.forward.probe import by_ranks, evaluating, length_batches, logits_where
from cltk.ranks import gathered, ranks

KL_TOKENS = 1024  # of a batch
MOST = 64 * 2**30  # bytes on disk, and never more than half of what is free there
Batch = tuple[list[int], dict[str, Tensor], Tensor, Tensor]  # rows, inputs, targets [B, T - 1], which of them count [B, K]


def counted_batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[Batch]:
    """The rows in padded batches of at most so many tokens, shortest first: the same for every model."""
    order, collate = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"])), Collator(0)
    for batch in length_batches(order, rows, batch_tokens):
        inputs = collate([rows[i] for i in batch])
        targets = inputs.pop("labels")[:, 1:]
        kept = (targets != IGNORED).any(0).nonzero().squeeze(1)
        yield batch, inputs, targets, targets[:, kept] != IGNORED


def predictions(model: Any, inputs: dict[str, Tensor], targets: Tensor, mask: Tensor) -> Tensor:
    """Logits [N, V] that predict the counted targets: on the model's own device, or as they were kept."""
    if isinstance(model, Remembered):
        return model.read(inputs, targets)
    device = next(model.parameters()).device
    logits, _ = logits_where(model, {name: value.to(device) for name, value in inputs.items()}, targets.to(device))
    return logits[mask.to(device)]


def in_use(model: Any) -> Any:
    """`evaluating` of a model that is in memory."""
    return nullcontext() if isinstance(model, Remembered) else evaluating(model)


def vocabulary(model: Any) -> int:
    """Ids that the model gives a logit."""
    return model.vocabulary if isinstance(model, Remembered) else int(model.get_output_embeddings().weight.shape[0])


class Remembered:
    """What a model predicts on the rows that it was shown, in the precision that it came in.

    N V bytes-of-a-number: 16 rows of 1,024 tokens of a vocabulary of 150,000 in bfloat16 are 5 GB. They are in a file in the
    cache folder that has no name: the system takes it back when this object goes, or its process does, killed or not.

    Args:
        model: Whose `config` and vocabulary this keeps; not the model.
        most: Bytes at most; `MOST`, or half of what the disk has free where that is less, when not given.
    """

    def __init__(self, model: Any, most: int | None = None) -> None:
        self.config, self.vocabulary = model.config, vocabulary(model)
        self.left: dict[str, str] = {}  # text -> why nothing of it is kept
        cache_dir().mkdir(parents=True, exist_ok=True)
        self._file: Any = TemporaryFile(dir=cache_dir(), buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._places: dict[str, tuple[int, torch.dtype, torch.Size]] = {}  # batch -> where in the file, and of what form
        self._most = min(MOST, shutil.disk_usage(cache_dir()).free // 2 // ranks()[1]) if most is None else most
        self.bytes = 0

    def show(self, model: Any, rows: Sequence[Row], progress: Callable[[int, int], None] | None = None) -> None:
        """Keep the model's predictions on these rows. Every rank must call it, and keeps those of its own batches.

        Raises:
            InputError: they take more bytes than there may be, or the disk does not take them.
        """
        problems: list[Exception] = []

        def show(part: Sequence[Row], told: Callable[[int, int], None] | None) -> list[float]:
            try:
                if not problems:
                    self._show(model, part, told)
            except (InputError, torch.OutOfMemoryError) as error:  # raised when no rank waits for this one
                problems.append(error)
            return [0.0] * len(part)

        by_ranks(show, rows, KL_TOKENS, progress)
        if failed := next((one for found in gathered(problems) for one in found), None):
            raise failed

    def _show(self, model: Any, rows: Sequence[Row], progress: Callable[[int, int], None] | None) -> None:
        fresh = [one for one in counted_batches(rows, KL_TOKENS) if _key(one[1], one[2]) not in self._places]
        done, total = 0, sum(int(mask.sum()) for *_, mask in fresh)
        with evaluating(model):
            for batch, inputs, targets, mask in fresh:
                found = predictions(model, inputs, targets, mask)
                self._check(total * self.vocabulary * found.element_size())
                total -= len(found)
                self._write(_key(inputs, targets), found.cpu().contiguous())
                done += len(batch)
                if progress:
                    progress(done, len(rows))

    def read(self, inputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        """The logits [N, V] of a batch that was shown, to the last bit, in main memory."""
        place, dtype, shape = self._places[_key(inputs, targets)]
        logits = torch.empty(shape, dtype=dtype)
        self._file.seek(place)
        left = _bytes(logits)
        while left:  # the system moves 2 GiB at most
            read = self._file.readinto(left)
            if not read:
                raise InputError("the base's predictions cannot be read back: their file is shorter than what was written")
            left = left[read:]
        return logits

    def _check(self, due: int) -> None:
        if self.bytes + due > self._most:
            needed, may = (self.bytes + due) / 2**30, self._most / 2**30
            raise InputError(f"the base's predictions would take {needed:.2g} GiB of disk, of {may:.2g}; measure fewer rows")

    def _write(self, key: str, logits: Tensor) -> None:
        try:
            self._file.seek(self.bytes)
            left = _bytes(logits)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise InputError(f"the base's predictions cannot be kept ({error.strerror or error})") from None
        self._places[key] = self.bytes, logits.dtype, logits.shape
        self.bytes += logits.nbytes


def _key(inputs: dict[str, Tensor], targets: Tensor) -> str:
    """Of a batch."""
    return hashlib.sha256(repr((inputs["input_ids"].tolist(), targets.tolist())).encode()).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The tensor's own memory, which is contiguous and the processor's."""
    numbers: Any = tensor.view(torch.uint8).numpy()
    return memoryview(numbers).cast("B") if tensor.numel() else memoryview(b"")
