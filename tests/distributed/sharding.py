"""`python -m tests.distributed.sharding COMMAND ...`: the `cltk` command on a machine whose processors count as accelerators.

accelerate shards (FSDP2) on accelerators alone, gloo on a CPU as well; told that each rank has a device of its own, accelerate
wraps the model as it would on GPUs. What is wanted stands in the environment:

    CLTK_TEST_DEVICES=1       ranks count as having accelerators
    CLTK_TEST_APART=NAME      a function of `cltk.run.machine` that says yes to rank 0 and no to the others
    CLTK_TEST_SEEN=FOLDER     where each rank notes what trained: the wrapper, how parameters are held, the choices
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import DistributedType, PartialState

from cltk import tensors


def devices() -> None:
    """Every PartialState from now on is that of a machine with an accelerator a rank."""
    stock = PartialState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        if self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = init


def note(folder: Path) -> None:
    """Write down every training once it is over: RANK-NUMBER.json."""
    from transformers import Trainer

    from cltk.run import train

    stock, decide = Trainer.train, train.decided
    chosen: list[Any] = []

    def decided(work: Any) -> Any:
        chosen[:] = [decide(work)]
        return chosen[0]

    def trained(self: Any, *args: Any, **kwargs: Any) -> Any:
        result, parameters, rank = stock(self, *args, **kwargs), list(self.model.parameters()), os.environ["RANK"]
        seen = {
            "wrapper": type(self.model_wrapped).__name__, "held": sorted({type(p).__name__ for p in parameters}),
            "share": sum(tensors.local(p).numel() for p in parameters) / max(sum(p.numel() for p in parameters), 1),
            "bf16": self.args.bf16, "speed": chosen[0].notes(),
        }  # fmt: skip
        (folder / f"{rank}-{len(list(folder.glob(f'{rank}-*')))}.json").write_text(json.dumps(seen))
        return result

    Trainer.train, train.decided = trained, decided


def apart(switch: str) -> None:
    """Ranks find different things on their machine: rank 0 that this is so, the others that it is not."""
    from cltk.run import machine

    yes = os.environ["RANK"] == "0"
    found = {"faster_in_bfloat16": lambda device: yes, "onednn_error": lambda: 1.0 if yes else 0.0}
    setattr(machine, switch, found[switch])


if __name__ == "__main__":
    from cltk.cli import main

    torch.set_num_threads(1)
    if os.environ.get("CLTK_TEST_DEVICES"):
        devices()
    if switch := os.environ.get("CLTK_TEST_APART"):
        apart(switch)
    if folder := os.environ.get("CLTK_TEST_SEEN"):
        note(Path(folder))
    code = main(sys.argv[1:])
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    if not os.environ.get("CLTK_TEST_DEVICES") and "deepspeed" not in sys.modules:  # which keep groups for ever, and these them
        assert not [name for name in names if "gloo" in name], names  # one that holds a tensor aborts Python at its end
    raise SystemExit(code)
