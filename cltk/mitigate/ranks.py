"""The processes that train one model together."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def together() -> bool:
    """Whether torch.distributed has been set up."""
    return dist.is_available() and dist.is_initialized()


def ranks() -> tuple[int, int]:
    """This process and how many there are: (0, 1) alone."""
    return (dist.get_rank(), dist.get_world_size()) if together() else (0, 1)


def agreed(found: Any) -> Any:
    """Rank 0's value on every rank: what is computed on several GPUs differs in its last bits. Every rank must call it."""
    if not together():
        return found
    answer = [found]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]
