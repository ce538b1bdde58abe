"""The processes that work on one model together."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cltk.errors import CltkError, RunError

if dist.is_available():
    import torch.distributed.nn.functional  # its functions' defaults hold the group there is at its import, for ever: none yet

T = TypeVar("T")
R = TypeVar("R")
PATIENCE = 60.0  # seconds that a failed rank waits for the others
GRACE = 0.5  # seconds for the threads of a group that something still holds
_regrouped = 0  # how often


def join() -> None:
    """Set torch.distributed up where torchrun or accelerate started several processes (one a GPU where there are any)."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def on_group(act: Callable[[Any], Any], value: torch.Tensor) -> None:
    """A collective on a tensor, in place, where the group can talk about it: NCCL knows no memory of the processor's, in which
    Trainer leaves a model that FSDP or DeepSpeed will place."""
    if value.device.type != "cpu" or "gloo" in dist.get_backend() or not torch.cuda.is_available():
        act(value)
        return
    moved = value.cuda()
    act(moved)
    value.copy_(moved)


def leave(code: int) -> None:
    """At the end of a command: end the group, so that none of its threads holds anything of Python's at Python's end.

    A thread of gloo's that still has a tensor to drop when the interpreter ends aborts a process that had done its work
    ("terminate called without an active exception", pytorch/pytorch#190489 and #179291). A rank that failed alone could wait
    for the others in NCCL, which has no such threads.
    """
    if together() and (code == 0 or dist.get_backend() == "gloo"):
        dist.destroy_process_group()
        time.sleep(GRACE)  # meshes of sharded models keep the group and its threads: what they have to drop they drop now


def regroup(problem: str) -> str:
    """After a failure: the ranks give up what they do together and begin anew. The problem of the rank that failed first.

    The connections of this rank are closed, so that ranks that wait for it in a collective fail as well and come here.
    Every rank that failed, or lost the others, must call it.

    Raises:
        TimeoutError: a rank did not come; the processes cannot go on together.
    """
    global _regrouped
    if not together():
        return problem
    rank, world, backend = dist.get_rank(), dist.get_world_size(), dist.get_backend()
    store = dist.distributed_c10d._get_default_store()
    _regrouped += 1
    name = f"cltk/{_regrouped}"
    if store.add(f"{name}/failed", 1) == 1:
        store.set(f"{name}/problem", problem)
    _end()
    store.set(f"{name}/{rank}", "here")
    try:
        store.wait([f"{name}/{one}" for one in range(world)], timedelta(seconds=PATIENCE))
    except RuntimeError:
        raise TimeoutError(f"the other processes did not stop within {PATIENCE:.0f} s") from None
    dist.init_process_group(backend, store=dist.PrefixStore(name, store), rank=rank, world_size=world)
    return store.get(f"{name}/problem").decode()


def _end() -> None:
    """End the group. DeepSpeed, where it has begun, keeps groups of its own, and would go on with those of the one that was.

    The group that there was at its import (transformers imports it where it is installed, whatever trains) it keeps for ever,
    as the default of two functions, where None is the present one.
    """
    deepspeed, backend = sys.modules.get("deepspeed.comm"), sys.modules.get("deepspeed.comm.torch")
    functions = map(inspect.unwrap, vars(backend.TorchBackend).values()) if backend else ()
    for function in filter(inspect.isfunction, functions):
        given = function.__defaults__ or ()
        if any(isinstance(one, dist.ProcessGroup) for one in given):
            function.__defaults__ = tuple(None if isinstance(one, dist.ProcessGroup) else one for one in given)
    if deepspeed is not None and deepspeed.is_initialized():
        deepspeed.destroy_process_group()
    else:
        dist.destroy_process_group()


def as_one(work: Callable[[], int]) -> int:
    """A command whose work the processes of torchrun share: what `work` gives, said by the first.

    An error of one rank ends all: whichever fails first says why and leaves; torchrun stops those that wait for it.

    Raises:
        CltkError: on the rank that failed first; SystemExit on others that fail.
    """
    join()
    if not together():
        return work()
    with ExitStack() as stack:
        if not first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        try:
            return max(gathered(work()))
        except Exception as error:
            if dist.distributed_c10d._get_default_store().add("cltk/over", 1) > 1:
                raise SystemExit(getattr(error, "exit_code", 1)) from None
            line = f"rank {ranks()[0]}: {type(error).__name__}: {' '.join(str(error).split())}"
            problem = error if isinstance(error, CltkError) else RunError(line)
    raise problem


def together() -> bool:
    """Whether torch.distributed has been set up."""
    return dist.is_available() and dist.is_initialized()


def ranks() -> tuple[int, int]:
    """This process and how many there are: (0, 1) alone."""
    return (dist.get_rank(), dist.get_world_size()) if together() else (0, 1)


def first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return ranks()[0] == 0


def agreed(found: Any) -> Any:
    """Rank 0's value on every rank: what is computed on several GPUs differs in its last bits. Every rank must call it."""
    if not together():
        return found
    answer = [found]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def decided(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, on every rank; only rank 0 does it. Every rank must call it.

    For what a process measures of its machine: each rank would find something else. An error of rank 0 is raised on all.
    """
    if not together():
        return work()
    found: tuple[Any, Exception | None] = (None, None)
    if first():
        try:
            found = (work(), None)
        except Exception as error:  # the others wait for an answer, whatever it is
            found = (None, error)
    mine = found[1]
    answer, theirs = agreed(found if mine is None or isinstance(mine, CltkError) else (None, RunError(f"rank 0: {mine}")))
    if problem := mine or theirs:
        raise problem
    return answer


def gathered(found: T) -> list[T]:
    """Every rank's value, on every rank, in the order of ranks. Every rank must call it."""
    if not together():
        return [found]
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, found)
    return answers


def shared(work: Callable[[list[T]], Sequence[R]], items: Sequence[T]) -> list[R]:
    """`work` on these items, each rank on its part of them; the answers of all, in the order of `items`, on every rank."""
    rank, world = ranks()
    answers: list[Any] = [None] * len(items)
    for other, part in enumerate(gathered(list(work(list(items[rank::world]))))):
        answers[other::world] = part
    return answers
